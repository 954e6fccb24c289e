"""Seconds until a default run has the test ELBO that a reference network has after 30 epochs of the textbook's loop.

    python benchmarks/time_to_quality.py

First the reference network (textbook.py) trains for 30 epochs, a validation on the 10,000 test images after each, and
so sets the target. Then this project's amortized run, every time with another seed, takes turns with one more epoch of
the reference network: a run ends with the first epoch whose test ELBO is the target or better, or with its last one.
The reference's seconds are 30 times the epoch of the same round. Both learn from the same 20,000 images; reading them
is not counted. With --target the first part, which takes longest, is left out.
"""

import argparse
import itertools
import sys
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from torch import optim  # noqa: E402

from amortized_vae import AmortizedVAE  # noqa: E402
from benchmarks import textbook  # noqa: E402
from benchmarks.contest import REPEATS, contest, print_table, ratios, seconds, spread  # noqa: E402
from data import TRAIN_SIZE, load_mnist, stratified_subset  # noqa: E402
from training import BATCH_SIZE, EPOCHS, autocast, choose_precision, train_epoch  # noqa: E402


def reference(*, train_size):
    """The reference network in the textbook's loop. A turn is an epoch and returns the test ELBO after it."""
    mnist_train, test = load_mnist(data_dir=ROOT / "data")
    rows = stratified_subset(mnist_train, size=train_size).index.tolist()
    loader = textbook.mnist_loader(data_dir=ROOT / "data", rows=rows, train=True)
    test_loader = textbook.mnist_loader(data_dir=ROOT / "data", rows=test.index.tolist(), train=False, batch_size=1000)
    torch.manual_seed(0)
    model = textbook.ReferenceVAE()
    optimizer = optim.Adam(model.parameters(), lr=0.001)

    def turn():
        textbook.train_epoch(model=model, loader=loader, optimizer=optimizer)
        return textbook.validate(model=model, loader=test_loader)

    return turn


def ours(*, target, train_size, epochs):
    """This project's default run. A turn is a run with a new seed and returns (epochs, last test ELBO)."""
    mnist_train, test = load_mnist(data_dir=ROOT / "data")
    images = stratified_subset(mnist_train, size=train_size).images
    precision = choose_precision("auto", images.device)
    # What a process does once is not part of a run.
    idle = AmortizedVAE(test_images=test.images)
    train_epoch(regime=idle, images=images[: 10 * BATCH_SIZE], epoch=1, seed=0, precision=precision)
    seeds = itertools.count()

    def turn():
        seed = next(seeds)
        regime = AmortizedVAE(test_images=test.images, seed=seed)
        for epoch in range(1, epochs + 1):
            train_epoch(regime=regime, images=images, epoch=epoch, seed=seed, precision=precision)
            with autocast(precision, images.device):
                score = float(regime.held_out(epoch).elbo.mean())
            if score >= target:
                break
        return epoch, score

    return turn


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=REPEATS, help="runs, each with another seed (5)")
    parser.add_argument("--train-size", type=int, default=TRAIN_SIZE, help="training images of both (20000)")
    parser.add_argument("--reference-epochs", type=int, default=30, help="epochs of the reference network (30)")
    parser.add_argument("--epochs", type=int, default=EPOCHS, help="epochs of a default run (30)")
    parser.add_argument("--target", type=float, help="the reference's test ELBO, where it is known")
    arguments = parser.parse_args()

    theirs, target = partial(reference, train_size=arguments.train_size), arguments.target
    if target is None:
        turns = contest(contestants={"reference": theirs}, repeats=arguments.reference_epochs, warm_up=False)
        target = turns["reference"][-1].result
        print(f"reference network: {sum(seconds(turns['reference'])):.1f} s for {arguments.reference_epochs} epochs")
    contestants = {
        "reference": theirs,
        "ours": partial(ours, target=target, train_size=arguments.train_size, epochs=arguments.epochs),
    }
    turns = contest(contestants=contestants, repeats=arguments.repeats, warm_up=False)

    times = [arguments.reference_epochs * second for second in seconds(turns["reference"])]
    counts, scores = zip(*(turn.result for turn in turns["ours"]), strict=True)
    if missed := sum(score < target for score in scores):
        print(f"{missed} of {arguments.repeats} runs did not reach the target: ours is then the time of the whole run")
    header = ["until the test ELBO is", "epochs", "test ELBO, nats", "seconds", "reference over it"]
    print_table(
        header,
        [
            ["reference, textbook", str(arguments.reference_epochs), f"{target:.2f}", spread(times, ".1f"), ""],
            [
                "ours, default run",
                spread(counts, ".0f"),
                spread(scores),
                spread(seconds(turns["ours"]), ".1f"),
                spread(ratios(times, seconds(turns["ours"]))),
            ],
        ],
    )


if __name__ == "__main__":
    main()
