"""images.py: a file, many or a folder as tensors; sizes, refusals, and warnings of images unlike MNIST's."""

import re
import shutil
import struct
import warnings
from io import BytesIO

import numpy as np
import pytest
import torch
from conftest import LIGHT, image_folder, strokes, toy_config
from PIL import Image

from data import load_data
from image_files import dark_on_light
from images import load_images, warn_unlike_mnist
from runtime.config import InputError

pytestmark = pytest.mark.filterwarnings("ignore:the largest grey value")


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
    with pytest.warns(UserWarning, match=r"left out: .txt \(not read\) 1, folders 1"):
        greys = ((load_images(str(tmp_path)) + 1) * 127.5)[:, 0, 0, 0]
    assert greys.tolist() == pytest.approx([10, 20, 30])
    paths = [str(tmp_path / "c.bmp"), tmp_path / "b.PNG"]
    assert ((load_images(paths) + 1) * 127.5)[:, 0, 0, 0].tolist() == pytest.approx([30, 20])


REFUSED = [  # of a path beside the others, or of something else, and what is said
    ("half.png", "half.png: "),
    ("text.png", "text.png: not an image$"),
    ("photo.HEIC", "photo.HEIC: not an image, or of a format that is not read; save it as PNG"),
    ("pointer.png", "pointer.png: not an image, but a pointer of Git LFS"),
    ("empty.png", "empty.png: is transparent everywhere"),
    ("none.png", "none.png: No such file"),
    ("cut.png", r"cut.png: cannot be read \(broken PNG file"),
    ("long.png", "long.png: is 301 x 3 pixels, too large, or too far from a square"),
    ("strip.png", "strip.png: is 16001 x 200 pixels, too large, or too far from a square"),
    ("clear.png", "clear.png: a grey value or colour of other than 8 bits is transparent; save 8 bits"),
    ("empty", r"empty: no image files \(.jpg, .jpeg, .png"),
    ("classes", "one folder per class, use --dataset folder:"),
    ((), "no images: the list of paths is empty"),
    (LIGHT, "images: a path, a list of paths or a folder; of an array of grey values x / 127.5 - 1"),
    (BytesIO(b"a.png"), "images: a path, a list of paths or a folder"),
]


def test_no_images_are_one_clear_line(tmp_path):
    (tmp_path / "empty").mkdir()
    image_folder(tmp_path / "classes", {"a": 1, "b": 1})
    (tmp_path / "half.png").write_bytes((tmp_path / "classes/a/000.png").read_bytes()[:60])
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "photo.HEIC").write_bytes(b"\0\0\0\x18ftypheic")
    (tmp_path / "pointer.png").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    Image.new("RGBA", (28, 28), (200, 100, 50, 1)).save(tmp_path / "empty.png")
    Image.new("L", (301, 3)).save(tmp_path / "long.png")
    Image.new("L", (16_001, 200)).save(tmp_path / "strip.png")
    Image.fromarray(np.full((28, 28), 900, np.uint16)).save(tmp_path / "clear.png", transparency=900)
    noise = np.random.default_rng(1).integers(0, 256, (112, 112), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "cut.png")
    whole = (tmp_path / "cut.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[:6000] + bytes(len(whole) - 6000))  # a copy that was not finished
    for images, reason in REFUSED:
        with pytest.raises(InputError, match=reason) as error:
            load_images(tmp_path / images if isinstance(images, str) else images, resize=True)
        assert "\n" not in str(error.value)
    for name, wrong in (("resize", 64), ("invert", "no")):
        with pytest.raises(InputError, match=f"{name}={wrong!r}: True or False"):
            load_images(tmp_path / "classes/a", **{name: wrong})


@pytest.mark.filterwarnings("ignore:nearly all pixels", "ignore:dark strokes")
def test_large_pictures_and_those_with_a_fourth_colour(tmp_path, monkeypatch):
    Image.new("RGB", (60, 60)).save(tmp_path / "photo.jpg")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2000)  # Pillow warns above it, and refuses twice as much
    assert load_images(tmp_path / "photo.jpg", resize=True).shape == (1, 1, 28, 28)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(InputError, match=r"photo.jpg: more than 2,000 pixels; scale it down"):
        load_images(tmp_path / "photo.jpg", resize=True)
    monkeypatch.undo()
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (28, 28, 4), np.uint8), "RGBA")
    image.save(tmp_path / "opaque.tif")
    assert load_images(tmp_path / "opaque.tif").shape == (1, 1, 28, 28)
    contents = (tmp_path / "opaque.tif").read_bytes()
    extra = struct.pack("<H", 338)  # the field that says that the fourth value is opacity
    (tmp_path / "infrared.tif").write_bytes(contents.replace(extra, struct.pack("<H", 337)))
    with pytest.raises(InputError, match=r"infrared.tif: colours of four values, of which the last is not said to be"):
        load_images(tmp_path / "infrared.tif")


