"""Trains the same decoder by several methods, such as an amortized VAE and latent optimization, and compares them."""

import time
from dataclasses import asdict
from functools import partial

from runtime.process import prepare_process

if __name__ == "__main__":
    prepare_process("evaluation/figures.mplstyle")

from amortized_vae import AmortizedVAE
from data import take_shard
from evaluation.page.page import fill_page
from evaluation.report import RESULTS, draw_history, draw_report, evaluate
from evaluation.seeds import compare_seeds
from evaluation.settings import add_own_flags, prepare, prepare_again
from evaluation.tables import print_tables
from latent_optimization import LatentOptimization
from runtime.checkpoint import remove
from runtime.cli import Parser, add_flags, large_flags, out_of_memory_hint, run_script
from runtime.config import ClassifierConfig, EvalConfig, RunConfig, RunError, TrainConfig, versions
from runtime.learners import Checkpoints, saved_epochs
from runtime.plan import Owned
from runtime.run import open_evaluation, open_run
from runtime.seeds import run_seeds
from semi_amortized_vae import SemiAmortizedVAE
from sup_classification import find_classifier
from training import train_epoch, validate

METHODS = (AmortizedVAE, LatentOptimization, SemiAmortizedVAE)  # the one list of them, in the order of every table


def owned():
    pictures = [f"{method.reconstruction_prefix}_epoch_[0-9]*.png" for method in METHODS]
    return Owned(METHODS, (*pictures, *RESULTS), summary="summary.json", page="report.html")


def train_and_score(experiment):
    """Trains every method, then scores all of them; continues what was interrupted."""
    run_config, config, eval_config, data, methods, _ = experiment
    with open_run(run_config, experiment.settings, owned=owned(), scoring=asdict(eval_config)) as run:
        if run.finished:
            return
        start = f"{config.train_size:,} training images on {run.where}, networks in {config.precision}"
        print(*data.said, start, sep="\n", flush=True)
        with out_of_memory_hint(large_flags(config, ("batch_size", "latent_dim"))):
            for method_class in methods:
                method = method_class(config, take_shard(data))
                for epoch in run.epochs(method):
                    run.record(train_epoch(method, epoch, progress=run.progress), validate(method, epoch))
        epochs = saved_epochs(config.epochs)
        run.write(draw_history(run.history, methods, epochs, method.caption))
        score(run, experiment, Checkpoints(methods, run.directory, config, epochs, data.train.index))


def score_again(experiment):
    """Scores the checkpoints that are there; history.csv and training_curves.png stay as they are."""
    run_config, config, eval_config, data, _, checkpoints = experiment
    options = {"owned": owned(), "device": experiment.settings["device"], "evaluation": eval_config.evaluation}
    options |= checkpoints.scored()
    with open_evaluation(run_config, config, **options) as run:
        epoch, images = checkpoints.epochs[-1], f"{config.train_size:,} training images, seed {config.seed}"
        print(*data.said, f"{checkpoints.directory}: epoch {epoch} of {config.epochs}, {images}", sep="\n")
        print(f"evaluation with seed {eval_config.seed} on {run.where}, in {eval_config.precision}", flush=True)
        score(run, experiment, checkpoints)


def score(run, experiment, checkpoints):
    """Finds every number of the checkpoints, writes tables, figures and page, and summary.json last; prints tables."""
    config, eval_config, data = experiment.config, experiment.eval_config, experiment.data
    started, training_seconds = time.perf_counter(), run.training_seconds()
    with out_of_memory_hint(large_flags(eval_config, ("images_per_digit", "fitted_images"))):
        # The classifier belongs to the training: it stays the same when the evaluation has another seed.
        full = eval_config.evaluation == "full"
        classifier = find_classifier(data, ClassifierConfig.for_training(config), run) if full else None
        configs = {"train_config": asdict(config), "eval_config": asdict(eval_config), "versions": versions()}
        summary, files = {"settings": {**asdict(eval_config), **experiment.settings}, **configs}, checkpoints.digests()
        started = run.keep_results(summary | {"files": files, "seconds": {"training": training_seconds}}, started)
        results = evaluate(partial(checkpoints.load, data=data), checkpoints.epochs, data, classifier, eval_config, run)
    if results is None:  # on other ranks than 0
        return
    if checkpoints.digests() != files:
        raise RunError(f"{checkpoints.directory}: the checkpoints were changed or removed while they were scored")
    summary |= {"scored_epoch": checkpoints.epochs[-1], "likelihood": results.likelihood, "labels": results.labels}
    remove([run.results / owned().summary])  # of an earlier evaluation, whose files are replaced now
    with run.timed("figures and tables"):
        run.write(draw_report(results))
    seconds = {"training": training_seconds, "evaluation": time.perf_counter() - started, "total": run.seconds()}
    summary["seconds"] = seconds | {"stages": run.stage_seconds}
    if full:
        run.write([(owned().page, fill_page(run.results, results, summary))])
    elif (old := run.results / {"none": "scores.csv", "quick": owned().page}[eval_config.evaluation]).exists():
        print(f"{old}: of an earlier evaluation, as all that this one does not write")
    run.write([(owned().summary, summary)])
    run.tasks.remove()
    first = owned().page if full else f"comparison_epoch_{checkpoints.epochs[-1]}.png"
    print_tables(results.scores, summary)
    print(f"checkpoints: {checkpoints.directory}")
    print(f"{run.results / first}: open it first; figures and tables are beside it")


def main():
    """Reads the flags; then trains and scores, or scores again, one seed or several."""
    parser = Parser(prog="main_vae.py", description=__doc__)
    for config_class, title in ((TrainConfig, "experiment"), (RunConfig, "run"), (EvalConfig, "evaluation")):
        add_flags(parser, config_class, title)
    add_own_flags(parser, METHODS)
    given = parser.parse_args()
    check, work = (prepare_again, score_again) if given.evaluate_only else (prepare, train_and_score)
    check = partial(check, owned=owned())
    if "seeds" in given:
        run_seeds(given, check, work, compare_seeds, owned())
    else:
        work(check(given))


if __name__ == "__main__":
    run_script(main)
