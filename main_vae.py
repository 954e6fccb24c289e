"""Trains the same decoder with every method, as an amortized VAE and by latent optimization, and compares them."""

import os
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import NamedTuple

os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # before torch is imported: waiting threads soon leave the processor

from amortized_vae import AmortizedVAE
from data import Data, load_data, take_shard
from evaluation import figures, seeds
from evaluation.page import write_page
from evaluation.report import RESULTS, evaluate
from evaluation.settings import choose_counts, refuse_other_flags
from evaluation.tables import cost_table, headline, table
from latent_optimization import LatentOptimization
from runtime.checkpoint import save_csv, save_figure, save_json
from runtime.cli import Parser, add_flags, make_config, out_of_memory_hint, prepare_run, run_script
from runtime.config import ClassifierConfig, EvalConfig, RunConfig, TrainConfig, versions
from runtime.distributed import rank
from runtime.learners import Checkpoints, find_checkpoints, saved_epochs
from runtime.plan import Owned, plan_evaluation, plan_run
from runtime.run import open_evaluation, open_run, run_seeds
from sup_classification import find_classifier
from training import train_epoch, validate

METHODS = (AmortizedVAE, LatentOptimization)  # the one place where they are listed, in the order of every table
PATTERNS = tuple(f"{method.prefix}_epoch_*.pt" for method in METHODS)


class Experiment(NamedTuple):
    """What is known, and checked, before any work."""

    run_config: RunConfig
    config: TrainConfig
    eval_config: EvalConfig
    data: Data
    checkpoints: Checkpoints | None = None  # with --evaluate-only, those that are scored again

    @property
    def settings(self):
        """All that decides the training, a flat dict of plain values."""
        return {**asdict(self.config), "device": self.data.device.type}


def owned():
    """The files of this script."""
    return Owned(METHODS, PATTERNS, RESULTS, summary="summary.json")


def prepare(given):
    """The Experiment of the given flags. Refuses bad input; changes nothing."""
    run_config, config = make_config(RunConfig, given), make_config(TrainConfig, given)
    device, config = prepare_run(run_config, config)
    data = load_data(config, data_dir=run_config.data_dir, device=device, at_most="train_size" not in given)
    config = replace(config, train_size=len(data.train.labels))
    eval_config = choose_counts(config, given, data, precision=config.precision)
    experiment = Experiment(run_config, config, eval_config, data)
    plan_run(run_config, experiment.settings, owned=owned(), scoring=asdict(eval_config))
    return experiment


def prepare_again(given):
    """The Experiment that scores the checkpoints that are there, without training. Refuses bad input."""
    run_config = make_config(RunConfig, given)
    checkpoints = find_checkpoints(METHODS, run_config.checkpoint_dir)
    config = checkpoints.config
    refuse_other_flags(config, given, run_config.checkpoint_dir)
    device, eval_config = prepare_run(run_config, EvalConfig.for_training(config, vars(given)))
    data = load_data(config, data_dir=run_config.data_dir, device=device, train_index=checkpoints.train_index)
    eval_config = choose_counts(config, given, data, precision=eval_config.precision)
    for epoch in checkpoints.epochs:
        checkpoints.load(epoch, data)
    plan_evaluation(run_config, config, owned=owned())
    return Experiment(run_config, config, eval_config, data, checkpoints)


def train_and_score(experiment):
    """Trains every method, then scores all of them; continues what was interrupted."""
    run_config, config, eval_config, data, _ = experiment
    with open_run(run_config, experiment.settings, owned=owned(), scoring=asdict(eval_config)) as run:
        if run.finished:
            return
        print(
            f"{config.train_size:,} training images on {data.device.type}, networks in {config.precision}", flush=True
        )
        with out_of_memory_hint(f"--batch-size ({config.batch_size:,}) or --latent-dim ({config.latent_dim:,})"):
            for method_class in METHODS:
                method = method_class(config, take_shard(data))
                for epoch in run.epochs(method):
                    run.record(train_epoch(method, epoch, progress=run.progress), validate(method, epoch))
        if rank() == 0:
            save_csv(run.results / "history.csv", run.history)
            options = {"methods": METHODS, "saved_epochs": saved_epochs(config.epochs)}
            options["likelihood"] = method.model.likelihood.label
            save_figure(run.results / "training_curves.png", figures.training_curves(history=run.history, **options))
        checkpoints = Checkpoints(METHODS, run.directory, config, saved_epochs(config.epochs), data.train.index)
        score(run, experiment._replace(checkpoints=checkpoints))


