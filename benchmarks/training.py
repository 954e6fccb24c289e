"""Seconds of one training epoch: this project's against the textbook's and pythae's, and as a share of the machine.

    python benchmarks/training.py

Amortized: an epoch over 20,000 images in batches of 64, then the bound of 10,000 others, the same network for all.
Latent optimization: the epoch alone. "Share of the machine": floating-point operations of the training steps (not of
Adam, and not of validation) over their time, over the same of a large matrix product in the same precision.
Everything runs on the CPU.
"""

import argparse
import importlib.util
import itertools
import sys
import time
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from torch import optim  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

import amortized_vae  # noqa: E402
import latent_optimization  # noqa: E402
import latent_table  # noqa: E402
from amortized_vae import AmortizedVAE  # noqa: E402
from benchmarks import textbook  # noqa: E402
from benchmarks.contest import REPEATS, contest, print_table, ratios, seconds, spread  # noqa: E402
from data import TRAIN_SIZE, Split, load_mnist, stratified_subset  # noqa: E402
from latent_optimization import LatentOptimization  # noqa: E402
from model import ConvVAE, seeded_decoder  # noqa: E402
from training import BATCH_SIZE, autocast, choose_precision, train_epoch  # noqa: E402
from vae_utils import SIGMA_P  # noqa: E402

TEST_SIZE = 10_000


def splits(*, train_size, test_size):
    """The training images and the first test images, as Splits."""
    mnist_train, test = load_mnist(data_dir=ROOT / "data")
    return stratified_subset(mnist_train, size=train_size), Split(*(column[:test_size] for column in test))


def ours(*, precision, train_size, test_size):
    """The amortized VAE as main_vae.py trains it. A turn returns its training steps' seconds and operations."""
    train, test = splits(train_size=train_size, test_size=test_size)
    regime = AmortizedVAE(test_images=test.images)
    return epochs(regime=regime, images=train.images, precision=precision, validation=True)


