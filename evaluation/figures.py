"""Every figure of numbers. Functions take plain values and a list of methods of any length, and return a Figure.

methods: objects with name, label and color; classes: the classes' names; scores: dicts as `mean_and_error` gives them.
All functions take `likelihood`, too; see style.styled.
"""

import math
from itertools import product

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter, NullLocator

from data import SPLITS
from evaluation import style
from evaluation.stats import column_intervals, intervals

SPLIT_NAMES = {"train": "training images", "validation": "validation images", "test": "test images"}
PARTS = {
    "elbo": (-1, "Negative ELBO"),
    "log_likelihood": (-1, "Distortion: $-\\mathrm{E}_q \\log p(x|z)$"),
    "kl": (1, "Rate: KL$(q(z)\\,||\\,p(z))$"),
}
ESTIMATES = {"annealed": ("annealed", "o", None), "importance_sampling": ("importance sampling", "v", style.BASELINE)}
GAPS = {
    "approximation_gap": ("approximation gap:\nlog p(x) - ELBO(q*)", 1.0, -0.12),
    "amortization_gap": ("ELBO(q*) - ELBO(q):\namortization, or rows\nnot converged", 0.4, 0.12),
}


def plot_history(axes, history, name, *, scale, label, color):
    """A column of a training's history, training images solid, validation images dashed with their interval."""
    for split, line in (("train", "-"), ("validation", "--")):
        mean, half = column_intervals(history, f"{split}_{name}", f"{split}_images")
        text = f"{label}{history[0][f'{split}_images']:,} {SPLIT_NAMES[split]}"
        epochs = [row["epoch"] for row in history]
        style.plot_band(axes, epochs, scale * mean, abs(scale) * half, color=color, line=line, label=text, mfc="white")
    axes.set_xlabel("epoch")


@style.styled
def training_curves(*, history, methods, saved_epochs):
    """Negative ELBO and its two parts over epochs, training and validation images; history: of training.train."""
    figure = Figure(figsize=(14, 4.2))
    for axes, (part, (sign, title)) in zip(figure.subplots(1, len(PARTS)), PARTS.items(), strict=True):
        for method in methods:
            rows = [row for row in history if row["method"] == method.name]
            plot_history(axes, rows, part, scale=sign, label=f"{method.label},\n", color=method.color)
        axes.set(title=title, ylabel="nats per image", xticks=saved_epochs)
        if part != "kl":
            style.log_axis(axes)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right center", labelspacing=1)
    figure.suptitle(
        "Training: running means over the epoch (solid); validation images with the 95% interval of their mean (dashed)"
    )
    return figure


@style.styled
def log_probabilities(*, scores, images, example_values, num_samples, methods, classes):
    """One image of each class with its log p(x), over the mean of each class, training images next to test images.

    scores: {method's name: {split: a scores.summarize_log_prob}}; images: (M, C, H, W), test images of the first M
    classes, and example_values (methods, M) their log p(x), nats, annealed.
    """
    width = max(1 + 5.5 * max(2, len(methods)), 2 + 0.85 * len(images))
    texts = [[f"{value:.1f}" for value in of_method] for of_method in example_values]
    names = [] if style.are_short(classes) else [("", map(style.short, classes[: len(images)]), style.INK)]
    captions = names + [(method.label, line, method.color) for method, line in zip(methods, texts, strict=True)]
    figure = Figure(figsize=(width, 6.4 + 0.15 * len(captions)))
    upper, lower = figure.subfigures(2, 1, height_ratios=(0.8 + 0.15 * len(captions), 2.3))
    style.show_images(upper.subplots(), images, captions=captions, size=9)
    of_classes = "each class" if len(images) == len(classes) else f"each of the first {len(images)} classes"
    upper.suptitle(f"One test image of {of_classes}: log p(x), nats, annealed")
    panels = style.method_row(lower, methods, sharey=True)
    for method, axes in panels:
        for split, shift, inside in zip(SPLITS, (-0.2, 0.12), (method.color, "white"), strict=True):
            of_classes = scores[method.name][split]["classes"]
            for number, (name, (label, marker, color)) in enumerate(ESTIMATES.items()):
                x = np.arange(len(classes)) + shift + 0.1 * number
                form = {"color": color or method.color, "mfc": inside if color is None else "white"}
                values = intervals([each[name] for each in of_classes])
                axes.errorbar(x, *values, fmt=marker, label=f"{SPLIT_NAMES[split]}, {label}", **form)
        style.class_axis(axes, classes)
        handles, labels = axes.get_legend_handles_labels()
        axes.legend(handles, labels, fontsize=8, ncols=2)
        low, high = axes.get_ylim()
    panels[0][1].set_ylim(low, high + 0.3 * (high - low))  # leaves room for the legends
    panels[0][1].set_ylabel("log p(x), nats per image")
    count = of_classes[0]["annealed"]["images"]
    lower.suptitle(
        f"Mean over {count} random image{'s' * (count > 1)} of each class with its 95% t interval; annealed, and by "
        f"importance sampling\nwith {num_samples:,} samples from q, which is low by more than its intervals say"
    )
    return figure


