"""The figures of what the latents hold and of what the samples are worth, in the visual language of figures.py."""

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

from figures import BASELINE, COLOURS, INK, NAMES, SPLIT_LINES, SPLIT_NAMES, show_image, show_images, styled

TRIVIAL = "#CC79A7"  # of Okabe and Ito's palette, like the colours in figures.py
# Tol's "muted" palette, which colour-blind readers can tell apart, and black.
DIGIT_COLOURS = (
    "#332288",
    "#88CCEE",
    "#44AA99",
    "#117733",
    "#999933",
    "#DDCC77",
    "#CC6677",
    "#882255",
    "#AA4499",
    "#000000",
)
PROBED = {
    "baseline_features": ("Supervised baseline's features (made from all labels)", BASELINE, "^"),
    "amortized": ("Amortized VAE, mean of q", COLOURS["amortized"], "o"),
    "amortized_active": ("Amortized VAE, mean of q, active units only", COLOURS["amortized"], "v"),
    "latent_optimization": ("Latent optimization, mean of q", COLOURS["latent_optimization"], "s"),
    "pixels": ("Raw pixels", TRIVIAL, "D"),
}
JUDGED = {
    "held_out": ("Held-out images", BASELINE),
    "amortized": (NAMES["amortized"], COLOURS["amortized"]),
    "latent_optimization": (NAMES["latent_optimization"], COLOURS["latent_optimization"]),
    "pixel_gaussian": ("Gaussian of pixels", TRIVIAL),
}


@styled
def latent_usage(*, table, units):
    """KL per dimension, sorted, of both regimes, train and test, with the number of active units.

    table: one dict per regime, split and dimension, as latent_analysis.usage gives them; units: {regime: {split: ...}}.
    """
    figure = Figure(figsize=(11, 4.4))
    panels = figure.subplots(1, 2, sharey=True)
    for axes, (regime, colour) in zip(panels, COLOURS.items(), strict=True):
        for split, line in SPLIT_LINES.items():
            rows = [row for row in table if (row["regime"], row["split"]) == (regime, split)]
            rows.sort(key=lambda row: -row["kl"])
            mean, error = (np.array([row[name] for row in rows]) for name in ("kl", "kl_standard_error"))
            rank, count = np.arange(1, len(rows) + 1), units[regime][split]
            low, high = count["interval_95"]
            axes.plot(
                rank,
                mean,
                line,
                color=colour if split == "train" else INK,
                marker="o" if len(rows) == 1 else None,
                label=f"{count['images']:,} {SPLIT_NAMES[split]}\n"
                f"{count['active_units']} active units ({low:g} to {high:g})",
            )
            axes.fill_between(rank, mean - 1.96 * error, mean + 1.96 * error, color=INK, alpha=0.2, linewidth=0)
        axes.set(title=NAMES[regime], xlabel=f"rank of the dimension, of {len(rows)}", ylim=(0, None))
        axes.legend(loc="upper right")
    panels[0].set_ylabel("KL(q(z) || p(z)), nats per image")
    figure.suptitle(
        "Which dimensions are used: KL per dimension, sorted, mean over images with its 95% interval (grey)\n"
        "Active: the mean of q varies over images by more than 0.01; with its 95% interval over bootstrap resamples"
    )
    return figure


@styled
def probes(*, scores, baseline):
    """Accuracy of linear probes over the number of labels.

    scores: as latent_analysis.probe_scores returns them; baseline: the supervised baseline's own accuracy on the
    same images, as intervals.accuracy gives it.
    """
    figure = Figure(figsize=(8.5, 5))
    axes = figure.subplots()
    for place, (name, rows) in enumerate((name, scores[name]) for name in PROBED if name in scores):
        label, colour, marker = PROBED[name]
        share = np.array([100 * row["accuracy"] for row in rows])
        ends = np.array([[100 * end for end in row["interval_95"]] for row in rows])
        axes.errorbar(
            [row["labels"] * 1.04 ** (place - 2) for row in rows],  # side by side, or they would hide each other
            share,
            yerr=np.abs(ends.T - share),
            fmt=f"{marker}--" if name == "amortized_active" else f"{marker}-",
            color=colour,
            mfc="white" if name == "amortized_active" else colour,
            capsize=3,
            label=label,
        )
    low, high = (100 * end for end in baseline["interval_95"])
    axes.axhspan(low, high, color=BASELINE, alpha=0.15, linewidth=0)
    axes.axhline(100 * baseline["accuracy"], color=BASELINE, linestyle=":", label="Supervised baseline itself")
    sizes, draws = zip(*[(row["labels"], row["draws"]) for row in rows], strict=True)
    axes.set_xscale("log")
    axes.set_xticks(
        sizes, [f"{size:,}\n({count} draw{'s' * (count > 1)})" for size, count in zip(sizes, draws, strict=True)]
    )
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set(xlabel="labels of training images", ylabel="accuracy, % of test images")
    axes.legend(loc="lower right")
    figure.suptitle(
        f"What a logistic regression reads from the latents: accuracy on {rows[0]['images']:,} test images,\n"
        "mean over draws of the labels, with its 95% interval over the images"
    )
    return figure


