"""Own image files: grey values of every kind, sizes, transparency, and files that are no images."""

import os
import re
import shutil
import struct
import warnings
import zlib

import numpy as np
import pytest
import torch
from conftest import image_folder, toy_config
from PIL import Image

from data import load_data, load_dataset
from images import dark_on_light, load_images, warn_unlike_mnist
from runtime.config import InputError

pytestmark = pytest.mark.filterwarnings("ignore:the largest grey value")


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
        image, options["transparency"] = Image.fromarray(strokes(0, 1)).convert("P"), 1
        image.putpalette([stroke] * 6)
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


def test_the_corners_of_a_screenshot_become_its_ground(tmp_path):
    opacity = np.full((28, 28), 255, np.uint8)
    opacity[:3, :3] = 0
    Image.merge("LA", [Image.fromarray(pixels) for pixels in (strokes(0, 200), opacity)]).save(tmp_path / "shot.png")
    with pytest.warns(UserWarning, match="dark strokes on a light ground"):
        (image,) = load_images(tmp_path / "shot.png")[0]
    assert torch.equal(image, torch.from_numpy(strokes(0, 200)).float() / 127.5 - 1)


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
    with pytest.warns(UserWarning, match=r"left out: .txt \(not read\) 1, folders 1"):
        greys = ((load_images(str(tmp_path)) + 1) * 127.5)[:, 0, 0, 0]
    assert greys.tolist() == pytest.approx([10, 20, 30])
    paths = [str(tmp_path / "c.bmp"), tmp_path / "b.PNG"]
    assert ((load_images(paths) + 1) * 127.5)[:, 0, 0, 0].tolist() == pytest.approx([30, 20])


REFUSED = [  # of a path beside the others, or of something else, and what is said
    ("half.png", "half.png: "),
    ("text.png", "text.png: not an image"),
    ("none.png", "none.png: No such file"),
    ("cut.png", r"cut.png: cannot be read \(broken PNG file"),
    ("long.png", "long.png: is 301 x 3 pixels, too large, or too far from a square"),
    ("strip.png", "strip.png: is 16001 x 200 pixels, too large, or too far from a square"),
    ("clear.png", "clear.png: a grey value or colour of other than 8 bits is transparent; save 8 bits"),
    ("empty", r"empty: no image files \(.jpg, .jpeg, .png"),
    ("classes", "one folder per class, use --dataset folder:"),
    ((), "no images: the list of paths is empty"),
    (LIGHT, "images: a path, a list of paths or a folder; of an array of grey values x / 127.5 - 1"),
]


def test_no_images_are_one_clear_line(tmp_path):
    (tmp_path / "empty").mkdir()
    image_folder(tmp_path / "classes", {"a": 1, "b": 1})
    (tmp_path / "half.png").write_bytes((tmp_path / "classes/a/000.png").read_bytes()[:60])
    (tmp_path / "text.png").write_text("no image")
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


def test_dark_strokes_on_a_light_ground_give_one_warning(tmp_path):
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


WHITE = [
    (np.uint16, 255, "png", 255),
    (np.uint16, 3000, "tif", 4095),
    (np.uint16, 65_535, "png", 65_535),
    (np.int32, 4095, "tif", 4095),
    (np.float32, 1, "tif", 1),
    (np.float32, 255, "tif", 255),
]


