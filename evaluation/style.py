"""How every figure looks: colours, settings, and the parts that figures are made of."""

import math
import re
import textwrap
from functools import cache, wraps
from itertools import product
from pathlib import Path

import matplotlib as mpl
import matplotlib.figure
import numpy as np
from matplotlib import font_manager
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.font_manager import FontProperties
from matplotlib.style import context
from matplotlib.textpath import text_to_path
from matplotlib.ticker import LogLocator
from torchvision.utils import make_grid

from data import SPLITS
from evaluation.statistics import FEWEST_FREE, find, intervals, wilson_interval

SPLIT_NAMES = {"train": "training images", "validation": "validation images", "test": "test images"}
# Okabe and Ito's palette, which colour-blind readers can tell apart; methods take theirs from the rest.
BASELINE, TRIVIAL, INK = "#009E73", "#CC79A7", "#333333"
WHISKER = {"fmt": "none", "color": INK, "capsize": 2, "linewidth": 1}
# Tol's "muted" palette, likewise, and black.
CLASS_COLORS = (
    "#332288", "#88CCEE", "#44AA99", "#117733", "#999933", "#DDCC77", "#CC6677", "#882255", "#AA4499", "#000000"
)  # fmt: skip

ROOM, MOST_NAMED = 55, 60  # points below an image of a row; classes that an axis has room to name
FONT = "DejaVu Sans"  # comes with matplotlib
PLACEHOLDERS = re.compile(r"\.|Last ?Resort|Adobe Blank")  # fonts that draw a box for every character
STYLE = mpl.rc_params_from_file(Path(__file__).with_name("figures.mplstyle"), use_default_template=False)
STYLE |= {"axes.labelcolor": INK, "axes.edgecolor": INK}


