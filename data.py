"""Data sets and their splits as tensors: MNIST and its kin, and folders of images; see images.py."""

import contextlib
import gzip
import hashlib
import io
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple
from urllib.error import URLError

import numpy as np
import torch
from sklearn.utils import resample
from torchvision.datasets import KMNIST, MNIST, FashionMNIST
from torchvision.datasets.utils import check_integrity, download_url

from images import dark_on_light, load_images, of_one_value, read_folder, warn_unlike_mnist  # noqa: F401, for users
from runtime.checkpoint import exclusive_lock, new_directory
from runtime.config import InputError, about
from runtime.distributed import WHOLE, Shard, own_shard
from vae_utils import random_generator

VALIDATION_SIZE, FEWEST_VALIDATION = 5_000, 20
SPLITS = ("train", "test")  # those that are scored at the end
DATASETS = {"mnist": MNIST, "fashion-mnist": FashionMNIST, "kmnist": KMNIST}
UNPACKED = {  # the MD5 of what MNIST's archives hold
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}


@dataclass(frozen=True)
class Split:
    """Images of one kind with their labels."""

    images: torch.Tensor  # (N, C, H, W), float32 in [-1, 1]
    labels: torch.Tensor  # (N,), int64
    index: torch.Tensor  # (N,), int64: the row in the data set's own order
    classes: tuple  # their names
    digest: str = ""  # SHA-256 of a data set's images as they were read, in order, and labels; of no part of it
    note: str = ""  # what else there is to say of the data set

    @property
    def num_classes(self):
        return len(self.classes)

    def at(self, rows):
        """The Split of some rows (M,)."""
        rows = rows.to(self.labels.device)
        chosen = {name: getattr(self, name)[rows] for name in ("images", "labels", "index")}
        return replace(self, **chosen, digest="")


class Data(NamedTuple):
    """What an experiment uses."""

    train: Split  # the stratified training images
    validation: Split  # for training curves and choices: none of `train`; of the test images only where none are left
    rest: Split  # the training images of the data set that are not in `train`
    test: Split  # scored once, at the end
    shard: Shard = WHOLE  # the part of the training images that `train` holds
    said: tuple = ()  # lines to print before training: what was understood of a user's own data
    digest: dict | None = None  # of all images of the data set, in order, plain values

    @property
    def image_shape(self):
        return tuple(self.train.images.shape[1:])

    @property
    def device(self):
        return self.train.images.device