def score_again(experiment):
    """Scores the checkpoints; history.csv and training_curves.png stay as they are."""
    config, eval_config = experiment.config, experiment.eval_config
    with open_evaluation(experiment.run_config, config, owned=owned()) as run:
        trained = f"{config.train_size:,} training images, seed {config.seed}"
        print(f"{run.directory}: epoch {experiment.checkpoints.epochs[-1]} of {config.epochs}, {trained}")
        precision = f"gradients of annealing in {eval_config.precision}"
        print(f"evaluation with seed {eval_config.seed} on {experiment.data.device}, {precision}", flush=True)
        score(run, experiment)


def score(run, experiment):
    """Every number and figure of the checkpoints; prints the tables and writes summary.json at the end."""
    _, config, eval_config, data, checkpoints = experiment
    started, training_seconds = time.perf_counter(), run.training_seconds()
    settings = {**asdict(eval_config), **experiment.settings}
    flags = f"--images-per-digit ({eval_config.images_per_digit:,}) or --latent-dim ({config.latent_dim:,})"
    with out_of_memory_hint(flags):
        # The classifier belongs to the training: it stays the same when the evaluation has another seed.
        shared = ("train_size", "seed", "dataset", "resize", "binarize", "precision")
        classifier = find_classifier(data, ClassifierConfig(**{name: getattr(config, name) for name in shared}), run)
        known = {"settings": settings, "eval_config": asdict(eval_config), "versions": versions()}
        run.keep_results({**known, "files": checkpoints.digests()})
        options = {"results_dir": run.results, "training_seconds": training_seconds, "tasks": run}
        numbers, explorer = evaluate(checkpoints, data, classifier, eval_config, **options)
    if rank():
        return
    seconds = {"training": training_seconds, "evaluation": time.perf_counter() - started, "total": run.seconds()}
    summary = {"settings": settings, "train_config": asdict(config), "eval_config": asdict(eval_config)}
    summary |= {"scored_epoch": checkpoints.epochs[-1], "versions": versions(), **numbers, "seconds": seconds}
    write_page(run.results, summary, explorer, METHODS)
    save_json(run.results / owned().summary, summary)
    run.forget_results()
    print(table(summary))
    print(cost_table(summary))
    print(headline(summary))
    times = {**training_seconds, "evaluation": seconds["evaluation"], "total": seconds["total"]}
    print("seconds: " + ", ".join(f"{name.replace('_', ' ')} {value:.0f}" for name, value in times.items()))


def main():
    """Reads the flags; then trains and scores, or scores again, one seed or several."""
    parser = Parser(prog="main_vae.py", description=__doc__)
    for config_class, title in ((TrainConfig, "experiment"), (RunConfig, "run"), (EvalConfig, "evaluation")):
        add_flags(parser, config_class, title)
    meaning = "score the checkpoints again, without training; --seed and --precision are then the evaluation's"
    parser.add_argument("--evaluate-only", action="store_true", help=meaning)
    seeds.add_seeds_flag(parser)
    given = parser.parse_args()
    if given.evaluate_only and "resume" in given:
        parser.error("--resume: not together with --evaluate-only, which continues what it had begun by itself")
    steps = (prepare_again, score_again) if given.evaluate_only else (prepare, train_and_score)
    if "seeds" not in given:
        check, work = steps
        work(check(given))
        return
    flags = seeds.flags_of_seeds(given)
    run_seeds(*steps, flags, make_config(RunConfig, given))
    if rank() == 0:
        seeds.compare(flags, Path(make_config(RunConfig, given).results_dir))


if __name__ == "__main__":
    run_script(main)
