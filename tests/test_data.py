"""MNIST and other data sets, their splits, data of other shapes, and own images."""

import gzip
import hashlib
import os
import re
import shutil
import struct
import warnings

import numpy as np
import pytest
import torch
from conftest import ROOT, image_folder, toy_config, toy_data
from PIL import Image
from torchvision.datasets import FashionMNIST, ImageFolder

from data import (
    binarized,
    dark_on_light,
    load_data,
    load_dataset,
    load_images,
    random_rows_per_class,
    remaining,
    rows_per_class,
    stratified_subset,
    warn_unlike_mnist,
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


@pytest.fixture
def small_fashion(tmp_path, monkeypatch):
    """The folder of small archives of FashionMNIST, which cannot be downloaded, and their pixels and labels."""
    raw, resources, whole = tmp_path / "FashionMNIST/raw", [], []
    raw.mkdir(parents=True)
    generator = np.random.default_rng(3)
    for name, count in (("train", 40), ("t10k", 20)):
        pixels = generator.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = np.arange(count, dtype=np.uint8) % 10
        whole.append((pixels, labels))
        for kind, header, values in (
            ("images-idx3", struct.pack(">4i", 2051, count, 28, 28), pixels),
            ("labels-idx1", struct.pack(">2i", 2049, count), labels),
        ):
            archive = raw / f"{name}-{kind}-ubyte.gz"
            archive.write_bytes(gzip.compress(header + values.tobytes()))
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
    reason = f"FashionMNIST cannot be read (Error downloading {archive.name})"
    advice = f"remove damaged files; without a network, this directory needs {files}"
    assert str(error.value) == f"{raw}: {reason}; {advice}"
    archive.write_bytes(b"no archive")
    with pytest.raises(InputError, match=r"t10k-images-idx3-ubyte.gz is damaged\); remove damaged files"):
        load_dataset("fashion-mnist", data_dir=tmp_path)


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
    files = ImageFolder(pictures).samples
    for split in (pool, test):
        for image, label, index in zip(split.images, split.labels.tolist(), split.index.tolist(), strict=True):
            assert torch.equal(image, load_images(files[index][0])[0])
            assert label == files[index][1]
    parts = [load_data(toy_config(dataset=f"folder:{pictures}", train_size=30, seed=seed)) for seed in (1, 2)]
    assert torch.equal(parts[0].test.index, parts[1].test.index)
    assert not torch.equal(parts[0].train.index, parts[1].train.index)
    for data in parts:
        assert not set(data.train.index.tolist()) & set(data.rest.index.tolist())
        assert len(data.rest.labels) == len(data.validation.labels) == 61 - 30


def test_a_folder_gives_what_it_has_unless_a_number_is_asked_for(pictures):
    config = toy_config(dataset=f"folder:{pictures}", train_size=1000)
    data = load_data(config, at_most=True)
    assert (len(data.train.labels), len(data.rest.labels)) == (61 - 61 // 8, 61 // 8)
    assert data.validation.index.tolist() == data.test.index.tolist()  # of seven others, fewer than 20
    with pytest.raises(InputError, match="1000 images is impossible: 3 to 61"):
        load_data(config)
    assert len(load_data(toy_config(dataset=f"folder:{pictures}", train_size=20), at_most=True).train.labels) == 20


def test_training_images_are_found_again_only_in_the_same_folder(pictures, tmp_path):
    config = toy_config(dataset=f"folder:{pictures}", train_size=30)
    data = load_data(config)
    assert torch.equal(load_data(config, train_index=data.train.index).train.images, data.train.images)
    assert torch.equal(load_data(config, train_index=data.train.index).rest.index, data.rest.index)
    other = image_folder(tmp_path / "other", {**COUNTS, "ants": 11})
    with pytest.raises(InputError, match="the checkpoints were trained on others"):
        load_data(toy_config(dataset=f"folder:{other}"), train_index=data.train.index)


def test_images_of_a_folder_are_resized_and_binarized(tmp_path):
    folder = image_folder(tmp_path, {"a": 10, "b": 10}, size=(40, 30))
    pool, _ = load_dataset(f"folder:{folder}", resize=True)
    assert pool.images.shape == (16, 1, 28, 28)
    assert len(pool.images.unique()) > 100
    ones, _ = load_dataset(f"folder:{folder}", resize=True, binarize=True)
    assert ones.images.unique().tolist() == [-1, 1]
    with pytest.raises(InputError, match=r"000.png: is 30 x 40 pixels, not 28 x 28; resize=True, or the flag --resize"):
        load_dataset(f"folder:{folder}")


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


SEVEN = [(9, 6), (9, 7), (9, 8), (10, 8), (11, 8), (12, 7), (13, 7)]  # (row, column) of strokes


def strokes(stroke, ground, dtype=np.uint8):
    pixels = np.full((28, 28), ground, dtype)
    pixels[tuple(zip(*SEVEN, strict=True))] = stroke
    return pixels


LIGHT = torch.from_numpy(strokes(255, 0)).float() / 127.5 - 1


@pytest.mark.parametrize(("stroke", "expected"), [(255, LIGHT), (0, -LIGHT)], ids=["light", "dark"])
@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "L"])
@pytest.mark.filterwarnings("ignore:dark strokes")
def test_strokes_on_transparency_stand_on_the_ground_they_contrast_with(tmp_path, mode, stroke, expected):
    """The transparent pixels have the colour of the strokes, as many programs save them; invisible under alpha 0."""
    opacity = Image.fromarray(strokes(255, 0))
    image = Image.merge("LA", (Image.new("L", (28, 28), stroke), opacity)).convert("RGBA" if mode != "LA" else "LA")
    options = {}
    if mode == "P":  # a palette of one transparent colour, 1, and the strokes, 0
        image = Image.fromarray(strokes(0, 1)).convert("P")
        image.putpalette([stroke] * 6)
        options["transparency"] = 1
    if mode == "L":  # one grey value is declared transparent
        image, options["transparency"] = Image.fromarray(strokes(stroke, 100)), 100
    image.save(tmp_path / "seven.png", **options)
    assert Image.open(tmp_path / "seven.png").mode == mode
    assert torch.equal(load_images(tmp_path / "seven.png")[0, 0], expected)


