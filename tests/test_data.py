"""MNIST and other data sets, what is verified, their splits, and data of other shapes."""

import gzip
import hashlib
import shutil
import struct
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from conftest import ROOT, image_folder, toy_config, toy_data
from torchvision.datasets import MNIST, FashionMNIST, ImageFolder

from data import binarized, load_data, load_dataset, rows_per_class, stratified_subset
from images import load_images
from runtime.config import InputError, TrainConfig


def test_mnist_is_whole_and_scaled(mnist):
    for split, name, count in zip(mnist, ("train", "t10k"), (60_000, 10_000), strict=True):
        assert split.images.shape == (count, 1, 28, 28)
        assert (split.images.min(), split.images.max()) == (-1, 1)
        archive = ROOT / "data/MNIST/raw" / f"{name}-images-idx3-ubyte.gz"
        raw = np.frombuffer(gzip.decompress(archive.read_bytes()), np.uint8, offset=16).reshape(count, 1, 28, 28)
        assert np.array_equal(np.round((split.images.numpy() + 1) * 127.5), raw)
        raw = gzip.decompress(archive.with_name(f"{name}-labels-idx1-ubyte.gz").read_bytes())
        assert split.labels.tolist() == list(raw[8:])
        assert split.classes == tuple("0123456789")


def test_a_subset_has_every_class_in_its_share(mnist):
    subset = stratified_subset(mnist[0], size=20_000, seed=3)
    assert len(set(subset.index.tolist())) == 20_000
    assert torch.equal(subset.images, mnist[0].images[subset.index])
    share = torch.bincount(mnist[0].labels, minlength=10) / 3
    assert ((torch.bincount(subset.labels, minlength=10) - share).abs() <= 1).all()
    assert rows_per_class(toy_data().train, 3).tolist() == [[label, label + 5, label + 10] for label in range(5)]


def test_the_data_of_an_experiment_do_not_overlap(mnist, monkeypatch):
    monkeypatch.setattr("data.load_dataset", lambda *_, **__: mnist)
    data = load_data(toy_config(train_size=30_000, seed=2))
    train, validation, rest = (set(split.index.tolist()) for split in data[:3])
    assert (len(train), len(validation), len(rest)) == (30_000, 5000, 30_000)
    assert not train & rest
    assert validation < rest
    for name in ("images", "labels"):
        assert torch.equal(getattr(data.rest, name), getattr(mnist[0], name)[data.rest.index])
    assert data.test is mnist[1]
    assert torch.equal(load_data(toy_config(), train_index=data.train.index).train.images, data.train.images)
    assert not torch.equal(load_data(toy_config(train_size=30_000, seed=3)).train.index, data.train.index)
    assert load_data(toy_config(train_size=60_000)).validation is mnist[1]  # where no others are left
    with pytest.raises(InputError, match="has 60,000 training images; the checkpoints were trained on others"):
        load_data(toy_config(), train_index=[3, 60_000])
    for wrong in ([], [3, 3], [[3, 4]], [True, False], [0.5]):
        with pytest.raises(InputError, match="train_index: rows of the data set, whole numbers, all different"):
            load_data(toy_config(), train_index=wrong)
    with pytest.raises(InputError, match=r"load_data takes settings: load_data\(TrainConfig\("):
        load_data("mnist")


def test_binarized_pixels_are_ones_as_often_as_they_are_bright():
    grey = torch.tensor([0, 60, 200, 255], dtype=torch.uint8).expand(20_000, 4)
    ones = binarized(grey, "train")
    assert ones.unique().tolist() == [-1, 1]
    share = ((ones + 1) / 2).mean(0)
    assert share[[0, 3]].tolist() == [0, 1]
    torch.testing.assert_close(share, grey[0] / 255, atol=0.02, rtol=0)
    assert torch.equal(ones, binarized(grey, "train"))
    assert not torch.equal(ones, binarized(grey, "test"))


def idx(values):
    """An array of bytes in MNIST's format."""
    return struct.pack(f">{1 + values.ndim}i", 2048 + values.ndim, *values.shape) + values.tobytes()