def our_latents(*, precision, train_size, epochs_at_most):
    """Latent optimization as main_vae.py trains it, without its validation."""
    train, test = splits(train_size=train_size, test_size=TEST_SIZE)
    steps = -(-train_size // BATCH_SIZE)
    # One epoch more than is raced, for the step whose operations are counted.
    regime = LatentOptimization(train_size=train_size, test=test, max_steps=steps * (epochs_at_most + 1))
    return epochs(regime=regime, images=train.images, precision=precision, validation=False)


def epochs(*, regime, images, precision, validation):
    """A turn of a regime: one epoch, with or without validation."""
    precision = choose_precision(precision, images.device)
    keywords = {"regime": regime, "seed": 0, "precision": precision}
    batch = images[:BATCH_SIZE]
    with FlopCounterMode(display=False) as counter:
        train_epoch(images=batch, epoch=0, **keywords)
    operations = counter.get_total_flops() * len(images) / len(batch)
    numbers = itertools.count(1)

    def turn():
        epoch = next(numbers)
        started = time.perf_counter()
        train_epoch(images=images, epoch=epoch, **keywords)
        trained = time.perf_counter() - started
        if validation:
            with autocast(precision, images.device):
                regime.held_out(epoch)
        return trained, operations

    return turn


def textbook_loop(*, train_size, test_size):
    """The same network in the textbook's loop."""
    train, test = splits(train_size=train_size, test_size=test_size)
    loader, test_loader = (
        textbook.mnist_loader(data_dir=ROOT / "data", rows=split.index.tolist(), train=split is train, batch_size=size)
        for split, size in ((train, BATCH_SIZE), (test, 1000))
    )
    model = textbook.in_default_layout(ConvVAE(seed=0))
    optimizer = optim.Adam(model.parameters(), lr=amortized_vae.LEARNING_RATE)

    def turn():
        textbook.train_epoch(model=model, loader=loader, optimizer=optimizer)
        textbook.validate(model=model, loader=test_loader)

    return turn


def textbook_latents(*, train_size):
    """The same decoder and a table of the same size in the textbook's loop."""
    train, _ = splits(train_size=train_size, test_size=TEST_SIZE)
    rows = train.index.tolist()
    loader = textbook.mnist_loader(data_dir=ROOT / "data", rows=rows, train=True, numbered=True)
    decoder = textbook.in_default_layout(seeded_decoder(seed=0))
    latents = textbook.Latents(size=train_size, initial_log_var=latent_table.INITIAL_LOG_VAR)
    optimizer = textbook.latent_optimizer(
        decoder=decoder,
        latents=latents,
        decoder_rate=latent_optimization.LEARNING_RATE,
        table_rate=latent_table.LEARNING_RATE,
    )
    return partial(textbook.train_latent_epoch, decoder=decoder, latents=latents, loader=loader, optimizer=optimizer)


def pythae_loop(*, train_size, test_size):
    """The same network in pythae's training pipeline."""
    from benchmarks import pythae_contestant

    train, test = splits(train_size=train_size, test_size=test_size)
    trainer = pythae_contestant.trainer(
        vae=textbook.in_default_layout(ConvVAE(seed=0)),
        sigma_p=SIGMA_P,
        train=train,
        test=test,
        batch_size=BATCH_SIZE,
        learning_rate=amortized_vae.LEARNING_RATE,
    )
    numbers = itertools.count(1)

    def turn():
        epoch = next(numbers)
        trainer.train_step(epoch)
        trainer.eval_step(epoch)

    return turn


def matrix_product(*, precision, size, count=3):
    """Products of square matrices. A turn returns its seconds and operations."""
    precision = choose_precision(precision, torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)
    one, other = (torch.randn(size, size, generator=generator).to(getattr(torch, precision)) for _ in range(2))

    def turn():
        started = time.perf_counter()
        for _ in range(count):
            one @ other
        return time.perf_counter() - started, 2 * size**3 * count

    return turn


def rates(turns):
    """Floating-point operations per second of turns that return their seconds and operations."""
    return [turn.result[1] / turn.result[0] for turn in turns]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=REPEATS, help="rounds that count (5)")
    parser.add_argument("--train-size", type=int, default=TRAIN_SIZE, help="images of an epoch (20000)")
    parser.add_argument("--test-size", type=int, default=TEST_SIZE, help="images of validation (10000)")
    parser.add_argument("--product-size", type=int, default=4096, help="rows of the matrix product (4096)")
    arguments = parser.parse_args()
    sizes = {"train_size": arguments.train_size, "test_size": arguments.test_size}
    precisions = {f"ours, {choose_precision('auto', torch.device('cpu'))}": "auto", "ours, float32": "float32"}
    if len(precisions) == 1:
        print("ours in its default precision is float32 on this processor: one row for both")

    contestants = {}
    for name, precision in precisions.items():
        contestants[f"amortized, {name}"] = partial(ours, precision=precision, **sizes)
    contestants["amortized, textbook"] = partial(textbook_loop, **sizes)
    if importlib.util.find_spec("pythae"):
        contestants["amortized, pythae"] = partial(pythae_loop, **sizes)
    else:
        print("pythae is left out: pip install -r benchmarks/requirements.txt")
    for name, precision in precisions.items():
        contestants[f"latent optimization, {name}"] = partial(
            our_latents,
            precision=precision,
            train_size=arguments.train_size,
            epochs_at_most=arguments.repeats + 1,
        )
    contestants["latent optimization, textbook"] = partial(textbook_latents, train_size=arguments.train_size)
    default = next(iter(precisions))
    products = {name: f"matrix product, {name.removeprefix('ours, ')}" for name in precisions}
    for name, precision in precisions.items():
        contestants[products[name]] = partial(matrix_product, precision=precision, size=arguments.product_size)
    turns = contest(contestants=contestants, repeats=arguments.repeats)

    rows = []
    for name in contestants:
        if name in products.values():
            continue
        regime, variant = name.split(", ", 1)
        row = [name, spread(seconds(turns[name]))]
        for base in (default, "ours, float32"):
            row.append(spread(ratios(seconds(turns[name]), seconds(turns[f"{regime}, {base}"]))))
        share = ratios(rates(turns[name]), rates(turns[products[variant]])) if variant in products else None
        rows.append([*row, spread(share, ".1%") if share else ""])
    header = [f"epoch of {arguments.train_size:,} images", "seconds", f"over {default}", "over ours, float32"]
    print_table([*header, "share of the machine"], rows)
    for product in products.values():
        print(f"{product}: {spread([rate / 1e9 for rate in rates(turns[product])], '.0f')} GFLOP/s")


if __name__ == "__main__":
    main()