@styled
def latent_map(*, points, labels, agreement):
    """Two-dimensional maps of test latents, each image as its digit.

    points: {regime: (B, 2)}; labels: (B,); agreement: {regime: the share whose nearest neighbour has the same digit, as
    intervals.accuracy gives it}.
    """
    figure = Figure(figsize=(12, 6.4))
    for axes, (regime, place) in zip(figure.subplots(1, 2), points.items(), strict=True):
        for digit, colour in enumerate(DIGIT_COLOURS):
            x, y = place[labels == digit].numpy().T
            axes.scatter(x, y, marker=f"${digit}$", color=colour, s=42, linewidths=0.2)
        low, high = agreement[regime]["interval_95"]
        axes.set(
            title=f"{NAMES[regime]}\n{agreement[regime]['accuracy']:.1%} ({low:.1%} to {high:.1%}) have a nearest "
            "neighbour of their digit",
            xticks=[],
            yticks=[],
        )
        axes.spines[:].set_visible(False)
    figure.suptitle(
        f"Means of q of {len(labels):,} test images, each drawn as its digit: t-SNE, whose axes have no units\n"
        "Nearest neighbours are those in all dimensions of z; with their 95% interval"
    )
    return figure


@styled
def traversals(*, drawn, values, original):
    """What both decoders draw along dimensions and directions, one row each, from low to high values.

    drawn: {regime: pairs (caption, (V, 1, 28, 28))}; values: V floats; original: the test image (1, 28, 28) from whose
    mean of q everything starts.
    """
    rows = max(map(len, drawn.values()))
    figure = Figure(figsize=(14.2, 0.82 * rows + 1.5))
    left, *halves = figure.subfigures(1, 1 + len(drawn), width_ratios=(0.14, *[1] * len(drawn)))
    axes = left.subplots()
    show_image(axes, original)
    axes.set_title("test image", fontsize=9)
    for half, (regime, pairs) in zip(halves, drawn.items(), strict=True):
        above = [f"{value:+.0f}" if value else "0" for value in values]
        for axes, (caption, images) in zip(half.subplots(len(pairs), 1, squeeze=False)[:, 0], pairs, strict=True):
            show_images(axes, images, label=caption, above=above, size=8)
            above = ()  # the first row alone
        half.suptitle(NAMES[regime], color=COLOURS[regime])
    figure.suptitle(
        "z set to the value above, in standard deviations of p(z), along the dimensions with most KL (at the left its "
        "mean over training images)\nand along the directions in which their means of q vary most; across these, z "
        "stays at the mean of q of the test image"
    )
    return figure


@styled
def sample_quality(*, scores, examples):
    """Samples of every contestant over their Frechet distance, class histogram and confidence.

    scores: {contestant: ...}, with "test" for the test images, as sample_quality.assess returns them; examples:
    {contestant: (M, 1, 28, 28)}.
    """
    figure = Figure(figsize=(13, 8))
    upper, lower = figure.subfigures(2, 1, height_ratios=(0.62 * len(examples) + 0.3, 3.6))
    rows = upper.subplots(len(examples), 1, squeeze=False)[:, 0]
    for axes, (name, images) in zip(rows, examples.items(), strict=True):
        show_images(axes, images, label=JUDGED[name][0])
    distance, histogram, confidence = lower.subplots(1, 3, width_ratios=(1, 1.5, 1))
    count = scores["test"]["confidence"]["images"]
    for place, name in enumerate(examples):
        label, colour = JUDGED[name]
        found = scores[name]["frechet_distance"]
        half = 1.96 * found["standard_error"]
        distance.errorbar(place, found["value"], yerr=half, fmt="o", color=colour, capsize=4)
        text = f"{found['value']:,.{0 if found['value'] >= 100 else 1}f}"
        distance.annotate(text, (place, found["value"]), (9, 0), textcoords="offset points", va="center")
        offset = 0.16 * (place - (len(examples) - 1) / 2)
        _shares(histogram, scores[name]["classes"], offset=offset, color=colour, fmt="o", ms=3.5, label=label)
    expected = [100 * share["share"] for share in scores["test"]["classes"]]
    histogram.stairs(expected, np.arange(11) - 0.5, baseline=None, color=INK, label=f"{count:,} test images")
    distance.set(
        yscale="log", title=f"Fréchet distance from the {count:,} test images", xlim=(-0.5, len(examples) - 0.1)
    )
    distance.set_ylabel("squared units of the judge's 128 features")
    distance.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    for place, name in enumerate([*examples, "test"]):
        label, colour = JUDGED.get(name, ("Test images", INK))
        score = scores[name]["confidence"]
        confidence.errorbar(
            place, score["mean"], yerr=1.96 * (score["standard_error"] or 0), fmt="o", color=colour, capsize=4
        )
    names = [JUDGED[name][0].replace(" ", "\n") for name in examples]
    distance.set_xticks(range(len(names)), names, fontsize=8)
    confidence.set_xticks(range(len(names) + 1), [*names, "Test\nimages"], fontsize=8)
    histogram.margins(y=0.3)  # for the legend
    histogram.set(
        title="What the judge takes them for", xlabel="digit", ylabel="share, %", xticks=range(10), ylim=(0, None)
    )
    histogram.legend(fontsize=8, ncols=2, loc="upper center")
    confidence.set(title="How surely", ylabel="mean probability of the most probable digit")
    images = scores["pixel_gaussian"]["frechet_distance"]["images"]
    figure.suptitle(
        f"{images:,} samples of each kind before the supervised baseline as judge: the mean of p(x|z) at z from p(z), "
        "between held-out training\nimages (the best to be expected) and a Gaussian fitted to pixels (the trivial); "
        "95% intervals: bootstrap (distance), Wilson (shares), normal (mean)"
    )
    return figure


def _shares(axes, classes, *, offset, **style):
    """Shares of the ten digits in percent with their intervals."""
    share = np.array([100 * entry["share"] for entry in classes])
    ends = np.array([[100 * end for end in entry["interval_95"]] for entry in classes])
    axes.errorbar(np.arange(len(share)) + offset, share, yerr=np.abs(ends.T - share), capsize=2, lw=1, **style)
