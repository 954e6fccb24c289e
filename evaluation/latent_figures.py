"""Figures of latents and of samples. Arguments are those of figures.py."""

import math
from itertools import pairwise, product

import numpy as np
from matplotlib.patches import Circle
from matplotlib.ticker import MaxNLocator, NullFormatter, NullLocator
from scipy.special import ndtr

from data import SPLITS
from evaluation import style
from evaluation.latents import ACTIVE, GRID, PLANE, USED
from evaluation.samples import BASELINE
from evaluation.statistics import column_intervals, find, half_width, select_scores, wilson_interval
from evaluation.style import SPLIT_NAMES, Figure


@style.styled
def latent_usage(*, table, scores, methods):
    """KL per dimension, sorted, with the number of used ones; table: rows of latent_usage.csv."""
    figure = Figure(figsize=(1 + 5 * max(2, len(methods)), 4.4))
    panels = style.method_row(figure, methods, sharey=True)
    for method, axes in panels:
        for split, line, color in zip(SPLITS, ("-", "--"), (method.color, style.INK), strict=True):
            rows = [row for row in table if (row["method"], row["split"]) == (method.name, split)]
            rows.sort(key=lambda row: row["kl"], reverse=True)
            used, fewest_used, most_used, active, fewest, most = (
                int(find(scores, quantity + end, method.name, split).mean)
                for quantity, end in product(("used_dimensions", "active_units"), ("", "_lower", "_upper"))
            )
            share = find(scores, "share_of_kl", method.name, split).mean
            label = (
                f"{rows[0]['images']:,} {SPLIT_NAMES[split]}\n{used} dimension{'s' * (used != 1)} above {USED:g} nats "
                f"({fewest_used} to {most_used}): {share:.1%} of the KL\n"
                f"{active} active unit{'s' * (active != 1)} ({fewest} to {most})"
            )
            ranks = range(1, len(rows) + 1)
            style.plot_band(axes, ranks, *column_intervals(rows, "kl"), color=color, line=line, label=label)
        margin = max(0.5, 0.05 * len(rows))
        axes.set(xlabel=f"rank of the dimension, of {len(rows)}", xlim=(1 - margin, len(rows) + margin))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        below = {} if len(rows) > PLANE else {"bbox_to_anchor": (1, -0.2)}
        axes.legend(loc="upper right", labelspacing=1, **below)
        axes.axhline(USED, color=style.INK, linestyle=":", linewidth=0.8)
    panels[0][1].set_ylabel("KL(q || p), nats per image")
    panels[0][1].set_ylim(bottom=0)  # at the end, since it stops the scaling of all panels
    figure.suptitle(
        f"Which dimensions are used: KL per dimension, sorted, mean over images with its 95% interval; dotted: "
        f"{USED:g} nats\nActive units (Burda et al. 2016): the variance over images of the mean of q is above "
        f"{ACTIVE:g}\nIn brackets: the range of 95% of the bootstrap resamples of the images"
    )
    return figure


@style.styled
def probes(*, scores, methods):
    """Accuracy of linear probes over the number of labels, beside the supervised classifier's own."""
    figure = Figure(figsize=(9.5, 6.4))
    axes, look = figure.subplots(), style.looks(methods)
    names, fitted = {method.name for method in methods}, {m.name for m in methods if m.infers_best}
    accuracies = select_scores(scores, quantity="probe_accuracy")
    features = list(dict.fromkeys(entry.method for entry in accuracies))
    sizes = sorted({int(entry.group) for entry in accuracies})
    # Points stand side by side, or they would overlap; all of them nearer to their size than to the next one.
    apart = min([1.04, *((other / size) ** (0.7 / len(features)) for size, other in pairwise(sizes))])
    for number, name in enumerate(features):
        base = name.removesuffix("_used")
        used, (label, color) = name != base, look[base]
        label += ", mean of q" if base in names else ""
        label += ", used dimensions only" if used else ""
        label += "\n(training: rows of its table; test: fitted)" if base in fitted else ""
        form = {"color": color, "mfc": "white" if used else color, "linestyle": "--" if used else "-"}
        entries = select_scores(accuracies, method=name)
        x = [int(entry.group) * apart ** (number - len(features) / 2) for entry in entries]
        style.plot_shares(axes, x, entries, marker="osv^DPX"[number % 7], label=label, **form)
    baseline = find(scores, "classifier_accuracy", "baseline")
    low, high = (100 * end for end in wilson_interval(baseline.mean, baseline.images))
    axes.axhspan(low, high, color=style.BASELINE, alpha=0.15, linewidth=0)
    label = f"Supervised baseline itself, {baseline.images:,} test images"
    axes.axhline(100 * baseline.mean, color=style.BASELINE, linestyle=":", label=label)
    axes.set(xscale="log", xlabel="labels of training images", ylabel="accuracy, % of test images")
    draws = {int(entry.group): int(entry.mean) for entry in select_scores(scores, quantity="probe_draws", method=name)}
    axes.set_xticks(list(draws), [f"{size:,}\n({count} draw{'s' * (count > 1)})" for size, count in draws.items()])
    axes.xaxis.set_minor_locator(NullLocator())
    figure.legend(loc="outside lower left", ncols=2)
    figure.suptitle(
        f"What a logistic regression reads from the latents: accuracy on {entries[0].images:,} test images,\n"
        "mean over draws of the labels, with its 95% interval (Wilson) over the images alone\n"
        "Features have one scale for all dimensions; the first draw chooses the penalty, by cross-validation"
    )
    return figure


