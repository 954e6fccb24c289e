"""The pixels of image files: grey values of any kind, from 0 to 255, and whether they look as MNIST's do."""

import os
import warnings
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL import TiffImagePlugin as tiff
from torchvision.transforms import functional as transforms
from tqdm import tqdm

from runtime.config import InputError
from runtime.progress import bar_width

MOST_UNEVEN, LONGEST = 100, 16_000  # of the longer side of an image: times the shorter one, pixels
WHITE = {"I": (255, 4095, 65_535), "F": (1, 255, 4095, 65_535)}  # of whole numbers and of floats


def read_images(paths, *, resize):
    """Grey values (N, 1, 28, 28) from 0 to 255, 64-bit hashes of the pixels as they were before, and notes."""
    largest, deep = {"I": [], "F": []}, []  # grey values of images whose mode does not say what is white; deep colours
    is_scaled = False  # to 65,535, by Pillow
    for path in paths:
        with _opened(path) as image:
            if image.format == "PNG":
                image.verify()  # the checksums, at which Pillow does not look when it decodes
        with _opened(path) as image:
            odd = image.mode != "P" and any(";" in str(tile[3]) for tile in image.tile)  # not of 8 bits
            if odd and "transparency" in image.info:
                raise InputError("a grey value or colour of other than 8 bits is transparent; save 8 bits")
            if (kind := image.mode[0]) in WHITE:
                grey = np.asarray(image)
                if not np.isfinite(grey).all() or grey.min() < 0 or grey.max() > WHITE[kind][-1]:
                    values = f"grey values from {grey.min():g} to {grey.max():g}"
                    raise InputError(f"{values}; scale them to 0 to 255, or floats to 0 to 1")
                largest[kind].append(float(grey.max()))
                is_scaled |= image.format == "PPM" and kind == "I"
            elif _has_deep_colours(image):
                # Pillow reads the upper 8 bits of each: of values up to 255 or 4,095 little or nothing.
                bands = [image.getchannel(band).getextrema() for band in image.getbands() if band != "A"]
                deep.append(max(high for _, high in bands))
                if deep[-1] <= 16:
                    raise InputError(f"colours of 16 bits, the largest {deep[-1]} of 255; scale them, and save 8 bits")
    if deep and max(deep) < 64:
        raise InputError(f"{paths[0]}: colours of 16 bits, the largest {max(deep)} of 255; scale them, and save 8 bits")
    white = {kind: next(end for end in WHITE[kind] if max(highs) <= end) for kind, highs in largest.items() if highs}
    if is_scaled:
        white["I"] = WHITE["I"][-1]
    notes = []
    for kind, end in white.items():
        high = max(largest[kind])
        if 2 * high < end or end == 4095 or high < end == 255:
            notes.append(f"grey values of 0 to {high:,.6g} are taken as 0 to {end:,}")
        below = max((other for other in WHITE[kind] if other < end), default=-1)
        smaller = [high for high in largest[kind] if high <= below]
        if 0 < len(smaller) < len(largest[kind]):
            text = f"{len(smaller):,} of {len(largest[kind]):,} images have grey values of 0 to {max(smaller):g}"
            notes.append(f"{text}, which are dark beside the others' 0 to {end:,}: scale them, if they are not")
    images, hashes = [], []
    for path in tqdm(paths, desc="images", unit="img", delay=2, leave=False, disable=None, **bar_width()):
        with _opened(path) as image:
            grey = _grey(ImageOps.exif_transpose(image), white)
            if image.mode[0] in white and getattr(image, "tag_v2", {}).get(tiff.PHOTOMETRIC_INTERPRETATION) == 0:
                grey = 255 - grey  # white is zero, which Pillow sees to with 8 bits alone
            digest = blake2b(grey.numpy().tobytes(), key=str(tuple(grey.shape)).encode(), digest_size=8).digest()
            hashes.append(int.from_bytes(digest, "little", signed=True))
            if not resize and grey.shape != (1, 28, 28):
                size = f"{grey.shape[2]} x {grey.shape[1]} pixels, not 28 x 28"
                raise InputError(f"is {size}; resize=True, or the flag --resize, scales it")
            images.append(_resized(grey) if resize else grey)
    images = torch.stack(images)
    return images, hashes, notes + ([] if white else dark_note(images))


def dark_note(grey):
    """A list of one sentence if grey values, a tensor or array of 0 to 255, are all small, or an empty one."""
    high = float(grey.max())
    text = f"the largest grey value is {high:.0f} of 255: scale the images, if they are not meant to be dark"
    return [text] if high < 64 else []


