"""MNIST, its splits, and data of other shapes."""

import gzip
import os
import shutil

import numpy as np
import pytest
import torch
from conftest import ROOT, toy_config, toy_data
from PIL import Image

from data import (
    binarized,
    load_data,
    load_dataset,
    load_images,
    random_rows_per_class,
    remaining,
    rows_per_class,
    stratified_subset,
)
from runtime.checkpoint import InputError


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


@pytest.mark.parametrize("size", [10, 1000, 20_000, 60_000])
def test_a_subset_has_every_class_in_its_share(mnist, size):
    subset = stratified_subset(mnist[0], size=size, seed=3)
    assert len(set(subset.index.tolist())) == size
    assert torch.equal(subset.images, mnist[0].images[subset.index])
    share = torch.bincount(mnist[0].labels, minlength=10) * size / 60_000
    assert ((torch.bincount(subset.labels, minlength=10) - share).abs() <= 1).all()


def test_a_subset_of_other_images_and_classes():
    train = toy_data().train
    part = stratified_subset(train, size=10, seed=1)
    assert part.labels.bincount().tolist() == [2] * 5
    assert part.classes == ("a", "b", "c", "d", "e")
    assert torch.equal(part.images, train.images[part.index - 40])


@pytest.mark.parametrize("size", [0, 4, 151])
def test_an_impossible_subset_is_refused(size):
    with pytest.raises(InputError, match=f"{size} images is impossible: 5 to 150"):
        stratified_subset(toy_data().train, size=size)


def test_rows_per_class():
    train = toy_data().train
    rows = rows_per_class(train, 3)
    assert rows.tolist() == [[label, label + 5, label + 10] for label in range(5)]
    with pytest.raises(InputError, match="only 30"):
        rows_per_class(train, 31)


def test_the_remaining_images_are_those_that_were_not_drawn(mnist):
    part = stratified_subset(mnist[1], size=3000, seed=1)
    rest = remaining(mnist[1], part)
    assert torch.equal(torch.cat((part.index, rest.index)).sort().values, torch.arange(10_000))
    assert torch.equal(rest.images, mnist[1].images[rest.index])
    assert torch.equal(rest.labels, mnist[1].labels[rest.index])


def test_the_data_of_an_experiment_do_not_overlap(mnist, monkeypatch):
    monkeypatch.setattr("data.load_dataset", lambda *_, **__: mnist)
    data = load_data(toy_config(train_size=30_000, seed=2))
    train, validation, rest = (set(split.index.tolist()) for split in data[:3])
    assert (len(train), len(validation), len(rest)) == (30_000, 5000, 30_000)
    assert not train & rest
    assert validation < rest
    assert data.test is mnist[1]
    assert torch.equal(load_data(toy_config(), train_index=data.train.index).train.images, data.train.images)
    assert not torch.equal(load_data(toy_config(train_size=30_000, seed=3)).train.index, data.train.index)
    assert load_data(toy_config(train_size=60_000)).validation is mnist[1]  # where no others are left
    with pytest.raises(InputError, match="only 60,000"):
        load_data(toy_config(), train_index=torch.tensor([3, 60_000]))


def test_binarized_pixels_are_ones_as_often_as_they_are_bright():
    grey = torch.tensor([0, 60, 200, 255], dtype=torch.uint8).expand(20_000, 4)
    ones = binarized(grey, "train")
    assert ones.unique().tolist() == [-1, 1]
    share = ((ones + 1) / 2).mean(0)
    assert share[[0, 3]].tolist() == [0, 1]
    torch.testing.assert_close(share, grey[0] / 255, atol=0.02, rtol=0)
    assert torch.equal(ones, binarized(grey, "train"))
    assert not torch.equal(ones, binarized(grey, "test"))


def test_a_damaged_archive_is_one_clear_line(tmp_path):
    raw = tmp_path / "MNIST/raw"
    shutil.copytree(ROOT / "data/MNIST/raw", raw, ignore=shutil.ignore_patterns("*-ubyte"))
    os.truncate(raw / "train-images-idx3-ubyte.gz", 1000)
    with pytest.raises(InputError, match="MNIST cannot be read") as error:
        load_dataset(data_dir=tmp_path)
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


def test_random_rows_are_of_their_class_and_stay_when_more_are_asked_for(mnist):
    test = mnist[1]
    few, many, other = (random_rows_per_class(test, count, seed=seed) for count, seed in ((3, 1), (8, 1), (3, 2)))
    assert (test.labels[many] == torch.arange(10).unsqueeze(1)).all()
    assert torch.equal(many[:, :3], few)
    assert len(many.unique()) == 80
    assert not torch.equal(few, other)
    assert many.double().mean() == pytest.approx(5000, abs=4 * 2887 / 80**0.5)  # from the whole of the test set
