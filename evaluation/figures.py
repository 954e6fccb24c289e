"""Figures of bounds, gaps and costs: functions of a run's Scores and any number of methods, which return a Figure.

methods: objects with name, label and color; classes: the classes' names; scores: a list of Scores, of which the last
epoch is drawn. `@style.styled` gives each of them the keyword `likelihood`, which report.py passes to every figure.
"""

import numpy as np
import torch
from matplotlib.colors import to_rgba
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from data import SPLITS
from evaluation import style
from evaluation.statistics import (
    TRACKED,
    column_intervals,
    find,
    how_found,
    intervals,
    plain_score,
    rounded,
    select_scores,
)
from evaluation.style import SPLIT_NAMES, Figure

PARTS = {
    "elbo": (-1, "Negative ELBO"),
    "log_likelihood": (-1, "Distortion: $-\\mathrm{E}_q \\log p(x|z)$"),
    "kl": (1, "Rate: KL$(q(z)\\,||\\,p(z))$"),
}
ESTIMATES = {"log_prob": ("o", None), "importance_sampling": ("v", style.INK)}  # marker, color
GAPS = {  # of the scores: label, strength of the color, shift of the whisker, line, marker
    "amortization_gap": ("ELBO(q*) - ELBO(q):\namortization, or rows\nnot converged", 0.25, 0.16, ":", "s"),
    "mean_field_gap": ("mean-field gap:\nELBO(q*full) - ELBO(q*)", 0.6, 0.0, "--", "^"),
    "non_gaussian_gap": ("non-Gaussian gap:\nlog p(x) - ELBO(q*full)", 1.0, -0.16, "-", "o"),
}


def gap_patches():
    """The legend of GAPS: how strong a method's color is for each."""
    return [Patch(color=to_rgba(style.INK, strength), label=label) for label, strength, *_ in GAPS.values()]


def plot_history(axes, history, name, *, scale, label, color):
    """A column of a training's history, training images solid, validation images dashed with their interval."""
    epochs = [row["epoch"] for row in history]
    for split, line, inside in (("train", "-", color), ("validation", "--", "white")):
        mean, half = column_intervals(history, f"{split}_{name}", f"{split}_images")
        form = {"label": f"{label}{history[0][f'{split}_images']:,} {SPLIT_NAMES[split]}", "line": line, "mfc": inside}
        style.plot_band(axes, epochs, scale * mean, abs(scale) * half, color=color, **form)
    axes.set_xlabel("epoch")


@style.styled
def training_curves(*, history, methods, saved_epochs):
    """Negative ELBO and its two parts over epochs, training and validation images; history: rows of Run.history.

    saved_epochs: those that a training of more than ten names on its axis.
    """
    shown_epochs = saved_epochs if saved_epochs[-1] > 10 else range(1, saved_epochs[-1] + 1)
    solid, dashed = ("solid", "dashed") if saved_epochs[-1] > 1 else ("filled", "open")
    figure = Figure(figsize=(14, max(4.2, 1 + 0.95 * len(methods))))
    for axes, (part, (sign, title)) in zip(figure.subplots(1, len(PARTS)), PARTS.items(), strict=True):
        for method in methods:
            rows = [row for row in history if row["method"] == method.name]
            plot_history(axes, rows, part, scale=sign, label=f"{method.label},\n", color=method.color)
        axes.set(title=title, ylabel="nats per image", xticks=style.spaced(shown_epochs))
        axes.tick_params(axis="y", labelsize=8)
        if part != "kl":
            style.log_axis(axes)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right center", labelspacing=1)
    figure.suptitle(
        f"Training: running means over the epoch ({solid}); validation images with the 95% interval of their mean "
        f"({dashed})"
    )
    return figure


