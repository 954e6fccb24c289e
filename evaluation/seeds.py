"""Several seeds: seeds.csv, and a table of means over them."""

import math
from collections import Counter, defaultdict
from itertools import combinations, product

import numpy as np

from data import SPLITS
from evaluation.statistics import find, half_width, intervals, rounded
from evaluation.tables import DIFFERENCES, read_scores, title
from runtime.checkpoint import load_json
from runtime.config import RunError

QUANTITIES = ("elbo", "fitted_elbo", "log_prob", "amortization_gap", "mean_field_gap", "non_gaussian_gap")


def compare_seeds(folders, results_dir):
    """Yields seeds.csv and prints the table; folders: {seed: results directory of its finished run}."""
    if not any((folder / "scores.csv").exists() for folder in folders.values()):
        print("no table of means: without an evaluation there are no numbers")
        return
    headlines = {seed: headline_scores(read_scores(folder / "scores.csv")) for seed, folder in folders.items()}
    summary, path = load_json(next(iter(folders.values())) / "summary.json"), results_dir / "seeds.csv"
    yield path.name, records(headlines)
    print(f"{path}: from the scores.csv of each seed\n")
    print(table(headlines, summary["labels"], summary["likelihood"]))
    pages = results_dir / "seed_N" / "report.html"
    there = all((folder / pages.name).exists() for folder in folders.values())  # a quick evaluation writes none
    print(f"\n{pages}, the page of each seed: open it in a browser; table: {path}" if there else f"\ntable: {path}")


def headline_scores(scores):
    """{(method, split, title): Score} of a run's Scores, in the order of the table: it says what is in it."""
    rows = {}
    for method in dict.fromkeys(entry.method for entry in scores if entry.quantity == "elbo"):
        for split, quantity in product(SPLITS, DIFFERENCES if " - " in method else QUANTITIES):
            if entry := find(scores, quantity, method, split):
                rows[method, split, title(quantity)] = entry
    return rows


def records(headlines):
    """The rows of seeds.csv, dicts; headlines: {seed: its `headline_scores`}.

    Raises RunError if the seeds do not have the same quantities, as those of two versions of this program.
    """
    first, *others = headlines
    for seed in others:
        if different := headlines[seed].keys() ^ headlines[first].keys():
            name = ", ".join(min(different))
            raise RunError(f"seeds {first} and {seed}: {name} is in one scores.csv only; --evaluate-only renews them")
    return [{"seed": seed, **entry._asdict()} for seed, rows in headlines.items() for entry in rows.values()]


def table(headlines, labels, likelihood):
    """Markdown: a line per method and quantity, a column per split, and below what the intervals are of.

    headlines: {seed: its `headline_scores`}; labels: {method's name: its label}. Of several seeds the intervals are
    over seeds; of one, over images.
    """
    first = next(iter(headlines.values()))
    labels = labels | {f"{a} - {b}": f"{labels[a]} - {labels[b]} (paired)" for a, b in combinations(labels, 2)}

    # A line per method and quantity.
    lines, above, counts = ["| nats per image | train | test |", "|---|---|---|"], None, defaultdict(Counter)
    for method, quantity in dict.fromkeys((method, quantity) for method, _, quantity in first):
        keys = [(method, split, quantity) for split in SPLITS]
        cells = [_cell([rows[key] for rows in headlines.values()]) for key in keys]
        name = quantity.replace("*", r"\*")
        lines.append(f"| {'' if method == above else f'**{labels[method]}**: '}{name} | {' | '.join(cells)} |")
        counts[" and ".join(f"{first[key].images:,}" for key in keys)][name.partition(",")[0]] += 1
        above = method

    # What the intervals are of.
    of, over = f"the images of seed {next(iter(headlines))}", "images"
    if len(headlines) > 1:
        of = f"seeds {', '.join(map(str, headlines))}"
        over = "seeds, or over their images, if that is wider"
    *few, (most, _) = sorted(counts.items(), key=lambda item: item[1].total())
    images = "".join(f"{count} for {', '.join(names)}; " for count, names in few)
    images += f"{most} for all{' else' if few else ''}"
    interval = f"mean over {of} ± half width of its 95% t interval over {over}"
    return "\n".join([*lines, "", f"{likelihood}; {interval}; images (train and test): {images}."])


def _cell(entries):
    """The mean of the seeds' Scores and the half width of its interval; of one seed, its own.

    Every seed has images of its own, so that the errors over images bound the error over seeds from below: of three
    seeds that are near to each other by chance, the interval over seeds alone would be too narrow.
    """
    means, halves = intervals(entries)
    if (count := len(entries)) > 1:
        error = math.hypot(*(entry.standard_error or 0.0 for entry in entries)) / count
        freedom = sum(entry.freedom or 0 for entry in entries)
        over_seeds = half_width(means.std(ddof=1) / math.sqrt(count), count - 1)
        halves = np.array([over_seeds, half_width(error, freedom)])
    return rounded(means.mean()) + (f" ± {halves.max():.2f}" if np.isfinite(halves).all() else "")
