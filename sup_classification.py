"""Trains the supervised baseline, a small convolutional classifier, on the same stratified images."""

import math
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

import figures
from cli import (
    Parser,
    add_experiment_flags,
    add_run_flags,
    memory_for,
    prepare,
    run,
)
from data import DIGITS, TRAIN_SIZE
from files import RunError, hold_directories, save_checkpoint, save_figure, save_json
from model import Classifier
from progress import Stage, standing
from runs import find_run, finish_run, restore, save_state
from training import BATCH_SIZE, autocast
from vae_utils import random_generator

EPOCHS = 15
PEAK_LEARNING_RATE = 0.003
PREFIX = "classifier"  # how its checkpoint and its state file begin
ROTATION, SHIFT, SCALE = 12.0, 2.0, 0.1  # at most: degrees, pixels, share


def augment(x, generator):
    """Every image (B, 1, 28, 28) turned, shifted and scaled a little at random, within ROTATION, SHIFT and SCALE."""
    angle, right, down, scale = (2 * torch.rand(4, len(x), generator=generator, device=x.device) - 1).unbind()
    angle = angle * math.radians(ROTATION)
    scale = 1 + SCALE * scale
    pixel = 2 / x.shape[-1]  # affine_grid's coordinates run from -1 to 1
    rows = (
        torch.stack((scale * angle.cos(), -scale * angle.sin(), SHIFT * pixel * right), dim=-1),
        torch.stack((scale * angle.sin(), scale * angle.cos(), SHIFT * pixel * down), dim=-1),
    )
    grid = F.affine_grid(torch.stack(rows, dim=1), x.shape, align_corners=False)
    # What comes in from outside is 0 to grid_sample but background, -1, to us.
    return F.grid_sample(x + 1, grid, align_corners=False) - 1


@torch.no_grad()
def predict(*, model, images, batch_size=1000):
    """Log-probabilities of the digits, (N, 10), with the model as it is when it does not train."""
    training = model.training
    model.eval()
    log_prob = torch.cat([model(batch).log_softmax(-1) for batch in images.split(batch_size)])
    model.train(training)
    return log_prob


def wilson_interval(correct, count, z=1.959964):
    """The 95% interval of a share, correct of count, both ends in [0, 1] (Wilson 1927)."""
    share = correct / count
    centre = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z * math.sqrt(share * (1 - share) / count + z**2 / (4 * count**2)) / (1 + z**2 / count)
    return max(0.0, centre - half), min(1.0, centre + half)


def accuracy(correct):
    """{"accuracy", "interval_95", "images"} of a boolean tensor, one entry per image."""
    right, count = int(correct.sum()), len(correct)
    return {"accuracy": right / count, "interval_95": wilson_interval(right, count), "images": count}


