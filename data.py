"""Images as tensors: training, validation and test images of a data set or a folder, and a user's own image files."""

import os
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from sklearn.utils import resample
from torchvision.datasets import KMNIST, MNIST, FashionMNIST, ImageFolder
from torchvision.datasets.folder import IMG_EXTENSIONS
from torchvision.datasets.utils import check_integrity
from torchvision.transforms import functional as transforms

from runtime.checkpoint import InputError, exclusive_lock, new_directory
from runtime.distributed import WHOLE, Shard, own_shard
from vae_utils import random_generator

VALIDATION_SIZE, FEWEST_VALIDATION = 5_000, 20
SPLITS = ("train", "test")  # those that are scored at the end
DATASETS = {"mnist": MNIST, "fashion-mnist": FashionMNIST, "kmnist": KMNIST}
FEWEST_IN_A_FOLDER = 10  # so that a fifth are the two test images of each class that the figures need


@dataclass(frozen=True)
class Split:
    """Images of one kind with their labels."""

    images: torch.Tensor  # (N, C, H, W), float32 in [-1, 1]
    labels: torch.Tensor  # (N,), int64
    index: torch.Tensor  # (N,), int64: the row in the data set's own order
    classes: tuple  # their names

    @property
    def num_classes(self):
        return len(self.classes)

    def at(self, rows):
        """The Split of some rows (M,)."""
        rows = rows.to(self.labels.device)
        return replace(self, images=self.images[rows], labels=self.labels[rows], index=self.index[rows])


class Data(NamedTuple):
    """What an experiment uses."""

    train: Split  # the stratified training images
    validation: Split  # for training curves and choices: none of `train`; of the test images only where none are left
    rest: Split  # the training images of the data set that are not in `train`
    test: Split  # scored once, at the end
    shard: Shard = WHOLE  # the part of the training images that `train` holds

    @property
    def image_shape(self):
        return tuple(self.train.images.shape[1:])

    @property
    def device(self):
        return self.train.images.device