@pytest.fixture
def small_fashion(tmp_path, monkeypatch):
    """The folder of small archives of FashionMNIST, which cannot be downloaded, and their pixels and labels."""
    raw, resources, whole = tmp_path / "FashionMNIST/raw", [], []
    raw.mkdir(parents=True)
    for name, count in (("train", 40), ("t10k", 20)):
        pixels = np.random.default_rng(count).integers(0, 256, (count, 28, 28), dtype=np.uint8)
        whole.append((pixels, np.arange(count, dtype=np.uint8) % 10))
        for kind, values in zip(("images-idx3", "labels-idx1"), whole[-1], strict=True):
            archive = raw / f"{name}-{kind}-ubyte.gz"
            archive.write_bytes(gzip.compress(idx(values)))
            resources.append((archive.name, hashlib.md5(archive.read_bytes()).hexdigest()))
    monkeypatch.setattr(FashionMNIST, "resources", resources)
    monkeypatch.setattr(FashionMNIST, "mirrors", ["file:///no/such/mirror/"])
    return raw, whole


def test_another_data_set_is_verified_and_unpacked(small_fashion, tmp_path):
    raw, whole = small_fashion
    splits = load_dataset("fashion-mnist", data_dir=tmp_path)
    for split, (pixels, labels) in zip(splits, whole, strict=True):
        assert np.array_equal(np.round((split.images[:, 0].numpy() + 1) * 127.5), pixels)
        assert split.labels.tolist() == labels.tolist()
        assert (split.classes[0], split.classes[9]) == ("T-shirt/top", "Ankle boot")
    (raw / "train-labels-idx1-ubyte").write_bytes(b"left by a killed run")
    again = load_dataset("fashion-mnist", data_dir=tmp_path, binarize=True)[1]
    assert again.images.unique().tolist() == [-1, 1]
    data = load_data(toy_config(dataset="fashion-mnist", train_size=30), data_dir=tmp_path)
    assert data.train.labels.bincount().tolist() == [3] * 10


def test_what_is_missing_or_damaged_is_named_with_its_directory(small_fashion, tmp_path):
    raw, _ = small_fashion
    archive = raw / "t10k-images-idx3-ubyte.gz"
    archive.unlink()
    with pytest.raises(InputError) as error:
        load_dataset("fashion-mnist", data_dir=tmp_path)
    files = ", ".join(name for name, _ in FashionMNIST.resources)
    missing = f"[Errno 2] No such file or directory: '/no/such/mirror/{archive.name}'"
    reason = f"FashionMNIST cannot be read (Error downloading {archive.name}: {missing})"
    advice = f"without a network, this directory needs {files}; remove damaged ones"
    assert str(error.value) == f"{raw}: {reason}; {advice}"
    for contents, said in (
        (bytes([0, 0, 8]), "ubyte is damaged"),
        (bytes(7), "ubyte is damaged"),
        (bytes([0, 0, 8, 80]) + 80 * bytes([0, 0, 0, 1]) + bytes(1), "ubyte is damaged"),  # of 80 dimensions
        (idx(np.zeros((0, 0, 0), np.uint8)), "do not fit"),
        (b"\0\0\x0d\1" + bytes(8), "ubyte holds numbers of another type than unsigned bytes"),
    ):
        archive.with_suffix("").write_bytes(contents)
        with pytest.raises(InputError, match=said):
            load_dataset("fashion-mnist", data_dir=tmp_path)
    archive.with_suffix("").unlink()
    archive.with_suffix("").mkdir()
    with pytest.raises(InputError, match="t10k-images-idx3-ubyte is a directory"):
        load_dataset("fashion-mnist", data_dir=tmp_path)
    archive.write_bytes(b"no archive")
    with pytest.raises(InputError, match=r"t10k-images-idx3-ubyte.gz is damaged, or .*\); .*; remove damaged ones"):
        load_dataset("fashion-mnist", data_dir=tmp_path)


