"""A user's own image files as tensors: one by one, and folders of classes, cleaned of all that is no image."""

import os
import re
import stat
import unicodedata
import warnings
from collections import Counter, defaultdict
from functools import partial
from itertools import product
from pathlib import Path

import torch
from torchvision.datasets.folder import IMG_EXTENSIONS

from image_files import dark_on_light, one_value_note, read_images
from runtime.config import InputError, about

EXTENSIONS = (*IMG_EXTENSIONS, ".gif")
SPLIT_NAMES = {"training": "train", "testing": "test", "val": "validation", "valid": "validation"}
SPLIT_NAMES |= {name: name for name in ("train", "test", "validation")}
# Words in names of folders that are rarely classes.
NO_CLASS = re.compile("(train|test|valid).*|val|dev|eval|holdout|images?|imgs?|masks?|labels?|annotations?|depth|gt")
NEARLY_EQUAL = 0.99  # correlation of two pictures; of MNIST's 10,000 test images the highest is 0.986
MOST_COMPARED = 10_000  # images, each with all others
KEPT_FIRST = "test", "validation", "train"  # of pictures that are there twice
FEWEST, FEWEST_SPLIT = 10, 2  # images of a class: a fifth of 10 are the two test images that the figures need
NEEDED = "it needs a folder of images for each class, or such folders in train, test and, if you like, val"
# What file managers, archive tools and disks make; hidden files and those of editors begin or end as `_entries` says.
LEFT_BEHIND = re.compile(
    r"__macosx.*|(eh)?thumbs\.db|_thumb(nail)?s|@__thumb|desktop\.ini|icon\r|__pycache__|lost\+found|found\.\d+"
    r"|[@#$]recycle(\.bin)?|recycler|[#~]snapshot|@(eadir|tmp|sharebin|recently-snapshot)|temporary items"
    r"|system volume information|network trash folder|_gsdata_|_vti_cnf",
    re.IGNORECASE,
)
normalized = partial(unicodedata.normalize, "NFC")  # macOS writes accents apart, which sorts otherwise


def read_folder(path, *, resize=False):
    """The images in PATH/class, or in PATH/train/class, PATH/test/class and PATH/validation/class.

    Returns the names of the classes, {"train", and "test", "validation" if they are there: grey values (N, 1, 28, 28),
    labels (N,), hashes of the pixels (N,)}, and a note on what was left out or is not sure, perhaps empty. Of pictures
    that are there twice one is kept, rather for testing than for training. Raises InputError if the folder has another
    form or too few images, or if an image cannot be read.
    """
    path, left_out, parts, notes = os.path.expanduser(path), Counter(), {}, []
    try:
        layout = _layout(path, left_out)
        classes = tuple(layout["train"])
        if len(classes) == 1:
            raise InputError(f"has one class, {classes[0]}; it needs a folder for each of two or more")
        files = [(split, name, file) for split in layout for name in classes for file in layout[split][name]]
        grey, hashes, notes = read_images([file for *_, file in files], resize=resize)
        order = [(KEPT_FIRST.index(split), os.path.islink(file), row) for row, (split, _, file) in enumerate(files)]
        kept = {hashes[row]: row for *_, row in sorted(order, reverse=True)}  # a file rather than a link to it
        rows = sorted(kept.values())
        twice = [(one, files[kept[value]]) for one, value in zip(files, hashes, strict=True)]
        moved = [(one[2], kept_one[2]) for one, kept_one in twice if one[:2] != kept_one[:2]]
        left_out["copies of the same picture"] = len(files) - len(rows)
        left_out["of which in another class"] = sum(one[1] != kept_one[1] for one, kept_one in twice)
        if moved:
            pairs = (f"{os.path.relpath(copy, path)}, kept as {os.path.relpath(first, path)}" for copy, first in moved)
            notes.append(f"in two classes or splits: {_few(pairs)}")
        notes += _unlike_others(grey[rows], [files[row] for row in rows], classes, several=len(layout) > 1)
        number = {name: label for label, name in enumerate(classes)}
        labels, hashes = torch.tensor([number[name] for _, name, _ in files]), torch.tensor(hashes)
        for split in layout:
            chosen = [row for row in rows if files[row][0] == split]
            parts[split] = grey[chosen], labels[chosen], hashes[chosen]
            counts = labels[chosen].bincount(minlength=len(classes)).tolist()
            needed = FEWEST if split == "train" and "test" not in layout else FEWEST_SPLIT
            if (fewest := min(counts)) < needed:
                few = f"class {classes[counts.index(fewest)]} has {fewest} image{'s' * (fewest != 1)}"
                raise InputError(f"{few}{f' in {split}' * (len(layout) > 1)}; every class needs {needed} or more")
    except (InputError, OSError) as error:
        reason = getattr(error, "strerror", None) or error
        if getattr(error, "filename", None) not in (None, path):  # a class
            reason = f"{error.filename}: {reason}"
        raise InputError("; ".join([f"--dataset folder:{path}: {reason}", *_listed(left_out), *notes])) from None
    return classes, parts, "; ".join([*_listed(left_out), *notes])


