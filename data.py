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

from image_files import dark_note, dark_on_light, one_value_note
from images import read_folder
from runtime.checkpoint import exclusive_lock, new_directory
from runtime.config import InputError, LearnerConfig, about, check_device, source
from runtime.distributed import WHOLE, Shard, own_shard
from vae_utils import random_generator

VALIDATION_SIZE, FEWEST_VALIDATION = 5_000, 20
SPLITS = ("train", "test")  # those that are scored at the end
DATASETS = {"mnist": MNIST, "fashion-mnist": FashionMNIST, "kmnist": KMNIST}
UNPACKED = {  # the files in MNIST's archives, by their MD5
    "6bbc9ace898e44ae57da46a324031adb": "train-images-idx3-ubyte",
    "a25bea736e30d166cdddb491f175f624": "train-labels-idx1-ubyte",
    "2646ac647ad5339dbf082846283269ea": "t10k-images-idx3-ubyte",
    "27ae3e4e09519cfbb04c329615203637": "t10k-labels-idx1-ubyte",
}


@dataclass(frozen=True)
class Split:
    """Images of one kind with their labels."""

    images: torch.Tensor  # (N, C, H, W), float32 in [-1, 1]
    labels: torch.Tensor  # (N,), int64
    index: torch.Tensor  # (N,), int64: the row in the data set's own order
    classes: tuple  # their names
    digest: str = ""  # SHA-256 of all images as they were read, in order, and labels; of a part empty
    note: str = ""  # what else there is to say of the data set

    @property
    def num_classes(self):
        return len(self.classes)

    def counts(self):
        """{class: how many images it has}."""
        return dict(zip(self.classes, self.labels.bincount(minlength=self.num_classes).tolist(), strict=True))

    def at(self, rows):
        """The Split of some rows (M,)."""
        rows = torch.as_tensor(rows, device=self.labels.device)
        return replace(self, images=self.images[rows], labels=self.labels[rows], index=self.index[rows], digest="")


class Data(NamedTuple):
    """What an experiment uses."""

    train: Split  # the stratified training images
    validation: Split  # for training curves and choices: none of `train`; of the test images only where none are left
    rest: Split  # training images that are not in `train`; `validation` is among them, unless the folder has its own
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


def load_data(config, *, data_dir="data", device="cpu", train_index=None, at_most=None):
    """The Data of a TrainConfig or ClassifierConfig.

    train_index: rows (N,) to train on, instead of the stratified subset. at_most: whether the configured number of
    training images is only a limit; None: if it is the default. Of a smaller data set, an eighth is left for
    validation, unless that is too few or it has validation images of its own. Raises InputError for images that cannot
    be read, are too few, or nearly all one grey.
    """
    if not isinstance(config, LearnerConfig):
        raise InputError("load_data takes settings: load_data(TrainConfig(dataset='mnist', train_size=500))")
    check_device(device)
    options = {"binarize": config.binarize, "resize": config.resize, "device": device}
    whole, test, *given = load_dataset(config.dataset, data_dir=data_dir, validation=True, **options)
    total, fewest = len(whole.labels), max(FEWEST_VALIDATION, whole.num_classes)
    with about(source(config.dataset, data_dir)):
        _check(whole, test)
        if train_index is not None:
            index = torch.as_tensor(train_index, device=device)
            if index.dtype != torch.int64 or not index.numel() or index.unique().shape != index.shape:
                raise InputError("train_index: rows of the data set, whole numbers, all different, as Split.index")
            train = whole.at(torch.searchsorted(whole.index, index).clamp(max=total - 1))
            if not torch.equal(train.index, index):
                raise InputError(f"has {total:,} training images; the checkpoints were trained on others")
    if train_index is None:
        left = 0 if given or total // 8 < fewest else total // 8  # to validate
        at_most = config.train_size == LearnerConfig.train_size if at_most is None else at_most
        size = min(config.train_size, total - left) if at_most else config.train_size
        with about(f"--train-size {size}"):
            train = stratified_subset(whole, size=size, seed=config.seed)
            _check(train, test)
    rest = whole.at(~torch.isin(whole.index, train.index))
    validation = given[0] if given else test
    if not given and len(rest.labels) >= fewest:
        validation = stratified_subset(rest, size=min(VALIDATION_SIZE, len(rest.labels)), seed=config.seed)
    kinds = dict(zip(("training", "test", "validation"), (whole, test, *given), strict=False))
    digest = {kind: {"counts": split.counts(), "sha256": split.digest} for kind, split in kinds.items()}
    said = [whole.note] if whole.note else []
    if config.dataset not in DATASETS:
        counts = [part["counts"] for part in digest.values()]
        classes = [f"{name} {' + '.join(str(count[name]) for count in counts)}" for name in whole.classes]
        understood = f"{config.dataset}: {len(classes)} classes, {' + '.join(kinds)} images: {', '.join(classes)}"
        used = "the test images" if validation is test else f"{len(validation.labels):,}"
        said = ["; ".join([understood, f"{len(train.labels):,} train, {used} validate", *said])]
    return Data(train, validation, rest, test, said=tuple(said), digest=digest)


