"""Trains the same decoder as an amortized VAE and by latent optimization on MNIST, and compares the two."""

import argparse
import platform
import time
from pathlib import Path

import numpy as np
import torch
import torchvision

import baseline
import comparison
import evaluation
import fairness
import figures
import gap_study
import latent_analysis
import sample_quality
from cli import (
    Parser,
    add_experiment_flags,
    add_run_flags,
    choose_device,
    memory_for,
    number,
    prepare,
    run,
)
from counts import add_evaluation_flags, settle
from data import TRAIN_SIZE, rows_per_digit
from files import InputError, hold_directories, save_array, save_csv, save_figure, save_json
from model import LATENT_DIM
from progress import standing
from runs import find_run, finish_run
from trained import CONFIG, PREFIXES, description, find_trained, train_regimes, training_seconds
from training import BATCH_SIZE, EPOCHS
from vae_utils import SIGMA_P

FREE = ("seed", "precision")  # of what training depended on: with --evaluate-only they are the evaluation's own


def parse_arguments(arguments=None, namespace=None):
    """The flags, each with its range. A namespace keeps what it holds where a flag is not given."""
    parser = Parser(prog="main_vae.py", description=__doc__)
    add_experiment_flags(parser, epochs=EPOCHS, train_size=TRAIN_SIZE, batch_size=BATCH_SIZE)
    group = parser.add_argument_group("model")
    group.add_argument(
        "--latent-dim", metavar="N", type=number(int, 1, 10_000), default=LATENT_DIM, help="dimensions of z"
    )
    group.add_argument(
        "--sigma-p",
        metavar="S",
        type=number(float, 1e-3, 1e3),
        default=SIGMA_P,
        help="standard deviation of p(x|z), pixels being in [-1, 1]",
    )
    add_run_flags(parser)
    group = add_evaluation_flags(parser)
    group.add_argument(
        "--evaluate-only",
        action="store_true",
        help="score the checkpoints that are there again, without training; --seed is then the evaluation's",
    )
    parsed = parser.parse_args(arguments, namespace)
    if parsed.evaluate_only and parsed.resume:
        parser.error("--resume: not together with --evaluate-only, which continues nothing")
    return parsed


def main():
    """Training and evaluation, or with --evaluate-only the second alone; then what they came to."""
    started = time.perf_counter()
    arguments = parse_arguments()
    work = evaluate_again if arguments.evaluate_only else experiment
    if summary := work(arguments=arguments, started=started):
        print(evaluation.table(summary))
        print(fairness.table(summary["fairness"]))
        values = (f"{name.replace('_', ' ')} {value:.0f}" for name, value in summary["seconds"].items())
        print("seconds: " + ", ".join(values))


def experiment(*, arguments, started):
    """Everything that can be refused; then, in directories of its own, training and evaluation.

    started: by time.perf_counter. Returns the summary, None if the run that was to be resumed is finished.
    """
    settle(arguments)
    train, rest, test, flags = prepare(arguments)
    refuse_counts(arguments, train, test)
    with hold_directories(arguments.checkpoint_dir, arguments.results_dir):
        run = find_run(
            resume=arguments.resume,
            flags=flags,
            prefixes=PREFIXES,
            checkpoint_dir=arguments.checkpoint_dir,
            summary=Path(arguments.results_dir) / "summary.json",
        )
        if run is None:
            return None
        print(f"{len(train.images):,} training images {place(flags)}", flush=True)
        earlier = sum(row["seconds"] for state in run.states.values() for row in state["history"])
        size, dimensions = f"--batch-size ({arguments.batch_size:,})", f"--latent-dim ({arguments.latent_dim:,})"
        with memory_for(f"{size} or {dimensions}"):
            trained = train_regimes(
                train=train,
                test=test,
                config={name: flags[name] for name in CONFIG},
                run=run,
                checkpoint_dir=arguments.checkpoint_dir,
                results_dir=arguments.results_dir,
            )
        with (
            standing(lambda: "in the evaluation, after all training"),
            memory_for(f"--images-per-digit ({arguments.images_per_digit:,}) or {dimensions}"),
        ):
            summary = score(
                trained=trained,
                arguments=arguments,
                flags=flags,
                splits=(train, rest, test),
                started=started - earlier,
            )
            finish_run(prefixes=PREFIXES, checkpoint_dir=arguments.checkpoint_dir)
    return summary


def evaluate_again(*, arguments, started):
    """Everything that can be refused; then the evaluation of the checkpoints that are there. Returns the summary.

    The checkpoints say what was trained and are only read; history.csv and training_curves.png are left alone.
    started: by time.perf_counter.
    """
    with (
        standing(lambda: "in the evaluation", advice="give the same command again"),
        memory_for(f"--images-per-digit ({arguments.images_per_digit:,})"),
    ):
        trained = find_trained(arguments.checkpoint_dir, device=choose_device(arguments.device))
        take_over(trained.config, arguments=arguments)
        settle(arguments)
        train, rest, test, flags = prepare(arguments, train_index=trained.train_index)
        refuse_counts(arguments, train, test)
        with hold_directories(arguments.checkpoint_dir, arguments.results_dir):
            print(f"{arguments.checkpoint_dir}: {description(trained)}", flush=True)
            print(f"evaluation with seed {arguments.seed} {place(flags)}", flush=True)
            seconds = training_seconds(Path(arguments.results_dir) / "summary.json", trained.config)
            return score(
                trained=trained._replace(seconds=seconds),
                arguments=arguments,
                flags=flags,
                splits=(train, rest, test),
                started=started - sum(seconds.values()),
            )


