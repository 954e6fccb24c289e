"""Several seeds: the same work for each, then seeds.csv and a table in Markdown of the headline numbers."""

from argparse import Namespace
from collections import defaultdict
from itertools import product
from pathlib import Path

import torch

from data import SPLITS
from evaluation.stats import intervals
from evaluation.tables import DIFFERENCES
from runtime.checkpoint import InputError, RunError, invalid_contents, load_json, save_csv
from runtime.cli import add_list_flag, make_config
from runtime.config import RunConfig, TrainConfig
from vae_utils import mean_and_error

DIRECTORIES = ("checkpoint_dir", "results_dir")


def add_seeds_flag(parser):
    """Adds --seeds to the Parser."""
    meaning = (
        "do it all for each of these seeds, in subdirectories seed_N of both directories; then write seeds.csv and "
        "print means over seeds as Markdown. Finished seeds are skipped, --resume continues the others"
    )
    add_list_flag(parser, TrainConfig, "seed", meaning)


def flags_of_seeds(given):
    """{seed: the flags of its run}, in directories of its own. Raises InputError for seeds that do not fit."""
    if "seed" in given:
        raise InputError("--seed: not together with --seeds")
    if repeated := [seed for seed in given.seeds if given.seeds.count(seed) > 1]:
        raise InputError(f"--seeds: {repeated[0]} is repeated")
    run_config = make_config(RunConfig, given)
    return {
        seed: Namespace(
            **{**vars(given), **{name: str(Path(getattr(run_config, name)) / f"seed_{seed}") for name in DIRECTORIES}},
            seed=seed,
        )
        for seed in given.seeds
    }


def compare(flags, results_dir):
    """Writes seeds.csv and prints the table; flags: of `flags_of_seeds`, whose runs are finished."""
    found = {}
    for seed, given in flags.items():
        path = Path(given.results_dir) / "summary.json"
        summary = load_json(path)
        with invalid_contents(path):
            found[seed] = headline_scores(summary)
    path = results_dir / "seeds.csv"
    save_csv(path, records(found))
    print(f"{path}: from the summary.json of each seed\n")
    print(table(found, summary))


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
