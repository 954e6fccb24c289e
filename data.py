"""MNIST as tensors on the device, and the stratified subset that every script trains on."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from sklearn.utils import resample
from torchvision.datasets import MNIST
from torchvision.datasets.utils import check_integrity
from torchvision.transforms.functional import pil_to_tensor

from files import InputError, new_directory, waiting_lock

TRAIN_SIZE = 20_000
DIGITS = 10


class Split(NamedTuple):
    """One part of MNIST."""

    images: torch.Tensor  # (N, 1, 28, 28), float32 in [-1, 1]
    labels: torch.Tensor  # (N,), int64
    index: torch.Tensor  # (N,), int64: the row in MNIST's own order


def load_mnist(*, data_dir="data", device="cpu"):
    """The 60,000 training and the 10,000 test images on the device, as two Splits.

    torchvision checks the archives' MD5 sums and unpacks them on the first call; only if they are not there does
    it download them. Raises InputError if the data can be neither read nor had.
    """
    raw = Path(data_dir) / "MNIST" / "raw"
    try:
        for name, md5 in MNIST.resources:
            if (raw / name).exists() and not check_integrity(raw / name, md5):
                raise InputError(f"{name} is damaged")
        with new_directory(raw), waiting_lock(raw):
            try:
                parts = _read(data_dir)
            except Exception:
                # A run that was killed while torchvision unpacked has left files of which only a part is there.
                archives = [raw / name for name, _ in MNIST.resources]
                unpacked = [
                    path.with_suffix("") for path in archives if path.exists() and path.with_suffix("").exists()
                ]
                if not unpacked:
                    raise
                for path in unpacked:
                    path.unlink()
                parts = _read(data_dir)
    except Exception as error:  # torchvision raises whatever gzip, urllib and its own readers raise
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(f"{raw}: MNIST cannot be read ({reason}); restore it with 'git checkout -- data'") from None
    return tuple(
        Split(
            images=(part.data.to(device).float() / 127.5 - 1).unsqueeze(1),
            labels=part.targets.to(device),
            index=torch.arange(len(part), device=device),
        )
        for part in parts
    )


def _read(data_dir):
    """torchvision's two parts of MNIST."""
    return [MNIST(data_dir, train=train, download=True) for train in (True, False)]


def stratified_subset(split, *, size=TRAIN_SIZE, seed=0):
    """The Split of `size` images in which every digit has its share, drawn by scikit-learn; depends on the seed alone.

    Raises InputError if there are not that many images, or fewer than there are digits.
    """
    if not DIGITS <= size <= len(split.labels):
        raise InputError(
            f"a stratified subset of {size} images is impossible: {DIGITS} to {len(split.labels)} can be drawn"
        )
    labels = split.labels.cpu().numpy()
    rows = resample(np.arange(len(labels)), replace=False, n_samples=size, stratify=labels, random_state=seed)
    return at_rows(split, torch.from_numpy(np.sort(rows)))


def at_rows(split, rows):
    """The Split of some rows (N,) of another."""
    rows = rows.to(split.labels.device)
    return Split(*(column[rows] for column in split))


def remaining(split, part):
    """The Split of the images of `split`, all of MNIST's training or test images, that are not in the Split `part`."""
    kept = torch.ones(len(split.labels), dtype=torch.bool, device=split.labels.device)
    kept[part.index] = False
    return Split(*(column[kept] for column in split))


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


def rows_per_digit(labels, count):
    """The rows of the first `count` images of each digit, (10, count) int64. Raises InputError if one has fewer."""
    rows = [torch.nonzero(labels == digit).flatten()[:count] for digit in range(DIGITS)]
    fewest = min(len(row) for row in rows)
    if fewest < count:
        raise InputError(f"{count} images of each digit were asked for, but one digit has only {fewest}")
    return torch.stack(rows)
