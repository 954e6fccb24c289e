"""Folders of classes: their forms, whatever else lies in them, and what is said of their images."""

import os
import re
import shutil

import numpy as np
import pytest
import torch
from conftest import image_folder, toy_config
from PIL import Image, ImageOps
from torchvision.datasets import ImageFolder

from data import load_data, load_dataset
from images import load_images
from runtime.config import InputError, TrainConfig

pytestmark = pytest.mark.filterwarnings("ignore:the largest grey value")


def said_of(folder):
    """What is printed of a folder before training."""
    return load_data(toy_config(dataset=f"folder:{folder}"), at_most=True).said[0]


def test_what_others_left_behind_is_no_image(tmp_path):
    clean, folder = (image_folder(tmp_path / name, {"ants": 13, "bees": 17}) for name in ("clean", "used"))
    picture = folder / "ants/003.png"
    names = ".ipynb_checkpoints ants/.ipynb_checkpoints #snapshot found.001 _Thumbs ants/@eaDir .git"
    for name in names.split():
        (folder / name).mkdir()
        shutil.copy(picture, folder / name / "other.png")
    for name in ("._000.png", ".#000.png", "#000.png#", "000.png~", "Thumbs.db", "desktop.ini", ".DS_Store"):
        shutil.copy(picture, folder / "ants" / name)
    (folder / "bees/.more.png.icloud").touch()
    for name in ("a.heic", "b.HEIC", "c.pdf", "notes"):
        (folder / "bees" / name).write_text("no image")
    (folder / "bees/empty.png").touch()
    (folder / "bees/000 broken.png").symlink_to("nowhere.png")
    (folder / "ants/000 link.png").symlink_to("010.png")
    (folder / "cats").symlink_to("bees")
    (folder / "bees/loop").symlink_to(folder)
    (folder / "bees/more").mkdir()
    shutil.copy(picture, folder / "ants/copy.png")
    Image.open(folder / "bees/005.png").save(folder / "bees/again.bmp")
    shutil.copy(folder / "ants/009.png", folder / "bees/other.png")
    shutil.copy(picture, folder)
    for split, expected in zip(*(load_dataset(f"folder:{path}") for path in (folder, clean)), strict=True):
        assert split.classes == ("ants", "bees")
        assert split.digest == expected.digest
        assert torch.equal(split.images, expected.images)
        assert torch.equal(split.index, expected.index)  # by which checkpoints find their images
    left_out = (
        "hidden or temporary files 14, images still in iCloud 1, .heic (not read) 2, .pdf (not read) 1, "
        "without an extension (not read) 1, empty files 1, broken links 1, links to folders that are there 2, "
        "folders without images 1, "
        "images beside the folders 1, copies of the same picture 4, of which in another class 1"
    )
    said, *others = said_of(folder).split("left out: ")[1].split("; ")
    assert sorted(said.split(", ")) == sorted(left_out.split(", "))
    assert any(re.fullmatch(r"in two classes or splits: \S+/\S+.png, kept as \S+/\S+.png.*", other) for other in others)
    said = "2 classes, training + test images: ants 11 + 2, bees 14 + 3; 25 train, the test images validate"
    assert said_of(clean).endswith(said)