@style.styled
def gaps_over_epochs(*, rows, methods, saved_epochs):
    """The two gaps over epochs, on the same images at every epoch; rows: epoch, method, split and gaps.summarize.

    Epochs rise; the last one has a second row, of more images, which is drawn as a marker of its own.
    """
    figure, panels = style.method_grid(methods)
    for method, split, axes in panels:
        own = [row for row in rows if (row["method"], row["split"]) == (method.name, split)]
        *same, larger = own
        for number, (name, (label, _, _)) in enumerate(GAPS.items()):
            scores = [row["scores"][name] for row in same]
            if not any(score["mean"] for score in scores):  # the method fits q itself
                continue
            color, line = (method.color, style.INK)[number], ("-", "--")[number]
            epochs, form = [row["epoch"] for row in same], {"color": color, "line": line, "marker": "os"[number]}
            style.plot_band(axes, epochs, *intervals(scores), label=label, **form)
            mean, half = intervals([larger["scores"][name]])
            form = {"color": color, "fmt": "os"[number], "mfc": "white", "capsize": 3}
            axes.errorbar([1.04 * larger["epoch"]], mean, half, **form)
        count, more = (row["scores"]["elbo"]["images"] for row in (same[-1], larger))
        title = f"{method.label}, {SPLIT_NAMES[split]} ({count} images; open marker: {more})"
        axes.set_title(title, fontsize=10)
        axes.set(xlabel="epoch" if method is methods[-1] else "", xticks=saved_epochs)
    style.log_axis(axes)
    figure.legend(*panels[0][-1].get_legend_handles_labels(), loc="outside right center", labelspacing=1)
    figure.suptitle("What inference loses: paired differences on the same images; means with their 95% t intervals")
    return figure


@style.styled
def quality_over_seconds(*, rows, training_seconds, methods):
    """ELBO(q) and log p(x) of the same test images over the seconds of training; rows: as of `gaps_over_epochs`.

    training_seconds: {method's name: seconds until the last epoch}. Both methods spend one gradient of q on each
    training image in an epoch, so that markers of the same epoch have cost equally many gradients.
    """
    figure = Figure(figsize=(11, 4.2))
    panels = figure.subplots(1, 2, sharey=True)
    for axes, (name, title) in zip(panels, (("elbo", "ELBO(q)"), ("log_prob", "log p(x), annealed")), strict=True):
        for number, method in enumerate(methods):
            *own, _ = [row for row in rows if (row["method"], row["split"]) == (method.name, "test")]
            seconds = [training_seconds[method.name] * row["epoch"] / own[-1]["epoch"] for row in own]
            mean, half = intervals([row["scores"][name] for row in own])
            style.plot_band(axes, seconds, -mean, half, color=method.color, marker="o", label=method.label)
            for row, x, y in zip(own, seconds, -mean, strict=True):
                offset = (0, -14 if number else 8)
                form = {"textcoords": "offset points", "fontsize": 8, "ha": "center", "color": method.color}
                axes.annotate(str(row["epoch"]), (x, y), offset, **form)
        axes.set(title=title, xlabel="seconds of training")
        axes.legend(loc="lower right")
    axes.invert_yaxis()  # what is drawn is the negative, which can have a logarithmic axis
    style.log_axis(axes, sign=-1)
    panels[0].set_ylabel("nats per image")
    count = own[-1]["scores"]["elbo"]["images"]
    figure.suptitle(
        f"What a second of training buys: means over the same {count} test images with their 95% t intervals;\n"
        "numbers are epochs, at which both methods have taken equally many gradients"
    )
    return figure