def test_half_opaque_pixels_are_mixed_with_the_ground(tmp_path):
    alpha = strokes(255, 0)
    alpha[9, 6] = 51
    Image.merge("LA", (Image.new("L", (28, 28), 250), Image.fromarray(alpha))).save(tmp_path / "soft.png")
    assert load_images(tmp_path / "soft.png")[0, 0, 9, 6] == pytest.approx(50 / 127.5 - 1)


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bits_are_scaled_and_not_clipped(tmp_path, suffix):
    Image.fromarray(strokes(40_000, 1000, np.uint16)).save(tmp_path / f"deep.{suffix}")
    assert Image.open(tmp_path / f"deep.{suffix}").mode.startswith("I")
    found = load_images(tmp_path / f"deep.{suffix}")
    assert found[0, 0, 9, 6] == pytest.approx(2 * 40_000 / 65_535 - 1)
    assert found[0, 0, 0, 0] == pytest.approx(2 * 1000 / 65_535 - 1)


def test_a_photograph_stands_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # it is upright after a quarter turn clockwise
    Image.fromarray(np.rot90(strokes(255, 0))).save(tmp_path / "turned.png", exif=exif)
    assert torch.equal(load_images(tmp_path / "turned.png")[0, 0], LIGHT)


def test_any_size_is_padded_to_a_square_and_scaled(tmp_path):
    wide = np.full((56, 112), 10, np.uint8)
    wide[8:48, 8:104] = 250
    Image.fromarray(wide).save(tmp_path / "wide.png")
    (image,) = load_images(tmp_path / "wide.png", resize=True)[0]
    grey = (image + 1) * 127.5
    assert grey[:7].unique().tolist() == pytest.approx([10])  # the padding: its border's median
    assert grey[10:18, 4:24].min() > 249
    assert grey.mean() == pytest.approx((10 * (112 * 112 - 40 * 96) + 250 * 40 * 96) / 112**2, abs=2)
    Image.fromarray(strokes(255, 0)).save(tmp_path / "seven.png")
    assert torch.equal(load_images(tmp_path / "seven.png", resize=True)[0, 0], LIGHT)  # of the right size already


