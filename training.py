"""The one training loop, for any source of q, and the checkpoints that it writes.

A regime is an object with
    name, prefix            what it is called, and how its files begin
    decoder                 maps z (B, D), D its latent_dim, to the mean of p(x|z)
    posterior(x, index)     q(z), a diagonal Normal, for the training images x at rows `index`
    optimizers              each with step and zero_grad; every one of them steps on every batch
                            (on CUDA without reading a value, and in place: a step is recorded, see captured.py)
    held_out(epoch)         a Bound of held-out images under the present weights
    weights()               what a checkpoint holds of it, a dict of tensors
    state_dict()            all that the next epoch depends on, but for the training set: tensors and plain values
    load_state_dict(state)  takes that over
"""

import contextlib
import math
import time
from pathlib import Path

import torch

from captured import captured
from files import RunError, save_checkpoint
from progress import Stage, standing
from runs import restore, save_state
from vae_utils import SIGMA_P, elbo, mean_and_error, random_generator

EPOCHS = 30
BATCH_SIZE = 64
SAVED_EPOCHS = (1, 5, 10, 20, 30)
TIMES = ("training_seconds", "seconds")  # the columns of the history in which two equal runs differ


def saved_epochs(epochs):
    """The epochs whose checkpoints and figures a run of `epochs` keeps: 1, 5, 10, 20, 30 and the last."""
    return sorted({epoch for epoch in SAVED_EPOCHS if epoch < epochs} | {epochs})


def choose_precision(precision, device):
    """ "float32" or "bfloat16"; "auto" takes bfloat16 only where the processor computes in it."""
    if precision != "auto":
        return precision
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    elif device.type == "cpu":
        native = torch.cpu._is_avx512_bf16_supported()
    else:
        native = False
    return "bfloat16" if native else "float32"


def autocast(precision, device):
    """The context in which networks run in `precision`; what they return is float32 either way."""
    if precision == "float32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, torch.bfloat16)


def take_step(index, noise, *, regime, images, sigma_p=SIGMA_P, precision="float32"):
    """One step on the images at rows `index` (B,) with the noise (B, D).

    Returns ELBO, log-likelihood and KL summed over the images, (3,), as they were before it. The loss is a sum over
    images, not a mean: Adam does not see the scale, a last short batch then weighs what it holds, and the gradients
    of a row of latents stay far from eps.
    """
    for optimizer in regime.optimizers:
        optimizer.zero_grad()  # here and not at the end: what a step that was broken off has left goes, too
    x = images[index]
    with autocast(precision, images.device):
        q = regime.posterior(x, index)
        bound = elbo(q=q, x=x, decode=regime.decoder, noise=noise, sigma_p=sigma_p)
    (-bound.elbo.sum()).backward()
    for optimizer in regime.optimizers:
        optimizer.step()
    return torch.stack([part.detach().sum() for part in bound])


def train_epoch(
    *,
    regime,
    images,
    epoch,
    seed,
    sigma_p=SIGMA_P,
    batch_size=BATCH_SIZE,
    precision="float32",
    stage=None,
    step=take_step,
):
    """One pass over `images` (N, 1, 28, 28) in an order that depends on (seed, epoch) alone.

    step: `take_step`, or this captured. Returns what it returned, (steps, 3).
    """
    order = torch.randperm(len(images), generator=random_generator(seed, epoch, "order")).to(images.device)
    noise_generator = random_generator(seed, epoch, "noise", device=images.device)
    sums = []
    for index in order.split(batch_size):
        noise = torch.randn(len(index), regime.decoder.latent_dim, generator=noise_generator, device=images.device)
        sums.append(step(index, noise, regime=regime, images=images, sigma_p=sigma_p, precision=precision))
        if stage:
            stage.advance(len(index))
    return torch.stack(sums)