@style.styled
def gaps_per_class(*, per_class, methods, classes):
    """The two gaps of every class, stacked; per_class: {method's name: {split: a gaps.summarize of each class}}."""
    figure, panels = style.method_grid(methods)
    for method, split, axes in panels:
        scores, base, x = per_class[method.name][split], 0, np.arange(len(classes))
        for name, (label, strength, shift) in GAPS.items():
            mean, half = intervals([score[name] for score in scores])
            axes.bar(x, mean, bottom=base, color=method.color, alpha=strength, width=0.7, label=label)
            axes.errorbar(x + shift, base + mean, half, fmt="none", color=style.INK, capsize=2, linewidth=1)
            base = base + mean
        axes.set_title(f"{method.label}, {SPLIT_NAMES[split]} ({scores[0]['elbo']['images']} of each class)")
        style.class_axis(axes, classes, label="class" if method is methods[-1] else "")
        axes.grid(axis="x", visible=False)
        axes.set_axisbelow(True)
    figure.legend(*panels[0][-1].get_legend_handles_labels(), loc="outside right center", labelspacing=1)
    figure.suptitle("log p(x) - ELBO(q) at the last epoch, in its two parts; whiskers: 95% intervals of their means")
    return figure


@style.styled
def latent_usage(*, table, dimensions, methods):
    """KL per dimension, sorted, with the number of used ones; table, dimensions: as `latents.analyse` makes them."""
    figure = Figure(figsize=(1 + 5 * max(2, len(methods)), 4.4))
    panels = style.method_row(figure, methods, sharey=True)
    for (method, axes), (split, line) in product(panels, zip(SPLITS, ("-", "--"), strict=True)):
        rows = [row for row in table if (row["method"], row["split"]) == (method.name, split)]
        rows.sort(key=lambda row: row["kl"], reverse=True)
        count = dimensions[method.name][split]
        threshold, variance = count["kl_threshold"], count["variance_threshold"]
        (low, high), (fewest, most) = count["interval_95"], count["active_units_interval_95"]
        label = (
            f"{count['images']:,} {SPLIT_NAMES[split]}\n{count['used_dimensions']} dimensions above {threshold:g} nats "
            f"({low} to {high}): {count['share_of_kl']:.1%} of the KL\n"
            f"{count['active_units']} active units ({fewest} to {most})"
        )
        form = {"color": method.color if split == "train" else style.INK, "line": line, "label": label}
        style.plot_band(axes, range(1, len(rows) + 1), *column_intervals(rows, "kl"), **form)
        axes.set(xlabel=f"rank of the dimension, of {len(rows)}")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend(loc="upper right", labelspacing=1)
    for _, axes in panels:
        axes.axhline(threshold, color=style.INK, linestyle=":", linewidth=0.8)
    panels[0][1].set_ylabel("KL(q(z) || p(z)), nats per image")
    panels[0][1].set_ylim(bottom=0)  # at the end, since it stops the scaling of all panels
    figure.suptitle(
        f"Which dimensions are used: KL per dimension, sorted, mean over images with its 95% interval; dotted: "
        f"{threshold:g} nats\nActive units (Burda et al. 2016): the variance over images of the mean of q is above "
        f"{variance:g}\nIn brackets: the range of 95% of the bootstrap resamples of the images"
    )
    return figure


@style.styled
def probes(*, scores, baseline, methods):
    """Accuracy of probes over the number of labels; scores: of latents.probe_scores; baseline: the classifier's own."""
    figure = Figure(figsize=(9.5, 5.6))
    axes, look = figure.subplots(), style.looks(methods)
    names = {method.name for method in methods}
    fitted = {method.name for method in methods if not method.shared_inference}
    for number, (name, rows) in enumerate(scores.items()):
        base = name.removesuffix("_used")
        used, (label, color) = name != base, look[base]
        label += ", mean of q" * (base in names) + ", used dimensions only" * used
        label += "\n(training: rows of its table; test: fitted)" * (base in fitted)
        form = {"color": color, "mfc": "white" if used else color, "linestyle": "--" if used else "-"}
        x = [row["labels"] * 1.04 ** (number - len(scores) / 2) for row in rows]  # or they would hide each other
        style.plot_shares(axes, x, rows, marker="osv^DPX"[number % 7], label=label, **form)
    low, high = (100 * end for end in baseline["interval_95"])
    axes.axhspan(low, high, color=style.BASELINE, alpha=0.15, linewidth=0)
    axes.axhline(100 * baseline["accuracy"], color=style.BASELINE, linestyle=":", label="Supervised baseline itself")
    axes.set_xscale("log")
    names = [f"{row['labels']:,}\n({row['draws']} draw{'s' * (row['draws'] > 1)})" for row in rows]
    axes.set_xticks([row["labels"] for row in rows], names)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set(xlabel="labels of training images", ylabel="accuracy, % of test images")
    axes.legend()
    figure.suptitle(
        f"What a logistic regression reads from the latents: accuracy on {rows[0]['images']:,} test images,\n"
        "mean over draws of the labels, with its 95% interval (Wilson) over the images alone\n"
        "Features have one scale for all dimensions; C is cross-validated for every draw"
    )
    return figure