def _unlike_others(grey, files, classes, *, several):
    """Sentences on kept images (N, 1, 28, 28) that are perhaps not as meant; files: (split, class, path) of each."""
    notes, groups, pixels = [], defaultdict(list), grey.flatten(1)
    for row, (split, name, _) in enumerate(files):
        groups[f"{split}/{name}" if several else name].append(row)
    is_blank = ((pixels - pixels.median(1, keepdim=True).values).abs() > 8).float().mean(1) < 0.001
    is_dark = 4 * pixels.amax(1) < pixels.max()
    dark = [name for name, rows in groups.items() if is_dark[rows].all()]
    if dark or (is_dark & ~is_blank).any():
        which = f"all images of {_few(dark)} are" if dark else _some(is_dark & ~is_blank, files)
        notes.append(f"{which} dark beside the others: brighten the files, if not meant so")
    is_dark_on_light = dark_on_light(grey / 127.5 - 1)
    inverted = [name for name, rows in groups.items() if is_dark_on_light[rows].float().mean() > 0.5]
    if 0 < len(inverted) < len(groups):
        notes.append(f"most images of {_few(inverted)} are dark on a light background, most others not: is that meant?")
    elif 0 < int(is_dark_on_light.sum()) < len(files):
        usual = is_dark_on_light.float().mean() > 0.5
        first, others = ("not dark", "so") if usual else ("dark", "not")
        form = f"{first} on a light background, the others {others}"
        notes.append(f"{_some(is_dark_on_light != usual, files)} {form}: is that meant?")
    if is_blank.any():
        notes.append(f"images of nearly one grey value: {int(is_blank.sum()):,}")
    if doubled := len(files) - len({(split, name, os.path.splitext(path)[0]) for split, name, path in files}):
        notes.append(f"files called like another one, but for the extension (copies?): {doubled:,}")
    if pairs := _nearly_equal(grey):
        example = " and ".join(os.path.join(*Path(files[row][2]).parts[-3:]) for row in reversed(pairs[0]))
        kind = "nearly the same picture as another one (saved again, mirrored, turned?)"
        notes.append(f"{kind}: {len(pairs):,} files, such as {example}")
    words = {name: re.findall("[A-Z]?[a-z]+|[A-Z]+", name) for name in classes}
    named = [name for name in classes if any(NO_CLASS.fullmatch(word.lower()) for word in words[name])]
    if len(named) > 1 or (not several and any(name.lower() in SPLIT_NAMES for name in named)):
        notes.append(f"taken as a class each, is that meant? {_few(named)}")
    return notes


def _nearly_equal(grey):
    """[(row, an earlier row)] of nearly the same pictures (N, 1, 28, 28), perhaps mirrored or turned by quarters.

    Of more than MOST_COMPARED, none.
    """

    def unit(images):
        pixels = images.flatten(1)
        return torch.nn.functional.normalize(pixels - pixels.mean(1, keepdim=True), eps=1e-6)

    pairs, own = {}, unit(grey)
    for image, quarters in product((grey, grey.flip(3)), range(4)) if len(grey) <= MOST_COMPARED else ():
        other = unit(torch.rot90(image, quarters, (2, 3)))
        for rows in torch.arange(len(own)).split(1000):
            highest, earlier = (own[rows] @ other.T).tril(int(rows[0]) - 1).max(1)
            found = highest > NEARLY_EQUAL
            pairs |= dict(zip(rows[found].tolist(), earlier[found].tolist(), strict=True))
    return sorted(pairs.items())