def one_value_note(images):
    """A list of one sentence if nearly all pixels of images (N, C, H, W) in [-1, 1] are alike, or an empty one."""
    some = images[:: max(1, len(images) // 1000)]
    median = float(some.median())
    # Further from the median than 8 of 255 grey values is not one pixel in a thousand.
    if ((some - median).abs() > 0.0628).float().mean() >= 0.001:
        return []
    one, largest = (round((value + 1) * 127.5) for value in (median, float(some.max())))
    return [f"nearly all pixels have one grey value, about {one} of 255; the largest is {largest}"]


def dark_on_light(images):
    """Which images (N, C, H, W) in [-1, 1] look like dark strokes on a light background, (N,) bool.

    Most of their border is light, and it is lighter than the whole. Of MNIST and Fashion-MNIST, this is no image.
    """
    edge = border(images).flatten(1)
    return (edge.median(1).values > 0) & (edge.mean(1) > images.flatten(1).mean(1))


def _has_deep_colours(image):
    """Whether the colours of a PIL image have 16 bits. Raises InputError for TIFFs that Pillow reads wrongly."""
    if image.format == "TIFF":
        tags = image.tag_v2
        deep = max(tags.get(tiff.BITSPERSAMPLE, (1,))) > 8
        if deep and tags.get(tiff.PLANAR_CONFIGURATION) == 2:
            raise InputError("colours of 16 bits in a plane each; save 8 bits")
        four = tags.get(tiff.PHOTOMETRIC_INTERPRETATION) == 2 and tags.get(tiff.SAMPLESPERPIXEL) == 4
        if four and tiff.EXTRASAMPLES not in tags:
            raise InputError("colours of four values, of which the last is not said to be opacity; save three")
        if not deep and 2 in np.atleast_1d(tags.get(tiff.SAMPLEFORMAT, 1)):
            raise InputError("grey values of 8 bits with a sign; save them without")
        return deep
    if image.format == "PPM":
        return any(isinstance(tile[3], tuple) and tile[3][-1] > 255 for tile in image.tile)
    return any(end in str(tile[3]) for tile in image.tile for end in (";16B", ";16L", ";16N"))


@contextmanager
def _opened(path):
    """Yields the PIL image of a file. Raises InputError for whatever goes wrong with it, and for several pictures."""
    try:
        if os.path.exists(path) and not os.path.isfile(path):  # a pipe would wait for ever
            raise InputError("not a file")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of damaged metadata, and of large pictures, which `_resized` may refuse
            # A file: Pillow maps that of a path into memory, and scrambles a TIFF that EXIF turns by a quarter.
            with open(path, "rb") as file, Image.open(file) as image:
                # Phones put a preview or a depth map beside a photograph: MPO.
                if getattr(image, "n_frames", 1) > 1 and image.format != "MPO":
                    raise InputError(f"holds {image.n_frames} pictures; save each that you want as a file of its own")
                if image.format == "EPS":
                    raise InputError("EPS, which is a program that Ghostscript would run; save it as PNG")
                yield image
    except Image.DecompressionBombError:
        raise InputError(f"{path}: more than {2 * Image.MAX_IMAGE_PIXELS:,} pixels; scale it down") from None
    except UnidentifiedImageError:
        known = Path(path).suffix.lower() in Image.registered_extensions()
        kind = "" if known else ", or of a format that is not read; save it as PNG"
        if Path(path).suffix.lower()[:4] == ".tif":
            kind = ", or of a kind that Pillow does not read; save grey values or RGB of 8 or 16 bits"
        with open(path, "rb") as file:
            kind = ", but a pointer of Git LFS: 'git lfs pull' fetches it" if file.read(12) == b"version http" else kind
        raise InputError(f"{path}: not an image{kind}") from None
    except (InputError, OSError) as error:
        raise InputError(f"{path}: {getattr(error, 'strerror', None) or error}") from None
    except Exception as error:  # no list says what a damaged file makes Pillow raise
        raise InputError(f"{path}: cannot be read ({error})") from None


def _grey(image, white):
    """The grey values of a PIL image, from 0 to 255, (1, height, width) float32; white: of modes "I" and "F"."""
    if (kind := image.mode[0]) in white:
        grey = np.asarray(image).astype(np.float64) / (white[kind] / 255)
        return torch.from_numpy(grey.astype(np.float32)).clamp(0, 255).unsqueeze(0)
    if "A" not in image.getbands() and "transparency" not in image.info:
        return transforms.pil_to_tensor(image.convert("L")).float()
    image = image.convert("RGBA")
    grey = transforms.pil_to_tensor(image.convert("L")).float()
    opacity = transforms.pil_to_tensor(image.getchannel("A")).float() / 255
    if opacity.max() < 0.02:  # other programs may show its colours nevertheless
        raise InputError("is transparent everywhere; save it without transparency")
    background = 255 if (grey * opacity).sum() < 127.5 * opacity.sum() else 0  # what the strokes contrast with
    if (edge := border(opacity) > 0.5).float().mean() > 0.5:  # a picture with a background, such as a screenshot's
        background = border(grey)[edge].median()
    return grey * opacity + background * (1 - opacity)


def _resized(grey):
    """Grey values (1, height, width) padded to a square with the median of the border, and scaled to 28 x 28."""
    height, width = grey.shape[1:]
    if max(height, width) > min(LONGEST, MOST_UNEVEN * min(height, width)):  # the square would hardly fit into memory
        raise InputError(f"is {width} x {height} pixels, too large, or too far from a square")
    rows, columns = (max(height, width) - length for length in (height, width))
    padding = [columns // 2, rows // 2, columns - columns // 2, rows - rows // 2]
    square = transforms.pad(grey, padding, fill=float(border(grey).median()))
    return transforms.resize(square, [28, 28], antialias=True).clamp(0, 255)


def border(images):
    """The outermost pixels of images (..., H, W), (..., pixels)."""
    return torch.cat((images[..., 0, :], images[..., -1, :], images[..., 1:-1, 0], images[..., 1:-1, -1]), dim=-1)
