"""MNIST and the subset."""

import gzip
import os
import shutil

import numpy as np
import pytest
import torch
from conftest import ROOT
from PIL import Image

from data import load_images, load_mnist, remaining, rows_per_digit, stratified_subset
from files import InputError


def test_mnist_is_whole_and_scaled(mnist):
    for split, name, count in zip(mnist, ("train", "t10k"), (60_000, 10_000), strict=True):
        assert split.images.shape == (count, 1, 28, 28)
        assert (split.images.min(), split.images.max()) == (-1, 1)
        archive = ROOT / "data/MNIST/raw" / f"{name}-images-idx3-ubyte.gz"
        raw = np.frombuffer(gzip.decompress(archive.read_bytes()), np.uint8, offset=16).reshape(count, 1, 28, 28)
        assert np.array_equal(np.round((split.images.numpy() + 1) * 127.5), raw)
        raw = gzip.decompress(archive.with_name(f"{name}-labels-idx1-ubyte.gz").read_bytes())
        assert split.labels.tolist() == list(raw[8:])


@pytest.mark.parametrize("size", [10, 1000, 20_000, 60_000])
def test_subset_has_every_digit_in_its_share(mnist, size):
    subset = stratified_subset(mnist[0], size=size, seed=3)
    assert len(set(subset.index.tolist())) == size
    assert torch.equal(subset.images, mnist[0].images[subset.index])
    share = torch.bincount(mnist[0].labels, minlength=10) * size / 60_000
    assert ((torch.bincount(subset.labels, minlength=10) - share).abs() <= 1).all()


def test_subset_depends_on_the_seed_alone(mnist):
    first, again, other = (stratified_subset(mnist[0], size=500, seed=seed).index for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("size", [0, 9, 60_001])
def test_an_impossible_subset_is_refused(mnist, size):
    with pytest.raises(InputError, match=str(size)):
        stratified_subset(mnist[0], size=size)


def test_rows_per_digit(mnist):
    labels = mnist[1].labels
    rows = rows_per_digit(labels, 3)
    assert (labels[rows] == torch.arange(10).unsqueeze(1)).all()
    assert rows[:, 0].tolist() == [labels.tolist().index(digit) for digit in range(10)]
    with pytest.raises(InputError, match="only 892"):
        rows_per_digit(labels, 893)


def test_a_damaged_archive_is_one_clear_line(tmp_path):
    raw = tmp_path / "MNIST/raw"
    shutil.copytree(ROOT / "data/MNIST/raw", raw, ignore=shutil.ignore_patterns("*-ubyte"))
    os.truncate(raw / "train-images-idx3-ubyte.gz", 1000)
    with pytest.raises(InputError, match="MNIST cannot be read") as error:
        load_mnist(data_dir=tmp_path)
    assert "\n" not in str(error.value)


def test_own_images_are_scaled_as_mnist_is(mnist, tmp_path):
    images = mnist[1].images[:2]
    for number, image in enumerate(images):
        grey = ((image[0] + 1) * 127.5).round().byte().numpy()
        Image.fromarray(grey).convert("RGB" if number else "L").save(tmp_path / f"{number}.png")
    assert torch.equal(load_images([tmp_path / "0.png", tmp_path / "1.png"]), images)
    Image.new("L", (30, 28)).save(tmp_path / "wide.png")
    (tmp_path / "text.png").write_text("no image")
    for name, reason in (("wide", "30 x 28 pixels"), ("text", "not an image"), ("none", "No such file")):
        with pytest.raises(InputError, match=reason):
            load_images([tmp_path / f"{name}.png"])


def test_the_remaining_images_are_those_that_were_not_drawn(mnist):
    part = stratified_subset(mnist[1], size=3000)
    rest = remaining(mnist[1], part)
    assert torch.equal(torch.cat((part.index, rest.index)).sort().values, torch.arange(10_000))
    assert torch.equal(rest.images, mnist[1].images[rest.index])
    assert torch.equal(rest.labels, mnist[1].labels[rest.index])