def train(
    *,
    train,
    test,
    epochs=EPOCHS,
    batch_size=BATCH_SIZE,
    seed=0,
    precision="float32",
    run=None,
    checkpoint_dir="checkpoints",
):
    """Trains a Classifier on the Split `train`; Adam with one cycle of the learning rate (Smith & Topin 2019).

    With a Run it begins where that stands, and leaves a state file in `checkpoint_dir` after every epoch.
    Returns (Classifier, history), the history one dict per epoch: loss in nats and error rate, on the augmented
    training images as they were drawn and on the whole Split `test`. Raises RunError if the loss is not finite.
    """
    device = train.images.device
    model = Classifier(seed=seed).to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(model.parameters(), lr=PEAK_LEARNING_RATE, fused=True)
    steps = epochs * math.ceil(len(train.images) / batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_LEARNING_RATE, total_steps=steps + 1)
    parts = {"model": model, "adam": optimizer, "schedule": schedule}

    def load_state_dict(state):
        for name, part in parts.items():
            part.load_state_dict(state[name])

    history = restore(run=run, prefix=PREFIX, load_state_dict=load_state_dict) if run else []
    done = len(history) * len(train.images)
    with (
        standing(lambda: f"after epoch {len(history)} of {epochs}" if history else None),
        Stage("classifier", total=epochs * len(train.images), unit="img", done=done) as stage,
    ):
        for epoch in range(len(history) + 1, epochs + 1):
            started = time.perf_counter()
            order = torch.randperm(len(train.images), generator=random_generator(seed, epoch, "order")).to(device)
            generator = random_generator(seed, epoch, "augmentation", device=device)
            losses, errors = [], 0
            for index in order.split(batch_size):
                labels = train.labels[index]
                with autocast(precision, device):
                    logits = model(augment(train.images[index], generator))
                loss = F.cross_entropy(logits, labels)
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                schedule.step()
                losses.append(loss.detach() * len(index))
                errors += (logits.argmax(-1) != labels).sum()
                stage.advance(len(index))
            losses = torch.stack(losses).tolist()
            if bad := [step for step, value in enumerate(losses, 1) if not math.isfinite(value)]:
                raise RunError(f"classifier: the loss is not finite at epoch {epoch}, step {bad[0]}")
            log_prob = predict(model=model, images=test.images)
            row = {
                "epoch": epoch,
                "train_loss": sum(losses) / len(train.images),
                "train_error": float(errors) / len(train.images),
                "test_loss": float(F.nll_loss(log_prob, test.labels)),
                "test_error": float((log_prob.argmax(-1) != test.labels).float().mean()),
                "seconds": time.perf_counter() - started,
            }
            if not math.isfinite(row["test_loss"]):
                raise RunError(f"classifier: the test loss is not finite after epoch {epoch}, step {len(losses)}")
            if run:
                save_state(
                    run=run,
                    prefix=PREFIX,
                    checkpoint_dir=checkpoint_dir,
                    history=[*history, row],
                    state={name: part.state_dict() for name, part in parts.items()},
                )
            history.append(row)
            values = f"error {row['train_error']:.2%} train, {row['test_error']:.2%} test"
            stage.line(
                f"epoch {epoch}/{epochs}, {values}, {row['seconds']:.1f} s",
                short=f"{epoch}/{epochs}, {values}",
            )
    return model.eval(), history


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
    train_split, test, flags = prepare(arguments)
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
            print(f"{len(train_split.images):,} training images {place}", flush=True)
            experiment(arguments=arguments, train_split=train_split, test=test, run=continued, started=started)


def experiment(*, arguments, train_split, test, run, started):
    """Training, the checkpoint, the figure and the table.

    train_split, test: Splits; run: a Run; started: by time.perf_counter.
    """
    checkpoint_dir = Path(arguments.checkpoint_dir)
    earlier = sum(row["seconds"] for state in run.states.values() for row in state["history"])
    settings = {name: run.flags[name] for name in ("epochs", "batch_size", "seed", "precision")}
    with memory_for(f"--batch-size ({arguments.batch_size:,})"):
        model, history = train(train=train_split, test=test, run=run, checkpoint_dir=checkpoint_dir, **settings)
    with standing(lambda: "after all training"):
        report(
            model=model,
            history=history,
            arguments=arguments,
            train_split=train_split,
            test=test,
            run=run,
            started=started - earlier,
        )
        finish_run(prefixes=[PREFIX], checkpoint_dir=checkpoint_dir)


def report(*, model, history, arguments, train_split, test, run, started):
    """Writes the checkpoint, the figure and the numbers, the numbers last; prints the table."""
    checkpoint_dir, results_dir = Path(arguments.checkpoint_dir), Path(arguments.results_dir)
    log_prob = predict(model=model, images=test.images)
    predicted = log_prob.argmax(-1)
    correct = predicted == test.labels
    per_digit = [accuracy(correct[test.labels == digit]) for digit in range(DIGITS)]
    confusion = torch.bincount(test.labels * DIGITS + predicted, minlength=DIGITS**2).reshape(DIGITS, DIGITS)
    config = {name: run.flags[name] for name in ("epochs", "batch_size", "seed", "train_size", "precision")}
    overall = accuracy(correct)

    save_checkpoint(
        checkpoint_dir / "classifier.pt",
        {
            "regime": "classifier",
            "config": config,
            "epoch": arguments.epochs,
            "weights": model.state_dict(),
            "train_index": train_split.index.cpu(),
            "metrics": overall,
        },
    )
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
