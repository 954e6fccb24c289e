"""Every figure of numbers. Functions take plain values and a list of methods of any length, and return a Figure.

methods: objects with name, label and color; classes: the classes' names; scores: dicts as `mean_and_error` gives them.
All functions take `likelihood`, too; see style.styled.
"""

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
BOUNDS = {
    "log_prob": ("log p(x), annealed", "-", "o"),
    "fitted_elbo": ("ELBO(q*)", "--", "s"),
    "elbo": ("ELBO(q)", ":", "v"),
}
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
    """One image of each class with its log p(x), over the average per class, training images next to test images.

    scores: {method's name: {split: a scores.summarize_log_prob}}; images: (classes, C, H, W) test images and
    example_values (methods, classes) their log p(x), nats.
    """
    figure = Figure(figsize=(1 + 5.5 * max(2, len(methods)), 6.4 + 0.15 * len(methods)))
    upper, lower = figure.subfigures(2, 1, height_ratios=(0.8 + 0.15 * len(methods), 2.3))
    texts = [[f"{value:.1f}" for value in of_method] for of_method in example_values]
    captions = [(method.label, line, method.color) for method, line in zip(methods, texts, strict=True)]
    style.show_images(upper.subplots(), images, captions=captions, size=9)
    upper.suptitle("One test image of each class: log p(x), nats, estimated as below")
    panels = style.method_row(lower, methods, sharey=True)
    for method, axes in panels:
        for split, shift, marker, inside in zip(SPLITS, (-0.15, 0.15), "os", (method.color, "white"), strict=True):
            of_classes, x = scores[method.name][split]["classes"], np.arange(len(classes)) + shift
            form = {"color": method.color, "mfc": inside, "label": SPLIT_NAMES[split]}
            axes.errorbar(x, *intervals(of_classes), fmt=marker, **form)
        style.class_axis(axes, classes)
        axes.legend()
    panels[0][1].set_ylabel("log p(x), nats per image")
    count = of_classes[0]["images"]
    lower.suptitle(
        f"Mean over {count} image{'s' * (count > 1)} per class with its 95% interval; importance sampling, "
        f"{num_samples:,} samples from q: a lower bound"
    )
    return figure


@style.styled
def gaps_over_epochs(*, rows, methods, saved_epochs):
    """log p(x) and the bounds at q* and q over epochs; rows: epoch, method, split and gaps.summarize, epochs rising."""
    figure, panels = style.method_grid(methods)
    for method, split, axes in panels:
        own = [row for row in rows if (row["method"], row["split"]) == (method.name, split)]
        scores = {name: [row["scores"][name] for row in own] for name in BOUNDS}
        for name, (label, line, marker) in BOUNDS.items():
            label += ", the same: q is fitted" * (name == "elbo" and scores["elbo"] == scores["fitted_elbo"])
            form = {"color": method.color, "line": line, "marker": marker, "label": label}
            mean, half = intervals(scores[name])
            style.plot_band(axes, [row["epoch"] for row in own], -mean, half, **form)
        before, last = (scores["elbo"][row]["images"] for row in (0, -1))
        before = f", {before} before" if before != last else ""
        axes.set_title(f"{method.label}, {SPLIT_NAMES[split]} ({last} at the last epoch{before})", fontsize=10)
        axes.legend(loc="lower right")
        axes.set(xlabel="epoch" if method is methods[-1] else "", xticks=saved_epochs)
    axes.invert_yaxis()  # what is drawn is the negative, which can have a logarithmic axis
    style.log_axis(axes, sign=-1)
    figure.suptitle(
        "What inference loses: log p(x), the bound at the best diagonal q*, the bound at q;\n"
        "means over images with their 95% intervals"
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
def latent_usage(*, table, units, methods):
    """KL per dimension, sorted, with the number of active units; table, units: as `latents.analyse` makes them."""
    figure = Figure(figsize=(1 + 5 * max(2, len(methods)), 4.4))
    panels = style.method_row(figure, methods, sharey=True)
    for (method, axes), (split, line) in product(panels, zip(SPLITS, ("-", "--"), strict=True)):
        rows = [row for row in table if (row["method"], row["split"]) == (method.name, split)]
        rows.sort(key=lambda row: row["kl"], reverse=True)
        count = units[method.name][split]
        low, high = count["interval_95"]
        label = f"{count['images']:,} {SPLIT_NAMES[split]}\n{count['active_units']} active units ({low} to {high})"
        form = {"color": method.color if split == "train" else style.INK, "line": line, "label": label}
        style.plot_band(axes, range(1, len(rows) + 1), *column_intervals(rows, "kl"), **form)
        axes.set(xlabel=f"rank of the dimension, of {len(rows)}", ylim=(0, None))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend(loc="upper right")
    panels[0][1].set_ylabel("KL(q(z) || p(z)), nats per image")
    figure.suptitle(
        "Which dimensions are used: KL per dimension, sorted; mean over images with its 95% interval\n"
        "Active: the mean of q varies over images by more than 0.01; with its 95% interval over bootstrap resamples"
    )
    return figure


@style.styled
def probes(*, scores, baseline, methods):
    """Accuracy of probes over the number of labels; scores: of latents.probe_scores; baseline: the classifier's own."""
    figure = Figure(figsize=(9.5, 5.6))
    axes, look = figure.subplots(), style.looks(methods)
    for number, (name, rows) in enumerate(scores.items()):
        base = name.removesuffix("_active")
        active, (label, color) = name != base, look[base]
        label += ", mean of q" * (base in {method.name for method in methods}) + ", active units only" * active
        form = {"color": color, "mfc": "white" if active else color, "linestyle": "--" if active else "-"}
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
        "mean over draws of the labels, with its 95% interval over the images"
    )
    return figure


