"""Trains the same decoder as an amortized VAE and by latent optimization on MNIST, and compares the two."""

import platform
import time
from pathlib import Path

import numpy as np
import torch
import torchvision

import amortized_vae
import comparison
import evaluation
import figures
import latent_optimization
from cli import (
    Parser,
    add_experiment_flags,
    add_run_flags,
    memory_for,
    number,
    prepare,
    run,
)
from data import TRAIN_SIZE, rows_per_digit
from files import hold_directories, save_array, save_csv, save_figure, save_json
from model import LATENT_DIM
from progress import standing
from runs import find_run, finish_run
from training import BATCH_SIZE, EPOCHS, saved_epochs
from vae_utils import SIGMA_P

PREFIXES = ("vae", "latent_opt")  # how the files of the regimes begin, in the order of their training


def parse_arguments(arguments=None):
    """The flags, each with its range."""
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
    group = parser.add_argument_group("evaluation")
    group.add_argument(
        "--num-samples",
        metavar="N",
        type=number(int, 1, 10_000_000),
        default=evaluation.NUM_SAMPLES,
        help="importance samples per image for log p(x)",
    )
    group.add_argument(
        "--images-per-digit",
        metavar="N",
        type=number(int, 1, 892),
        default=evaluation.IMAGES_PER_DIGIT,
        help="images of each digit, in either split, whose log p(x) is estimated",
    )
    return parser.parse_args(arguments)


def main():
    """Everything that can be refused; then, in directories of its own, the experiment."""
    started = time.perf_counter()
    arguments = parse_arguments()
    train, test, flags = prepare(arguments)
    for split in (train, test):
        rows_per_digit(split.labels, arguments.images_per_digit)  # refuses now what could not be scored later
    with hold_directories(arguments.checkpoint_dir, arguments.results_dir):
        continued = find_run(
            resume=arguments.resume,
            flags=flags,
            prefixes=PREFIXES,
            checkpoint_dir=arguments.checkpoint_dir,
            summary=Path(arguments.results_dir) / "summary.json",
        )
        if continued:
            place = f"on {flags['device']}, networks in {flags['precision']}"
            print(f"{len(train.images):,} training images {place}", flush=True)
            experiment(arguments=arguments, train=train, test=test, run=continued, started=started)


def experiment(*, arguments, train, test, run, started):
    """Amortized VAE, latent optimization, comparison, log p(x), in this order.

    train, test: Splits; run: a Run; started: by time.perf_counter.
    """
    flags = run.flags
    checkpoint_dir, results_dir = Path(arguments.checkpoint_dir), Path(arguments.results_dir)
    model_config = {name: flags[name] for name in ("latent_dim", "sigma_p", "seed")}
    loop_config = {name: flags[name] for name in ("epochs", "batch_size", "precision")}
    config = {**model_config, **loop_config, "train_size": arguments.train_size}
    earlier = sum(row["seconds"] for state in run.states.values() for row in state["history"])
    history, models, seconds = [], [], {}
    with (
        standing(lambda: f"after {len(history)} of {2 * arguments.epochs} epochs" if history else None),
        memory_for(f"--batch-size ({arguments.batch_size:,}) or --latent-dim ({arguments.latent_dim:,})"),
    ):
        for name, regime in (("amortized_training", amortized_vae), ("latent_training", latent_optimization)):
            model, rows = regime.train(
                train=train,
                test=test,
                config=config,
                checkpoint_dir=checkpoint_dir,
                run=run,
                **model_config,
                **loop_config,
            )
            models.append(model)
            history += rows
            seconds[name] = sum(row["seconds"] for row in rows)
            save_csv(results_dir / "history.csv", history)

    before = time.perf_counter()
    scene = {"train": train, "test": test, "sigma_p": arguments.sigma_p, "seed": arguments.seed}
    scene["precision"] = flags["precision"]
    with (
        standing(lambda: "in the evaluation, after all training"),
        memory_for(f"--images-per-digit ({arguments.images_per_digit:,}) or --latent-dim ({arguments.latent_dim:,})"),
    ):
        save_figure(results_dir / "training_curves.png", figures.training_curves(history=history))
        comparison.draw_epochs(
            epochs=saved_epochs(arguments.epochs), checkpoint_dir=checkpoint_dir, results_dir=results_dir, **scene
        )
        summary = evaluate(models=models, arguments=arguments, results_dir=results_dir, scene=scene)
        seconds["evaluation"] = time.perf_counter() - before
        seconds["total"] = time.perf_counter() - started + earlier
        versions = {name.__name__: name.__version__ for name in (torch, torchvision, np)}
        config = {**vars(arguments), **flags, "python": platform.python_version(), **versions}
        del config["resume"]
        summary = {"config": config, **summary, "seconds": seconds}
        save_json(results_dir / "summary.json", summary)
        finish_run(prefixes=PREFIXES, checkpoint_dir=checkpoint_dir)
    print(evaluation.table(summary))
    print("seconds: " + ", ".join(f"{name.replace('_', ' ')} {value:.0f}" for name, value in seconds.items()))


def evaluate(*, models, arguments, results_dir, scene):
    """Writes log p(x) as table, array and figure; returns the summary's numbers.

    models: (ConvVAE, LatentModel); scene: what all estimates have in common.
    """
    vae, latents = models
    bounds = evaluation.final_bounds(vae=vae, latents=latents, **scene)
    records = evaluation.log_probabilities(
        vae=vae,
        latents=latents,
        num_samples=arguments.num_samples,
        images_per_digit=arguments.images_per_digit,
        **scene,
    )
    values = evaluation.as_array(records, images_per_digit=arguments.images_per_digit)
    save_csv(results_dir / "log_probabilities.csv", records)
    save_array(results_dir / "log_probabilities.npy", values)
    test = scene["test"]
    save_figure(
        results_dir / "log_probabilities.png",
        figures.log_probabilities(
            values=values,
            images=test.images[rows_per_digit(test.labels, 1).flatten()],
            example_values=values[:, 1, :, 0],
            num_samples=arguments.num_samples,
        ),
    )
    return {**bounds, "log_prob": evaluation.summarize_log_prob(records)}


if __name__ == "__main__":
    run(main)
