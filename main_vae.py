"""Trains the same decoder as an amortized VAE and by latent optimization on MNIST, and compares the two."""

import platform
import time

import numpy as np
import torch
import torchvision

import amortized_vae
import comparison
import evaluation
import figures
import latent_optimization
from cli import Parser, choose_device, number, run, writable_directory
from data import TRAIN_SIZE, load_mnist, rows_per_digit, stratified_subset
from files import save_array, save_csv, save_figure, save_json
from model import LATENT_DIM
from training import BATCH_SIZE, EPOCHS, choose_precision, saved_epochs
from vae_utils import SIGMA_P


def parse_arguments(arguments=None):
    """The flags, each with its range."""
    parser = Parser(prog="main_vae.py", description=__doc__)
    group = parser.add_argument_group("experiment")
    group.add_argument("--epochs", type=number(int, 1, 100_000), default=EPOCHS, help="passes over the training images")
    group.add_argument("--train-size", type=number(int, 10, 60_000), default=TRAIN_SIZE, help="stratified images")
    group.add_argument("--batch-size", type=number(int, 1, 60_000), default=BATCH_SIZE, help="images per step")
    group.add_argument("--seed", type=number(int, 0, 2**32 - 1), default=0, help="of everything that is random")
    group = parser.add_argument_group("model")
    group.add_argument("--latent-dim", type=number(int, 1, 10_000), default=LATENT_DIM, help="dimensions of z")
    group.add_argument(
        "--sigma-p",
        type=number(float, 1e-3, 1e3),
        default=SIGMA_P,
        help="standard deviation of p(x|z), pixels being in [-1, 1]",
    )
    group = parser.add_argument_group("run")
    group.add_argument("--device", default="auto", help="auto takes CUDA, then MPS, then the CPU")
    group.add_argument(
        "--precision",
        choices=("auto", "float32", "bfloat16"),
        default="auto",
        help="of the networks in training; auto takes bfloat16 where the processor has it",
    )
    group.add_argument("--data-dir", default="data", help="holds MNIST/raw")
    group.add_argument("--checkpoint-dir", default="checkpoints", help="where checkpoints go")
    group.add_argument("--results-dir", default="results", help="where figures and tables go")
    group = parser.add_argument_group("evaluation")
    group.add_argument(
        "--num-samples",
        type=number(int, 1, 10_000_000),
        default=evaluation.NUM_SAMPLES,
        help="importance samples per image for log p(x)",
    )
    group.add_argument(
        "--images-per-digit",
        type=number(int, 1, 892),
        default=evaluation.IMAGES_PER_DIGIT,
        help="images of each digit, in either split, whose log p(x) is estimated",
    )
    return parser.parse_args(arguments)


def main():
    """Data, amortized VAE, latent optimization, comparison, log p(x), in this order."""
    started = time.perf_counter()
    arguments = parse_arguments()
    device = choose_device(arguments.device)
    precision = choose_precision(arguments.precision, device)
    checkpoint_dir = writable_directory(arguments.checkpoint_dir, "--checkpoint-dir")
    results_dir = writable_directory(arguments.results_dir, "--results-dir")
    mnist_train, test = load_mnist(data_dir=arguments.data_dir, device=device)
    train = stratified_subset(mnist_train, size=arguments.train_size, seed=arguments.seed)
    rows_per_digit(train.labels, arguments.images_per_digit)  # refuses now what could not be scored later
    print(f"{len(train.images):,} training images on {device}, networks in {precision}", flush=True)

    model_config = {"latent_dim": arguments.latent_dim, "sigma_p": arguments.sigma_p, "seed": arguments.seed}
    loop_config = {"epochs": arguments.epochs, "batch_size": arguments.batch_size, "precision": precision}
    config = {**model_config, **loop_config, "train_size": arguments.train_size}
    history, models, seconds = [], [], {}
    for name, regime in (("amortized_training", amortized_vae), ("latent_training", latent_optimization)):
        before = time.perf_counter()
        model, rows = regime.train(
            train=train, test=test, config=config, checkpoint_dir=checkpoint_dir, **model_config, **loop_config
        )
        models.append(model)
        history += rows
        seconds[name] = time.perf_counter() - before
        save_csv(results_dir / "history.csv", history)
    save_figure(results_dir / "training_curves.png", figures.training_curves(history=history))

    before = time.perf_counter()
    vae, latents = models
    scene = {"train": train, "test": test, "sigma_p": arguments.sigma_p, "seed": arguments.seed, "precision": precision}
    comparison.draw_epochs(
        epochs=saved_epochs(arguments.epochs), checkpoint_dir=checkpoint_dir, results_dir=results_dir, **scene
    )
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
    save_figure(
        results_dir / "log_probabilities.png",
        figures.log_probabilities(
            values=values,
            images=test.images[rows_per_digit(test.labels, 1).flatten()],
            example_values=values[:, 1, :, 0],
            num_samples=arguments.num_samples,
        ),
    )
    seconds["evaluation"] = time.perf_counter() - before
    seconds["total"] = time.perf_counter() - started
    versions = {"python": platform.python_version(), "torch": torch.__version__, "torchvision": torchvision.__version__}
    summary = {
        "config": {
            **vars(arguments),
            "device": str(device),
            "precision": precision,
            **versions,
            "numpy": np.__version__,
        },
        **bounds,
        "log_prob": evaluation.summarize_log_prob(records),
        "seconds": seconds,
    }
    save_json(results_dir / "summary.json", summary)
    print(evaluation.table(summary))
    print("seconds: " + ", ".join(f"{name.replace('_', ' ')} {value:.0f}" for name, value in seconds.items()))


if __name__ == "__main__":
    run(main)