@style.styled
def latent_map(*, points, labels, scores, methods, classes, latent_dims):
    """Two-dimensional maps of test latents, each image as the name of its class, or as a dot if names are long.

    points: {method's name: (M, 2)}, of latents.map_2d; labels: (M,); latent_dims: {method's name: D}: of at most PLANE
    dimensions the points are z itself, drawn beside the prior.
    """
    names = style.shown(classes)
    short, dims = style.are_short(names), {name: dim for name, dim in latent_dims.items() if dim <= PLANE}
    reach = 1.05 * max([2, *(float(points[name].abs().max()) for name in dims)])
    figure = Figure(figsize=(6 * max(2, len(methods)) + 2.5 * (not short), 6.4))

    def agreement(name):
        entry = find(scores, "nearest_neighbor_accuracy", name)
        low, high = wilson_interval(entry.mean, entry.images)
        return f"{entry.mean:.1%} ({low:.1%} to {high:.1%}) have a nearest neighbor of their class"

    for method, axes in style.method_row(figure, methods):
        for label, (name, color) in enumerate(zip(names, style.class_colors(len(classes)), strict=True)):
            x, y = points[method.name][labels == label].numpy().T
            y = label + 0.7 * y if dims.get(method.name) == 1 else y  # a row for each class
            form = {"marker": f"${name}$", "s": 42} if short else {"s": 14}
            shown = f" {name}" if name.startswith("_") else name  # matplotlib hides labels that begin with "_"
            axes.scatter(x, y, color=color, linewidths=0.2, label=shown, **form)
        axes.set_title(f"{method.label}\n{agreement(method.name)}")
        if method.name in dims:
            _draw_prior(axes, dims[method.name], reach, classes)
        else:
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(True)
        axes.set_axisbelow(True)
    if not short:
        columns = math.ceil(len(classes) / 30)
        figure.legend(*axes.get_legend_handles_labels(), loc="outside right center", markerscale=2, ncols=columns)
    kinds = ["t-SNE, whose axes have no units"] if len(dims) < len(methods) else []
    if dims:
        heights = "; heights within a row mean nothing" if 1 in dims.values() else ""
        kinds.insert(0, f"z itself; dashed: 1 and 2 standard deviations of the prior{heights}")
    space = "z" if len(dims) == len(methods) else "all dimensions of z"
    figure.suptitle(
        f"Means of q of {len(labels):,} test images, each drawn {'as' if short else 'in the colour of'} its class: "
        f"{', or '.join(kinds)}\nNearest neighbors are those in {space}; "
        f"with their 95% interval\nIn raw pixels {agreement('pixels')}"
    )
    return figure


def _draw_prior(axes, latent_dim, reach, classes):
    """One and two standard deviations of p(z), on an axis from -reach to reach or on two equal ones."""
    form = {"color": style.INK, "linestyle": "--", "linewidth": 0.8, "zorder": 3}
    axes.set(xlim=(-reach, reach), xlabel="z[0]")
    if latent_dim == 1:
        for z in (-2, -1, 1, 2):
            axes.axvline(z, **form)
        style.class_axis(axes, classes, which="y")
        return
    for radius in (1, 2):
        axes.add_patch(Circle((0, 0), radius, fill=False, **form))
    axes.set(ylim=(-reach, reach), ylabel="z[1]", aspect="equal")


@style.styled
def latent_manifold(*, images, methods):
    """What decoders draw on a grid of z; images: of latents.manifold."""
    methods = [method for method in methods if method.name in images]
    count, (height, width) = len(methods), images[methods[0].name].shape[-2:]
    square = any(len(sheet) > GRID for sheet in images.values())
    size = (6 * count, 5.5 * height / width + 1.2) if square else (12, (0.6 * height / width + 0.7) * count + 0.5)
    figure, ticks = Figure(figsize=size, layout="compressed"), np.linspace(-1.5, 1.5, 7)
    names = [f"{z:g}".replace("-", "\N{MINUS SIGN}") for z in ticks]
    grid = figure.subplots(*((1, count) if square else (count, 1)), squeeze=False)
    for method, axes in zip(methods, grid.flat, strict=True):
        sheet = images[method.name]
        style.show_images(axes, sheet, columns=GRID, gap=0)
        axes.set(title=method.label, xlabel="z[0]", yticks=[])
        axes.set_xticks(GRID * width * ndtr(ticks) - 0.5, names)
        if len(sheet) > GRID:
            axes.set_yticks(GRID * height * ndtr(-ticks) - 0.5, names, fontsize="medium")
            axes.set_ylabel("z[1]")
        axes.tick_params(length=3)
    title = "The mean of p(x|z) at every z of a grid, in steps of equal shares of p(z)"
    figure.suptitle(f"{title} (Kingma & Welling 2014, figure 4)")
    return figure


