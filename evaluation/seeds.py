"""Several seeds: the same work for each, then seeds.csv and a table in Markdown of the headline numbers."""

import time
from argparse import Namespace
from collections import defaultdict
from contextlib import contextmanager, redirect_stdout
from itertools import product
from pathlib import Path

import torch

from data import SPLITS
from evaluation.stats import intervals
from evaluation.tables import DIFFERENCES
from runtime.checkpoint import InputError, RunError, invalid_contents, load_json, save_csv
from runtime.cli import add_list_flag, make_config
from runtime.config import RunConfig, TrainConfig
from runtime.distributed import rank
from runtime.progress import Interrupted
from runtime.resume import lock
from vae_utils import mean_and_error

DIRECTORIES = ("checkpoint_dir", "results_dir")


def add_seeds_flag(parser):
    """Adds --seeds to the Parser."""
    meaning = (
        "do it all for each of these seeds, in subdirectories seed_N of both directories; then write seeds.csv and "
        "print means over seeds as Markdown. Finished seeds are skipped, --resume continues the others"
    )
    add_list_flag(parser, TrainConfig, "seed", meaning)


def run_all(work, given, print_tables):
    """Checks all input of every seed; then does the work for one after the other, and compares them.

    work: called with the flags of a seed, the time and `check_only`; returns a summary for `print_tables`.
    """
    if "seed" in given:
        raise InputError("--seed: not together with --seeds")
    if repeated := [seed for seed in given.seeds if given.seeds.count(seed) > 1]:
        raise InputError(f"--seeds: {repeated[0]} is repeated")
    run_config, runs = make_config(RunConfig, given), {}
    for seed in given.seeds:
        of_seed = {name: str(Path(getattr(run_config, name)) / f"seed_{seed}") for name in DIRECTORIES}
        runs[seed] = Namespace(**{**vars(given), **of_seed, "seed": seed})
    with redirect_stdout(None):  # what it finds it says again when the seed's turn comes
        for run in runs.values():
            work(run, time.perf_counter(), check_only=True)
    with lock(run_config):
        for seed, run in runs.items():
            print(f"seed {seed}: {run.checkpoint_dir}, {run.results_dir}", flush=True)
            with seed_hint(seed, first=seed == given.seeds[0]):
                print_tables(work(run, time.perf_counter()))
        if rank():
            return
        found = {}
        for seed, run in runs.items():
            path = Path(run.results_dir) / "summary.json"
            summary = load_json(path)
            with invalid_contents(path):
                found[seed] = headline_scores(summary)
        path = Path(run_config.results_dir) / "seeds.csv"
        save_csv(path, records(found))
        print(f"{path}: from the summary.json of each seed\n")
        print(table(found, summary))


@contextmanager
def seed_hint(seed, *, first):
    """Adds the seed to what an Interrupted says. first: no seed is finished before it, so that nothing may be saved."""
    try:
        yield
    except Interrupted as interrupted:
        if interrupted.where is None and not first:
            interrupted.where, interrupted.advice = "before its first epoch", "the same command with --resume continues"
        if interrupted.where is not None:
            interrupted.where = f"in seed {seed}, {interrupted.where}"
        raise


def headline_scores(summary):
    """{(method, split, quantity): score}, in the order of the table: the one place that says what is in it.

    summary: the contents of a summary.json. Paired differences of two methods follow the numbers of each.
    """
    found = {}
    for (name, method), split in product(summary["methods"].items(), SPLITS):
        log_prob, gaps = method["log_prob"][split], method["gaps"][split]
        by = "by regression" if log_prob["regression"] else "by annealing"
        found |= {
            (name, split, "ELBO"): method["bounds"][split]["elbo"],
            (name, split, f"log p(x) {by}"): log_prob["regression"] or log_prob["annealed"],
            (name, split, "approximation gap"): gaps["approximation_gap"],
            (name, split, "amortization gap"): gaps["amortization_gap"],
        }
    for difference, split in product(summary["differences"], SPLITS):
        pair = " - ".join(difference["methods"])
        found |= {(pair, split, label): difference[split][name] for name, label in DIFFERENCES.items()}
    return found


def records(found):
    """The rows of seeds.csv, dicts; found: {seed: its `headline_scores`}.

    Raises RunError if the seeds do not have the same quantities, as those of two versions of this program.
    """
    first, *others = found
    for seed in others:
        if different := found[seed].keys() ^ found[first].keys():
            name = ", ".join(min(different))
            raise RunError(f"seeds {first} and {seed}: {name} is in one summary.json only; --evaluate-only renews them")
    return [
        {
            **{"seed": seed, "method": method, "split": split, "quantity": quantity, "value": score["mean"]},
            **{name: score[name] for name in ("standard_error", "images")},
        }
        for seed, scores in found.items()
        for (method, split, quantity), score in scores.items()
    ]


def table(found, summary):
    """Markdown: a line per method and quantity, a column per split, and below what the intervals are of.

    found: {seed: its `headline_scores`}; summary: of any seed, for the names. Of several seeds the intervals are over
    seeds; of one, over images.
    """
    labels = {name: method["label"] for name, method in summary["methods"].items()}
    for pair in (difference["methods"] for difference in summary["differences"]):
        labels[" - ".join(pair)] = f"{' - '.join(labels[name] for name in pair)} (paired)"
    seeds, (scores, *_) = list(found), found.values()
    lines, above, counts = ["| nats per image | train | test |", "|---|---|---|"], None, defaultdict(list)
    for method, quantity in dict.fromkeys((method, quantity) for method, _, quantity in scores):
        keys = [(method, split, quantity) for split in SPLITS]
        cells = [_cell([found[seed][key] for seed in seeds]) if key in scores else "" for key in keys]
        title = quantity if method == above else f"**{labels[method]}**: {quantity}"
        lines.append(f"| {title} | {' | '.join(cells)} |")
        images = " and ".join(f"{scores[key]['images']:,}" if key in scores else "no" for key in keys)
        counts[images].append(f"{quantity} of {labels[method]}")
        above = method

    several = len(seeds) > 1
    what = f"seeds {', '.join(map(str, seeds))}" if several else f"the images of seed {seeds[0]}"
    interval = f"mean over {what} ± half width of its 95% t interval over {'seeds' if several else 'images'}"
    *few, (most, _) = sorted(counts.items(), key=lambda item: len(item[1]))
    if several:
        interval += ", which redraw the images where not all are scored"
    images = "".join(f"{count} for {', '.join(names)}; " for count, names in few)
    images += f"{most} for all{' else' if few else ''}"
    return "\n".join([*lines, "", f"{summary['likelihood']}; {interval}; images (train and test): {images}."])


def _cell(scores):
    """The mean of the seeds' scores and the half width of its interval; of one seed, its own."""
    if len(scores) > 1:
        scores = [mean_and_error(torch.tensor([score["mean"] for score in scores], dtype=torch.float64))]
    (mean,), (half,) = intervals(scores)
    return f"{mean:.2f} ± {half:.2f}"
