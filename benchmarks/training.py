"""Seconds of one training epoch: this project's against the textbook's loop.

    python -m benchmarks.training

Amortized: an epoch over 20,000 images in batches of 64, then the bound of the validation images, the same network for
both. Latent optimization: the epoch alone. The textbook's loop is what tutorials write: float32, the default memory
layout, a DataLoader that transforms every image anew, optim.Adam on everything, the loss fetched after every step.
"""

import argparse
import itertools
from functools import partial

import torch
import torch.nn.functional as F
from torch import optim
from torch.utils.data import DataLoader, StackDataset, Subset
from torchvision import transforms
from torchvision.datasets import MNIST

from amortized_vae import AmortizedVAE
from benchmarks.harness import REPEATS, median_and_range, print_table, ratios, take_turns
from benchmarks.latents import Latents
from data import load_data
from latent_optimization import LatentOptimization
from model import ConvModel, ConvVAE
from runtime.config import TrainConfig, choose_precision
from training import train_epoch

AMORTIZED = "amortized"
METHODS = {AMORTIZED: AmortizedVAE, "latent optimization": LatentOptimization}
# The default one and float32: the same where the processor does not compute in bfloat16.
PRECISIONS = tuple(dict.fromkeys([choose_precision("auto", torch.device("cpu")), "float32"]))


def our_epochs(name, config):
    """A turn is an epoch as main_vae.py trains it; it returns the mean -ELBO of its batches, nats per image."""
    method = METHODS[name](config, load_data(config))
    numbers = itertools.count(1)

    def turn():
        epoch = next(numbers)
        row = train_epoch(method, epoch)
        if name == AMORTIZED:
            method.validate(epoch)
        return -row["train_elbo"]

    return turn


def textbook_loss(q, x, x_mean, sigma):
    """The negative ELBO without the constant of p(x|z), the mean over the batch, in nats."""
    reconstruction = F.mse_loss(x_mean, x, reduction="sum") / (2 * sigma**2)
    divergence = -0.5 * (1 + 2 * q.scale.log() - q.mean.square() - q.scale.square()).sum()
    return (reconstruction + divergence) / len(x)


def textbook_loader(rows, *, batch_size, shuffle=True):
    """A DataLoader over the rows (N,) of MNIST's training part: (images in [-1, 1], labels), positions in `rows`."""
    transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize((0.5,), (0.5,))])
    # "download" unpacks the archives, which are there.
    images = Subset(MNIST("data", train=True, transform=transform, download=True), rows.tolist())
    return DataLoader(StackDataset(images, range(len(images))), batch_size=batch_size, shuffle=shuffle)


def textbook_epochs(name, config):
    """A turn is an epoch of the same network in the textbook's loop; it returns the mean of the batches' losses."""
    data, amortized = load_data(config), name == AMORTIZED
    train = textbook_loader(data.train.index, batch_size=config.batch_size)
    validation = textbook_loader(data.validation.index, batch_size=1000, shuffle=False)
    model = (ConvVAE if amortized else ConvModel)(seed=0).to(memory_format=torch.contiguous_format)
    groups = [{"params": model.parameters()}]
    if not amortized:
        latents = Latents(config.train_size, latent_dim=config.latent_dim)
        groups.append({"params": latents.parameters(), "lr": config.latent_learning_rate})
    optimizer = optim.Adam(groups, lr=config.learning_rate)

    def loss_of(x, rows):
        q = model.encode(x) if amortized else latents(rows)
        return textbook_loss(q, x, model.decode(q.rsample(torch.randn_like(q.mean))), config.sigma_p)

    def turn():
        total = 0.0
        for (x, _), rows in train:
            optimizer.zero_grad()
            loss = loss_of(x, rows)
            loss.backward()
            optimizer.step()
            total += loss.item()
        if amortized:
            with torch.no_grad():
                sum(loss_of(x, rows).item() for (x, _), rows in validation)
        return total / len(train)

    return turn


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=REPEATS, help=f"rounds that count ({REPEATS})")
    parser.add_argument("--train-size", type=int, default=20_000, help="images of an epoch (20000)")
    given = parser.parse_args()
    candidates = {}
    for method in METHODS:
        for precision in PRECISIONS:
            config = TrainConfig(train_size=given.train_size, epochs=given.repeats + 1, precision=precision)
            candidates[method, f"ours, {precision}"] = partial(our_epochs, method, config)
        candidates[method, "textbook"] = partial(textbook_epochs, method, config)
    turns = take_turns(candidates, repeats=given.repeats)
    times, rows = {name: [turn.seconds for turn in turns[name]] for name in turns}, []
    bases = [f"ours, {precision}" for precision in PRECISIONS]
    for method, name in candidates:
        over = [median_and_range(ratios(times[method, name], times[method, base])) for base in bases]
        rows.append([f"{method}, {name}", median_and_range(times[method, name]), *over])
    print_table([f"epoch of {given.train_size:,} images", "seconds", *(f"over {base}" for base in bases)], rows)


if __name__ == "__main__":
    main()
