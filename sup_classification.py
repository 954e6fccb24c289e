"""Trains the supervised baseline, a small convolutional classifier, on the same stratified images."""

import time
from pathlib import Path

import numpy as np
import torch

import figures
from baseline import BATCH_SIZE, EPOCHS, PREFIX, predict, train_baseline
from cli import (
    Parser,
    add_experiment_flags,
    add_run_flags,
    memory_for,
    prepare,
    run,
)
from data import DIGITS, TRAIN_SIZE
from files import hold_directories, save_figure, save_json
from intervals import accuracy
from progress import standing
from runs import find_run, finish_run


def parse_arguments(arguments=None):
    """The flags, each with its range."""
    parser = Parser(prog="sup_classification.py", description=__doc__)
    # Batch normalization needs more than one image.
    add_experiment_flags(parser, epochs=EPOCHS, train_size=TRAIN_SIZE, batch_size=BATCH_SIZE, smallest_batch=2)
    add_run_flags(parser)
    return parser.parse_args(arguments)


def main():
    """Everything that can be refused; then, in directories of its own, the experiment."""
    started = time.perf_counter()
    arguments = parse_arguments()
    train, test, flags = prepare(arguments)
    with hold_directories(arguments.checkpoint_dir, arguments.results_dir):
        continued = find_run(
            resume=arguments.resume,
            flags=flags,
            prefixes=[PREFIX],
            checkpoint_dir=arguments.checkpoint_dir,
            summary=Path(arguments.results_dir) / "classification.json",
        )
        if continued:
            place = f"on {flags['device']}, network in {flags['precision']}"
            print(f"{len(train.images):,} training images {place}", flush=True)
            experiment(arguments=arguments, train=train, test=test, run=continued, started=started)


def experiment(*, arguments, train, test, run, started):
    """Training, the figure and the table.

    train, test: Splits; run: a Run; started: by time.perf_counter.
    """
    checkpoint_dir = Path(arguments.checkpoint_dir)
    earlier = sum(row["seconds"] for state in run.states.values() for row in state["history"])
    settings = {name: run.flags[name] for name in ("epochs", "batch_size", "seed", "precision")}
    with memory_for(f"--batch-size ({arguments.batch_size:,})"):
        model, history = train_baseline(train=train, test=test, run=run, checkpoint_dir=checkpoint_dir, **settings)
    with standing(lambda: "after all training"):
        report(
            model=model,
            history=history,
            results_dir=Path(arguments.results_dir),
            test=test,
            run=run,
            started=started - earlier,
        )
        finish_run(prefixes=[PREFIX], checkpoint_dir=checkpoint_dir)


def report(*, model, history, results_dir, test, run, started):
    """Writes the figure and the numbers, the numbers last; prints the table."""
    log_prob = predict(model=model, images=test.images)
    predicted = log_prob.argmax(-1)
    correct = predicted == test.labels
    per_digit = [accuracy(correct[test.labels == digit]) for digit in range(DIGITS)]
    confusion = torch.bincount(test.labels * DIGITS + predicted, minlength=DIGITS**2).reshape(DIGITS, DIGITS)
    config = {name: run.flags[name] for name in ("epochs", "batch_size", "seed", "train_size", "precision")}
    overall = accuracy(correct)

    save_figure(
        results_dir / "classification.png",
        figures.classification(
            history=history,
            per_digit=per_digit,
            confusion=confusion.cpu().numpy(),
            wrong=most_confidently_wrong(log_prob=log_prob, test=test, count=10),
        ),
    )
    save_json(
        results_dir / "classification.json",
        {
            "config": {**config, "device": run.flags["device"], "torch": torch.__version__, "numpy": np.__version__},
            "test": overall,
            "digits": per_digit,
            "confusion": confusion.tolist(),
            "history": history,
            "seconds": time.perf_counter() - started,
        },
    )
    print(f"{'digit':>8}{'accuracy':>10}{'95% interval':>18}{'images':>8}")
    for name, score in (*enumerate(per_digit), ("all", overall)):
        low, high = score["interval_95"]
        print(f"{name:>8}{score['accuracy']:>10.2%}{f'{low:.2%} to {high:.2%}':>18}{score['images']:>8,}")
    print(f"{time.perf_counter() - started:.0f} seconds")


def most_confidently_wrong(*, log_prob, test, count):
    """The wrongly classified test images with the highest probability of what they were taken for, most first.

    A list of at most `count` tuples (image (1, 28, 28), label, prediction, its probability).
    """
    confidence, predicted = log_prob.exp().max(-1)
    wrong = torch.nonzero(predicted != test.labels).flatten()
    order = wrong[confidence[wrong].argsort(descending=True)][:count]
    return [(test.images[row], int(test.labels[row]), int(predicted[row]), float(confidence[row])) for row in order]


if __name__ == "__main__":
    run(main)
