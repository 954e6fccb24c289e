"""Every figure, in one visual language. Functions take plain tensors and return a matplotlib Figure."""

import math
from functools import wraps

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.figure import Figure
from torchvision.utils import make_grid

from training import saved_epochs

NAMES = {"amortized": "Amortized VAE", "latent_optimization": "Latent optimization"}
# Okabe and Ito's palette, which colour-blind readers can tell apart.
COLOURS = {"amortized": "#0072B2", "latent_optimization": "#D55E00"}
BASELINE = "#009E73"
SPLIT_LINES = {"train": "-", "test": "--"}
SPLIT_NAMES = {"train": "training images", "test": "test images"}
INK = "#333333"

STYLE = {
    "figure.dpi": 150,
    "savefig.dpi": 150,
    "figure.constrained_layout.use": True,
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.8,
    "legend.frameon": False,
    "image.cmap": "gray",
}


def styled(draw):
    """Draws in the house's style without touching matplotlib's settings outside."""

    @wraps(draw)
    def drawn(*args, **keywords):
        with mpl.rc_context(STYLE):
            return draw(*args, **keywords)

    return drawn


def show_image(axes, image):
    """One image (1, 28, 28) in [-1, 1], white on black, without axes."""
    axes.imshow(image.squeeze(0).cpu().numpy(), vmin=-1, vmax=1)
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)


def show_images(axes, images, *, label="", above=(), below=(), colours=(INK, INK), size=8):
    """Images (M, 1, 28, 28) side by side in one axes, which draws much faster than axes of their own.

    label: left of them; above, below: M strings each, in points of `size` and in `colours`.
    """
    gap = 3  # of pixels between two of them, which nothing is drawn in
    strip = torch.nn.functional.pad(images.squeeze(1).cpu(), (0, gap), value=math.nan)  # (M, 28, 28 + gap)
    show_image(axes, torch.cat(list(strip), dim=-1)[:, :-gap].unsqueeze(0))
    axes.set_yticks([13.5], [label], fontsize=size + 2)
    axes.tick_params(axis="y", length=0)
    axes.grid(False)
    centres = [13.5 + (28 + gap) * place for place in range(len(images))]
    for side, texts, colour in zip(("top", "bottom"), (above, below), colours, strict=True):
        if len(texts):
            ticks = axes.secondary_xaxis(side)
            ticks.set_xticks(centres, texts, fontsize=size, color=colour)
            ticks.tick_params(length=0, pad=2)
            ticks.spines[:].set_visible(False)


@styled
def image_rows(*, rows, title, captions=None):
    """A row of images for each pair (label, (M, 1, 28, 28)) of `rows`; captions: {label: M strings to stand below}."""
    captions = captions or {}
    columns = max(len(images) for _, images in rows)
    height = sum(0.82 + 0.2 * (label in captions) for label, _ in rows) + 0.5
    figure = Figure(figsize=(0.82 * columns + 1.6, height), layout="compressed")
    for axes, (label, images) in zip(figure.subplots(len(rows), 1, squeeze=False)[:, 0], rows, strict=True):
        show_images(axes, images, label=label, below=captions.get(label, ()))
    figure.suptitle(title)
    return figure


@styled
def sample_sheets(*, sheets, title):
    """One square sheet of images for each entry of `sheets`, {label: (M, 1, 28, 28)}, side by side."""
    figure = Figure(figsize=(4.2 * len(sheets), 4.7))
    for axes, (label, images) in zip(figure.subplots(1, len(sheets), squeeze=False)[0], sheets.items(), strict=True):
        sheet = make_grid(images.cpu(), nrow=math.isqrt(len(images)), padding=1, pad_value=-0.6)[:1]
        show_image(axes, sheet)
        axes.set_title(label)
    figure.suptitle(title)
    return figure


@styled
def training_curves(*, history):
    """Negative ELBO and its two parts over epochs, for both regimes, train and held-out, with 95% bands."""
    panels = (
        ("elbo", -1, "Negative ELBO"),
        ("log_likelihood", -1, "Distortion: $-\\mathrm{E}_q \\log p(x|z)$"),
        ("kl", 1, "Rate: KL$(q(z)\\,||\\,p(z))$"),
    )
    figure = Figure(figsize=(12, 4.2))
    for axes, (part, sign, title) in zip(figure.subplots(1, 3), panels, strict=True):
        for regime, colour in COLOURS.items():
            rows = [row for row in history if row["regime"] == regime]
            if not rows:
                continue
            epochs = [row["epoch"] for row in rows]
            marker = "o" if len(rows) == 1 else None  # a line of one point does not show
            held_out = sign * np.array([row[f"held_out_{part}"] for row in rows])
            error = 1.96 * np.array([row[f"held_out_{part}_standard_error"] for row in rows])
            train = [sign * row[f"train_{part}"] for row in rows]
            images = rows[0]["train_images"], rows[0]["held_out_images"]
            axes.plot(epochs, train, marker=marker, color=colour, label=f"{NAMES[regime]}, {images[0]:,} training")
            axes.plot(
                epochs,
                held_out,
                "--",
                marker=marker,
                mfc="white",
                color=colour,
                label=f"{NAMES[regime]}, {images[1]:,} test",
            )
            axes.fill_between(epochs, held_out - error, held_out + error, color=colour, alpha=0.15, linewidth=0)
        last = max(row["epoch"] for row in history)
        axes.set(title=title, xlabel="epoch", ylabel="nats per image", xticks=saved_epochs(last))
        if part != "kl":
            axes.set_ylabel("nats per image (log scale)")
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(mpl.ticker.FormatStrFormatter("%g"))
            axes.yaxis.set_minor_formatter(mpl.ticker.FormatStrFormatter("%g"))
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=9)
    figure.suptitle(
        "Training both regimes: a running mean over the epoch (solid), test images with their 95% interval (dashed)"
    )
    return figure