def train(
    *,
    regime,
    images,
    image_index,
    config,
    checkpoint_dir,
    seed,
    epochs=EPOCHS,
    batch_size=BATCH_SIZE,
    sigma_p=SIGMA_P,
    precision="float32",
    run=None,
):
    """Trains `regime` on `images` and writes `{prefix}_epoch_{N}.pt` at the saved epochs.

    image_index: (N,), the images' rows in MNIST; config: a dict of plain values; both go into the checkpoints.
    With a Run it begins where that stands, and leaves a state file after every epoch. Returns the history, one
    dict per epoch. Raises RunError if the loss is not finite or a file cannot be written.
    """
    history = restore(run=run, prefix=regime.prefix, load_state_dict=regime.load_state_dict) if run else []

    place = {"regime": regime, "config": config, "checkpoint_dir": checkpoint_dir, "image_index": image_index}
    if history and len(history) in saved_epochs(epochs):
        # The run may have been killed after its state was written and before its checkpoint was.
        _save_epoch(row=history[-1], **place)
    done = len(history) * len(images)
    with (
        standing(lambda: f"after epoch {len(history)} of {epochs}, {regime.name}" if history else None),
        Stage(regime.name, total=epochs * len(images), unit="img", done=done) as stage,
    ):
        step = captured(take_step, device=images.device, name=regime.name, say=stage.note)
        for epoch in range(len(history) + 1, epochs + 1):
            started = time.perf_counter()
            sums = train_epoch(
                regime=regime,
                images=images,
                epoch=epoch,
                seed=seed,
                sigma_p=sigma_p,
                batch_size=batch_size,
                precision=precision,
                stage=stage,
                step=step,
            )
            elbos = sums[:, 0].tolist()  # the one synchronisation of an epoch
            if bad := [step for step, value in enumerate(elbos, 1) if not math.isfinite(value)]:
                raise RunError(f"{regime.name}: the loss is not finite at epoch {epoch}, step {bad[0]}")
            trained = time.perf_counter() - started
            row = {"regime": regime.name, "epoch": epoch, "train_images": len(images)}
            for name, value in zip(("elbo", "log_likelihood", "kl"), (sums.sum(0) / len(images)).tolist(), strict=True):
                row[f"train_{name}"] = value
            with autocast(precision, images.device):
                held_out = regime.held_out(epoch)
            for name, values in held_out._asdict().items():
                score = mean_and_error(values)
                row["held_out_images"] = score["images"]
                row[f"held_out_{name}"] = score["mean"]
                row[f"held_out_{name}_standard_error"] = score["standard_error"]
            if not math.isfinite(row["held_out_elbo"]):
                raise RunError(f"{regime.name}: the held-out loss is not finite after epoch {epoch}, step {len(elbos)}")
            row["training_seconds"] = trained
            row["seconds"] = time.perf_counter() - started
            if run:
                # Before the checkpoint: an earlier run that can still be continued keeps its own until then.
                save_state(
                    run=run,
                    prefix=regime.prefix,
                    checkpoint_dir=checkpoint_dir,
                    history=[*history, row],
                    state=regime.state_dict(),
                )
            history.append(row)
            if epoch in saved_epochs(epochs):
                _save_epoch(row=row, **place)
            values = f"ELBO {row['train_elbo']:.2f} train, {row['held_out_elbo']:.2f} held out"
            stage.line(
                f"epoch {epoch}/{epochs}, {values}, nats on {row['held_out_images']:,} images, {row['seconds']:.1f} s",
                short=f"{epoch}/{epochs}, ELBO {row['train_elbo']:.1f}, test {row['held_out_elbo']:.1f}",
            )
    return history


def _save_epoch(*, regime, config, checkpoint_dir, image_index, row):
    """Writes a checkpoint, without the times: two runs with the same seed write it alike to the bit."""
    save_checkpoint(
        Path(checkpoint_dir) / f"{regime.prefix}_epoch_{row['epoch']}.pt",
        {
            "regime": regime.name,
            "config": config,
            "epoch": row["epoch"],
            "weights": regime.weights(),
            "train_index": image_index.cpu(),
            "metrics": {name: value for name, value in row.items() if name not in TIMES},
        },
    )