@pytest.mark.parametrize("names", [("train", "test", "val"), ("Training", "TESTING", "Validation"), ("train", "test")])
def test_a_split_that_is_there_is_used(tmp_path, names):
    for number, name in enumerate(names):
        image_folder(tmp_path / name, {"0": 40 - number, "1": 12 - number}, seed=number)
    (tmp_path / "notes").mkdir()
    data = load_data(toy_config(dataset=f"folder:{tmp_path}"), at_most=True)
    for split, name in ((data.train, names[0]), (data.test, names[1]), (data.validation, names[-1])):
        files, labels = zip(*ImageFolder(tmp_path / name).samples, strict=True)
        assert torch.equal(split.images, load_images(files))
        assert (split.labels.tolist(), split.index.tolist()) == ([*labels], [*range(len(labels))])
    if len(names) == 3:
        assert "2 classes, training + test + validation images: 0 40 + 39 + 38, 1 12 + 11 + 10" in data.said[0]
    shutil.copy(tmp_path / names[1] / "0/005.png", tmp_path / names[0] / "1/copy.png")
    shutil.copy(tmp_path / names[0] / "0/007.png", tmp_path / names[1] / "0/copy.png")
    pool, test = load_dataset(f"folder:{tmp_path}")
    assert (len(pool.images), len(test.images)) == (51, 51)
    assert f"{names[0]}/0/007.png, kept as {names[1]}/0/copy.png" in said_of(tmp_path)
    assert not {image.numpy().tobytes() for image in pool.images} & {image.numpy().tobytes() for image in test.images}


def test_a_training_folder_alone_is_split_as_its_classes_would_be(tmp_path):
    image_folder(tmp_path / "train", {"a": 20, "b": 15})
    around, inside = (load_dataset(f"folder:{path}") for path in (tmp_path, tmp_path / "train"))
    assert all(torch.equal(split.images, other.images) for split, other in zip(around, inside, strict=True))


FOLDERS = {
    "two levels": (("greek/alpha", "greek/beta", "latin/a"), "the folder greek holds folders of images, alpha, beta"),
    "three levels": (("train/greek/alpha", "test/greek/alpha"), "the folder test/greek holds folders of images"),
    "a folder around it": (("mine/a", "mine/b"), "the folder mine holds folders of images, a, b"),
    "a folder beside the splits": (("train/a", "test/a", "more/a"), "of which more is no split"),
    "no training images": (("test/a", "val/a"), "none called train"),
    "two of a kind": (("train/a", "Training/a"), "two are the train folder"),
    "other classes": (("train/a", "train/b", "test/a", "test/c"), "train and test have other classes: b, c"),
    "one name, written in two ways": (("\u00e9", "e\u0301"), "two folders are called \u00e9; rename one"),
    "one name to the eye": (("cat", "c\u200bat "), "two folders are called cat; rename one"),
    "no classes in a split": (("train/a", "train/b", "test"), "test/ holds 12 images and no folders"),
    "flat": ((".",), "it holds 12 images and no folders; put them into one folder for each class"),
}


@pytest.mark.parametrize(("folders", "message"), FOLDERS.values(), ids=FOLDERS.keys())
def test_folders_of_another_form_are_refused_with_what_was_seen(tmp_path, folders, message):
    for seed, name in enumerate(folders):
        image_folder(tmp_path / name, {"": 12}, seed=seed)
    with pytest.raises(InputError, match=re.escape(message)):
        load_dataset(f"folder:{tmp_path}")


@pytest.mark.parametrize("name", [b"b\xff", b"two\nlines", b" "])
def test_a_class_whose_name_no_table_can_hold_is_refused(tmp_path, name):
    image_folder(tmp_path, {"a": 12, "日本": 12, os.fsdecode(name): 12})
    with pytest.raises(InputError, match="name that is empty, not UTF-8, or with a control character") as error:
        load_dataset(f"folder:{tmp_path}")
    str(error.value).encode()