@style.styled
def latent_map(*, points, labels, agreement, in_pixels, methods, classes):
    """Two-dimensional maps of test latents, each image as the name of its class, or as a dot if names are long.

    points: {method's name: (M, 2)}; labels: (M,); agreement: {method's name: stats.accuracy of latents.nearest_agree};
    in_pixels: the same in raw pixels.
    """
    short = style.are_short(classes)
    figure = Figure(figsize=(6 * max(2, len(methods)) + 2.5 * (not short), 6.4))
    for method, axes in style.method_row(figure, methods):
        for label, (name, color) in enumerate(zip(classes, style.class_colors(len(classes)), strict=True)):
            x, y = points[method.name][labels == label].numpy().T
            form = {"marker": f"${name}$", "s": 42} if short else {"s": 14}
            axes.scatter(x, y, color=color, linewidths=0.2, label=style.short(name), **form)
        share, (low, high) = agreement[method.name]["accuracy"], agreement[method.name]["interval_95"]
        axes.set_title(f"{method.label}\n{share:.1%} ({low:.1%} to {high:.1%}) have a nearest neighbor of their class")
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
    if not short:
        columns = math.ceil(len(classes) / 30)
        figure.legend(*axes.get_legend_handles_labels(), loc="outside right center", markerscale=2, ncols=columns)
    share, (low, high) = in_pixels["accuracy"], in_pixels["interval_95"]
    figure.suptitle(
        f"Means of q of {len(labels):,} test images, each drawn {'as' if short else 'in the colour of'} its class: "
        "t-SNE, whose axes have no units\nNearest neighbors are those in all dimensions of z; with their 95% interval\n"
        f"In raw pixels {share:.1%} ({low:.1%} to {high:.1%}) have a nearest neighbor of their class"
    )
    return figure


