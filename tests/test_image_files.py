"""image_files.py: grey values of every kind of file, transparency, and files that are no pictures."""

import os
import struct
import zlib

import numpy as np
import pytest
import torch
from conftest import LIGHT, strokes
from PIL import Image

from data import load_dataset
from images import load_images
from runtime.config import InputError

pytestmark = pytest.mark.filterwarnings("ignore:the largest grey value")


@pytest.mark.parametrize(("stroke", "expected"), [(255, LIGHT), (0, -LIGHT)], ids=["light", "dark"])
@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "L"])
@pytest.mark.filterwarnings("ignore:dark strokes")
def test_strokes_on_transparency_stand_on_the_background_they_contrast_with(tmp_path, mode, stroke, expected):
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


def test_half_opaque_pixels_are_mixed_with_the_background(tmp_path):
    alpha = strokes(255, 0)
    alpha[9, 6] = 51
    Image.merge("LA", (Image.new("L", (28, 28), 250), Image.fromarray(alpha))).save(tmp_path / "soft.png")
    assert load_images(tmp_path / "soft.png")[0, 0, 9, 6] == pytest.approx(50 / 127.5 - 1)


def test_the_corners_of_a_screenshot_become_its_background(tmp_path):
    opacity = np.full((28, 28), 255, np.uint8)
    opacity[:3, :3] = 0
    Image.merge("LA", [Image.fromarray(pixels) for pixels in (strokes(0, 200), opacity)]).save(tmp_path / "shot.png")
    with pytest.warns(UserWarning, match="dark strokes on a light background"):
        (image,) = load_images(tmp_path / "shot.png")[0]
    assert torch.equal(image, torch.from_numpy(strokes(0, 200)).float() / 127.5 - 1)


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
    (tmp_path / "x.pgm").write_bytes(b"P5\n28 28\n65535\n" + strokes(3855, 0, np.uint16).astype(">u2").tobytes())
    with pytest.warns(UserWarning, match="grey values of 0 to 3,855 are taken as 0 to 65,535"):
        assert load_images(tmp_path / "x.pgm").max() == pytest.approx(2 / 17 - 1)  # it says itself what is white
    Image.fromarray(strokes(237, 0, np.uint16)).save(tmp_path / "one.png")
    Image.fromarray(strokes(4000, 0, np.uint16)).save(tmp_path / "two.png")
    with pytest.warns(UserWarning, match="grey values of 0 to 237 are taken as 0 to 255"):  # unlike beside the other
        load_images(tmp_path / "one.png")


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
    for white in (255, 4095, 10_922):
        few = pixels // (65_535 // white)
        few[..., opaque] = 65_535
        png(tmp_path / "few.png", few.astype(">u2"), kind=kind)
        with pytest.raises(InputError, match=rf"few.png: colours of 16 bits, the largest {white // 256} of 255"):
            load_images(tmp_path / "few.png")


def test_other_modes_become_grey(tmp_path):
    for mode, suffix in (("1", "png"), ("P", "gif"), ("CMYK", "tif"), ("LA", "png")):
        Image.fromarray(strokes(255, 0)).convert(mode).save(tmp_path / f"{mode}.{suffix}")
        torch.testing.assert_close(load_images(tmp_path / f"{mode}.{suffix}")[0, 0], LIGHT, atol=0.01, rtol=0)
    red = Image.merge("RGB", [Image.fromarray(strokes(value, 0)) for value in (255, 0, 0)])
    red.save(tmp_path / "red.png")
    assert load_images(tmp_path / "red.png").max() == pytest.approx(76 / 127.5 - 1)  # the luma of ITU-R BT.601


@pytest.mark.parametrize(("mode", "suffix"), [("L", "png"), ("L", "tif"), ("RGBA", "tif"), ("P", "tif")])
def test_a_picture_that_is_to_be_turned_stands_upright(tmp_path, mode, suffix):
    grey, exif = np.pad(strokes(255, 0), ((0, 12), (0, 0))), Image.Exif()
    exif[0x112] = 6  # it is upright after a quarter turn clockwise
    Image.fromarray(grey).convert(mode).save(tmp_path / f"a.{suffix}")
    Image.fromarray(np.rot90(grey)).convert(mode).save(tmp_path / f"b.{suffix}", exif=exif)
    upright, turned = load_images(tmp_path, resize=True)
    assert torch.equal(upright, turned)


@pytest.mark.parametrize("suffix", ["gif", "tif", "png", "webp"])
def test_files_of_several_pictures_are_refused_but_those_of_phones(tmp_path, suffix):
    first, second = (Image.fromarray(strokes(255, ground)).convert("RGB") for ground in (0, 40))
    first.save(tmp_path / f"many.{suffix}", save_all=True, append_images=[second])
    with pytest.raises(InputError, match=f"many.{suffix}: holds 2 pictures"):
        load_images(tmp_path)
    first.save(tmp_path / "phone.jpg", format="MPO", save_all=True, append_images=[second], quality=95)
    torch.testing.assert_close(load_images(tmp_path / "phone.jpg")[0, 0], LIGHT, atol=0.2, rtol=0)


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