@pytest.mark.parametrize(("dtype", "largest", "suffix", "white"), WHITE)
def test_the_largest_grey_value_of_all_images_says_what_is_white(tmp_path, dtype, largest, suffix, white):
    pixels = (np.random.default_rng(5).random((20, 28, 28)) * 0.4 * largest).astype(dtype)
    pixels[13, 2, 3] = largest  # alone in its whole folder
    for name in "ab":
        (tmp_path / name).mkdir()
    for number, image in enumerate(pixels):
        Image.fromarray(image).save(tmp_path / "ab"[number // 10] / f"{number:02}.{suffix}")
    for split in load_dataset(f"folder:{tmp_path}"):
        assert (f"grey values of 0 to {largest:,} are taken as 0 to 4,095" in split.note) == (white == 4095)
        expected = torch.from_numpy(pixels[split.index].astype(np.float64) / white * 2 - 1).float().unsqueeze(1)
        torch.testing.assert_close(split.images, expected, atol=1e-6, rtol=0)


UNCLEAR = {
    "dark for its range": (np.uint16, 0, 1500, "grey values of 0 to 1,500 are taken as 0 to 4,095"),
    "of two values": (np.uint8, 0, 1, "nearly all pixels have one grey value"),
    "large whole numbers": (np.int32, 0, 777_000, None),
    "negative": (np.int32, -5, 200, None),
    "no number": (np.float32, 0, np.nan, None),
}


@pytest.mark.parametrize(("dtype", "low", "high", "said"), UNCLEAR.values(), ids=UNCLEAR.keys())
def test_grey_values_whose_range_says_too_little(tmp_path, dtype, low, high, said):
    Image.fromarray(strokes(high, low, dtype)).save(tmp_path / "x.tif")
    if said:
        with pytest.warns(UserWarning, match=said):
            assert load_images(tmp_path / "x.tif").abs().max() <= 1
    else:
        with pytest.raises(InputError, match=r"x.tif: grey values from .*; scale them to 0 to 255"):
            load_images(tmp_path / "x.tif")


def tiff(path, pixels, *, photometric=1, planes=1, kind=1):
    """Writes a TIFF (H, W) or (H, W, 3) without compression, of forms that Pillow cannot write."""
    height, width, channels = (*pixels.shape, 1)[:3]
    strips = [pixels.tobytes()] if planes == 1 else [pixels[..., band].tobytes() for band in range(channels)]
    bits, count = 8 * pixels.itemsize, len(strips)
    fields = {256: width, 257: height, 258: bits, 259: 1, 262: photometric, 277: channels, 278: height, 284: planes}
    fields[339] = kind
    first = 8 + 2 + 12 * 11 + 4  # of what follows the directory: the offsets and sizes of the strips, and these
    starts = [first + 8 * count + sum(map(len, strips[:number])) for number in range(count)]
    lists = {273: (starts, first), 279: ([len(strip) for strip in strips], first + 4 * count)}
    entries = [(tag, 4, 1, value) for tag, value in fields.items()]
    entries += [(tag, 4, count, where if count > 1 else values[0]) for tag, (values, where) in lists.items()]
    directory = b"".join(struct.pack("<HHII", *entry) for entry in sorted(entries))
    numbers = struct.pack(f"<{2 * count}I", *lists[273][0], *lists[279][0])
    path.write_bytes(b"II*\0" + struct.pack("<IH", 8, 11) + directory + bytes(4) + numbers + b"".join(strips))


def test_forms_of_a_tiff_that_pillow_reads_wrongly(tmp_path):
    light = strokes(65_535, 0, np.uint16)
    tiff(tmp_path / "plain.tif", light)
    tiff(tmp_path / "white_is_zero.tif", 65_535 - light, photometric=0)
    tiff(tmp_path / "signed.tif", (light // 1000).astype(np.int8), kind=2)
    tiff(tmp_path / "planes.tif", np.stack([light] * 3, axis=-1), photometric=2, planes=2)
    plain, turned = (load_images(tmp_path / f"{name}.tif") for name in ("plain", "white_is_zero"))
    assert torch.equal(plain, turned)
    assert plain.mean() < 0
    for name, reason in (("signed", "grey values of 8 bits with a sign"), ("planes", "colours of 16 bits in a plane")):
        with pytest.raises(InputError, match=f"{name}.tif: {reason}"):
            load_images(tmp_path / f"{name}.tif")


def test_images_of_two_scales_and_scales_that_are_small_are_said(tmp_path):
    for name, white in (("a", 65_535), ("b", 255)):
        Image.fromarray(strokes(white, 0, np.uint16)).save(tmp_path / f"{name}.png")
    with pytest.warns(UserWarning, match="1 of 2 images have grey values of 0 to 255, which are dark"):
        load_images(tmp_path)
    Image.fromarray(strokes(16, 0)).save(tmp_path / "digit.png")
    with pytest.warns(UserWarning, match="the largest grey value is 16 of 255"):
        load_images(tmp_path / "digit.png")
    colours = np.stack([strokes(4095, 0, np.uint16)] * 3, axis=-1).astype(">u2")
    (tmp_path / "x.ppm").write_bytes(b"P6\n28 28\n65535\n" + colours.tobytes())
    with pytest.raises(InputError, match=r"x.ppm: colours of 16 bits, the largest 16 of 255"):
        load_images(tmp_path / "x.ppm")
    (tmp_path / "x.pgm").write_bytes(b"P5\n28 28\n65535\n" + strokes(13_107, 0, np.uint16).astype(">u2").tobytes())
    assert load_images(tmp_path / "x.pgm").max() == pytest.approx(2 * 0.2 - 1)  # it says itself what is white


def png(path, rows, *, kind):
    """Writes a PNG of 28 x 28 pixels of 16 bits, which Pillow cannot write; kind: 2 colours, 4 and 6 with alpha."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = chunk(b"IHDR", struct.pack(">2I5B", 28, 28, 16, kind, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows)))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + pixels + chunk(b"IEND", b""))


@pytest.mark.parametrize(("channels", "kind"), [(3, 2), (2, 4), (4, 6)])
def test_colours_of_16_bits_must_use_them(tmp_path, channels, kind):
    pixels = np.stack([strokes(65_535, 0, np.uint16)] * channels, axis=-1).astype(">u2")
    opaque = slice(3 if channels > 2 else 1, None)
    pixels[..., opaque] = 65_535
    png(tmp_path / "all.png", pixels, kind=kind)
    expected = torch.from_numpy(strokes(1.0, -1.0, np.float32))
    assert torch.equal(load_images(tmp_path / "all.png")[0, 0], expected)
    for white in (255, 4095):
        few = pixels // (65_535 // white)
        few[..., opaque] = 65_535
        png(tmp_path / "few.png", few.astype(">u2"), kind=kind)
        with pytest.raises(InputError, match=rf"few.png: colours of 16 bits, the largest {white // 256} of 255"):
            load_images(tmp_path / "few.png")


def test_other_modes_become_grey(tmp_path):
    for mode, suffix in (("1", "png"), ("P", "gif"), ("CMYK", "tif"), ("LA", "png"), ("YCbCr", "tif")):
        Image.fromarray(strokes(255, 0)).convert(mode).save(tmp_path / f"{mode}.{suffix}")
        torch.testing.assert_close(load_images(tmp_path / f"{mode}.{suffix}")[0, 0], LIGHT, atol=0.01, rtol=0)
    red = Image.merge("RGB", [Image.fromarray(strokes(value, 0)) for value in (255, 0, 0)])
    red.save(tmp_path / "red.png")
    assert load_images(tmp_path / "red.png").max() == pytest.approx(76 / 127.5 - 1)  # the luma of ITU-R BT.601


@pytest.mark.parametrize("suffix", ["gif", "tif", "png", "webp"])
def test_files_of_several_pictures_are_refused_but_those_of_phones(tmp_path, suffix):
    first, second = (Image.fromarray(strokes(255, ground)).convert("RGB") for ground in (0, 40))
    first.save(tmp_path / f"many.{suffix}", save_all=True, append_images=[second])
    with pytest.raises(InputError, match=f"many.{suffix}: holds 2 pictures"):
        load_images(tmp_path)
    first.save(tmp_path / "phone.jpg", format="MPO", save_all=True, append_images=[second], quality=95)
    torch.testing.assert_close(load_images(tmp_path / "phone.jpg")[0, 0], LIGHT, atol=0.2, rtol=0)


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


def test_a_float_greymap_is_not_scaled_as_other_portable_ones_are(tmp_path):
    grey = strokes(200, 0)
    (tmp_path / "a.pfm").write_bytes(b"Pf\n28 28\n-1.0\n" + (grey[::-1] / 255).astype("<f4").tobytes())
    Image.fromarray(grey).save(tmp_path / "b.png")
    one, other = load_images([tmp_path / "a.pfm", tmp_path / "b.png"])
    torch.testing.assert_close(one, other)


def test_a_pipe_and_a_program_are_no_images(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")  # whose reader would wait for ever
    with pytest.raises(InputError, match=r"pipe.png: not a file"):
        load_images(tmp_path / "pipe.png")
    Image.fromarray(strokes(255, 0)).save(tmp_path / "program.png", format="EPS")
    with pytest.raises(InputError, match=r"program.png: EPS"):
        load_images(tmp_path / "program.png")


def test_damaged_metadata_are_no_matter(tmp_path, recwarn):
    """A camera's picture whose EXIF directory is cut off: Pillow warns at each step, of every file."""
    exif = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 5) + bytes(4)
    Image.fromarray(strokes(255, 0)).save(tmp_path / "a.jpg", exif=exif, quality=100)
    torch.testing.assert_close(load_images(tmp_path / "a.jpg")[0, 0], LIGHT, atol=0.1, rtol=0)
    assert not recwarn.list