def test_the_same_name_in_both_unicode_forms_is_one_class(tmp_path):
    """A folder packed on macOS beside one made elsewhere."""
    for seed, folder in enumerate(("train/\u00e9", "train/b", "test/e\u0301", "test/b")):
        image_folder(tmp_path / folder, {"": 12}, seed=seed)
    train, test = load_dataset(f"folder:{tmp_path}")
    assert train.classes == test.classes == ("b", "\u00e9")
    assert train.counts() == test.counts() == {"b": 12, "\u00e9": 12}
    for seed, name in enumerate(("\u00e9", "f", "e\u0301", "f")):  # they sort differently as they are written
        image_folder(tmp_path / str(seed // 2), {name: 12}, seed=seed % 2)
    one, other = (load_dataset(f"folder:{tmp_path / name}") for name in "01")
    assert [split.digest for split in one] == [split.digest for split in other]


def test_a_path_in_the_home_directory(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    image_folder(tmp_path / "mine", {"": 2})
    assert load_images("~/mine").shape == load_images(["~/mine/000.png", "~/mine/001.png"]).shape == (2, 1, 28, 28)


def squares(path, count, *, white=255, inverted=False, seed=0):
    """Writes pictures of a light rectangle, or of a dark one, to a new folder."""
    path.mkdir(parents=True)
    for number, (row, column) in enumerate(np.random.default_rng(seed).integers(0, 9, (count, 2))):
        pixels = np.zeros((28, 28), np.uint8)
        pixels[5 + row : 15 + row, 5 + column : 12 + column] = white - number
        Image.fromarray(255 - pixels if inverted else pixels).save(path / f"{number}.png")


def test_names_that_are_perhaps_not_as_meant_are_said(tmp_path):
    """Those of splits, and pictures that were saved again in another format, under the same name or another one."""
    folder = image_folder(tmp_path / "folder", {"a": 12, "train": 12}, seed=1)
    said = said_of(folder)
    assert "taken as a class each, is that meant? train" in said
    assert "left out" not in said
    assert "saved again" not in said
    for path in list((folder / "a").iterdir()):
        Image.open(path).save(folder / f"train/again_{path.stem}.jpg", quality=98)
    said = said_of(folder)
    assert re.search(rf"turned\?\): 12 files, such as {folder.name}/a/0\d+.png and \S+/train/again_0", said)
    Image.open(folder / "a/003.png").save(folder / "a/003.jpg")
    assert "files called like another one, but for the extension (copies?): 1" in said_of(folder)
    with Image.open(folder / "a/004.png") as image:
        ImageOps.mirror(image).save(folder / "a/mirrored.png")
        image.rotate(90).save(folder / "a/turned.png")
    assert "(saved again, mirrored, turned?): 14 files" in said_of(folder)
    image_folder(folder / "train", {"cats_train": 12, "catsTest": 12, "train_dogs": 12}, seed=2)
    assert "is that meant? catsTest, cats_train, train_dogs" in said_of(folder / "train")
    for names in (("images", "masks"), ("trainset", "testset"), ("dev", "eval")):
        said = said_of(image_folder(tmp_path / "others" / names[0], dict.fromkeys(names, 12)))
        assert f"is that meant? {', '.join(sorted(names))}" in said
        assert "nearly the same" not in said


def test_a_copy_of_a_whole_class_is_named(tmp_path):
    folder = image_folder(tmp_path, {"cats": 12, "dogs": 12})
    shutil.copytree(folder / "dogs", folder / "_backup")
    with pytest.raises(InputError, match=r"class dogs has 0 .*in two classes or splits: dogs/000.png, kept as _backup"):
        said_of(folder)


def test_pixels_that_are_perhaps_not_as_meant_are_said(tmp_path):
    """A class on another scale, an inverted split, an empty image; and a few such images in every class."""
    for seed, (split, name) in enumerate([("train", "a"), ("train", "b"), ("test", "a"), ("test", "b")]):
        squares(tmp_path / "split" / split / name, 12, inverted=split == "test", seed=seed)
    inverted = "most images of test/a, test/b are dark on a light background, most others not"
    assert inverted in said_of(tmp_path / "split")
    squares(tmp_path / "scales/a", 20)
    squares(tmp_path / "scales/b", 20, white=40, seed=1)
    for grey in (0, 200):
        Image.fromarray(np.full((28, 28), grey, np.uint8)).save(tmp_path / f"scales/a/blank{grey}.png")
    said = said_of(tmp_path / "scales")
    assert "all images of b are dark beside the others" in said
    assert "images of nearly one grey value: 2" in said
    for seed, name in enumerate("ab", 2):
        squares(tmp_path / "mixed" / name, 12, seed=seed)
        for kind, options in (("more", {"white": 40}), ("turned", {"inverted": True})):
            squares(tmp_path / kind / name, 6, seed=seed, **options)
            for path in (tmp_path / kind / name).iterdir():
                path.rename(tmp_path / "mixed" / name / f"{kind}{path.name}")
    said = said_of(tmp_path / "mixed")
    first = "a/more0.png, a/more1.png, a/more2.png, a/more3.png, a/more4.png and 7 more"
    assert f"12 of 48 images ({first}) are dark" in said
    assert re.search(r"12 of 48 images \(a/turned0.png,.*are dark on a light background, the others not: is that", said)


def test_a_folder_is_read_as_far_as_its_rights_go_and_as_its_path_says(tmp_path, monkeypatch):
    image_folder(tmp_path / "right", {"a": 12, "b": 12})
    image_folder(tmp_path / "wrong", {"c": 12, "d": 12})
    (tmp_path / "wrong/link").symlink_to(tmp_path / "right/a")
    assert TrainConfig(dataset=f"folder:{tmp_path}/wrong/link/..").dataset.endswith("/wrong/link/..")
    assert load_dataset(f"folder:{tmp_path}/wrong/link/..")[0].classes == ("a", "b")
    for number in range(20):
        (tmp_path / f"right/a/scan.{number}").touch()
    assert " and 5 further kinds" in said_of(tmp_path / "right")
    known = os.stat

    def as_another_user(path, **options):
        if str(path).endswith("b/003.png"):
            raise PermissionError(13, "Permission denied", path)
        return known(path, **options)

    monkeypatch.setattr(os, "stat", as_another_user)
    with pytest.raises(InputError, match=r"right: .*right/b/003.png: Permission denied"):
        load_dataset(f"folder:{tmp_path / 'right'}")


def test_classes_may_be_called_by_what_editors_put_at_ends_of_names(tmp_path):
    image_folder(tmp_path, {"#": 12, "~": 12})
    assert load_dataset(f"folder:{tmp_path}")[0].classes == ("#", "~")
    image_folder(tmp_path, {"#1#": 12, "b~": 12, "~$c": 12}, seed=5)
    assert load_dataset(f"folder:{tmp_path}")[0].classes == ("#", "#1#", "b~", "~", "~$c")
    (tmp_path / "b~/.lock").touch()
    (tmp_path / "b~/#000.png#").touch()
    assert "left out: hidden or temporary files 2" in said_of(tmp_path)


def test_images_are_in_one_order_however_the_disk_lists_them(tmp_path, monkeypatch):
    image_folder(tmp_path, {"a": 12, "b": 12})
    for name in ("e\u0301.png", "\u00e9.png"):  # one name, written in two ways
        Image.effect_noise((28, 28), 90).save(tmp_path / "a" / name)
    once = load_dataset(f"folder:{tmp_path}")[0].digest
    listdir = os.listdir
    monkeypatch.setattr(os, "listdir", lambda path: sorted(listdir(path)))
    assert load_dataset(f"folder:{tmp_path}")[0].digest == once
    monkeypatch.setattr(os, "listdir", lambda path: sorted(listdir(path), reverse=True))
    assert load_dataset(f"folder:{tmp_path}")[0].digest == once


def test_a_validation_folder_needs_no_more_images_than_a_test_folder(tmp_path):
    for split, count in (("train", 20), ("val", 5)):
        image_folder(tmp_path / split, {"a": count, "b": count}, seed=count)
    config = TrainConfig(dataset=f"folder:{tmp_path}", train_size=20)
    assert len(load_data(config, at_most=True).validation.labels) == 10
    for path in (tmp_path / "val/a").iterdir():
        path.unlink()
    with pytest.raises(InputError, match="Found no valid file for the classes val/a"):
        load_data(config, at_most=True)
