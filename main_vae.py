"""Trains the same decoder with every method, as an amortized VAE and by latent optimization, and compares them."""

import contextlib
import os
import time
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # before torch is imported: waiting threads soon leave the processor

from amortized_vae import AmortizedVAE
from data import load_data, rows_per_class, shard
from evaluation import figures, seeds
from evaluation.report import RESULTS, evaluate, write_report
from evaluation.tables import cost_table, headline, table
from latent_optimization import LatentOptimization
from runtime.checkpoint import InputError, load_json, save_csv, save_figure, save_json
from runtime.cli import Parser, add_flags, make_config, out_of_memory_hint, prepare_run, run_script
from runtime.config import ClassifierConfig, EvalConfig, RunConfig, TrainConfig, differences, versions
from runtime.distributed import rank, size
from runtime.progress import resume_hint
from runtime.resume import BEGIN_ANEW, Owned, lock, locked_run
from runtime.tasks import Tasks
from sup_classification import find_classifier
from training import Checkpoints, find_checkpoints, lengthen, saved_epochs, train

METHODS = (AmortizedVAE, LatentOptimization)  # the one place where they are listed, in the order of every table
PREFIXES = tuple(method.prefix for method in METHODS)
OWNED = Owned(PREFIXES, tuple(f"{prefix}_epoch_*.pt" for prefix in PREFIXES), RESULTS, summary="summary.json")
OF_EVALUATION = ("seed", "precision")  # with --evaluate-only these flags are the evaluation's, not the training's


def main():
    """Training and evaluation, or with --evaluate-only the evaluation alone; then the tables."""
    started = time.perf_counter()
    parser = Parser(prog="main_vae.py", description=__doc__)
    add_flags(parser, TrainConfig, "experiment")
    add_flags(parser, RunConfig, "run")
    add_flags(parser, EvalConfig, "evaluation")
    meaning = "score the checkpoints again, without training; --seed and --precision are then the evaluation's"
    parser.add_argument("--evaluate-only", action="store_true", help=meaning)
    seeds.add_seeds_flag(parser)
    given = parser.parse_args()
    if given.evaluate_only and "resume" in given:
        parser.error("--resume: not together with --evaluate-only, which continues what it had begun by itself")
    work = evaluate_again if given.evaluate_only else experiment
    if "seeds" in given:
        seeds.run_all(work, given, print_tables)
    else:
        print_tables(work(given, started))


def print_tables(found):
    """Prints what a run has found, (summary, Scores); None if it was finished already."""
    if found:
        summary, scores = found
        labels = summary["labels"]
        print(table(scores, labels, summary["likelihood"]))
        print(cost_table(scores, labels))
        print(headline(scores, labels))
        seconds = summary["seconds"]
        times = {**seconds["training"], "evaluation": seconds["evaluation"], "total": seconds["total"]}
        print("seconds: " + ", ".join(f"{name.replace('_', ' ')} {value:.0f}" for name, value in times.items()))


def experiment(given, started, *, check_only=False):
    """Checks all input; then, in locked directories, trains and evaluates.

    started: by time.perf_counter. Returns (summary, Scores); None if the run to be resumed is already finished, or
    after a check.
    """
    run_config, config = make_config(RunConfig, given), make_config(TrainConfig, given)
    device, config = prepare_run(run_config, config)
    at_most = "train_size" not in given
    data = load_data(config, data_dir=run_config.data_dir, device=device, at_most=at_most)
    config = replace(config, train_size=len(data.train.labels))
    eval_config = choose_counts(config, given, data, precision=config.precision)
    checkpoint_dir, results_dir = run_config.checkpoint_dir, Path(run_config.results_dir)
    training, scoring = {**asdict(config), "device": device.type}, asdict(eval_config)
    history, seconds = [], {}
    options = {"owned": OWNED, "scoring": scoring, "check_only": check_only}
    with locked_run(run_config, settings=training, **options) as run:
        if run is None or check_only:
            return None
        processes = f", {size()} processes" if size() > 1 else ""
        work = f"{config.train_size:,} training images on {device.type}{processes}, networks in {config.precision}"
        print(work, flush=True)
        started -= sum(row["seconds"] for state in run.states.values() for row in state["history"])
        if run.lengthened and rank() == 0:
            lengthen(METHODS, run_config, config)
        data = shard(data)
        with (
            resume_hint(lambda: f"after {len(history)} of {len(METHODS) * config.epochs} epochs" if history else None),
            out_of_memory_hint(f"--batch-size ({config.batch_size:,}) or --latent-dim ({config.latent_dim:,})"),
        ):
            for method_class in METHODS:
                method = method_class(config, data)
                rows = train(method, checkpoint_dir=checkpoint_dir, run=run, cuda_graph=run_config.cuda_graph)
                seconds[method.name] = sum(row["seconds"] for row in rows)
                history += rows
        epochs, likelihood = saved_epochs(config.epochs), method.model.likelihood.label
        if rank() == 0:
            save_csv(results_dir / "history.csv", history)
            options = {"history": history, "methods": METHODS, "saved_epochs": epochs, "likelihood": likelihood}
            save_figure(results_dir / "training_curves.png", figures.training_curves(**options))
        if size() > 1:  # the evaluation deals other images to the ranks
            data = load_data(config, data_dir=run_config.data_dir, device=device)
        checkpoints = Checkpoints(METHODS, checkpoint_dir, config, epochs, data.train.index)
        with resume_hint(lambda: "in the evaluation, after all training"):
            return score(checkpoints, data, eval_config, {**scoring, **training}, run_config, seconds, started)