@styled
def log_probabilities(*, values, images, example_values, num_samples):
    """One image of each digit with its log p(x), over the average per digit, train beside test.

    values: (2 regimes, 2 splits, 10 digits, n) array; images: (10, 1, 28, 28) test images and example_values (2, 10)
    their log p(x) under both regimes.
    """
    figure = Figure(figsize=(12, 6.4))
    upper, lower = figure.subfigures(2, 1, height_ratios=(1, 2.3))
    above, below = ([f"{value:.1f}" for value in of_regime] for of_regime in example_values)
    show_images(upper.subplots(), images, above=above, below=below, colours=COLOURS.values(), size=9)
    upper.suptitle(
        "One test image of each digit: log p(x), estimated as below, nats; amortized above, latent optimization below"
    )
    panels = lower.subplots(1, 2, sharey=True)
    for axes, (regime, colour), regime_values in zip(panels, COLOURS.items(), values, strict=True):
        for offset, split, split_values in zip((-0.15, 0.15), ("train", "test"), regime_values, strict=True):
            mean, half = mean_and_interval(split_values)
            axes.errorbar(
                np.arange(10) + offset,
                mean,
                yerr=half,
                fmt="o" if split == "train" else "s",
                mfc=colour if split == "train" else "white",
                color=colour,
                capsize=3,
                label=SPLIT_NAMES[split],
            )
        axes.set(title=NAMES[regime], xlabel="digit", xticks=range(10))
        axes.legend(loc="upper right")
    panels[0].set_ylabel("log p(x), nats per image")
    count = values.shape[-1]
    lower.suptitle(
        f"Mean and 95% interval over {count} image{'s' * (count > 1)} per digit; importance sampling, "
        f"{num_samples:,} samples from q: a lower bound"
    )
    return figure


def mean_and_interval(values):
    """Mean over the last axis and half the width of its 95% interval (Student's t); 0 where there is one value."""
    count = values.shape[-1]
    mean = values.mean(-1)
    if count == 1:
        return mean, np.zeros_like(mean)
    return mean, student_t(count - 1) * values.std(-1, ddof=1) / math.sqrt(count)


def student_t(freedom):
    """The 97.5% quantile of Student's t (Hill 1970's expansion about the normal; exact for 1 and 2 degrees)."""
    if freedom == 1:
        return 12.7062
    if freedom == 2:
        return 4.3027
    z, v = 1.959964, freedom
    return (
        z
        + (z**3 + z) / (4 * v)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * v**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * v**3)
        + (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / (92160 * v**4)
    )


@styled
def classification(*, history, per_digit, confusion, wrong):
    """The supervised baseline: curves, accuracy per digit, confusion matrix and the most confident mistakes.

    per_digit: ten dicts of sup_classification.accuracy; confusion: (10, 10) counts, label by prediction;
    wrong: tuples (image, label, prediction, probability).
    """
    figure = Figure(figsize=(13, 7.4))
    upper, lower = figure.subfigures(2, 1, height_ratios=(2.2, 1))
    curves, digits, matrix = upper.subplots(1, 3, width_ratios=(1.1, 1.1, 1))
    epochs = [row["epoch"] for row in history]
    marker = "o" if len(epochs) == 1 else None
    for split, label in (("train", "training images, augmented"), ("test", "test images")):
        error = [100 * row[f"{split}_error"] for row in history]
        curves.plot(epochs, error, SPLIT_LINES[split], marker=marker, color=BASELINE, label=label)
    curves.set(title="Training", xlabel="epoch", ylabel="error, % of images", yscale="log")
    for set_formatter in (curves.yaxis.set_major_formatter, curves.yaxis.set_minor_formatter):
        set_formatter(mpl.ticker.FormatStrFormatter("%g"))
    curves.xaxis.set_major_locator(mpl.ticker.MaxNLocator(integer=True))
    curves.legend()
    share = np.array([100 * score["accuracy"] for score in per_digit])
    ends = np.array([[100 * end for end in score["interval_95"]] for score in per_digit])
    # Rounding may put a share of exactly one a hair outside its interval.
    reach = np.abs(ends.T - share).clip(min=0)
    digits.errorbar(range(10), share, yerr=reach, fmt="o", color=BASELINE, capsize=3)
    total = sum(score["images"] for score in per_digit)
    digits.set(
        title="Accuracy per digit, 95% interval",
        xlabel="digit",
        ylabel="accuracy, %",
        xticks=range(10),
    )
    mistakes = confusion * (1 - np.eye(10))
    matrix.imshow(mistakes, cmap="Blues", vmin=0, vmax=max(1, 1.3 * mistakes.max()))
    matrix.grid(False)
    for label in range(10):
        for prediction in range(10):
            if confusion[label, prediction]:
                matrix.text(prediction, label, confusion[label, prediction], ha="center", va="center", fontsize=7)
    matrix.set(
        title="Confusion matrix, mistakes shaded",
        xlabel="prediction",
        ylabel="label",
        xticks=range(10),
        yticks=range(10),
    )
    if wrong:
        wrong_images, labels, predictions, probabilities = zip(*wrong, strict=True)
        show_images(
            lower.subplots(),
            torch.stack(wrong_images),
            above=[f"{label} as {prediction}" for label, prediction in zip(labels, predictions, strict=True)],
            below=[f"p = {probability:.3f}" for probability in probabilities],
        )
    lower.suptitle("The most confidently wrong test images: label as prediction, its probability")
    figure.suptitle(f"Supervised baseline on all {total:,} test images")
    return figure
