"""--seeds: the flags of each seed's run, and at the end seeds.csv and a table of means over seeds."""

import math
from argparse import Namespace
from collections import defaultdict
from itertools import combinations, product
from pathlib import Path

import numpy as np

from data import SPLITS
from evaluation.statistics import find, half_width, intervals
from evaluation.tables import DIFFERENCES, read_scores, title
from runtime.checkpoint import directory_lock, load_json, save_csv
from runtime.cli import make_config
from runtime.config import InputError, RunConfig, RunError
from runtime.distributed import rank
from runtime.progress import Interrupted

QUANTITIES = ("elbo", "log_prob", "amortization_gap", "mean_field_gap", "non_gaussian_gap")


def flags_of_seeds(given):
    """{seed: the flags of its run}, in directories of its own. Raises InputError for seeds that do not fit."""
    if "seed" in given:
        raise InputError("--seed: not together with --seeds")
    if repeated := [seed for seed in given.seeds if given.seeds.count(seed) > 1]:
        raise InputError(f"--seeds: {repeated[0]} is repeated")
    run_config, flags = make_config(RunConfig, given), {}
    for seed in given.seeds:
        names = ("checkpoint_dir", "results_dir")
        directories = {name: str(Path(getattr(run_config, name)) / f"seed_{seed}") for name in names}
        flags[seed] = Namespace(**{**vars(given), **directories, "seed": seed})
    return flags


def run_seeds(given, prepare, execute):
    """Prepares every seed, which refuses bad input before any work; executes one after the other; compares them.

    prepare: of flags, what `execute` takes.
    """
    flags, run_config = flags_of_seeds(given), make_config(RunConfig, given)
    for flags_of_seed in flags.values():
        prepare(flags_of_seed)
    with directory_lock(run_config.results_dir, *[run_config.checkpoint_dir] * (not given.evaluate_only)):
        for number, (seed, flags_of_seed) in enumerate(flags.items()):
            print(f"seed {seed}: {flags_of_seed.checkpoint_dir}, {flags_of_seed.results_dir}", flush=True)
            try:
                execute(prepare(flags_of_seed))
            except Interrupted as stop:
                if stop.where is None and number:
                    stop.where, stop.advice = "before its first epoch", "the same command with --resume continues"
                if stop.where is not None:
                    stop.where = f"in seed {seed}, {stop.where}"
                raise
        if rank() == 0:
            compare(flags, Path(run_config.results_dir))


def compare(flags, results_dir):
    """Writes seeds.csv and prints the table; flags: of `flags_of_seeds`, whose runs are finished."""
    folders = {seed: Path(given.results_dir) for seed, given in flags.items()}
    headlines = {seed: headline_scores(read_scores(folder / "scores.csv")) for seed, folder in folders.items()}
    summary, path = load_json(next(iter(folders.values())) / "summary.json"), results_dir / "seeds.csv"
    save_csv(path, records(headlines))
    print(f"{path}: from the scores.csv of each seed\n")
    print(table(headlines, summary["labels"], summary["likelihood"]))
    pages = results_dir / "seed_N" / "report.html"
    there = all((folder / pages.name).exists() for folder in folders.values())  # a quick evaluation writes none
    print(f"\n{pages}, the page of each seed: open it in a browser; table: {path}" if there else f"\ntable: {path}")


def headline_scores(scores):
    """{(method, split, title): Score} of a run's Scores, in the order of the table: it says what is in it.

    Paired differences of two methods follow the numbers of each.
    """
    methods = dict.fromkeys(entry.method for entry in scores if entry.quantity == "elbo")
    names = [name for name in methods if " - " not in name]
    asked = dict.fromkeys(names, QUANTITIES)
    asked |= dict.fromkeys((" - ".join(both) for both in combinations(names, 2)), DIFFERENCES)
    rows = {}
    for name, quantities in asked.items():
        for split, quantity in product(SPLITS, quantities):
            if entry := find(scores, quantity, name, split):
                rows[name, split, title(quantity)] = entry
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
    rows = []
    for seed, entries in headlines.items():
        for (method, split, quantity), entry in entries.items():
            row = {"seed": seed, "method": method, "split": split, "quantity": quantity, "value": entry.mean}
            rows.append({**row, "standard_error": entry.standard_error, "images": entry.images})
    return rows


def table(headlines, labels, likelihood):
    """Markdown: a line per method and quantity, a column per split, and below what the intervals are of.

    headlines: {seed: its `headline_scores`}; labels: {method's name: its label}. Of several seeds the intervals are
    over seeds; of one, over images.
    """
    first, several = next(iter(headlines.values())), len(headlines) > 1
    labels = labels | {f"{a} - {b}": f"{labels[a]} - {labels[b]} (paired)" for a, b in combinations(labels, 2)}

    # A line per method and quantity.
    lines, above, counts = ["| nats per image | train | test |", "|---|---|---|"], None, defaultdict(list)
    for method, quantity in dict.fromkeys((method, quantity) for method, _, quantity in first):
        keys = [(method, split, quantity) for split in SPLITS]
        cells = [_cell([rows[key] for rows in headlines.values()]) for key in keys]
        lines.append(f"| {'' if method == above else f'**{labels[method]}**: '}{quantity} | {' | '.join(cells)} |")
        counts[" and ".join(f"{first[key].images:,}" for key in keys)].append(f"{quantity} of {labels[method]}")
        above = method

    # What the intervals are of.
    what = f"seeds {', '.join(map(str, headlines))}" if several else f"the images of seed {next(iter(headlines))}"
    interval = f"mean over {what} ± half width of its 95% t interval over {'seeds' if several else 'images'}"
    if several:
        interval += " (over their images, if that is wider: each seed draws its own)"
    *few, (most, _) = sorted(counts.items(), key=lambda item: len(item[1]))
    images = "".join(f"{count} for {', '.join(names)}; " for count, names in few)
    images += f"{most} for all{' else' if few else ''}"
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
    return f"{means.mean():.2f}" + f" ± {halves.max():.2f}" * bool(np.isfinite(halves).all())
