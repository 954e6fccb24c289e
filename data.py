"""The data as tensors on the device: the stratified training images, those left over, validation and test images."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from sklearn.utils import resample
from torchvision.datasets import MNIST
from torchvision.datasets.utils import check_integrity
from torchvision.transforms.functional import pil_to_tensor

from runtime.checkpoint import InputError, exclusive_lock, new_directory
from runtime.distributed import own_rows, size
from vae_utils import random_generator

VALIDATION_SIZE = 5_000
SPLITS = ("train", "test")  # those that are scored at the end


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
    ranks: int = 1  # if more, `train` holds this rank's `own_rows` alone

    @property
    def image_shape(self):
        return tuple(self.train.images.shape[1:])

    @property
    def device(self):
        return self.train.images.device


def load_data(config, *, data_dir="data", device="cpu", train_index=None):
    """The Data of a TrainConfig or ClassifierConfig.

    train_index: rows (N,) of the data set to train on, instead of the stratified subset. Raises InputError if the
    images cannot be read, or if there are too few.
    """
    whole, test = load_mnist(data_dir=data_dir, binarize=config.binarize, device=device)
    if train_index is None:
        train = stratified_subset(whole, size=config.train_size, seed=config.seed)
    elif int(train_index.max()) < (count := len(whole.labels)):
        train = whole.at(train_index)
    else:
        reason = f"has only {count:,} training images, the checkpoints were trained on others"
        raise InputError(f"--data-dir {data_dir}: {reason}")
    rest = remaining(whole, train)
    count = min(VALIDATION_SIZE, len(rest.labels))
    validation = stratified_subset(rest, size=count, seed=config.seed) if count >= 100 else test
    return Data(train, validation, rest, test)


def shard(data):
    """The Data of which this rank trains: its own rows of the training images; the same with one rank."""
    if size() == 1:
        return data
    own = own_rows(len(data.train.labels), device=data.device)
    return data._replace(train=data.train.at(own), ranks=size())


def load_mnist(*, data_dir="data", binarize=False, device="cpu"):
    """The 60,000 training and the 10,000 test images, as two Splits.

    torchvision unpacks the archives on the first call, and downloads them only if they are missing. binarize: see
    `binarized`. Raises InputError if the data cannot be read or downloaded.
    """
    raw = Path(data_dir) / "MNIST" / "raw"
    try:
        for name, md5 in MNIST.resources:
            if (raw / name).exists() and not check_integrity(raw / name, md5):
                raise InputError(f"{name} is damaged")
        with new_directory(raw), exclusive_lock(raw, wait=True):
            try:
                parts = _read(data_dir)
            except Exception:
                # A run that was killed while torchvision unpacked the archives has left incomplete files.
                archives = [raw / name for name, _ in MNIST.resources if (raw / name).exists()]
                if not archives:
                    raise
                for path in archives:
                    path.with_suffix("").unlink(missing_ok=True)
                parts = _read(data_dir)
    except Exception as error:  # torchvision raises whatever gzip, urllib and its own readers raise
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(f"{raw}: MNIST cannot be read ({reason}); restore it with 'git checkout -- data'") from None
    splits = []
    for name, part in zip(SPLITS, parts, strict=True):
        grey = part.data.unsqueeze(1)
        images = binarized(grey, name) if binarize else grey.to(device).float() / 127.5 - 1
        classes = tuple(title.split(" - ")[0] for title in part.classes)
        index = torch.arange(len(part), device=device)
        splits.append(Split(images.to(device), part.targets.to(device), index, classes))
    return tuple(splits)


def _read(data_dir):
    """torchvision's two parts of MNIST."""
    return [MNIST(data_dir, train=train, download=True) for train in (True, False)]


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
    """The Split of the images of `split`, a whole part of the data set, that are not in the Split `part`."""
    kept = torch.ones(len(split.labels), dtype=torch.bool, device=split.labels.device)
    kept[part.index] = False
    return split.at(torch.nonzero(kept).flatten())


def rows_per_class(split, count):
    """The rows of the first `count` images of each class, (classes, count). Raises InputError if one has fewer."""
    rows = [torch.nonzero(split.labels == label).flatten()[:count] for label in range(split.num_classes)]
    fewest = min(len(row) for row in rows)
    if fewest < count:
        raise InputError(f"{count} images of each class were asked for, but one class has only {fewest}")
    return torch.stack(rows)


def random_rows_per_class(split, count, *, seed):
    """The rows of `count` random images of each class, (classes, count); a larger count only adds images.

    Raises InputError if a class has fewer.
    """
    order = torch.randperm(len(split.labels), generator=random_generator(seed, "scored images")).to(split.labels.device)
    return order[rows_per_class(split.at(order), count)]


def load_images(paths):
    """Image files of 28 x 28 pixels, light strokes on a dark ground as in MNIST: (N, 1, 28, 28) in [-1, 1].

    Raises InputError for a file that is missing, no image, or of another size.
    """
    images = []
    for path in paths:
        try:
            with Image.open(path) as image:
                grey = pil_to_tensor(image.convert("L"))  # (1, height, width)
        except UnidentifiedImageError:
            raise InputError(f"{path}: not an image") from None
        except OSError as error:
            raise InputError(f"{path}: {error.strerror or error}") from None
        if grey.shape != (1, 28, 28):
            raise InputError(f"{path}: is {grey.shape[2]} x {grey.shape[1]} pixels, not 28 x 28")
        images.append(grey.float() / 127.5 - 1)
    return torch.stack(images)
