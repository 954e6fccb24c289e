"""What a table of latents costs as it grows, and what it learns: LatentTable, dense Adam, torch.optim.SparseAdam.

    python -m benchmarks.latents

A step is that of training.py at batch 64, decoder included, in float32; only the table and its optimizer differ. Memory
is the largest that the process has held, and what it held before there was a table: Python and PyTorch. The loss is the
negative ELBO of the training images after equal epochs from equal beginnings with equal batches and noise, at the first
size, a row per image. Everything runs on the CPU; dense Adam on 2,000,000 rows needs 19 GB.
"""

import argparse
import itertools
import time
from functools import partial
from types import SimpleNamespace

import torch
from torch import nn, optim

from benchmarks.harness import REPEATS, median_and_range, peak_memory, print_table, ratios, take_turns
from data import load_data
from latent_table import INITIAL_LOG_VAR, LatentTable
from model import ConvModel
from runtime.config import TrainConfig
from runtime.distributed import WHOLE
from training import Method, train_epoch
from vae_utils import GaussianPosterior, Noise, evaluate_bound, random_generator

CONFIG = TrainConfig()
LATENT_DIM, RATE = CONFIG.latent_dim, CONFIG.latent_learning_rate
STEPS = 50


class Latents(nn.Module):
    """Mean and log-variance of every image's q(z) as two parameters (N, D), for an optimizer of PyTorch."""

    def __init__(self, size, *, latent_dim=LATENT_DIM, sparse=False):
        super().__init__()
        self.mean, self.log_var = (
            nn.Embedding.from_pretrained(torch.full((size, latent_dim), value), freeze=False, sparse=sparse)
            for value in (0.0, INITIAL_LOG_VAR)
        )

    def forward(self, rows):
        """q of the images at `rows` (B,), a diagonal GaussianPosterior (B, D)."""
        return GaussianPosterior.from_log_var(self.mean(rows), self.log_var(rows))


def torch_table(*, size, adam, sparse):
    """Latents and their optimizer, used like LatentTable."""
    latents = Latents(size, sparse=sparse)
    optimizer = adam(latents.parameters(), lr=RATE)
    return SimpleNamespace(posterior=latents, optimizer=optimizer, step=optimizer.step, zero_grad=optimizer.zero_grad)


TABLES = {
    "LatentTable": partial(LatentTable, latent_dim=LATENT_DIM, learning_rate=RATE),
    "dense Adam": partial(torch_table, adam=optim.Adam, sparse=False),
    "SparseAdam": partial(torch_table, adam=optim.SparseAdam, sparse=True),  # moves no row outside its batches
}


class TableMethod(Method):
    """A decoder and a table."""

    def __init__(self, images, name):
        nn.Module.__init__(self)
        self.config, self.images, self.table = CONFIG, images, TABLES[name](size=len(images))
        self.shard, self.count = WHOLE, len(images)
        self.model = ConvModel(LATENT_DIM, seed=0)
        self.optimizers = [optim.Adam(self.model.parameters(), lr=CONFIG.learning_rate, fused=True), self.table]

    def posterior(self, x, rows):
        return self.table.posterior(rows)


def fill_memory(table):
    """Writes to every page of a table and its moments, which the operating system gives out only then.

    Else a step on rows that were never visited would pay for that, and the process would seem smaller than it is.
    """
    states = [] if isinstance(table, LatentTable) else table.optimizer.state.values()
    moments = [state[name] for state in states for name in ("exp_avg", "exp_avg_sq")]
    for tensor in moments or [table.rows]:
        tensor.add_(0)


def stepping(name, *, size, steps):
    """A turn is `steps` steps on a table with `size` rows; it returns (seconds of one, bytes before the table was)."""
    generator, before = random_generator(0, "latents"), peak_memory()
    # One image for all rows: what images show does not change the work.
    method = TableMethod(torch.rand(1, 28, 28, generator=generator).expand(size, -1, -1, -1), name)
    batches = itertools.cycle(torch.randperm(size, generator=generator).split(CONFIG.batch_size))

    def turn(steps=steps):
        started = time.perf_counter()
        for rows in itertools.islice(batches, steps):
            method.train_step(rows, method.draw_noise(len(rows), generator))
        return (time.perf_counter() - started) / steps, before

    turn(steps=1)
    with torch.no_grad():
        fill_memory(method.table)
    return turn


def learning(name, *, size):
    """A turn is an epoch on `size` images; it returns their mean negative ELBO after it, in nats."""
    method = TableMethod(load_data(TrainConfig(train_size=size)).train.images, name)
    numbers = itertools.count(1)

    def turn():
        train_epoch(method, next(numbers))
        with torch.no_grad():
            q = method.posterior(method.images, torch.arange(size))
        return -float(evaluate_bound(method.model, method.images, q, noise=Noise(0, "loss")).elbo.mean())

    return turn


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    meaning = "rows of the tables; the first is also the number of images of the loss (20000 200000 2000000)"
    parser.add_argument("--sizes", type=int, nargs="+", default=[20_000, 200_000, 2_000_000], help=meaning)
    parser.add_argument("--repeats", type=int, default=REPEATS, help=f"rounds that count ({REPEATS})")
    parser.add_argument("--epochs", type=int, default=5, help="epochs before the loss is taken (5)")
    arguments = parser.parse_args()
    first = arguments.sizes[0]
    learned = {name: partial(learning, name, size=first) for name in TABLES}
    learned = take_turns(learned, repeats=arguments.epochs, warm_up=False)
    candidates = {}
    for size, name in itertools.product(arguments.sizes, TABLES):
        # Adam on the whole table takes seconds where it is large.
        steps = max(2, min(STEPS, 4_000_000 // size)) if name == "dense Adam" else STEPS
        candidates[size, name] = partial(stepping, name, size=size, steps=steps)
    turns = take_turns(candidates, repeats=arguments.repeats, keep_processes=False)  # all would not fit together
    times = {candidate: [turn.result[0] for turn in turns[candidate]] for candidate in candidates}
    rows = []
    for size, name in candidates:
        row = [f"{size:,}", name, median_and_range([1000 * second for second in times[size, name]])]
        for base in ((size, "LatentTable"), (first, "LatentTable")):
            row.append(median_and_range(ratios(times[size, name], times[base])))
        last, loss = turns[size, name][-1], f"{learned[name][-1].result:.2f}" if size == first else ""
        rows.append([*row, f"{last.peak_bytes / 1e9:.2f}", f"{last.result[1] / 1e9:.2f}", loss])
    header = ["rows", "table", "ms per step", "over LatentTable", f"over LatentTable, {first:,} rows"]
    header += ["peak memory, GB", "before the table, GB", f"-ELBO after {arguments.epochs} epochs, nats"]
    print_table(header, rows)


if __name__ == "__main__":
    main()