@style.styled
def latent_map(*, points, labels, agreement, methods, classes):
    """Two-dimensional maps of test latents, each image as the name of its class, or as a dot if names are long.

    points: {method's name: (M, 2)}; labels: (M,); agreement: {method's name: stats.accuracy of latents.nearest_agree}.
    """
    figure, short = Figure(figsize=(6 * max(2, len(methods)), 6.4)), max(map(len, classes)) <= 2
    for method, axes in style.method_row(figure, methods):
        for label, (name, color) in enumerate(zip(classes, style.class_colors(len(classes)), strict=True)):
            x, y = points[method.name][labels == label].numpy().T
            form = {"marker": f"${name}$", "s": 42} if short else {"s": 14}
            axes.scatter(x, y, color=color, linewidths=0.2, label=name, **form)
        share, (low, high) = agreement[method.name]["accuracy"], agreement[method.name]["interval_95"]
        axes.set_title(f"{method.label}\n{share:.1%} ({low:.1%} to {high:.1%}) have a nearest neighbor of their class")
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
    if not short:
        figure.legend(*axes.get_legend_handles_labels(), loc="outside right center", markerscale=2)
    figure.suptitle(
        f"Means of q of {len(labels):,} test images, each drawn {'as' if short else 'in the colour of'} its class: "
        "t-SNE, whose axes have no units\nNearest neighbors are those in all dimensions of z; with their 95% interval"
    )
    return figure


@style.styled
def sample_quality(*, scores, examples, methods, classes):
    """Samples of every kind over their Fréchet distance, class histogram and confidence.

    scores: {kind: ...}, with "test" for the test images, of samples.assess; examples: {kind: (M, C, H, W)}.
    """
    look, (height, width) = style.looks(methods), examples["pixel_gaussian"].shape[-2:]
    upper_height = 0.8 * len(examples) * height / width + 0.3
    figure = Figure(figsize=(13, upper_height + 4.8))
    upper, lower = figure.subfigures(2, 1, height_ratios=(upper_height, 4))
    style.show_rows(upper, [(look[name][0], images) for name, images in examples.items()])
    distance, histogram, confidence = lower.subplots(1, 3, width_ratios=(1, 1.5, 1))
    distances = {name: scores[name]["frechet_distance"] for name in examples}
    ends = {name: (score["value"], 1.96 * score["standard_error"]) for name, score in distances.items()}
    sure = {name: np.array(intervals([score["confidence"]]))[:, 0] for name, score in scores.items()}
    for axes, values in ((distance, ends), (confidence, sure)):
        for position, (name, (value, half)) in enumerate(values.items()):
            axes.errorbar(position, value, half, fmt="o", color=look[name][1])
            text = f"{value:,.{3 if value < 1 else 1 if value < 100 else 0}f}"
            axes.annotate(text, (position, value), (7, 0), textcoords="offset points", va="center", fontsize=9)
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
    distance.set(yscale="log", title=f"Fréchet distance from the {count:,} test images")
    distance.set_ylabel("squared units of the classifier's features")
    distance.yaxis.set_major_formatter(lambda value, _: f"{value:,g}")
    distance.yaxis.set_minor_formatter(NullFormatter())
    style.class_axis(histogram, classes)
    top = 1.35 * histogram.dataLim.y1  # leaves room for the legend
    histogram.set(title="What the classifier takes them for", ylabel="share, %", ylim=(0, top))
    histogram.legend(fontsize=8, ncols=2, loc="upper center")
    confidence.set(title="How surely", ylabel="mean probability of the most probable class")
    figure.suptitle(
        f"{images:,} samples of each kind before the supervised baseline: the mean of p(x|z) at z from p(z)"
        + ", real training images (the best to be expected)" * ("real_images" in examples)
        + ",\nand a Gaussian fitted to pixels (the trivial); "
        "95% intervals: bootstrap (distance), Wilson (shares), Student's t (mean)"
    )
    return figure


@style.styled
def classification(*, history, per_class, confusion, wrong, classes):
    """The supervised baseline: curves, accuracy per class, confusion matrix and the most confident mistakes.

    history: of training.train; per_class: stats.accuracy of each class; confusion: counts (classes, classes), label by
    prediction; wrong: tuples (image, label, prediction, probability).
    """
    figure = Figure(figsize=(13, 7.4))
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
        matrix.text(prediction, label, confusion[label, prediction], ha="center", va="center", fontsize=7)
    matrix.set(title="Confusion matrix, mistakes shaded")
    style.class_axis(matrix, classes, label="prediction")
    style.class_axis(matrix, classes, which="y", label="label")
    if wrong:
        texts = [(classes[label], f"as {classes[guess]}", f"p = {share:.3f}") for _, label, guess, share in wrong]
        captions = [("", line, style.INK) for line in zip(*texts, strict=True)]
        style.show_images(lower.subplots(), torch.stack([image for image, *_ in wrong]), captions=captions)
    lower.suptitle("The most confidently wrong test images: label as prediction, its probability")
    total = sum(score["images"] for score in per_class)
    figure.suptitle(f"Supervised baseline on all {total:,} test images")
    return figure