@style.styled
def sample_quality(*, scores, examples, methods, classes):
    """Samples of every kind over their Fréchet distance, class histogram and confidence.

    examples: {kind: (M, C, H, W)}, as of samples.assess.
    """
    look, (height, width) = style.looks(methods), examples[BASELINE].shape[-2:]
    upper_height = 0.8 * len(examples) * height / width + 0.3
    figure = Figure(figsize=(13 + 1.5 * max(0, len(examples) - 4), upper_height + 5.1))
    upper, lower = figure.subfigures(2, 1, height_ratios=(upper_height, 4))
    style.show_rows(upper, [(look[name][0], images) for name, images in examples.items()], captions={})
    distance, histogram, confidence = lower.subplots(1, 3, width_ratios=(1.25, 1.4, 0.9))
    # Fréchet distances and confidences, with their numbers.
    floor = find(scores, "frechet_distance", "finite_sample_floor").mean
    form = {"textcoords": "offset points", "ha": "right", "va": "top", "fontsize": 8}
    distance.annotate(f"finite-sample floor: {floor:,.3g}", (len(examples), floor), (0, -3), **form)
    distance.axhline(floor, color=style.INK, linewidth=0.8)
    distances, lowest = [find(scores, "frechet_distance", name) for name in examples], floor / 3
    confidences = [find(scores, "confidence", name) for name in (*examples, "test")]
    for axes, entries in ((distance, distances), (confidence, confidences)):
        form = {"textcoords": "offset points", "va": "bottom", "fontsize": 8}
        for position, entry in enumerate(entries):
            half = half_width(entry.standard_error, entry.freedom) if entry.freedom else 1.96 * entry.standard_error
            axes.errorbar(position, entry.mean, half, fmt="o", color=look[entry.method][1])
            lowest = min(lowest, max((entry.mean - half) / 2, entry.mean / 10)) if axes is distance else lowest
            text = f"{entry.mean:,.{3 if entry.mean < 1 else 1 if entry.mean < 100 else 0}f}"
            if axes is distance and entry.method != BASELINE:
                ratio = find(scores, "frechet_ratio", entry.method)
                text += f"\nratio {ratio.mean:.3f}\n± {1.96 * ratio.standard_error:.3f}"
            if axes is distance:
                axes.annotate(text, (position, entry.mean), (7, 0), **form)
            else:  # beside it, the text would run into the next one
                axes.annotate(text, (position, entry.mean + half), (0, 2), ha="center", **form)
        names = [look[entry.method][0] for entry in entries]
        axes.set_xticks(range(len(names)), names, rotation=35, ha="right", fontsize=9)
        axes.set_xlim(-0.5, len(names))
    count, images = confidences[-1].images, distances[0].images
    highest = max(floor, *(entry.mean for entry in distances))
    distance.set(yscale="log", ylim=(lowest, 4 * highest))  # leaves room for the numbers
    distance.set_title(f"Fréchet distance from the {count:,} test images;\nratio: to that of the Gaussian of pixels")
    distance.set_ylabel("squared units of the classifier's features")
    distance.yaxis.set_major_formatter(lambda value, _: f"{value:,g}")
    distance.yaxis.set_minor_formatter(NullFormatter())
    confidence.margins(y=0.12)  # so that the numbers stay below the title
    confidence.set(title="Confidence", ylabel="mean probability\nof the most probable class")
    # Class histogram.
    x = np.arange(len(classes))
    for number, name in enumerate(examples):
        form = {"color": look[name][1], "fmt": "o", "ms": 3.5, "lw": 1, "capsize": 2, "label": look[name][0]}
        shares = [find(scores, "class_share", name, group=group) for group in classes]
        style.plot_shares(histogram, x + 0.64 * ((number + 0.5) / len(examples) - 0.5), shares, **form)
    expected = [100 * find(scores, "class_share", "test", group=group).mean for group in classes]
    edges = np.arange(len(classes) + 1) - 0.5
    histogram.stairs(expected, edges, baseline=None, color=style.INK, label=f"{count:,} test images")
    style.class_axis(histogram, classes)
    top = 1.35 * histogram.dataLim.y1  # leaves room for the legend
    histogram.set(title="What the classifier takes them for", ylabel="share, %", ylim=(0, top))
    histogram.legend(fontsize=8, ncols=2, loc="upper center")
    real = ", real images that were not trained on (the best to be expected)" if "real_images" in examples else ""
    figure.suptitle(
        f"{images:,} samples of each kind before the supervised baseline: the mean of p(x|z) at z from p(z){real},\n"
        "and a Gaussian fitted to pixels (the trivial); "
        "95% intervals: bootstrap (distance, ratio), Wilson (shares), Student's t (mean)\n"
        "Finite-sample floor: the mean distance between two samples of test images, by the bootstrap"
    )
    return figure