def _layout(path, left_out):
    """{split: {class: paths}} of `read_folder`. Counts what is no image in `left_out`; InputError for another form."""
    _check_name(path)
    folders, images = _entries(path, left_out)
    splits = {name: SPLIT_NAMES.get(name.lower()) for name in folders}
    named = [folder for name, folder in folders.items() if splits[name]]
    if any(_holds_images(inner) for folder in named for inner in _entries(folder, Counter())[0].values()):
        for name in [name for name in folders if not splits[name]]:
            if _holds_images(folders[name]):
                raise InputError(f"holds the folders {_few(folders)}, of which {name} is no split; {NEEDED}")
            del folders[name], splits[name]
            left_out["folders without images"] += 1
    if not (folders and all(splits.values())):
        return {"train": _classes("", folders, images, left_out)}
    layout = {}
    for name, folder in folders.items():
        if splits[name] in layout:
            raise InputError(f"of {_few(folders)} two are the {splits[name]} folder; {NEEDED}")
        layout[splits[name]] = _classes(f"{name}/", *_entries(folder, left_out), left_out)
    left_out["images beside the folders"] += len(images)
    if "train" not in layout:
        raise InputError(f"holds the folders {_few(folders)}, but none called train; {NEEDED}")
    for split in layout:
        if others := sorted(layout[split].keys() ^ layout["train"].keys()):
            raise InputError(f"train and {split} have other classes: {_few(others)} in one of the two alone")
    return {split: layout[split] for split in reversed(KEPT_FIRST) if split in layout}


def _classes(within, folders, images, left_out):
    """{class: paths of its images}; within: "", or a split's name and "/". Raises InputError for other folders."""
    if images and not folders:
        advice = "put them into one folder for each class"
        raise InputError(f"{within or 'it'} holds {len(images)} images and no folders; {advice}; {NEEDED}")
    if not folders:
        raise InputError(f"Couldn't find any class folder in {within or 'it'}; {NEEDED}")
    left_out["images beside the folders"] += len(images)
    classes = {}
    for name, folder in folders.items():
        _check_name(name)
        label = normalized(name)
        if _visible(label) in map(_visible, classes):
            raise InputError(f"two folders are called {within}{_visible(label)}; rename one")
        inner, classes[label] = _entries(folder, left_out)
        if nested := [below for below in inner if _holds_images(inner[below])]:
            raise InputError(f"the folder {within}{name} holds folders of images, {_few(nested)}; {NEEDED}")
        left_out["folders without images"] += len(inner)
    if empty := [name for name, files in classes.items() if not files]:
        raise InputError(f"Found no valid file for the classes {_few(within + name for name in empty)}")
    return classes


def _check_name(name):
    """Raises InputError for the name of a folder that tables and JSON files cannot hold."""
    if {unicodedata.category(character) for character in name} & {"Cc", "Cs"} or not name.strip():
        reason = "has a name that is empty, not UTF-8, or with a control character"
        raise InputError(f"the folder {name!a} {reason}; rename it")


def _visible(name):
    """What a reader sees of a name: neither spaces around it nor characters that only format."""
    return "".join(character for character in name if unicodedata.category(character) != "Cf").strip()


def _some(chosen, files):
    """How many images are chosen (N,), bool, and the first of their files, in words that end in "is" or "are"."""
    names = [os.path.join(*Path(files[row][2]).parts[-2:]) for row in chosen.nonzero().flatten().tolist()]
    return f"{len(names):,} of {len(files):,} images ({_few(names)}) {'is' if len(names) == 1 else 'are'}"


def _few(names, most=5, others="more"):
    """The first names, and how many others there are, in words."""
    names = list(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} {others}" if len(names) > most else "")


def _holds_images(folder):
    """Whether an image is anywhere below a folder."""
    folders, images = _entries(folder, Counter())
    return bool(images) or any(_holds_images(inner) for inner in folders.values() if not os.path.islink(inner))