def load_data(config, *, data_dir="data", device="cpu", train_index=None, at_most=False):
    """The Data of a TrainConfig or ClassifierConfig.

    train_index: rows (N,) of the data set to train on, instead of the stratified subset. at_most: the configured number
    of training images is a limit; of a smaller data set, an eighth is left for validation, unless it has validation
    images of its own. Raises InputError if the images cannot be read, if there are too few, or if nearly all their
    pixels are alike.
    """
    options = {"binarize": config.binarize, "resize": config.resize, "device": device}
    whole, test, *given = load_dataset(config.dataset, data_dir=data_dir, validation=True, **options)
    count, source = len(whole.labels), source_of(config.dataset, data_dir)
    _check(whole, test, source)
    if train_index is None:
        wanted = min(config.train_size, count - (0 if given else count // 8)) if at_most else config.train_size
        with about(f"--train-size {wanted}"):
            train = stratified_subset(whole, size=wanted, seed=config.seed)
            _require_all_classes(train, "training")
    else:
        train = whole.at(_rows_of(train_index.to(device), whole, source))
    rest = remaining(whole, train)
    count = min(VALIDATION_SIZE, len(rest.labels))
    enough = count >= max(FEWEST_VALIDATION, whole.num_classes)
    drawn = stratified_subset(rest, size=count, seed=config.seed) if enough and not given else test
    validation = given[0] if given else drawn
    said = whole.note
    if config.dataset not in DATASETS:
        counts = sum(split.labels.bincount(minlength=whole.num_classes) for split in (whole, test, *given)).tolist()
        classes = ", ".join(f"{name} {count:,}" for name, count in zip(whole.classes, counts, strict=True))
        classes = classes if len(counts) <= 30 else f"{min(counts):,} to {max(counts):,} images"
        validating = "the test images" if validation is test else len(validation.labels)
        splits = f"{len(train.labels)} training, {len(test.labels)} test images, validation {validating}"
        said = "; ".join(filter(None, [f"{config.dataset}: {len(counts)} classes ({classes}); {splits}", whole.note]))
    digest = _digest(whole, test, *given)
    return Data(train, validation, rest, test, said=(said,) if said else (), digest=digest)


def source_of(dataset, data_dir):
    """The flag that names a data set to the user."""
    return f"--data-dir {data_dir}" if dataset in DATASETS else f"--dataset {dataset}"


def _check(train, test, source):
    """Raises InputError if the networks, the scores or the figures cannot do with the two Splits."""
    with about(source):
        _require_all_classes(train, "training")
        _require_all_classes(test, "test")
        height, width = train.images.shape[2:]
        if height % 4 or width % 4:
            raise InputError(f"images of {height} x {width} pixels: the networks need multiples of four")
        if text := of_one_value(train.images):
            raise InputError(f"the training images: {text[0]}")


def _require_all_classes(split, kind):
    counts = split.labels.bincount(minlength=split.num_classes).tolist()
    if missing := [name for name, count in zip(split.classes, counts, strict=True) if not count]:
        raise InputError(f"no {kind} image of class {', '.join(missing)}")


def _digest(*splits):
    """What states and checkpoints keep of a data set, plain values; see runtime.config.image_differences.

    None for made-up Splits.
    """
    counts = [split.labels.bincount(minlength=split.num_classes).tolist() for split in splits]
    columns = zip(("training", "test", "validation"), splits, counts, strict=False)
    parts = {kind: {"counts": count, "sha256": split.digest} for kind, split, count in columns}
    return {"classes": list(splits[0].classes), **parts} if splits[0].digest else None


def _rows_of(index, whole, source):
    """The rows (N,) of the Split `whole` whose `index` is this one. Raises InputError if it has not all of them."""
    rows = torch.searchsorted(whole.index, index).clamp(max=len(whole.index) - 1)
    if not torch.equal(whole.index[rows], index):
        reason = "the checkpoints were trained on others"
        raise InputError(f"{source}: has only {len(whole.labels):,} training images, {reason}")
    return rows


def take_shard(data):
    """The Data with which this rank trains: its own rows of the training images; the same with one rank."""
    shard = own_shard()
    if shard == WHOLE:
        return data
    return data._replace(train=data.train.at(shard.rows(len(data.train.labels), device=data.device)), shard=shard)


def load_dataset(name="mnist", *, data_dir="data", binarize=False, resize=False, device="cpu", validation=False):
    """All training and all test images of a data set, as two Splits.

    name: one of DATASETS, whose archives are read, and downloaded if they are missing; or "folder:PATH", a folder with
    a folder of images for each class, or with such folders in PATH/train and PATH/test; see images.read_folder. If it
    has no test images, a fifth of every class, always the same, are. Their `index` is the row in torchvision's
    ImageFolder(PATH).samples. binarize: see `binarized`. validation: a third Split follows if the folder has one.
    Raises InputError if the data cannot be read or downloaded.
    """
    kind, _, path = name.partition(":")
    if kind == "folder" and path:
        folder = read_folder(path, resize=resize)
        classes, parts, note = folder if "test" in folder.parts else _draw_test_images(folder)
    elif name not in DATASETS:
        hint = f"; for that folder say folder:{name}" if Path(name).is_dir() else ""
        raise InputError(f"--dataset {name}: not one of {', '.join(DATASETS)}, folder:PATH{hint}")
    elif resize:
        raise InputError(f"--resize: for the images of --dataset folder:PATH, not for {name}")
    else:
        classes, parts, note = _read_archives(name, data_dir)
    splits = []
    for split in (*SPLITS, *(["validation"] if validation and "validation" in parts else [])):
        grey, labels, index, contents = parts[split]
        digest = hashlib.sha256(contents.numpy().tobytes() + labels.numpy().tobytes()).hexdigest()
        images = binarized(grey, split) if binarize else grey.to(device).float() / 127.5 - 1
        splits.append(Split(images.to(device), labels.to(device), index.to(device), classes, digest, note))
    return tuple(splits)


def _draw_test_images(folder):
    """The Folder with a fifth of every class as test images."""
    _, labels, *_ = folder.parts["train"]
    order = torch.randperm(len(labels), generator=random_generator(0, "test images of a folder"))
    is_test = torch.zeros(len(labels), dtype=torch.bool)
    for label, count in enumerate(labels.bincount().tolist()):
        is_test[order[labels[order] == label][: count // 5]] = True
    train, test = ([column[rows] for column in folder.parts["train"]] for rows in (~is_test, is_test))
    return folder._replace(parts={**folder.parts, "train": train, "test": test})


def _read_archives(name, data_dir):
    """Classes, {split: grey values (N, 1, H, W), labels, index, grey values}, and a note, of a torchvision data set.

    An archive is verified by its MD5 and read; what was unpacked beside it, or processed by an old torchvision, is not.
    Nothing is written, but for archives that are downloaded.
    """
    dataset = DATASETS[name]
    raw = Path(data_dir) / dataset.__name__ / "raw"
    try:
        if not all(check_integrity(raw / file, md5) for file, md5 in dataset.resources):
            _download(dataset, raw, data_dir)
        parts, verified = {}, True
        for split, resources in zip(SPLITS, (dataset.resources[:2], dataset.resources[2:]), strict=True):
            (images, known), (labels, also_known) = (_read_idx(raw / file, dataset) for file, _ in resources)
            shape = parts["train"][0].shape[2:] if parts else images.shape[1:]
            if images.ndim != 3 or labels.shape != images.shape[:1] or images.shape[1:] != shape:
                shapes = f"images {images.shape}, labels {labels.shape}, training images of {tuple(shape)}"
                raise InputError(f"the arrays of {resources[0][0]} and {resources[1][0]} do not fit: {shapes}")
            if len(labels) and labels.max() >= len(dataset.classes):
                raise InputError(f"{resources[1][0]} has a label {labels.max()}, of {len(dataset.classes)} classes")
            grey = torch.from_numpy(images).unsqueeze(1)
            parts[split] = grey, torch.from_numpy(labels).long(), torch.arange(len(labels)), grey
            verified = verified and known and also_known
    except (OSError, RuntimeError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"{raw}: {dataset.__name__} cannot be read ({reason}); {_advice(dataset, data_dir)}") from None
    counts = " and ".join(f"{len(labels):,} {split}" for split, (_, labels, *_) in parts.items())
    note = f"{raw}: not verified, without archives: {counts} images of {' x '.join(map(str, grey.shape[2:]))} pixels"
    classes = tuple(title.split(" - ")[0] for title in dataset.classes)  # MNIST's are like "7 - seven"
    return classes, parts, "" if verified else note


def _read_idx(archive, dataset):
    """The array (N, ...) uint8 in an archive of MNIST's format, or in the file beside it; whether it was verified."""
    file = archive.with_suffix("")
    packed = archive.exists()
    contents = gzip.decompress(archive.read_bytes()) if packed else file.read_bytes()
    start = 4 + 4 * contents[3] if contents[:3] == b"\0\0\x08" else len(contents)
    shape = np.frombuffer(contents[4:start], ">i4")
    if len(shape) == 0 or len(contents) - start != shape.prod():
        raise InputError(f"{file.name} is damaged")
    known = packed or (dataset is MNIST and hashlib.md5(contents).hexdigest() == UNPACKED[file.name])
    # Other files of MNIST's format may take their place, but none that look like MNIST's.
    if dataset is MNIST and not known and shape[0] == (60_000 if file.name.startswith("train") else 10_000):
        raise InputError(f"{file.name} is not MNIST's, it was changed")
    return np.frombuffer(contents, np.uint8, offset=start).reshape(shape).copy(), known


def _download(dataset, raw, data_dir):
    """Downloads what is not there. Raises InputError for a damaged archive, or without a network."""
    if not raw.exists() and _elsewhere(dataset, Path(data_dir).resolve().parents[:2]):
        raise InputError("No such directory")
    with new_directory(raw), exclusive_lock(raw, wait=True), contextlib.redirect_stdout(io.StringIO()):
        for file, md5 in dataset.resources:
            if (raw / file).exists() and not check_integrity(raw / file, md5):
                raise InputError(f"{file} is damaged")
            if (raw / file).exists() or (raw / file).with_suffix("").exists():
                continue
            for mirror in dataset.mirrors:
                with contextlib.suppress(RuntimeError, URLError):
                    download_url(f"{mirror}{file}", raw, file, md5)
                    break
            else:
                raise InputError(f"Error downloading {file}")


def _elsewhere(dataset, directories):
    """The first of the directories that has the files of the data set, for --data-dir, or None."""
    names = [f"{dataset.__name__}/raw/{file}" for file, _ in dataset.resources]
    return next((place for place in directories if any((place / name).exists() for name in names)), None)


def _advice(dataset, data_dir):
    """What to do where the data set cannot be read."""
    here, ours = Path(data_dir).resolve(), Path(__file__).resolve().parent / "data"
    if here == ours and dataset is MNIST:
        return "restore it with 'git checkout -- data'"
    if place := _elsewhere(dataset, [place for place in (*here.parents[:2], ours) if place != here]):
        return f"--data-dir {place} has it"
    files = ", ".join(file for file, _ in dataset.resources)
    return f"remove damaged files; without a network, this directory needs {files}"


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