@style.styled
def log_probabilities(*, scores, images, example_values, num_samples, methods, classes):
    """One image of each class with its log p(x), over the mean of each class, training images next to test images.

    images: (M, C, H, W), test images of the first M classes; example_values (methods, M): their log p(x), nats.
    """
    captions = [] if style.are_short(classes) else [("", style.shown(classes)[: len(images)], style.INK)]
    for method, values in zip(methods, example_values, strict=True):
        captions.append((method.label, [f"{value:.1f}" for value in values], method.color))
    width = max(1 + 5.5 * max(2, len(methods)), 2 + 0.85 * len(images))
    upper_height = 1.77 + 0.2 * len(captions) + 0.55 * max(0, len(methods) - 2)  # which make the images wider
    figure = Figure(figsize=(width, upper_height + 4.53))
    upper, lower = figure.subfigures(2, 1, height_ratios=(upper_height, 4.53))
    style.show_images(upper.subplots(), images, captions=captions, size=9)
    each_class = "each class" if len(images) == len(classes) else f"each of the first {len(images)} classes"
    how = how_found(scores, methods[0].name)
    upper.suptitle(f"One test image of {each_class}: log p(x), nats, {how}")
    # Means of the classes.
    panels, halves = style.method_row(lower, methods, sharey=True), []
    for method, axes in panels:
        for split, shift in zip(SPLITS, (-0.2, 0.12), strict=True):
            for number, (quantity, (marker, color)) in enumerate(ESTIMATES.items()):
                x = np.arange(len(classes)) + shift + 0.1 * number
                form = {"color": color or method.color, "fmt": marker} | ({"mfc": "white"} if split == "test" else {})
                mean, half = style.class_intervals(scores, quantity, method, split, classes)
                label = "log p(x)" if quantity == "log_prob" else "importance sampling"
                axes.errorbar(x, mean, half, label=f"{SPLIT_NAMES[split]}, {label}", **form)
                halves.append(half)
        style.class_axis(axes, classes)
        axes.legend(fontsize=8, ncols=2, loc="lower center")
    low, high = axes.get_ylim()
    low -= 0.3 * (high - low)  # leaves room for the legends; above, there may be no values
    panels[0][1].set(ylim=(low, high), ylabel="log p(x), nats per image")
    few = np.isnan(halves).all()
    means = " with its 95% t interval over three images or more"
    means = f"; one or two images {how}, too few for intervals" if few else means
    lower.suptitle(
        f"Mean of each class{means}; log p(x), and by importance sampling\nwith {num_samples:,} samples from q, "
        "which is low where few of them are effective"
    )
    return figure


@style.styled
def where_the_nats_go(*, scores, methods):
    """How log p(x) - ELBO(q) divides into its three gaps, a bar for each method and split, with their values."""
    bars = [(method, split) for method in methods for split in SPLITS]
    figure = Figure(figsize=(10, 1.3 + 0.75 * len(bars)))
    axes, base, texts, y = figure.subplots(), np.zeros(len(bars)), [[] for _ in bars], np.arange(len(bars))[::-1]
    for number, (quantity, (_, strength, *_)) in enumerate(GAPS.items()):
        mean, half = intervals([find(scores, quantity, method.name, split) for method, split in bars])
        colors = [to_rgba(method.color, strength) for method, _ in bars]
        axes.barh(y, mean, left=base, color=colors, edgecolor="white", height=0.6)
        axes.errorbar(base + mean, y - 0.1 + 0.1 * number, xerr=half, **style.WHISKER)
        for parts, width, error in zip(texts, mean, half, strict=True):
            digits = 1 if max(abs(width), error) >= 0.1 else 2
            value = rounded(width, digits) if width else "0"
            parts.append(f"{value} ± {error:.{digits}f}" if width and error >= 0 else value)
        base = base + mean
    for place, parts in zip(y, texts, strict=True):  # one text a bar: its parts may be narrower than their numbers
        text = "  +  ".join(parts).replace("+  -", "-  ")
        axes.annotate(text, (0, place + 0.31), (3, 0), "data", "offset points", va="bottom", fontsize=8)
    axes.set_yticks(y, [f"{method.label},\n{SPLIT_NAMES[split]}" for method, split in bars])
    axes.set(xlabel="log p(x) - ELBO(q), nats per image", ylim=(-0.6, len(bars) - 0.3), axisbelow=True)
    axes.grid(axis="y", visible=False)
    figure.legend(handles=gap_patches(), loc="outside right center", labelspacing=1)
    title = "Where the nats go: log p(x) - ELBO(q) in three parts that add up; ± half a 95% interval over images"
    figure.suptitle(title)
    return figure