def test_the_images_of_a_folder_come_in_the_order_of_their_names(tmp_path):
    for name, value in (("b.PNG", 20), ("a.jpeg", 10), ("c.bmp", 30)):
        Image.new("L", (28, 28), value).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "more").mkdir()
    greys = ((load_images(str(tmp_path)) + 1) * 127.5)[:, 0, 0, 0]
    assert greys.tolist() == pytest.approx([10, 20, 30])
    paths = [str(tmp_path / "c.bmp"), tmp_path / "b.PNG"]
    assert ((load_images(paths) + 1) * 127.5)[:, 0, 0, 0].tolist() == pytest.approx([30, 20])


def test_no_images_are_one_clear_line(tmp_path):
    (tmp_path / "empty").mkdir()
    image_folder(tmp_path / "classes", {"a": 1, "b": 1})
    (tmp_path / "half.png").write_bytes((tmp_path / "classes/a/000.png").read_bytes()[:60])
    for images, reason in (
        ([], "no images: the list of paths is empty"),
        (tmp_path / "none.png", "none.png: No such file"),
        (tmp_path / "empty", r"empty: no image files \(.jpg, .jpeg, .png"),
        (tmp_path / "classes", "one folder per class, use --dataset folder:"),
        (tmp_path / "half.png", "half.png: "),
    ):
        with pytest.raises(InputError, match=reason) as error:
            load_images(images)
        assert "\n" not in str(error.value)


def test_dark_strokes_on_a_light_ground_give_one_warning(tmp_path):
    for number, pixels in enumerate((strokes(0, 255), strokes(255, 0), strokes(40, 200))):
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    with pytest.warns(UserWarning, match=r"in 2 of 3 images, .*: invert=True turns all images") as warned:
        load_images(tmp_path)
    assert [each.filename for each in warned] == [__file__]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(load_images(tmp_path / "0.png", invert=True)[0, 0], LIGHT)
        load_images(tmp_path / "1.png")


def test_no_image_of_mnist_looks_dark_on_light_and_every_inverted_one_does(mnist):
    for split in mnist:
        assert not dark_on_light(split.images).any()
        assert dark_on_light(-split.images).all()


def test_a_light_garment_that_fills_the_image_is_not_dark_on_light():
    """As in Fashion-MNIST: light from the upper to the lower edge, so that most of the image is light."""
    shirt = torch.full((1, 1, 28, 28), -1.0)
    shirt[..., 3:25] = 0.7
    shirt[..., 12:16, 10:18] = -0.5  # a dark print
    assert shirt.median() > 0
    assert not dark_on_light(shirt).any()
    assert not dark_on_light(torch.ones(1, 1, 28, 28)).any()
    frame = torch.full((1, 1, 28, 28), -1.0)
    frame[..., 0, :] = -0.8
    assert not dark_on_light(frame).any()


@pytest.mark.parametrize(
    ("images", "said"),
    [
        ((LIGHT + 1) / 2, r"pixels in \[0, 1\]\? expected \[-1, 1\]: 2 \* x - 1"),
        ((LIGHT + 1) * 127.5, r"pixels from 0 to 255, expected \[-1, 1\]: x / 127.5 - 1"),
        (LIGHT * 1.5, r"pixels from -1.5 to 1.5, expected \[-1, 1\]: scale them"),
        (-LIGHT, "in 1 of 1 image, .*: -x turns all images"),
        (LIGHT, None),
    ],
)
def test_tensors_unlike_mnist_are_named(images, said):
    def log_prob(images):
        warn_unlike_mnist(images.expand(1, 1, 28, 28))

    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        log_prob(images)
    assert len(warned) == (said is not None)
    if said:
        assert re.search(said, str(warned[0].message))
        assert (warned[0].filename, warned[0].lineno) == (__file__, log_prob.__code__.co_firstlineno + 5)