def _check(train, test):
    """Raises InputError if the networks, the scores or the figures cannot do with the two Splits."""
    for split, kind in ((train, "training"), (test, "test")):
        check_classes(split, kind)
        if text := one_value_note(split.images):
            raise InputError(f"the {kind} images: {text[0]}")
    height, width = train.images.shape[2:]
    if height % 4 or width % 4 or height * width == 16:  # of 4 x 4, batch normalization would have one value an image
        raise InputError(f"images of {height} x {width} pixels: the networks need multiples of four, beyond 4 x 4")


def check_classes(split, kind, *, fewest=1):
    """Raises InputError if a class has fewer images."""
    if few := [f"{name} ({count})" for name, count in split.counts().items() if count < fewest]:
        raise InputError(f"too few {kind} images of class {', '.join(few)}; every class needs {fewest} or more")


def take_shard(data):
    """The Data with which this rank trains: its own rows of the training images; the same with one rank."""
    shard = own_shard()
    if shard == WHOLE:
        return data
    return data._replace(train=data.train.at(shard.rows(len(data.train.labels), device=data.device)), shard=shard)


def load_dataset(name="mnist", *, data_dir="data", binarize=False, resize=False, device="cpu", validation=False):
    """All training and all test images of a data set, as two Splits.

    name: one of DATASETS, whose archives are verified by their MD5 and read, and downloaded if they are missing; or
    "folder:PATH", see images.read_folder. If that has no test images, a fifth of every class, always the same, are.
    binarize: see `binarized`. validation: a third Split follows if the folder has one. Raises InputError if the data
    cannot be read or downloaded.
    """
    kind, _, path = name.partition(":")
    if kind == "folder" and path:
        classes, parts, note = read_folder(path, resize=resize)
    elif name not in DATASETS:
        hint = f"; for that folder say folder:{name}" if Path(name).is_dir() else ""
        raise InputError(f"--dataset {name}: not one of {', '.join(DATASETS)}, folder:PATH{hint}")
    elif resize:
        raise InputError(f"--resize: for the images of --dataset folder:PATH, not for {name}")
    else:
        classes, parts, note = _read_archives(name, data_dir)
    parts = {split: (*columns, torch.arange(len(columns[0]))) for split, columns in parts.items()}
    if "test" not in parts:
        parts["train"], parts["test"] = _draw_test_images(parts["train"])
    splits = []
    for split in [*SPLITS, "validation"] if validation and "validation" in parts else SPLITS:
        grey, labels, contents, index = parts[split]
        digest = hashlib.sha256(contents.numpy().tobytes() + labels.numpy().tobytes()).hexdigest()
        images = binarized(grey, split) if binarize else grey.to(device).float() / 127.5 - 1
        splits.append(Split(images.to(device), labels.to(device), index.to(device), classes, digest, note))
    return tuple(splits)