def test_what_was_unpacked_is_not_used_beside_its_archives(mnist, tmp_path):
    raw = shutil.copytree(ROOT / "data/MNIST/raw", tmp_path / "MNIST/raw", ignore=shutil.ignore_patterns("*-ubyte"))
    for file, _ in MNIST.resources:
        contents = gzip.decompress((raw / file).read_bytes())
        (raw / file).with_suffix("").write_bytes(contents[:16] + contents[16:][::-1])
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    for split, expected in zip(load_dataset(data_dir=tmp_path), mnist, strict=True):
        assert torch.equal(split.images, expected.images)
        assert torch.equal(split.labels, expected.labels)
        assert split.note == ""
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    # Without its archive a file is verified, too.
    for file, _ in MNIST.resources:
        (raw / file).with_suffix("").write_bytes(gzip.decompress((raw / file).read_bytes()))
        (raw / file).unlink()
    assert torch.equal(load_dataset(data_dir=tmp_path)[1].images, mnist[1].images)
    contents = bytearray((raw / "t10k-labels-idx1-ubyte").read_bytes())
    contents[1000] ^= 1
    (raw / "t10k-labels-idx1-ubyte").write_bytes(contents)
    with pytest.raises(InputError, match="t10k-labels-idx1-ubyte is not MNIST's, it was changed"):
        load_dataset(data_dir=tmp_path)


def small_mnist(folder, train=(60, 8, 8), test=(40, 8, 8), labels=None, classes=10):
    """Writes files of MNIST's format, without archives; labels: how many for training."""
    raw = folder / "MNIST/raw"
    raw.mkdir(parents=True)
    for name, shape, count in (("train", train, labels or train[0]), ("t10k", test, test[0])):
        pixels = np.random.default_rng(count).integers(0, 256, shape, dtype=np.uint8)
        (raw / f"{name}-images-idx3-ubyte").write_bytes(idx(pixels))
        (raw / f"{name}-labels-idx1-ubyte").write_bytes(idx(np.arange(count, dtype=np.uint8) % classes))


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ({"labels": 59}, "labels do not fit: 60 x 8 x 8, 59, 40 x 8 x 8, 40"),
        ({"test": (40, 8, 12)}, "labels do not fit: 60 x 8 x 8, 60, 40 x 8 x 12, 40"),
        ({"train": (60, 27, 27), "test": (40, 27, 27)}, "images of 27 x 27 pixels: the networks need multiples of"),
        ({"train": (60, 4, 4), "test": (40, 4, 4)}, "images of 4 x 4 pixels: the networks need multiples of four"),
        ({"classes": 9}, r"too few training images of class 9 \(0\); every class needs 1"),
        ({"test": (7, 8, 8)}, r"too few test images of class 7 \(0\), 8 \(0\), 9 \(0\); every class needs 1"),
        ({"classes": 11}, "raw: label 10: there are 10 classes, counted from 0$"),
    ],
)
def test_files_of_another_shape_are_refused(tmp_path, shapes, message):
    small_mnist(tmp_path, **shapes)
    with pytest.raises(InputError, match=message):
        load_data(toy_config(train_size=50), data_dir=tmp_path)