@style.styled
def gaps_over_epochs(*, scores, methods):
    """The gaps over epochs, on the same images at every epoch; at the last one an open marker for all measured ones."""
    figure, panels = style.method_grid(methods)
    for method, split, axes in panels:
        labels = {"method": method.name, "split": split}
        for quantity, (_, strength, _, line, marker) in GAPS.items():
            tracked = select_scores(scores, quantity=quantity, group=TRACKED, **labels)
            if not any(entry.mean for entry in tracked):  # the method fits q itself
                continue
            color, epochs = to_rgba(method.color, 0.4 + 0.6 * strength), [entry.epoch for entry in tracked]
            style.plot_band(axes, epochs, *style.shown_intervals(tracked), color=color, line=line, marker=marker)
            mean, half = intervals([find(scores, quantity, **labels)])
            axes.errorbar([1.04 * epochs[-1]], mean, half, color=color, fmt=marker, mfc="white", capsize=3)
        tracked = select_scores(scores, quantity="fitted_elbo", group=TRACKED, **labels)
        epochs = [entry.epoch for entry in tracked]
        counts = {find(scores, quantity, **labels).images for quantity in GAPS}  # fewer, where nothing is carried over
        images = f"{tracked[-1].images} images; open marker: {' and '.join(map(str, sorted(counts)))}"
        axes.set_title(f"{method.label}, {SPLIT_NAMES[split]}\n({images})", fontsize=10)
        axes.set(xlabel="epoch" if method is methods[-1] else "", xticks=style.spaced(epochs))
        if len(epochs) == 1:  # of a run whose earlier epochs were not measured
            axes.set_xlim(epochs[0] - 1, epochs[0] + 1)
    style.log_axis(axes)
    handles = [
        Line2D([], [], color=to_rgba(style.INK, 0.4 + 0.6 * strength), ls=line, marker=marker, label=label)
        for label, strength, _, line, marker in GAPS.values()
    ]
    figure.legend(handles=handles, loc="outside right center", labelspacing=1)
    figure.suptitle(
        f"What inference loses: paired differences on the same images; means{style.with_intervals(tracked)}"
    )
    return figure


@style.styled
def quality_over_seconds(*, scores, methods):
    """ELBO(q) and log p(x) of the same test images over the seconds of training, which grow evenly with the epochs."""
    figure = Figure(figsize=(11, 4.2))
    panels = figure.subplots(1, 2, sharex=True, sharey=True)
    training = {method.name: find(scores, "training_seconds", method.name, "train") for method in methods}
    longest = max(seconds.mean for seconds in training.values())
    for axes, (quantity, title) in zip(panels, (("elbo", "ELBO(q)"), ("log_prob", "log p(x)")), strict=True):
        where = {"quantity": quantity, "split": "test", "group": TRACKED}
        curves = {method.name: select_scores(scores, method=method.name, **where) for method in methods}
        highest = max(curves, key=lambda name: curves[name][0].mean)  # its epochs stand above it, others below
        for method in methods:
            tracked, seconds = curves[method.name], training[method.name]
            x = [seconds.mean * entry.epoch / seconds.epoch for entry in tracked]
            mean, half = style.shown_intervals(tracked)
            style.plot_band(axes, x, mean, half, color=method.color, marker="o", label=method.label)
            beside = (8, -3) if len(tracked) == 1 else (0, 8 if method.name == highest else -14)
            for entry, *point in zip(tracked, x, mean, strict=True):
                form = {"fontsize": 8, "ha": "center", "color": method.color}
                axes.annotate(str(entry.epoch), point, beside, "data", "offset points", **form)
        axes.set(title=title, xlabel="seconds of training", xlim=(0, 1.05 * longest))
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower left", ncols=len(methods))
    panels[0].set_ylabel("nats per image")
    gradients = {find(scores, "training_gradients", method.name, "train").mean for method in methods}
    equal = len(methods) > 1 and len(gradients) == 1
    same = "; in training all methods take equally many gradients an epoch" if equal else ""
    figure.suptitle(
        f"What a second of training buys: means over the same {tracked[-1].images} test images"
        f"{style.with_intervals(tracked)};\nnumbers are epochs{same}"
    )
    return figure