def _draw_test_images(columns):
    """The columns (N, ...) of a folder's training and test images: a fifth of every class; the labels come second."""
    labels = columns[1]
    order = torch.randperm(len(labels), generator=random_generator(0, "test images of a folder"))
    is_test = torch.zeros(len(labels), dtype=torch.bool)
    for label, count in enumerate(labels.bincount().tolist()):
        is_test[order[labels[order] == label][: count // 5]] = True
    return [[column[rows] for column in columns] for rows in (~is_test, is_test)]


def _read_archives(name, data_dir):
    """What `read_folder` returns, of an archive: grey values in place of hashes. Unpacks nothing on disk."""
    dataset = DATASETS[name]
    raw = Path(data_dir) / dataset.__name__ / "raw"
    with about(raw):
        try:
            if not all(check_integrity(raw / file, md5) for file, md5 in dataset.resources):
                _download(dataset, raw)
            arrays, known = zip(*(_read_idx(raw / file, dataset) for file, _ in dataset.resources), strict=True)
        except (OSError, RuntimeError) as error:
            reason = getattr(error, "strerror", None) or error
            reason = f"{Path(error.filename).name}: {reason}" if getattr(error, "filename", None) else reason
            advice = "" if isinstance(error, PermissionError) else f"; {_advice(dataset, Path(data_dir).resolve())}"
            raise InputError(f"{dataset.__name__} cannot be read ({reason}){advice}") from None
        shapes = train, train_labels, test, test_labels = [array.shape for array in arrays]
        fitting = train[1:] == test[1:] and (train[:1], test[:1]) == (train_labels, test_labels)
        if len(train) != 3 or not all(train) or not fitting:
            sizes = ", ".join(" x ".join(map(str, shape)) for shape in shapes)
            raise InputError(f"training images, their labels, test images, their labels do not fit: {sizes}")
        if (label := max(int(labels.max(initial=0)) for labels in arrays[1::2])) >= len(dataset.classes):
            raise InputError(f"label {label}: there are {len(dataset.classes)} classes, counted from 0")
    parts = {}
    for split, images, labels in zip(SPLITS, arrays[::2], arrays[1::2], strict=True):
        grey = torch.from_numpy(images).unsqueeze(1)
        parts[split] = grey, torch.from_numpy(labels).long(), grey
    size = f"{train[0]:,} and {test[0]:,} images of {train[1]} x {train[2]} pixels"
    classes = tuple(title.split(" - ")[0] for title in dataset.classes)  # MNIST's are like "7 - seven"
    notes = [] if all(known) else [f"{raw}: not verified, without archives: {size}", *_notes_on_splits(*arrays[::2])]
    return classes, parts, "; ".join([*notes, *dark_note(arrays[0])])


def _notes_on_splits(train, test):
    """Sentences on training and test images (N, H, W), uint8, that do not go together."""
    same = len({image.tobytes() for image in train} & {image.tobytes() for image in test})
    notes = [f"{same:,} pictures are both test and training images"] * (same > 0)
    some = [torch.from_numpy(grey[:1000, None]) / 127.5 - 1 for grey in (train, test)]
    if len({bool(dark_on_light(images).float().mean() > 0.5) for images in some}) > 1:
        inverted = "most images of training or test are dark on a light background, those of the other not"
        notes.append(f"{inverted}: is that meant?")
    highs = [int(grey.max()) for grey in (train, test)]
    if 4 * min(highs) < max(highs):
        notes.append(f"grey values of at most {highs[0]} in training, {highs[1]} in test images: is that meant?")
    return notes


def _read_idx(archive, dataset):
    """The array (N, ...) uint8 in an archive of MNIST's format, or in the file beside it; whether it was verified.

    Raises RuntimeError for a file that is damaged or not what its name says, InputError for one of another type.
    """
    file, packed = archive.with_suffix(""), archive.exists()
    if file.is_dir():
        raise RuntimeError(f"{file.name} is a directory")
    contents = gzip.decompress(archive.read_bytes()) if packed else file.read_bytes()
    if contents[:2] == b"\0\0" and contents[2:3] in (b"\x09", b"\x0b", b"\x0c", b"\x0d", b"\x0e"):
        raise InputError(f"{file.name} holds numbers of another type than unsigned bytes")
    start = 4 + 4 * sum(contents[3:4]) if contents[:3] == b"\0\0\x08" else 4
    shape = np.frombuffer(contents[4:start], ">i4") if len(contents) >= start else np.empty(0)
    if not 0 < len(shape) < 9 or (shape < 0).any() or len(contents) - start != shape.prod():
        raise RuntimeError(f"{file.name} is damaged")
    mnist = None if packed else UNPACKED.get(hashlib.md5(contents, usedforsecurity=False).hexdigest())
    if mnist and (dataset, file.name) != (MNIST, mnist):
        raise RuntimeError(f"{file.name} is MNIST's {mnist}")
    known = packed or bool(mnist)  # archives were verified
    # Other files of MNIST's format may take their place, but none that look like MNIST's.
    if dataset is MNIST and not known and shape[0] == (60_000 if file.name.startswith("train") else 10_000):
        raise RuntimeError(f"{file.name} is not MNIST's, it was changed")
    return np.frombuffer(contents, np.uint8, offset=start).reshape(shape).copy(), known


def _download(dataset, raw):
    """Downloads what is not there. Raises RuntimeError for a damaged archive, or without a network."""
    if not raw.exists() and _elsewhere(dataset, raw.resolve().parents[2:4]):
        raise RuntimeError("No such directory")
    with new_directory(raw), exclusive_lock(raw, wait=True), contextlib.redirect_stdout(io.StringIO()):
        for file, md5 in dataset.resources:
            if (raw / file).exists() and not check_integrity(raw / file, md5):
                raise RuntimeError(f"{file} is damaged, or not {dataset.__name__}'s; your own go there unpacked")
            if (raw / file).exists() or (raw / file).with_suffix("").exists():
                continue
            for mirror in dataset.mirrors:
                try:
                    download_url(f"{mirror}{file}", raw, file, md5)
                    break
                except (RuntimeError, URLError) as error:
                    reason = getattr(error, "reason", error)
            else:
                raise RuntimeError(f"Error downloading {file}: {reason}")


def _elsewhere(dataset, directories):
    """The first of the directories that holds the data set, or None."""
    for place in directories:
        with contextlib.suppress(OSError):  # in a folder without the right to enter it
            if any((place / dataset.__name__ / "raw").glob("*-ubyte*")):
                return place
    return None


def _advice(dataset, here):
    """What to do if the data set cannot be read in the directory `here`."""
    ours = Path(__file__).resolve().parent / "data"
    if here == ours and dataset is MNIST and (ours.parent / ".git").exists():
        return "restore it with 'git checkout -- data'"
    if place := _elsewhere(dataset, [place for place in (*here.parents[:2], ours) if place != here]):
        return f"--data-dir {place} has it"
    files = ", ".join(file for file, _ in dataset.resources)
    return f"without a network, this directory needs {files}; remove damaged ones"


def binarized(grey, purpose):
    """Pixels -1 or 1 from grey values 0 to 255 (N, *image): a 1 has the probability grey / 255.

    The draw depends on `purpose` alone, not on the experiment's seed (as in Salakhutdinov & Murray 2008).
    """
    uniform = torch.rand(grey.shape, generator=random_generator(0, "binarize", purpose)).to(grey.device)
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


def rows_per_class(split, count):
    """The rows of the first `count` images of each class, (classes, count). Raises InputError if one has fewer."""
    rows = [torch.nonzero(split.labels == label).flatten()[:count] for label in range(split.num_classes)]
    if (fewest := min(map(len, rows))) < count:
        images = f"{count} image{'s' * (count > 1)} of each class"
        raise InputError(f"{images} were asked for, but one class has only {fewest}")
    return torch.stack(rows)