@style.styled
def sample_quality(*, scores, floor, examples, methods, classes):
    """Samples of every kind over their Fréchet distance, class histogram and confidence.

    scores: {kind: ...}, with "test" for the test images, of samples.assess; floor: of samples.finite_sample_floor;
    examples: {kind: (M, C, H, W)}.
    """
    look, (height, width) = style.looks(methods), examples["pixel_gaussian"].shape[-2:]
    upper_height = 0.8 * len(examples) * height / width + 0.3
    figure = Figure(figsize=(13, upper_height + 5.1))
    upper, lower = figure.subfigures(2, 1, height_ratios=(upper_height, 4))
    style.show_rows(upper, [(look[name][0], images) for name, images in examples.items()])
    distance, histogram, confidence = lower.subplots(1, 3, width_ratios=(1.25, 1.4, 0.9))
    distances = {name: scores[name]["frechet_distance"] for name in examples}
    ends = {name: (score["value"], 1.96 * score["standard_error"]) for name, score in distances.items()}
    sure = {name: np.array(intervals([score["confidence"]]))[:, 0] for name, score in scores.items()}
    floor_style = {"textcoords": "offset points", "ha": "right", "va": "top", "fontsize": 8}
    text = f"finite-sample floor: {floor['value']:,.3g}"
    distance.annotate(text, (len(examples), floor["value"]), (0, -3), **floor_style)
    distance.axhline(floor["value"], color=style.INK, linewidth=0.8)
    for axes, values in ((distance, ends), (confidence, sure)):
        for position, (name, (value, half)) in enumerate(values.items()):
            axes.errorbar(position, value, half, fmt="o", color=look[name][1])
            text = f"{value:,.{3 if value < 1 else 1 if value < 100 else 0}f}"
            if axes is distance and name != "pixel_gaussian":
                ratio = distances[name]["over_pixel_gaussian"]
                text += f"\n{ratio['value']:.3f}\n± {1.96 * ratio['standard_error']:.3f}"
            form = {"va": "bottom", "fontsize": 8} if axes is distance else {"va": "center", "fontsize": 9}
            axes.annotate(text, (position, value), (7, 0), textcoords="offset points", **form)
        axes.set_xticks(range(len(values)), [look[name][0] for name in values], rotation=35, ha="right", fontsize=9)
        axes.set_xlim(-0.5, len(values))
    for number, name in enumerate(examples):
        x = np.arange(len(classes)) + 0.64 * ((number + 0.5) / len(examples) - 0.5)
        form = {"color": look[name][1], "fmt": "o", "ms": 3.5, "lw": 1, "capsize": 2, "label": look[name][0]}
        style.plot_shares(histogram, x, scores[name]["classes"], name="share", **form)
    count, images = scores["test"]["confidence"]["images"], distances["pixel_gaussian"]["images"]
    expected = [100 * share["share"] for share in scores["test"]["classes"]]
    edges = np.arange(len(classes) + 1) - 0.5
    histogram.stairs(expected, edges, baseline=None, color=style.INK, label=f"{count:,} test images")
    reached = [floor["value"], *(value for value, _ in ends.values())]
    distance.set(yscale="log", ylim=(min(reached) / 3, 4 * max(reached)))  # leaves room for the numbers
    distance.set_title(f"Fréchet distance from the {count:,} test images;\nbelow it, its ratio to the Gaussian's")
    distance.set_ylabel("squared units of the classifier's features")
    distance.yaxis.set_major_formatter(lambda value, _: f"{value:,g}")
    distance.yaxis.set_minor_formatter(NullFormatter())
    style.class_axis(histogram, classes)
    top = 1.35 * histogram.dataLim.y1  # leaves room for the legend
    histogram.set(title="What the classifier takes them for", ylabel="share, %", ylim=(0, top))
    histogram.legend(fontsize=8, ncols=2, loc="upper center")
    confidence.set(title="How surely", ylabel="mean probability\nof the most probable class")
    figure.suptitle(
        f"{images:,} samples of each kind before the supervised baseline: the mean of p(x|z) at z from p(z)"
        + ", real training images (the best to be expected)" * ("real_images" in examples)
        + ",\nand a Gaussian fitted to pixels (the trivial); "
        "95% intervals: bootstrap (distance, ratio), Wilson (shares), Student's t (mean)\n"
        "Finite-sample floor: the mean distance between two samples of test images, by the bootstrap"
    )
    return figure


@style.styled
def classification(*, history, per_class, confusion, wrong, classes):
    """The supervised baseline: curves, accuracy per class, confusion matrix and the most confident mistakes.

    history: of training.train; per_class: stats.accuracy of each class; confusion: counts (classes, classes), label by
    prediction; wrong: tuples (image, label, prediction, probability).
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
    style.plot_shares(shares, range(len(classes)), per_class, fmt="o", color=style.BASELINE)
    shares.set(title="Accuracy per class, 95% interval", ylabel="accuracy, %")
    style.class_axis(shares, classes)
    mistakes = confusion * (1 - np.eye(len(classes)))
    matrix.imshow(mistakes, cmap="Blues", vmin=0, vmax=max(1, 1.3 * mistakes.max()))
    matrix.grid(False)
    for label, prediction in np.argwhere(confusion):
        size = min(7, 110 * scale / len(classes))
        matrix.text(prediction, label, confusion[label, prediction], ha="center", va="center", fontsize=size)
    matrix.set(title="Confusion matrix, mistakes shaded")
    style.class_axis(matrix, classes, label="prediction")
    style.class_axis(matrix, classes, which="y", label="label")
    if wrong:
        names = [style.short(name) for name in classes]
        texts = [(names[label], f"as {names[guess]}", f"p = {share:.3f}") for _, label, guess, share in wrong]
        captions = [("", line, style.INK) for line in zip(*texts, strict=True)]
        style.show_images(lower.subplots(), torch.stack([image for image, *_ in wrong]), captions=captions)
    lower.suptitle("The most confidently wrong test images: label as prediction, its probability")
    total = sum(score["images"] for score in per_class)
    figure.suptitle(f"Supervised baseline on all {total:,} test images")
    return figure