def evaluate_again(given, started, *, check_only=False):
    """Checks all input; then evaluates the checkpoints that are there. Returns (summary, Scores); None after a check.

    The checkpoints say what was trained and are only read; history.csv and training_curves.png stay as they are.
    """
    run_config, seconds = make_config(RunConfig, given), {}
    with resume_hint(lambda: "in the evaluation", advice="give the same command again"):
        checkpoints = find_checkpoints(METHODS, run_config.checkpoint_dir)
        config = checkpoints.config
        # Of several seeds each has its own checkpoints, whose training must have had that seed.
        free = OF_EVALUATION if "seeds" not in given else ("precision",)
        fixed = {name: value for name, value in asdict(config).items() if name not in free}
        if others := differences(fixed, vars(given)):
            raise InputError(f"{run_config.checkpoint_dir}: the checkpoints are of another training: {others}")
        device, eval_config = prepare_run(run_config, EvalConfig.for_training(config, vars(given)))
        data = load_data(config, data_dir=run_config.data_dir, device=device, train_index=checkpoints.train_index)
        eval_config = choose_counts(config, given, data, precision=eval_config.precision)
        for epoch in checkpoints.epochs:
            checkpoints.load(epoch, data)  # refuses a bad file before any work
        with lock(run_config, check_only=check_only):
            path, earlier = Path(run_config.results_dir) / OWNED.summary, {}
            with contextlib.suppress(InputError):  # no summary, or none that can be read
                earlier = load_json(path)
                if "train_config" in earlier:  # of an older version, without the settings that are new
                    earlier["train_config"] = {**asdict(TrainConfig()), **earlier["train_config"]}
            if earlier and not run_config.overwrite and earlier.get("train_config") != asdict(config):
                others = differences(earlier.get("train_config", {}), asdict(config)) or "of another version"
                raise InputError(f"{path}: of another run ({others}); {BEGIN_ANEW}")
            if check_only:
                return None
            if earlier and earlier.get("train_config") != asdict(config) and rank() == 0:
                for stale in (file for name in OWNED.results for file in path.parent.glob(name)):
                    stale.unlink()
            trained = f"{config.train_size:,} training images, seed {config.seed}"
            print(f"{run_config.checkpoint_dir}: epoch {checkpoints.epochs[-1]} of {config.epochs}, {trained}")
            precision = f"gradients of annealing in {eval_config.precision}"
            print(f"evaluation with seed {eval_config.seed} on {device}, {precision}", flush=True)
            if earlier.get("train_config") == asdict(config):
                seconds = earlier["seconds"]["training"]
            settings = {**asdict(eval_config), **asdict(config), "device": device.type}
            started -= sum(seconds.values())
            return score(checkpoints, data, eval_config, settings, run_config, seconds, started)


def choose_counts(config, given, data, *, precision):
    """The EvalConfig that suits the TrainConfig and the Data.

    Raises InputError, before any work, if there are too few images for the counts that the user gave.
    """
    fewest = min(int(split.labels.bincount(minlength=split.num_classes).min()) for split in (data.train, data.test))
    options = {"fewest": fewest, "classes": data.test.num_classes}
    eval_config = replace(EvalConfig.for_training(config, vars(given), **options), precision=precision)
    for split in (data.train, data.test):
        rows_per_class(split, eval_config.images_per_digit)
    rows_per_class(data.test, 2)
    if eval_config.fitted_images < data.test.num_classes:
        raise InputError(f"--fitted-images {eval_config.fitted_images}: fewer than the {data.test.num_classes} classes")
    return eval_config


def score(checkpoints, data, eval_config, settings, run_config, seconds, started):
    """Evaluates the Checkpoints, writes the report and summary.json; returns (summary, Scores).

    seconds: {name of a method: of its training}; started: by time.perf_counter, less the time of earlier processes.
    """
    before, config = time.perf_counter(), checkpoints.config
    flags = f"--images-per-digit ({eval_config.images_per_digit:,}) or --latent-dim ({config.latent_dim:,})"
    with out_of_memory_hint(flags):
        # The classifier belongs to the training: it stays the same when the evaluation has another seed.
        shared = ("train_size", "seed", "dataset", "resize", "binarize", "precision")
        classifier_config = ClassifierConfig(**{name: getattr(config, name) for name in shared})
        classifier = find_classifier(data, classifier_config, checkpoint_dir=run_config.checkpoint_dir)
        known = {"settings": settings, "eval_config": asdict(eval_config), "versions": versions()}
        known["files"] = checkpoints.digests()
        tasks = Tasks(Path(run_config.results_dir) / ".evaluation", identity=known)
        options = {"training_seconds": seconds, "tasks": tasks}
        load = partial(checkpoints.load, data=data)
        results = evaluate(load, checkpoints.epochs, data, classifier, eval_config, **options)
    if rank():
        return None
    now = time.perf_counter()
    summary = {
        "settings": settings,
        "train_config": asdict(config),
        "eval_config": asdict(eval_config),
        "scored_epoch": checkpoints.epochs[-1],
        "versions": versions(),
        "likelihood": results.likelihood,
        "labels": results.labels,
        "seconds": {"training": seconds, "evaluation": now - before, "total": now - started},
    }
    write_report(run_config.results_dir, results, summary)
    save_json(Path(run_config.results_dir) / OWNED.summary, summary)
    tasks.remove()
    return summary, results.scores


if __name__ == "__main__":
    run_script(main)