def take_over(config, *, arguments):
    """Sets the flags that say what is learned to what the checkpoints say.

    Raises InputError if one of them was given and says something else.
    """
    unset = argparse.Namespace(**dict.fromkeys(vars(arguments)))
    given = vars(parse_arguments(namespace=unset))
    fixed = {name: value for name, value in config.items() if name not in FREE}
    if others := [name for name, value in fixed.items() if given[name] not in (None, value)]:
        said = (f"--{name.replace('_', '-')} {given[name]}, but the checkpoints say {fixed[name]}" for name in others)
        raise InputError(f"{arguments.checkpoint_dir}: {'; '.join(said)}")
    vars(arguments).update(fixed)


def refuse_counts(arguments, *splits):
    """Refuses before any work what could not be scored after it."""
    for split in splits:
        rows_per_digit(split.labels, arguments.images_per_digit)


def place(flags):
    """In words, where it runs."""
    return f"on {flags['device']}, networks in {flags['precision']}"


def score(*, trained, arguments, flags, splits, started):
    """The evaluation of a Trained; writes summary.json and returns what it holds.

    splits: what it was trained on, the rest of MNIST's training images, the test images;
    started: by time.perf_counter, moved back by what the training took in other processes.
    """
    before = time.perf_counter()
    numbers = evaluate(trained=trained, arguments=arguments, precision=flags["precision"], splits=splits)
    now = time.perf_counter()
    config = {
        **vars(arguments),
        **flags,
        **trained.config,  # under "seed" and "precision" stands what was trained with
        "scored_epoch": trained.epochs[-1],
        "evaluation_seed": arguments.seed,
        "evaluation_precision": flags["precision"],
        "python": platform.python_version(),
        **{name.__name__: name.__version__ for name in (torch, torchvision, np)},
    }
    del config["resume"]
    seconds = {**trained.seconds, "evaluation": now - before, "total": now - started}
    summary = {"config": config, **numbers, "seconds": seconds}
    save_json(Path(arguments.results_dir) / "summary.json", summary)
    return summary


def evaluate(*, trained, arguments, precision, splits):
    """Every number and every figure but the training curves; returns the summary's numbers.

    trained: a Trained; splits: as in `score`.
    """
    train, rest, test = splits
    vae, latents = trained.models
    directories = {"checkpoint_dir": arguments.checkpoint_dir, "results_dir": Path(arguments.results_dir)}
    results_dir, seed = directories["results_dir"], arguments.seed
    scene = {"sigma_p": arguments.sigma_p, "seed": seed, "precision": precision, "fit_steps": arguments.fit_steps}
    chain = {"chains": arguments.chains, "temperatures": arguments.temperatures}
    comparison.draw_epochs(epochs=trained.epochs, train=train, test=test, **directories, **scene)

    sample = evaluation.fit_sample(latents=latents, test=test, images=arguments.fitted_images, **scene)
    bounds = evaluation.final_bounds(
        vae=vae, latents=latents, train=train, test=test, sample=sample, sigma_p=arguments.sigma_p, seed=seed
    )
    records = evaluation.log_probabilities(
        models=trained.models,
        train=train,
        test=test,
        num_samples=arguments.num_samples,
        images_per_digit=arguments.images_per_digit,
        annealed_per_digit=arguments.annealed_per_digit,
        **chain,
        **scene,
    )
    values = evaluation.as_array(records, images_per_digit=arguments.images_per_digit)
    save_csv(results_dir / "log_probabilities.csv", records)
    save_array(results_dir / "log_probabilities.npy", values)
    figure = figures.log_probabilities(
        values=values,
        images=test.images[rows_per_digit(test.labels, 1).flatten()],
        example_values=values[:, 1, :, 0],
        num_samples=arguments.num_samples,
    )
    save_figure(results_dir / "log_probabilities.png", figure)
    inference_gaps = gap_study.study(
        epochs=trained.epochs,
        models=trained.models,
        records=records,
        train=train,
        test=test,
        images_per_digit=arguments.gap_images_per_digit,
        simulated=arguments.simulated_images,
        **directories,
        **chain,
        **scene,
    )
    # The judge belongs to the training, not to the evaluation: it stays the same when that has another seed.
    trainer = {name: trained.config[name] for name in ("seed", "precision")}
    judge = baseline.find_judge(train=train, test=test, checkpoint_dir=arguments.checkpoint_dir, **trainer)
    learned = {"judge": judge, "train": train, "test": test, "results_dir": results_dir, "seed": seed}
    held = latent_analysis.analyse(vae=vae, latents=latents, sample=sample.split, sample_q=sample.q, **learned)
    decoders = {"amortized": vae.decoder, "latent_optimization": latents.decoder}
    quality = sample_quality.assess(decoders=decoders, mnist_rest=rest, samples=arguments.judged_samples, **learned)
    inference = {
        "amortized": evaluation.encoding_cost(vae=vae, images=sample.split.images),
        "latent_optimization": sample.cost,
    }
    return {
        **bounds,
        "log_prob": evaluation.summarize_log_prob(records),
        **inference_gaps,
        "latents": held,
        "samples": quality,
        "fairness": fairness.spent(trained=trained, inference=inference),
    }


if __name__ == "__main__":
    run(main)
