"""Reads and checks all input of main_vae.py before any work: flags, data, checkpoints that are scored again."""

import os
from argparse import SUPPRESS
from dataclasses import asdict, replace
from pathlib import Path
from typing import NamedTuple

from data import Data, check_classes, load_data, rows_per_class
from runtime.cli import make_config, prepare_run
from runtime.config import EvalConfig, InputError, RunConfig, TrainConfig, about, differences, image_differences, source
from runtime.learners import Checkpoints, find_checkpoints
from runtime.plan import plan_evaluation, plan_run, refuse_used


class Experiment(NamedTuple):
    """All that an experiment depends on."""

    run_config: RunConfig
    config: TrainConfig
    eval_config: EvalConfig
    data: Data
    methods: tuple  # the classes of those that are trained, or scored again
    checkpoints: Checkpoints | None = None  # those that are scored again

    @property
    def settings(self):
        """All that decides the training, a dict of plain values."""
        names = " ".join(method.name for method in self.methods)
        return asdict(self.config) | {"device": self.data.device.type, "images": self.data.digest, "methods": names}


def prepare(given, *, owned):
    """The Experiment of the given flags. Raises InputError before any work; changes nothing."""
    run_config, config = make_config(RunConfig, given), make_config(TrainConfig, given)
    device, config = prepare_run(run_config, config)
    data = load_data(config, data_dir=run_config.data_dir, device=device, at_most="train_size" not in given)
    config = replace(config, train_size=len(data.train.labels))
    eval_config = choose_counts(config, given, data, precision=config.precision)
    experiment = Experiment(run_config, config, eval_config, data, choose_methods(given, owned.learners))
    refuse_used(run_config)
    plan_run(run_config, experiment.settings, owned=owned, scoring=asdict(eval_config))
    return experiment


def prepare_again(given, *, owned):
    """The Experiment that scores the checkpoints that are there. Raises InputError before any work."""
    if "resume" in given:
        raise InputError("--resume: not together with --evaluate-only, which continues what it had begun by itself")
    run_config = make_config(RunConfig, given)
    directory = Path(run_config.checkpoint_dir)
    with about(f"--checkpoint-dir {directory}"):  # perhaps in a folder without the right to enter it
        there = [method for method in owned.learners if any(directory.glob(f"{method.prefix}_epoch_*.pt"))]
    checkpoints = find_checkpoints(choose_methods(given, owned.learners, there), directory)
    config = checkpoints.config
    # --seed and --precision are the evaluation's own; of several seeds each has checkpoints of its own training.
    free = ("precision",) if "seeds" in given else ("seed", "precision")
    # A folder may have been moved: its images, of which the checkpoints hold a digest, say whether it is the same.
    dataset = getattr(given, "dataset", config.dataset)
    if checkpoints.images and all(name.startswith("folder:") for name in (dataset, config.dataset)):
        free += ("dataset",)
    if others := differences(asdict(config), vars(given), but=free):
        raise InputError(f"{run_config.checkpoint_dir}: the checkpoints are of another training: {others}")
    scored = EvalConfig.for_training(config, vars(given))
    device, eval_config = prepare_run(run_config, scored, written=("results_dir",), dataset=dataset)
    folder = dataset.partition("folder:")[2]
    if folder and "dataset" not in given and not os.path.exists(os.path.expanduser(folder)):
        raise InputError(f"{folder}: the checkpoints' images are not there; --dataset folder:PATH says where they are")
    read = replace(config, dataset=dataset)
    data = load_data(read, data_dir=run_config.data_dir, device=device, train_index=checkpoints.train_index)
    if text := image_differences(checkpoints.images, data.digest):
        where = source(read.dataset, run_config.data_dir)
        raise InputError(f"{where}: not the images of the checkpoints in {run_config.checkpoint_dir} ({text})")
    if not checkpoints.images:
        unknown = "checkpoints of an older version: that they were trained on these images could not be checked"
        data = data._replace(said=(*data.said, f"{run_config.checkpoint_dir}: {unknown}"))
    eval_config = choose_counts(config, given, data, precision=eval_config.precision)
    for epoch in checkpoints.epochs:
        checkpoints.load(epoch, data)
    refuse_used(run_config)
    plan_evaluation(run_config, config, owned=owned, evaluation=eval_config.evaluation, **checkpoints.scored())
    return Experiment(run_config, config, eval_config, data, checkpoints.methods, checkpoints)


def add_own_flags(parser, methods):
    """Adds --evaluate-only, --methods and --seeds to the Parser."""
    meaning = "score the checkpoints again, without training; --seed and --precision are then the evaluation's"
    parser.add_argument("--evaluate-only", action="store_true", help=meaning)
    several, names = {"nargs": "+", "action": "extend", "default": SUPPRESS}, [method.name for method in methods]
    default = " ".join(method.name for method in methods if method.by_default)
    meaning = f"what is trained (default: {default}), or scored again (default: those whose checkpoints are there)"
    parser.add_argument("--methods", choices=names, metavar="NAME", help=meaning, **several)
    meaning = "do it all for each of these seeds, in subdirectories seed_N of both directories; then write seeds.csv"
    meaning += " and print means over seeds as Markdown. Finished seeds are skipped, --resume continues the others"
    parser.add_argument("--seeds", type=int, metavar="N", help=meaning, **several)


def choose_methods(given, methods, there=()):
    """The methods that --methods names, in their order; without the flag those `there`, else the default ones."""
    for kind in ("name", "prefix", "label"):
        values = [getattr(method, kind) for method in methods]
        if repeated := [value for value in values if values.count(value) > 1]:
            raise InputError(f"METHODS: two have the {kind} {repeated[0]}")
    if "methods" not in given:
        return tuple(there) or tuple(method for method in methods if method.by_default)
    if repeated := [name for name in given.methods if given.methods.count(name) > 1]:
        raise InputError(f"--methods: {repeated[0]} is repeated")
    return tuple(method for method in methods if method.name in given.methods)


def choose_counts(config, given, data, *, precision):
    """The EvalConfig that suits the TrainConfig and the Data; given: the flags.

    Raises InputError if there are too few images for the counts that the user gave.
    """
    classes, fewest = data.test.num_classes, min(min(split.counts().values()) for split in (data.train, data.test))
    eval_config = EvalConfig.for_training(config, vars(given), fewest=fewest, classes=classes)
    with about(f"--images-per-digit {eval_config.images_per_digit}"):
        for split in (data.train, data.test):
            rows_per_class(split, eval_config.images_per_digit)
    with about(f"--dataset {config.dataset}"):
        check_classes(data.test, "test", fewest=2)  # one in the reconstructions, one in the comparison
    if eval_config.fitted_images < classes:
        raise InputError(f"--fitted-images {eval_config.fitted_images}: fewer than the {classes} classes")
    return replace(eval_config, precision=precision)