def test_dark_strokes_on_a_light_background_give_one_warning(tmp_path):
    for number, pixels in enumerate((strokes(0, 255), strokes(255, 0), strokes(40, 200))):
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    with pytest.warns(UserWarning, match=r"in 2 of 3 images, .*, invert=True turns all images") as warned:
        load_images(tmp_path)
    assert [each.filename for each in warned] == [__file__]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(load_images(tmp_path / "0.png", invert=True)[0, 0], LIGHT)
        load_images(tmp_path / "1.png")


def test_no_image_of_mnist_looks_dark_on_light_nor_a_light_garment_that_fills_the_image(mnist):
    """In Fashion-MNIST some are light from the upper to the lower edge, so that most of the image is light."""
    for split in mnist:
        assert not dark_on_light(split.images).any()
        assert dark_on_light(-split.images).all()
    shirt, frame, light = torch.full((3, 1, 28, 28), -1.0)
    shirt[..., 3:25] = 0.7
    shirt[..., 12:16, 10:18] = -0.5  # a dark print
    assert shirt.median() > 0
    frame[..., 0, :] = -0.8
    assert not dark_on_light(torch.stack((shirt, frame, torch.ones_like(light)))).any()


UNLIKE = [
    (torch.stack(((LIGHT + 1) / 2, LIGHT)), r"pixels in \[0, 1\]\? expected \[-1, 1\]: 2 \* x - 1 \(1 of 2 images\)"),
    (-LIGHT, "in 1 of 1 image, .*: -x turns all images"),
    (LIGHT, ""),
]


@pytest.mark.parametrize(("images", "said"), UNLIKE)
def test_tensors_unlike_mnist_are_named(images, said):
    def log_prob(images):
        warn_unlike_mnist(images.reshape(-1, 1, 28, 28))

    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        log_prob(images)
    assert len(warned) == bool(said)
    assert all(re.search(said, str(each.message)) for each in warned)
    assert all(each.lineno == log_prob.__code__.co_firstlineno + 5 for each in warned)


def test_training_or_test_images_of_one_grey_value_are_refused(tmp_path):
    for number, name in enumerate("ab" * 12):
        (tmp_path / name).mkdir(exist_ok=True)
        pixels = np.zeros((28, 28), np.uint8)
        pixels[number, 0] = 7  # no two are alike
        Image.fromarray(pixels).save(tmp_path / name / f"{number}.png")
    with pytest.raises(InputError, match="nearly all pixels have one grey value, about 0 of 255"):
        load_data(toy_config(dataset=f"folder:{tmp_path}", train_size=10))
    image_folder(tmp_path / "split/train", {"a": 12, "b": 12})
    for name in "ab":
        shutil.copytree(tmp_path / name, tmp_path / "split/test" / name)
    with pytest.raises(InputError, match="the test images: nearly all pixels have one grey value"):
        load_data(toy_config(dataset=f"folder:{tmp_path}/split", train_size=10))
