"""The figures of the gaps, in the visual language of figures.py."""

import numpy as np
from matplotlib.figure import Figure

from figures import COLOURS, INK, NAMES, SPLIT_NAMES, styled
from training import saved_epochs

BOUNDS = {
    "log_prob": ("log p(x), annealed", "-", "o"),
    "fitted_elbo": ("ELBO(q*)", "--", "s"),
    "elbo": ("ELBO(q)", ":", "v"),
}
TICKS = (-40, -60, -80, -100, -150, -200, -300, -400, -500, -600, -700, -800, -1000, -1500, -2000)
GAPS = {
    "approximation_gap": ("approximation gap: log p(x) - ELBO(q*)", 1.0),
    "amortization_gap": ("ELBO(q*) - ELBO(q): amortization, or rows not converged", 0.4),
}


def _interval(score):
    """Half the width of the 95% interval of a mean; 0 where one image says nothing of it."""
    return 1.96 * (score["standard_error"] or 0.0)


@styled
def over_epochs(*, rows):
    """log p(x) and the bounds at q* and q over epochs, with 95% bands; rows: those of gap_study.over_epochs."""
    figure = Figure(figsize=(11, 6.6))
    grid = figure.subplots(2, 2, sharex=True, sharey=True)
    epochs = sorted({row["epoch"] for row in rows})
    for axes_row, (regime, colour) in zip(grid, COLOURS.items(), strict=True):
        for axes, split in zip(axes_row, SPLIT_NAMES, strict=True):
            mine = sorted(
                (row for row in rows if (row["regime"], row["split"]) == (regime, split)), key=lambda row: row["epoch"]
            )
            for name, (label, line, marker) in BOUNDS.items():
                scores = [row["scores"][name] for row in mine]
                if name == "elbo" and scores == [row["scores"]["fitted_elbo"] for row in mine]:
                    label += ", the same: q is fitted"
                mean = np.array([score["mean"] for score in scores])
                half = np.array([_interval(score) for score in scores])
                axes.plot(epochs, mean, line, marker=marker, markersize=4, color=colour, label=label)
                axes.fill_between(epochs, mean - half, mean + half, color=colour, alpha=0.12, linewidth=0)
            counts = [row["scores"]["elbo"]["images"] for row in mine]
            before = f", {counts[0]} before" if counts[0] != counts[-1] else ""
            axes.set_title(
                f"{NAMES[regime]}, {SPLIT_NAMES[split]} ({counts[-1]} at the last epoch{before})", fontsize=10
            )
            axes.legend(loc="lower right", fontsize=9)
    # The first epochs would press everything that comes later into the upper edge.
    axes.set_yscale("symlog", linthresh=100)
    means = [row["scores"][name]["mean"] for row in rows for name in BOUNDS]
    ends = 1.15 * min(means), 0.85 * max(means)
    axes.set_ylim(ends)
    axes.set_yticks([tick for tick in TICKS if ends[0] < tick < ends[1]])
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_xticks(saved_epochs(epochs[-1]))
    for axes in grid[:, 0]:
        axes.set_ylabel("nats per image (log scale)")
    for axes in grid[1]:
        axes.set_xlabel("epoch")
    figure.suptitle("What inference loses: log p(x), the bound at the best diagonal q*, the bound at q; 95% bands")
    return figure


@styled
def per_digit(*, digits):
    """The two gaps of every digit, stacked, with the 95% interval of their sum.

    digits: {regime: {split: ten dicts of gaps.summarize}}.
    """
    figure = Figure(figsize=(11, 6.6))
    grid = figure.subplots(2, 2, sharex=True, sharey=True)
    place = np.arange(10)
    for axes_row, (regime, colour) in zip(grid, COLOURS.items(), strict=True):
        for axes, split in zip(axes_row, SPLIT_NAMES, strict=True):
            scores = digits[regime][split]
            base = np.zeros(10)
            for name, (label, strength) in GAPS.items():
                height = np.array([score[name]["mean"] for score in scores])
                half = [_interval(score[name]) for score in scores]
                axes.bar(place, height, bottom=base, color=colour, alpha=strength, width=0.7, label=label)
                axes.errorbar(place, base + height, yerr=half, fmt="none", color=INK, capsize=2, linewidth=1)
                base = base + height
            count = scores[0]["elbo"]["images"]
            axes.set_title(f"{NAMES[regime]}, {SPLIT_NAMES[split]} ({count} of each digit)")
            axes.grid(axis="x", visible=False)
            axes.set_axisbelow(True)
    for axes in grid[:, 0]:
        axes.set_ylabel("nats per image")
    for axes in grid[1]:
        axes.set(xlabel="digit", xticks=place)
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, fontsize=9)
    figure.suptitle("log p(x) - ELBO(q) at the last epoch, in its two parts; whiskers: 95% interval of each part")
    return figure