class Figure(mpl.figure.Figure):
    """A Figure that is drawn and saved with the settings of this program, whatever those of the user are."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        FigureCanvasAgg(self)
        self.families = mpl.rcParams["font.family"]

    def draw(self, renderer):
        with own_settings(self.families):
            super().draw(renderer)

    def savefig(self, file, **options):
        with own_settings(self.families):
            if options == {"format": "png"}:
                self.canvas.print_png(file)  # matplotlib's savefig draws twice: to lay everything out, and to print it
            else:
                super().savefig(file, **options)


def own_settings(families):
    """The context in which matplotlib has its defaults and STYLE, and text is in these families of fonts."""
    return context(["default", {**STYLE, "font.family": list(families)}])


@cache
def _characters(path):
    """The characters of a font file; none if matplotlib cannot draw them, as of coloured pictures."""
    try:
        font = font_manager.get_font(path)
        return frozenset(map(chr, font.get_charmap())) if font.scalable else frozenset()
    except (OSError, RuntimeError):
        return frozenset()


@cache
def _fonts(characters):
    """(families that have the characters (a frozenset), FONT first, characters that no installed font has)."""
    families, missing = [FONT], characters - _characters(font_manager.findfont(FONT))
    fonts = [font for font in font_manager.fontManager.ttflist if not PLACEHOLDERS.match(font.name)]
    while missing:
        best = max(fonts, key=lambda font: (len(missing & _characters(font.fname)), font.style == "normal"))
        if not missing & _characters(best.fname):
            break
        families.append(best.name)
        missing -= _characters(best.fname)
    return families, missing


def looks(methods):
    """{name: (label, colour)} of the methods and of what they are compared with."""
    return {
        "baseline_features": ("Supervised baseline's features (made from all labels)", BASELINE),
        "real_images": ("Real images", BASELINE),
        **{method.name: (method.label, method.color) for method in methods},
        "pixels": ("Raw pixels", TRIVIAL),
        "pixel_gaussian": ("Gaussian of pixels", TRIVIAL),
        "test": ("Test images", INK),
    }


def class_colors(count):
    """A colour for each of `count` classes."""
    return CLASS_COLORS[:count] if count <= len(CLASS_COLORS) else mpl.colormaps["turbo"](np.linspace(0, 1, count))


def shown(classes):
    """The names of classes as figures show them, long ones without their middle, as short as they differ.

    A name of which no installed font has all characters is "no. N", and so are all if 22 characters do not differ.
    """
    numbers, missing = [f"no. {number}" for number in range(len(classes))], _fonts(frozenset("".join(classes)))[1]
    drawn = [name if missing.isdisjoint(name) else number for name, number in zip(classes, numbers, strict=True)]
    for half in range(6, 12):
        names = [name if len(name) <= 2 * half else f"{name[:half]}…{name[1 - half :]}" for name in drawn]
        if len({*names}) == len(names):
            return [name.replace("$", r"\$") for name in names]  # or a dollar would begin mathematics
    return numbers


def are_short(classes):
    """Whether the names of classes are so short that they can stand for points, and need no room of their own."""
    drawable = _characters(font_manager.findfont(f"{FONT}:oblique"))  # a marker is mathematics
    return all(len(name) <= 2 and name.isalnum() and drawable.issuperset(name) for name in classes)


def _text_width(text, size):
    """In points, of a line in the first of the present fonts."""
    return text_to_path.get_text_width_height_descent(text, FontProperties(size=size), ismath=False)[0]


def _wrapped(line, width):
    """A line of a title, broken where it is wider than `width` points."""
    share = width / max(1, _text_width(line, mpl.rcParams["figure.titlesize"]))
    return line if share > 1 else textwrap.fill(line, max(1, int(0.95 * share * len(line))))


def styled(draw):
    """Draws in this style, with one more keyword, likelihood: the label of p(x|z), printed small at the lower right."""

    @wraps(draw)
    def styled_draw(*, likelihood=None, **keywords):
        labels = [method.label for method in keywords.get("methods", ())]
        text = str([labels, *(value for name, value in keywords.items() if name != "scores")])
        with own_settings(_fonts(frozenset(text) - {"\n"})[0]):
            figure = draw(**keywords)
            if title := figure.get_suptitle():
                wrapped = "\n".join(_wrapped(line, 72 * figure.get_figwidth()) for line in title.split("\n"))
                figure.suptitle(wrapped)
                figure.set_figheight(figure.get_figheight() + 0.2 * (wrapped.count("\n") - title.count("\n")))
            if likelihood:
                figure.supxlabel(likelihood, x=0.995, ha="right", fontsize=7, color=INK)
            return figure

    return styled_draw


def show_images(axes, images, *, label="", captions=(), columns=None, size=8, gap=3):
    """Images (M, C, H, W) in [-1, 1] in one axes, which draws much faster than an axes for each.

    Of images with neither one nor three channels, their mean is shown. label: left of the images; captions: lines below
    them, (name, M strings, colour), `size` in points, or smaller to fit; columns: images in a row; gap: in pixels.
    """
    images = images.detach().cpu().float()
    if images.shape[1] not in (1, 3):
        images = images.mean(1, keepdim=True)
    count, width = len(images), images.shape[-1]
    sheet = make_grid((images.clamp(-1, 1) + 1) / 2, nrow=columns or count, padding=gap, pad_value=1)
    axes.imshow(sheet.permute(1, 2, 0).numpy())
    axes.set(xticks=[], anchor="N")  # free room is below, for the captions
    axes.set_yticks([(sheet.shape[1] - 1) / 2], [label], fontsize=size + 2)
    axes.tick_params(axis="y", length=0)
    axes.spines[:].set_visible(False)
    axes.grid(False)
    edge = gap if count > 1 else 0  # make_grid leaves a single image as it is
    for line, (name, texts, color) in enumerate(captions):
        below, form = -1 - 1.35 * size * line, {"va": "top", "fontsize": size, "color": color}
        axes.annotate(name, (0, 0), (-4, below), "axes fraction", "offset points", ha="right", **form)
        widths = [_text_width(part, size) for text in texts for part in text.split("\n")]
        form["fontsize"] *= min(1, ROOM / max([1, *widths]))
        for position, text in enumerate(texts):
            x = edge + (width - 1) / 2 + (width + gap) * position
            axes.annotate(text, (x, 0), (0, below), ("data", "axes fraction"), "offset points", ha="center", **form)


def show_rows(parent, rows, captions):
    """Draws `image_rows` in a Figure or SubFigure."""
    for axes, (label, images) in zip(parent.subplots(len(rows), squeeze=False)[:, 0], rows, strict=True):
        show_images(axes, images, label=label, captions=[("", captions.get(label, ()), INK)])


@styled
def image_rows(*, rows, title, captions=None):
    """A row of images for each pair (label, (M, C, H, W)) of `rows`; captions: {label: M strings to stand below}.

    rows may also be {heading: a list of pairs}: they are then drawn in columns, side by side.
    """
    columns, captions = rows if isinstance(rows, dict) else {"": rows}, captions or {}
    rows = max(columns.values(), key=len)
    most, (height, width) = max(len(images) for _, images in rows), rows[0][1].shape[-2:]
    lines = {label: 1 + max(text.count("\n") for text in texts) for label, texts in captions.items()}
    row_heights = sum(0.82 * height / width + 0.2 * lines.get(label, 0) for label, _ in rows)
    size = max(9, (0.82 * most + 1.6) * len(columns)), row_heights + 0.8 + 0.25 * (len(columns) + title.count("\n"))
    figure = Figure(figsize=size, layout="compressed")
    parts = figure.subfigures(1, len(columns), squeeze=False)[0] if len(columns) > 1 else [figure]
    for part, (heading, rows) in zip(parts, columns.items(), strict=True):
        part.suptitle(heading)
        show_rows(part, rows, captions)
    figure.suptitle(title)
    return figure


@styled
def sample_sheets(*, sheets, title):
    """One square sheet of images for each entry of `sheets`, {label: (M, C, H, W)}, side by side."""
    height, width = next(iter(sheets.values())).shape[-2:]
    figure = Figure(figsize=(4.2 * len(sheets), 4.2 * height / width + 0.6))
    for axes, (label, images) in zip(figure.subplots(1, len(sheets), squeeze=False)[0], sheets.items(), strict=True):
        show_images(axes, images, columns=math.isqrt(len(images)), gap=1)
        axes.set_title(label)
    figure.suptitle(title)
    return figure


def method_row(parent, methods, **sharing):
    """Pairs (method, axes), side by side in a Figure or SubFigure, titled by the methods' labels."""
    row = parent.subplots(1, len(methods), squeeze=False, **sharing)[0]
    for method, axes in zip(methods, row, strict=True):
        axes.set_title(method.label)
    return list(zip(methods, row, strict=True))