@style.styled
def gaps_per_class(*, scores, methods, classes):
    """The three gaps of every class, stacked."""
    figure, panels = style.method_grid(methods)
    halves = []
    for method, split, axes in panels:
        base, x = 0, np.arange(len(classes))
        for quantity, (_, strength, shift, *_) in GAPS.items():
            mean, half = style.class_intervals(scores, quantity, method, split, classes)
            axes.bar(x, mean, bottom=base, color=method.color, alpha=strength, width=0.7)
            base = base + mean
            axes.errorbar(x + shift, base, half, **style.WHISKER)
            halves.append(half)
        axes.set(title=f"{method.label}, {SPLIT_NAMES[split]}", axisbelow=True)
        style.class_axis(axes, classes, label="class" if method is methods[-1] else "")
        axes.grid(axis="x", visible=False)
    figure.legend(handles=gap_patches(), loc="outside right center", labelspacing=1)
    few = np.isnan(halves).all()
    whiskers = "" if few else "; whiskers: 95% intervals of each part, of three images or more"
    figure.suptitle(f"log p(x) - ELBO(q) at the last epoch, in its three parts{whiskers}")
    return figure


@style.styled
def classification(*, history, per_class, confusion, wrong, classes):
    """The supervised baseline: curves, accuracy per class, confusion matrix and the most confident mistakes.

    history: rows of Run.history; per_class: statistics.accuracy of each class; confusion: counts (classes, classes),
    label by prediction; wrong: tuples (image, label, prediction, probability).
    """
    scale = min(3, max(1, len(classes) / 18))  # or the confusion matrix could not be read
    figure = Figure(figsize=(13 * scale, 7.4 * scale))
    upper, lower = figure.subfigures(2, 1, height_ratios=(2.2, 1))
    curves, shares, matrix = upper.subplots(1, 3, width_ratios=(1.1, 1.1, 1))
    plot_history(curves, history, "error", scale=100, label="", color=style.BASELINE)
    curves.set(title="Training, with augmented images; band: 95% interval", ylabel="error, % of images")
    style.log_axis(curves)
    curves.xaxis.set_major_locator(MaxNLocator(integer=True))
    curves.legend()
    accuracies = [plain_score("accuracy", score["accuracy"], score["images"]) for score in per_class]
    style.plot_shares(shares, range(len(classes)), accuracies, fmt="o", color=style.BASELINE)
    shares.set(title="Accuracy per class, 95% interval", ylabel="accuracy, %")
    style.class_axis(shares, classes)
    mistakes, size = confusion * (1 - np.eye(len(classes))), min(7, 110 * scale / len(classes))
    matrix.imshow(mistakes, cmap="Blues", vmin=0, vmax=max(1, 1.3 * mistakes.max()))
    matrix.grid(False)
    for label, prediction in np.argwhere(confusion):
        matrix.text(prediction, label, confusion[label, prediction], ha="center", va="center", fontsize=size)
    matrix.set(title="Confusion matrix, mistakes shaded")
    style.class_axis(matrix, classes, label="prediction")
    style.class_axis(matrix, classes, which="y", label="label")
    if wrong:
        names = style.shown(classes)
        texts = [(names[label], f"as {names[guess]}", f"p = {share:.3f}") for _, label, guess, share in wrong]
        captions = [("", line, style.INK) for line in zip(*texts, strict=True)]
        style.show_images(lower.subplots(), torch.stack([image for image, *_ in wrong]), captions=captions)
    lower.suptitle("The most confidently wrong test images: label as prediction, its probability")
    figure.suptitle(f"Supervised baseline on all {sum(entry.images for entry in accuracies):,} test images")
    return figure