def test_other_files_of_mnists_format_are_said_to_be_others(tmp_path):
    small_mnist(tmp_path)
    (said,) = load_data(toy_config(train_size=50), data_dir=tmp_path).said
    assert said == f"{tmp_path}/MNIST/raw: not verified, without archives: 60 and 40 images of 8 x 8 pixels"
    pixels = np.zeros((60, 8, 8), np.uint8)
    pixels[:, 2, 1:7] = np.random.default_rng(0).integers(100, 256, (60, 6))
    for name, images, inverted in (("train", pixels, 0), ("t10k", 255 - pixels[:40], 1), ("t10k", pixels[:40], 0)):
        (tmp_path / f"MNIST/raw/{name}-images-idx3-ubyte").write_bytes(idx(images))
        (said,) = load_data(toy_config(train_size=50), data_dir=tmp_path).said
        assert said.count("dark on a light background, those of the other not: is that meant?") == inverted
    assert said.endswith("; 40 pictures are both test and training images")
    (tmp_path / "MNIST/raw/t10k-images-idx3-ubyte").write_bytes(idx(pixels[:40] // 6))
    (said,) = load_data(toy_config(train_size=50), data_dir=tmp_path).said
    assert "; grey values of at most 255 in training, 42 in test images: is that meant?" in said


@pytest.mark.parametrize(
    ("folder", "file"), [("MNIST", "train-images-idx3-ubyte"), ("KMNIST", "t10k-images-idx3-ubyte")]
)
def test_mnists_files_under_other_names_are_refused(tmp_path, folder, file):
    small_mnist(tmp_path)
    (tmp_path / "MNIST").rename(tmp_path / folder)
    there = ROOT / "data/MNIST/raw/t10k-images-idx3-ubyte.gz"
    (tmp_path / folder / "raw" / file).write_bytes(gzip.decompress(there.read_bytes()))
    with pytest.raises(InputError, match=f"{folder}/raw: .*{file} is MNIST's t10k-images-idx3-ubyte"):
        load_dataset(folder.lower(), data_dir=tmp_path)


@pytest.mark.parametrize(("there", "data_dir"), [("d", "d/MNIST"), ("d", "d/MNIST/raw"), (ROOT / "data", "elsewhere")])
def test_another_data_directory_is_told_where_the_data_are(tmp_path, monkeypatch, there, data_dir):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(MNIST, "mirrors", ["file:///no/such/mirror/"])
    if there == "d":
        small_mnist(tmp_path / "d")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InputError, match=f"{data_dir}/MNIST/raw: .*; --data-dir {tmp_path / there} has it"):
        load_dataset(data_dir=data_dir)
    assert sorted(tmp_path.rglob("*")) == before


def test_only_a_clone_is_told_to_restore_its_data(tmp_path, monkeypatch):
    """A tree that was downloaded as an archive has no Git; without the right to read, neither helps."""
    monkeypatch.setattr("data.__file__", str(tmp_path / "data.py"))
    small_mnist(tmp_path / "data", train=(60_000, 1, 1))
    for folder, advice in (("other", "this directory needs train-images"), (".git", "restore it with 'git checkout")):
        (tmp_path / folder).mkdir()
        with pytest.raises(InputError, match=f"images-idx3-ubyte is not MNIST's, it was changed.*; .*{advice}"):
            load_dataset(data_dir=tmp_path / "data")
    monkeypatch.setattr("data._read_idx", Mock(side_effect=PermissionError(13, "Permission denied", "a/train.gz")))
    with pytest.raises(InputError, match=r"MNIST cannot be read \(train.gz: Permission denied\)$"):
        load_dataset(data_dir=tmp_path / "data")


COUNTS = {"ants": 10, "bees": 14, "very long name": 51}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return image_folder(tmp_path_factory.mktemp("pictures"), COUNTS)


def test_a_fifth_of_each_folder_is_for_testing_whatever_the_seed(pictures):
    pool, test = load_dataset(f"folder:{pictures}")
    assert pool.classes == test.classes == tuple(COUNTS)
    assert test.labels.bincount().tolist() == [2, 2, 10]
    assert sorted([*pool.index.tolist(), *test.index.tolist()]) == list(range(75))
    assert test.index[4:].tolist() != list(range(24, 34))  # not simply the first ones, but drawn
    files, labels = zip(*ImageFolder(pictures).samples, strict=True)
    for split in (pool, test):
        assert torch.equal(split.images, load_images(files)[split.index])
        assert torch.equal(split.labels, torch.tensor(labels)[split.index])
    parts = [load_data(toy_config(dataset=f"folder:{pictures}", train_size=30, seed=seed)) for seed in (1, 2)]
    assert torch.equal(parts[0].test.index, parts[1].test.index)
    assert not torch.equal(parts[0].train.index, parts[1].train.index)
    for data in parts:
        assert not set(data.train.index.tolist()) & set(data.rest.index.tolist())
        assert len(data.rest.labels) == len(data.validation.labels) == 61 - 30


def test_a_folder_gives_what_it_has_unless_a_number_is_asked_for(pictures):
    data = load_data(toy_config(dataset=f"folder:{pictures}", train_size=1000), at_most=True)
    assert (len(data.train.labels), len(data.rest.labels)) == (61, 0)  # an eighth of them would be too few to validate
    assert data.validation.index.tolist() == data.test.index.tolist()
    assert len(load_data(toy_config(dataset=f"folder:{pictures}", train_size=20), at_most=True).train.labels) == 20
    default = load_data(TrainConfig(dataset=f"folder:{pictures}"))  # as in a notebook
    assert torch.equal(default.train.index, data.train.index)