def method_grid(methods):
    """A Figure with a row for each method and a column for each split, and triples (method, split, axes)."""
    figure = Figure(figsize=(12, 3.1 * len(methods) + 0.6))
    grid = figure.subplots(len(methods), len(SPLITS), sharex=True, sharey=True, squeeze=False)
    for axes in grid[:, 0]:
        axes.set_ylabel("nats per image")
    return figure, [(*pair, axes) for pair, axes in zip(product(methods, SPLITS), grid.flat, strict=True)]


def shown_intervals(entries):
    """Means of Scores and half widths of their 95% intervals; NaN below FEWEST_FREE degrees of freedom."""
    mean, half = intervals(entries)
    return mean, np.where([(entry.freedom or 0) < FEWEST_FREE for entry in entries], np.nan, half)


def with_intervals(entries):
    """What a title says of `shown_intervals`."""
    few = np.isnan(shown_intervals(entries)[1]).all()
    return ", of too few images for intervals" if few else " with their 95% t intervals"


def class_intervals(scores, quantity, method, split, classes):
    """`shown_intervals` of each class."""
    return shown_intervals([find(scores, quantity, method.name, split, name) for name in classes])


def plot_band(axes, x, mean, half, *, color, line="-", marker=None, **style):
    """A line through `mean` (N,) with a band of `half` (N,) to either side."""
    if len(mean) == 1:  # neither a line nor a band shows
        axes.errorbar(x, mean, half, fmt=marker or "o", color=color, **style)
        return
    axes.plot(x, mean, line, marker=marker, color=color, **style)
    axes.fill_between(x, mean - half, mean + half, color=color, alpha=0.15, linewidth=0)


def plot_shares(axes, x, scores, **style):
    """Scores that are shares of images, in percent with Wilson's intervals."""
    ends = 100 * np.array([wilson_interval(entry.mean, entry.images) for entry in scores])  # (N, 2)
    share = 100 * np.array([entry.mean for entry in scores])
    # Not a difference with sign: rounding may put a share of exactly one a hair outside its interval.
    axes.errorbar(x, share, yerr=np.abs(ends.T - share), **style)


def class_axis(axes, classes, *, which="x", label="class"):
    """Names the classes along an axis, of more than MOST_NAMED every second, third, ...; turns long ones."""
    form, names, count = {}, shown(classes), len(classes)
    if which == "x" and count > (20 if are_short(names) else 12):
        form = {"rotation": 90}
    elif which == "x" and not are_short(names):
        form = {"rotation": 45, "ha": "right"}
    if count > 12:
        form["fontsize"] = 7 if count <= 36 else 5
    axes.set(**{f"{which}label": label})
    step = math.ceil(count / MOST_NAMED)
    getattr(axes, f"set_{which}ticks")(range(0, count, step), names[::step], **form)


def spaced(epochs):
    """Of rising epochs those that an axis has room to name, the last one among them."""
    named = [epochs[-1]]
    for epoch in reversed(epochs[:-1]):
        if named[-1] - epoch >= 0.04 * (epochs[-1] - epochs[0]):
            named.append(epoch)
    return named[::-1]


def log_axis(axes):
    """Makes the y-axis logarithmic, if all values are positive; its label says so."""
    linked = axes.get_shared_y_axes().get_siblings(axes)
    if min(each.dataLim.y0 for each in linked) > 0:
        axes.set_yscale("log")
        for each in linked:
            each.set_ylabel(f"{label}, logarithmic" if (label := each.get_ylabel()) else "")
        axes.yaxis.set_minor_locator(LogLocator(subs=(1.5, 2, 3, 5, 7)))
    for set_formatter in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
        set_formatter(lambda value, _: f"{round(value, 12) + 0:g}")  # no -0
    for each in linked:
        each.tick_params(axis="y", which="both", labelsize=8)