def _entries(folder, left_out):
    """{name: path} of the folders in a folder, and the paths of its images, by name; counts all else in `left_out`."""
    folders, images, here = {}, [], Path(os.path.realpath(folder))
    for name in sorted(os.listdir(folder), key=lambda name: (normalized(name), name)):
        path, suffix = os.path.join(folder, name), os.path.splitext(name)[1].lower()
        try:
            mode = os.stat(path).st_mode
        except PermissionError:
            raise
        except OSError:
            mode = 0  # a link to nothing, or in a circle
        is_folder, is_file = stat.S_ISDIR(mode), stat.S_ISREG(mode)
        edited = name.startswith("~$") or (len(name) > 1 and (name[-1] == "~" or name[0] == name[-1] == "#"))
        if name[0] == "." and suffix == ".icloud":
            left_out["images still in iCloud"] += 1
        elif name[0] == "." or LEFT_BEHIND.fullmatch(name) or (edited and not is_folder):
            left_out["hidden or temporary files"] += 1
        elif is_folder:
            there = Path(path).resolve()
            if os.path.islink(path) and (there.is_relative_to(here) or here.is_relative_to(there)):
                left_out["links to folders that are there"] += 1
            else:
                folders[name] = path
        elif not is_file:
            left_out["broken links" if os.path.islink(path) else "neither files nor folders"] += 1
        elif suffix not in EXTENSIONS:
            left_out[f"{ascii(suffix)[1:-1] or 'without an extension'} (not read)"] += 1
        elif not os.path.getsize(path):
            left_out["empty files"] += 1
        else:
            images.append(path)
    return folders, images


def _listed(left_out):
    """A list of one sentence on what a Counter counts, or an empty one."""
    kinds = [f"{what} {count:,}" for what, count in left_out.items() if count]
    return [f"left out: {_few(kinds, 15, 'further kinds')}"] if kinds else []


def load_images(images, *, resize=False, invert=False):
    """Image files of 28 x 28 pixels as MNIST has them, light strokes on a dark background: (N, 1, 28, 28) in [-1, 1].

    images: a path, a list of paths, or a folder, whose image files are taken in the order of their names. Colours
    become grey; if they have 16 bits, they must use them. Of grey values of 16 or 32 bits, and of floats, the largest
    of all these images says what is white: 1, 255, 4,095 or 65,535; a warning says so if that is 4,095, is 255 but not
    the largest, or is more than twice the largest. Where an image is transparent, its background is black below light
    strokes and white below dark ones, but that of its border if most of this is opaque. resize: pads an image of
    another size to a square with the median of its border, then scales it with antialiasing. invert: makes the light
    dark and the dark light; without it, images that look like dark strokes on a light background give a warning. Raises
    InputError for a missing file, one that is no image, of several pictures or of another size, and without any.
    """
    for name, value in (("resize", resize), ("invert", invert)):
        if not isinstance(value, bool):
            raise InputError(f"{name}={value!r}: True or False")
    try:
        paths = [os.path.expanduser(path) for path in ([images] if isinstance(images, str | os.PathLike) else images)]
        if hasattr(images, "read"):
            raise TypeError
    except TypeError:
        needed = "a path, a list of paths or a folder; of an array of grey values x / 127.5 - 1"
        raise InputError(f"images: {needed}") from None
    left_out = Counter()
    if len(paths) == 1 and os.path.isdir(paths[0]):
        with about(folder := paths[0]):
            folders, paths = _entries(folder, left_out)
            if not paths:
                hint = f", only folders; with one folder per class, use --dataset folder:{folder}" if folders else ""
                raise InputError("; ".join([f"no image files ({', '.join(EXTENSIONS)}){hint}", *_listed(left_out)]))
            left_out["folders"] += len(folders)
    if not paths:
        raise InputError("no images: the list of paths is empty")
    grey, _, notes = read_images(paths, resize=resize)
    images = 1 - grey / 127.5 if invert else grey / 127.5 - 1
    notes += [] if invert else _dark_on_light_note(images, "for a model of MNIST, invert=True")
    for note in [*_listed(left_out), *notes, *one_value_note(images)]:
        warnings.warn(note, stacklevel=2)
    return images


def _dark_on_light_note(images, advice):
    """A list of one sentence on how many images (N, C, H, W) are `dark_on_light`, or an empty one."""
    count, total = int(dark_on_light(images).sum()), len(images)
    which = f"{count:,} of {total:,} image{'s' * (total > 1)}, where MNIST has light ones on a dark background"
    return [f"dark strokes on a light background in {which}: {advice} turns all images"] if count else []


def warn_unlike_mnist(images):
    """Warns, in one line, of images (N, C, H, W) whose pixels are in [0, 1] alone, or that are `dark_on_light`.

    To be called by a function that a user calls: the warning names the line of that call.
    """
    notes = _dark_on_light_note(images, "-x")
    if count := int((images.flatten(1).amin(1) >= 0).sum()):
        notes = [f"pixels in [0, 1]? expected [-1, 1]: 2 * x - 1 ({count:,} of {len(images):,} images)"]
    for text in notes:
        warnings.warn(text, stacklevel=3)
