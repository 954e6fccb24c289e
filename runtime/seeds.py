"""--seeds: several runs of the same flags, one after the other, each in directories of its own."""

import csv
from argparse import Namespace
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from runtime.checkpoint import directory_lock, remove, write_files
from runtime.cli import make_config
from runtime.config import InputError, RunConfig, about, differences, image_differences, portable_settings
from runtime.distributed import rank
from runtime.plan import continuation
from runtime.progress import Interrupted
from runtime.run import remove_files


def run_seeds(given, prepare, execute, compare, owned):
    """Prepares every seed, which refuses bad input before any work; executes one after the other; compares them.

    prepare: of flags, what `execute` takes, with a `config` and `data`; compare: of {seed: results directory} and their
    directory, the files that go there, see `save_file`; owned: an Owned. Raises InputError for seeds of different
    trainings.
    """
    if "seed" in given:
        raise InputError("--seed: not together with --seeds")
    if repeated := [seed for seed in given.seeds if given.seeds.count(seed) > 1]:
        raise InputError(f"--seeds: {repeated[0]} is repeated")
    run_config, flags, first = make_config(RunConfig, given), {}, None
    for seed in given.seeds:
        own = {name: str(Path(getattr(run_config, name), f"seed_{seed}")) for name in ("checkpoint_dir", "results_dir")}
        flags[seed] = Namespace(**{**vars(given), **own, "seed": seed})

    def prepared(seed):
        nonlocal first
        experiment = prepare(flags[seed])
        here, images = asdict(experiment.config), experiment.data.digest
        settings, before = first = first or (here, images)
        others = differences(settings, here, but=("seed", *portable_settings(before, images)))
        if others := others or image_differences(before, images):
            raise InputError(f"--seeds: {given.seeds[0]} and {seed} are of two trainings: {others}")
        return experiment

    for seed in flags:
        prepared(seed)
    table = Path(run_config.results_dir) / "seeds.csv"
    if table.is_dir():
        raise InputError(f"{table}: a directory, where a run has a file")
    if table.exists() and not run_config.overwrite:
        there = set()
        foreign = suppress(KeyError, TypeError, ValueError, csv.Error)
        with about(table), open(table, newline="", encoding="utf-8") as file, foreign:
            there = {int(row["seed"]) for row in csv.DictReader(file)}
        if not 0 < len(there) == len(there & {*given.seeds}):
            every = " ".join(map(str, sorted(there | {*given.seeds})))
            advice = f", or --seeds {every} makes one of all" if there else ""
            raise InputError(f"{table}: not of these seeds alone; move it, or another --results-dir keeps it{advice}")
    written = () if given.evaluate_only else (run_config.checkpoint_dir,)
    with directory_lock(run_config.results_dir, *written):
        if rank() == 0:  # what a stopped run leaves is of this one alone
            remove([table])
            for flags_of_seed in flags.values() if run_config.overwrite and not given.evaluate_only else ():
                remove_files(owned.overwritten(make_config(RunConfig, flags_of_seed)))
        for seed, flags_of_seed in flags.items():
            print(f"seed {seed}: {flags_of_seed.checkpoint_dir}, {flags_of_seed.results_dir}", flush=True)
            try:
                execute(prepared(seed))  # a folder may have changed meanwhile
            except Interrupted as stop:
                if stop.where is None and seed != given.seeds[0]:
                    stop.where, stop.advice = "before its first epoch", continuation(run_config)
                stop.where = stop.where and f"in seed {seed}, {stop.where}"
                raise
        folders = {seed: Path(flags_of_seed.results_dir) for seed, flags_of_seed in flags.items()}
        write_files(run_config.results_dir, compare(folders, Path(run_config.results_dir)))
