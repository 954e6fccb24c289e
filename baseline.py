"""The supervised baseline: a small convolutional classifier, which also judges what the decoders draw."""

import contextlib
import math
import time
from pathlib import Path

import torch
import torch.nn.functional as F

from files import InputError, RunError, load_checkpoint, save_checkpoint
from model import Classifier
from progress import Stage, standing
from runs import restore, save_state
from training import TIMES, autocast
from vae_utils import random_generator

EPOCHS = 8
BATCH_SIZE = 128
PEAK_LEARNING_RATE = 0.006
PREFIX = NAME = "classifier"  # how its checkpoint and its state file begin
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
def predict(*, model, images, batch_size=100):
    """Log-probabilities of the digits, (N, 10), with the model as it is when it does not train."""
    training = model.training
    model.eval()
    log_prob = torch.cat([model(batch).log_softmax(-1) for batch in images.split(batch_size)])
    model.train(training)
    return log_prob


def train_baseline(
    *, train, test, checkpoint_dir, epochs=EPOCHS, batch_size=BATCH_SIZE, seed=0, precision="float32", run=None
):
    """Trains a Classifier on the Split `train`; Adam with one cycle of the learning rate (Smith & Topin 2019).

    Writes `classifier.pt` at the end. With a Run it begins where that stands, and leaves a state file after every
    epoch. Returns (Classifier, history), the history one dict per epoch: loss in nats and error rate, on the augmented
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
        save_checkpoint(
            Path(checkpoint_dir) / f"{PREFIX}.pt",
            {
                "regime": NAME,
                "config": _config(train=train, epochs=epochs, batch_size=batch_size, seed=seed, precision=precision),
                "epoch": epochs,
                "weights": model.state_dict(),
                "train_index": train.index.cpu(),
                "metrics": {name: value for name, value in history[-1].items() if name not in TIMES},
            },
        )
    return model.eval(), history


def load_judge(path, *, device="cpu", train_index=None):
    """The Classifier of a checkpoint `classifier.pt`, on the device, frozen. Raises InputError for any other file.

    train_index: if given, the rows in MNIST that it must have been trained on, (N,); others raise InputError, too.
    """
    checkpoint = load_checkpoint(path, device=device)
    if checkpoint.get("regime") != NAME:
        raise InputError(f"{path}: not a checkpoint of the classifier")
    try:
        model = Classifier().to(device, memory_format=torch.channels_last)
        model.load_state_dict(checkpoint["weights"])
        same = train_index is None or torch.equal(checkpoint["train_index"].cpu(), train_index.cpu())
    except (AttributeError, KeyError, RuntimeError, TypeError):
        raise InputError(f"{path}: its contents do not fit this program") from None
    if not same:
        raise InputError(f"{path}: trained on other images")
    return model.eval().requires_grad_(False)


def find_judge(*, train, test, checkpoint_dir, seed=0, precision="float32"):
    """The Classifier that `train_baseline` makes of these images with this seed: loaded if it is there, else trained.

    A checkpoint of other images, another seed or precision, or another program is replaced: the same call then gives
    the same judge, whatever the directory held.
    """
    path = Path(checkpoint_dir) / f"{PREFIX}.pt"
    config = _config(train=train, epochs=EPOCHS, batch_size=BATCH_SIZE, seed=seed, precision=precision)
    with contextlib.suppress(InputError):  # nothing there, or nothing of use
        if load_checkpoint(path).get("config") == config:
            return load_judge(path, device=train.images.device, train_index=train.index)
    train_baseline(train=train, test=test, checkpoint_dir=checkpoint_dir, seed=seed, precision=precision)
    return load_judge(path, device=train.images.device)


def _config(*, train, epochs, batch_size, seed, precision):
    """What a classifier's weights depend on, but for the choice of the training images."""
    settings = {"epochs": epochs, "batch_size": batch_size, "seed": seed, "precision": precision}
    return {**settings, "train_size": len(train.images)}