def load_data(config, *, data_dir="data", device="cpu", train_index=None, at_most=False):
    """The Data of a TrainConfig or ClassifierConfig.

    train_index: rows (N,) of the data set to train on, instead of the stratified subset. at_most: the configured number
    of training images is a limit; of a smaller data set, an eighth is left for validation. Raises InputError if the
    images cannot be read, or if there are too few.
    """
    options = {"binarize": config.binarize, "resize": config.resize, "device": device}
    whole, test = load_dataset(config.dataset, data_dir=data_dir, **options)
    if train_index is None:
        count = len(whole.labels)
        wanted = min(config.train_size, count - count // 8) if at_most else config.train_size
        train = stratified_subset(whole, size=wanted, seed=config.seed)
    else:
        train = whole.at(_rows_of(train_index.to(device), whole, config, data_dir))
    rest = remaining(whole, train)
    count = min(VALIDATION_SIZE, len(rest.labels))
    enough = count >= max(FEWEST_VALIDATION, whole.num_classes)
    validation = stratified_subset(rest, size=count, seed=config.seed) if enough else test
    return Data(train, validation, rest, test)


def _rows_of(index, whole, config, data_dir):
    """The rows (N,) of the Split `whole` whose `index` is this one. Raises InputError if it has not all of them."""
    rows = torch.searchsorted(whole.index, index).clamp(max=len(whole.index) - 1)
    if not torch.equal(whole.index[rows], index):
        name = f"--data-dir {data_dir}" if config.dataset in DATASETS else f"--dataset {config.dataset}"
        reason = "the checkpoints were trained on others"
        raise InputError(f"{name}: has only {len(whole.labels):,} training images, {reason}")
    return rows


def take_shard(data):
    """The Data with which this rank trains: its own rows of the training images; the same with one rank."""
    shard = own_shard()
    if shard == WHOLE:
        return data
    return data._replace(train=data.train.at(shard.rows(len(data.train.labels), device=data.device)), shard=shard)


def load_dataset(name="mnist", *, data_dir="data", binarize=False, resize=False, device="cpu"):
    """All training and all test images of a data set, as two Splits.

    name: one of DATASETS, which torchvision unpacks on the first call and downloads if it is missing; or "folder:PATH",
    a folder with a folder of images for each class. Of every class a fifth, always the same, are test images. The
    images of a folder are read as `load_images` does, and their `index` is the row in torchvision's
    ImageFolder(PATH).samples. binarize: see `binarized`. Raises InputError if the data cannot be read or downloaded.
    """
    kind, _, path = name.partition(":")
    if kind == "folder" and path:
        classes, parts = _read_folder(path, resize=resize)
    elif name not in DATASETS:
        hint = f"; for that folder say folder:{name}" if Path(name).is_dir() else ""
        raise InputError(f"--dataset {name}: not one of {', '.join(DATASETS)}, folder:PATH{hint}")
    elif resize:
        raise InputError(f"--resize: for the images of --dataset folder:PATH, not for {name}")
    else:
        classes, parts = _read_archives(name, data_dir)
    splits = []
    for split, (grey, labels, index) in zip(SPLITS, parts, strict=True):
        images = binarized(grey, split) if binarize else grey.to(device).float() / 127.5 - 1
        splits.append(Split(images.to(device), labels.to(device), index.to(device), classes))
    return tuple(splits)


def _read_archives(name, data_dir):
    """The classes of a torchvision data set; grey values (N, 1, 28, 28), labels and index of both splits."""
    dataset = DATASETS[name]
    raw = Path(data_dir) / dataset.__name__ / "raw"
    try:
        for file, md5 in dataset.resources:
            if (raw / file).exists() and not check_integrity(raw / file, md5):
                raise InputError(f"{file} is damaged")
        with new_directory(raw), exclusive_lock(raw, wait=True):
            try:
                parts = _read(dataset, data_dir)
            except Exception:
                # A run that was killed while torchvision unpacked the archives has left incomplete files.
                archives = [raw / file for file, _ in dataset.resources if (raw / file).exists()]
                if not archives:
                    raise
                for path in archives:
                    path.with_suffix("").unlink(missing_ok=True)
                parts = _read(dataset, data_dir)
    except Exception as error:  # torchvision raises whatever gzip, urllib and its own readers raise
        reason = str(error).strip().splitlines()[0].rstrip(":") if str(error).strip() else type(error).__name__
        advice = "restore it with 'git checkout -- data'"
        if name != "mnist":
            files = ", ".join(file for file, _ in dataset.resources)
            advice = f"remove damaged files; without a network, this directory needs {files}"
        raise InputError(f"{raw}: {dataset.__name__} cannot be read ({reason}); {advice}") from None
    classes = tuple(title.split(" - ")[0] for title in parts[0].classes)  # MNIST's are like "7 - seven"
    return classes, [(part.data.unsqueeze(1), part.targets, torch.arange(len(part))) for part in parts]


def _read(dataset, data_dir):
    """torchvision's two parts of a data set."""
    return [dataset(data_dir, train=train, download=True) for train in (True, False)]


def _read_folder(path, *, resize):
    """The classes of a folder of images; grey values, labels and index, rows of ImageFolder.samples, of both splits."""
    path = os.path.expanduser(path)
    name = f"--dataset folder:{path}"
    try:
        folder = ImageFolder(path)
    except OSError as error:  # torchvision's own are without an errno: no folder of a class, or an empty one
        reason = error.strerror or f"{error}; it needs a folder of images for each class"
        raise InputError(f"{name}: {reason}") from None
    labels = torch.tensor(folder.targets)
    counts = labels.bincount(minlength=len(folder.classes)).tolist()
    if len(counts) == 1:
        raise InputError(f"{name}: has one class, {folder.classes[0]}; it needs a folder for each of two or more")
    if (fewest := min(counts)) < FEWEST_IN_A_FOLDER:
        few = f"class {folder.classes[counts.index(fewest)]} has {fewest} image{'s' * (fewest > 1)}"
        raise InputError(f"{name}: {few}; every class needs {FEWEST_IN_A_FOLDER} or more")
    order = torch.randperm(len(labels), generator=random_generator(0, "test images of a folder"))
    is_test = torch.zeros(len(labels), dtype=torch.bool)
    for label, count in enumerate(counts):
        is_test[order[labels[order] == label][: count // 5]] = True
    grey = torch.stack([_read_image(file, resize=resize) for file, _ in folder.samples])
    rows = [torch.nonzero(part).flatten() for part in (~is_test, is_test)]
    return tuple(folder.classes), [(grey[part], labels[part], part) for part in rows]


def binarized(grey, purpose):
    """Pixels -1 or 1 from grey values 0 to 255 (N, *image): a 1 has the probability grey / 255.

    The draw depends on `purpose` alone, not on the experiment's seed (as in Salakhutdinov & Murray 2008).
    """
    uniform = torch.rand(grey.shape, generator=random_generator(0, "binarize", purpose))
    return torch.where(uniform * 255 < grey, 1.0, -1.0)


def stratified_subset(split, *, size, seed=0):
    """The Split of `size` images in which every class has its share, drawn by scikit-learn; depends on the seed alone.

    Raises InputError if `size` is more than the number of images or less than that of classes.
    """
    if not split.num_classes <= size <= len(split.labels):
        limits = f"{split.num_classes} to {len(split.labels)} can be drawn"
        raise InputError(f"a stratified subset of {size} images is impossible: {limits}")
    labels = split.labels.cpu().numpy()
    rows = resample(np.arange(len(labels)), replace=False, n_samples=size, stratify=labels, random_state=seed)
    return split.at(torch.from_numpy(np.sort(rows)))


def remaining(split, part):
    """The Split of the images of `split` that are not in the Split `part`, by their `index`."""
    return split.at(torch.nonzero(~torch.isin(split.index, part.index)).flatten())


def rows_per_class(split, count):
    """The rows of the first `count` images of each class, (classes, count). Raises InputError if one has fewer."""
    rows = [torch.nonzero(split.labels == label).flatten()[:count] for label in range(split.num_classes)]
    fewest = min(len(row) for row in rows)
    if fewest < count:
        images = f"{count} image{'s' * (count > 1)} of each class"
        raise InputError(f"{images} were asked for, but one class has only {fewest}")
    return torch.stack(rows)


def random_rows_per_class(split, count, *, seed):
    """The rows of `count` random images of each class, (classes, count); a larger count only adds images.

    Raises InputError if a class has fewer.
    """
    order = torch.randperm(len(split.labels), generator=random_generator(seed, "scored images")).to(split.labels.device)
    return order[rows_per_class(split.at(order), count)]


def load_images(images, *, resize=False, invert=False):
    """Image files of 28 x 28 pixels as MNIST has them, light strokes on a dark ground: (N, 1, 28, 28) in [-1, 1].

    images: a path, a list of paths, or a folder, whose image files are taken in the order of their names. Colours
    become grey. Where an image is transparent, its ground is black below light strokes and white below dark ones.
    resize: an image of another size is padded to a square with the median of its border, then scaled with
    antialiasing. invert: makes the light dark and the dark light; without it, images that look like dark strokes on a
    light ground give a warning. Raises InputError for a file that is missing, no image, or of another size, and if
    there is no image.
    """
    paths = [Path(images)] if isinstance(images, str | os.PathLike) else [Path(path) for path in images]
    if len(paths) == 1 and paths[0].is_dir():
        paths = _files_in(paths[0])
    if not paths:
        raise InputError("no images: the list of paths is empty")
    images = torch.stack([_read_image(path, resize=resize) for path in paths]) / 127.5 - 1
    if invert:
        return -images
    if count := int(dark_on_light(images).sum()):
        warnings.warn(f"{_unlike_mnist(count, len(images))}: invert=True turns all images", stacklevel=2)
    return images


def _files_in(folder):
    """The image files of a folder, sorted by name."""
    entries = sorted(folder.iterdir())
    files = [path for path in entries if path.is_file() and path.name.lower().endswith(IMG_EXTENSIONS)]
    if not files:
        reason = f"no image files ({', '.join(IMG_EXTENSIONS)})"
        if any(path.is_dir() for path in entries):
            reason += f", only folders; with one folder per class, use --dataset folder:{folder}"
        raise InputError(f"{folder}: {reason}")
    return files


def _read_image(path, *, resize):
    """The grey values of an image file, from 0 to 255, (1, 28, 28) float32; see `load_images`."""
    try:
        with Image.open(path) as image:
            grey = _grey(ImageOps.exif_transpose(image))
    except UnidentifiedImageError:
        raise InputError(f"{path}: not an image") from None
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from None
    except Exception as error:  # no list says what a damaged file makes Pillow raise
        raise InputError(f"{path}: cannot be read ({error})") from None
    if resize:
        return _resized(grey)
    if grey.shape != (1, 28, 28):
        size = f"{grey.shape[2]} x {grey.shape[1]} pixels, not 28 x 28"
        raise InputError(f"{path}: is {size}; resize=True, or the flag --resize, scales it")
    return grey


def _grey(image):
    """The grey values of a PIL image, from 0 to 255, (1, height, width) float32."""
    if image.mode.startswith("I"):  # 16 bits, which Pillow's conversion would clip
        return torch.from_numpy(np.asarray(image).astype(np.float32)).unsqueeze(0) / 257
    if "A" not in image.getbands() and "transparency" not in image.info:
        return transforms.pil_to_tensor(image.convert("L")).float()
    image = image.convert("RGBA")
    grey = transforms.pil_to_tensor(image.convert("L")).float()
    opacity = transforms.pil_to_tensor(image.getchannel("A")).float() / 255
    ground = 255 if (grey * opacity).sum() < 127.5 * opacity.sum() else 0  # what the strokes contrast with
    return grey * opacity + ground * (1 - opacity)


def _resized(grey):
    """Grey values (1, height, width) padded to a square with the median of the border, and scaled to 28 x 28."""
    height, width = grey.shape[1:]
    rows, columns = (max(height, width) - length for length in (height, width))
    padding = [columns // 2, rows // 2, columns - columns // 2, rows - rows // 2]
    square = transforms.pad(grey, padding, fill=float(_border(grey).median()))
    return transforms.resize(square, [28, 28], antialias=True).clamp(0, 255)


def _border(images):
    """The outermost pixels of images (..., H, W), (..., pixels)."""
    sides = images[..., 0, :], images[..., -1, :], images[..., 1:-1, 0], images[..., 1:-1, -1]
    return torch.cat(sides, dim=-1)


def dark_on_light(images):
    """Which images (N, C, H, W) in [-1, 1] look like dark strokes on a light ground, (N,) bool.

    Most of their border is light, and it is lighter than the whole. Of MNIST and Fashion-MNIST, this is no image.
    """
    border = _border(images).flatten(1)
    return (border.median(1).values > 0) & (border.mean(1) > images.flatten(1).mean(1))


def _unlike_mnist(count, total):
    images = f"{count:,} of {total:,} image{'s' * (total > 1)}"
    return f"dark strokes on a light ground in {images}, where MNIST has light ones on a dark ground"


def warn_unlike_mnist(images):
    """Warns, in one line, of images (N, C, H, W) whose pixels are not in [-1, 1], or that are `dark_on_light`.

    To be called by a function that a user calls: the warning names the line of that call.
    """
    low, high = float(images.min()), float(images.max())
    text = None
    if low < -1 or high > 1:
        scaling = "x / 127.5 - 1" if low >= 0 and high <= 255 else "scale them"
        text = f"pixels from {low:g} to {high:g}, expected [-1, 1]: {scaling}"
    elif low >= 0:
        text = "pixels in [0, 1]? expected [-1, 1]: 2 * x - 1"
    elif count := int(dark_on_light(images).sum()):
        text = f"{_unlike_mnist(count, len(images))}: -x turns all images"
    if text:
        warnings.warn(text, stacklevel=3)
