"""What a table of latents costs as it grows, and what it learns: LatentTable, dense Adam, torch.optim.SparseAdam.

    python benchmarks/latents.py

A step is that of training.py at batch 64, decoder included, in float32; only the table and its optimizer differ. Row i
stands for image i modulo the number of images. Memory is the largest that the process has held, and how much of that it
held before there was a table: Python, PyTorch and images. The loss is the negative ELBO of the training images after
equal epochs from equal beginnings with equal batches and noise, at the first size, with a row for every image. A table
that does not fit into the free memory is left out, and its row says so. How LatentTable's step grows from the first to
the largest size is measured apart, both in turns, and stands in a line of its own. Everything runs on the CPU.
"""

import argparse
import itertools
import os
import sys
import time
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from torch import nn, optim  # noqa: E402

from benchmarks.contest import REPEATS, contest, peak_memory, print_table, ratios, spread  # noqa: E402
from benchmarks.textbook import Latents  # noqa: E402
from data import load_mnist, stratified_subset  # noqa: E402
from latent_optimization import LEARNING_RATE as DECODER_RATE  # noqa: E402
from latent_table import INITIAL_LOG_VAR, LEARNING_RATE, LatentTable  # noqa: E402
from model import LATENT_DIM, seeded_decoder  # noqa: E402
from training import BATCH_SIZE, train_epoch  # noqa: E402
from vae_utils import diagonal_normal, elbo, evaluate, random_generator  # noqa: E402

STEPS = 50


class TorchTable:
    """A table whose rows one of PyTorch's optimizers learns; used like LatentTable."""

    def __init__(self, *, rows, optimizer):
        """rows: from an index (B,) to the diagonal Normal of these rows."""
        self.rows, self.optimizer = rows, optimizer

    def posterior(self, x, index):
        """q of the images `index` (B,); x is ignored."""
        return self.rows(index)

    def step(self):
        """One step of the optimizer."""
        self.optimizer.step()

    def zero_grad(self):
        """Forgets the gradients."""
        self.optimizer.zero_grad()


def our_table(size):
    """LatentTable: Adam's trajectory at the price of the batch."""
    return LatentTable(size=size, latent_dim=LATENT_DIM, max_steps=100_000)


def dense_table(size):
    """Two parameters and torch.optim.Adam, which moves every row at every step."""
    latents = Latents(size=size, initial_log_var=INITIAL_LOG_VAR)
    return TorchTable(rows=latents, optimizer=optim.Adam(latents.parameters(), lr=LEARNING_RATE))


def sparse_table(size):
    """An embedding and torch.optim.SparseAdam, for which a row and its moments stand still outside its batches."""
    values = torch.zeros(size, 2 * LATENT_DIM)
    values[:, LATENT_DIM:] = INITIAL_LOG_VAR
    embedding = nn.Embedding.from_pretrained(values, freeze=False, sparse=True)
    return TorchTable(
        rows=lambda index: diagonal_normal(*embedding(index).chunk(2, dim=-1)),
        optimizer=optim.SparseAdam(embedding.parameters(), lr=LEARNING_RATE),
    )


TABLES = {"LatentTable": our_table, "dense Adam": dense_table, "SparseAdam": sparse_table}
# In sizes of the table, what is held at once: value and two moments. For dense Adam, whose gradient and intermediate
# results come on top, it was measured.
ARRAYS = {"LatentTable": 3, "dense Adam": 5.5, "SparseAdam": 3}


class Regime:
    """A decoder and a table, for training.train_epoch."""

    def __init__(self, *, table):
        self.decoder = seeded_decoder(seed=0)
        self.posterior = table.posterior
        self.optimizers = [optim.Adam(self.decoder.parameters(), lr=DECODER_RATE, fused=True), table]


def fill_memory(table):
    """Writes to every page that the table and its moments will hold.

    The operating system gives out memory when it is first written: without this, a step on rows that were never visited
    would pay for that, and the process would seem smaller than it is after its first epoch.
    """
    if isinstance(table, LatentTable):
        tensors = [table.rows]
    else:
        states = table.optimizer.state.values()
        tensors = [state[moment] for state in states for moment in ("exp_avg", "exp_avg_sq")]
    for tensor in tensors:
        tensor.add_(0)


def stepping(*, name, size, images, steps):
    """A turn is `steps` steps on a table with `size` rows; it returns (seconds of one, bytes before the table was)."""
    generator = random_generator(0, "latents")
    # What images show does not change the work, and reading MNIST would take more memory than a small table.
    pixels = torch.rand(images, 1, 28, 28, generator=generator)
    order = torch.randperm(size, generator=generator)
    batches = itertools.cycle(order[: max(1, size // BATCH_SIZE) * BATCH_SIZE].split(BATCH_SIZE))
    before = peak_memory()
    table = TABLES[name](size)
    regime = Regime(table=table)

    def step(index):
        x = pixels[index % images]
        q = regime.posterior(x, index)
        noise = torch.randn(q.mean.shape, generator=generator)
        (-elbo(q=q, x=x, decode=regime.decoder, noise=noise).elbo.sum()).backward()
        for optimizer in regime.optimizers:
            optimizer.step()
            optimizer.zero_grad()

    def turn():
        started = time.perf_counter()
        for index in itertools.islice(batches, steps):
            step(index)
        return (time.perf_counter() - started) / steps, before

    step(next(batches))
    with torch.no_grad():
        fill_memory(table)
    return turn


def learning(*, name, size):
    """A turn is an epoch on `size` images; it returns their mean negative ELBO after it, in nats."""
    mnist_train, _ = load_mnist(data_dir=ROOT / "data")
    images = stratified_subset(mnist_train, size=size).images
    regime = Regime(table=TABLES[name](size))
    numbers = itertools.count(1)

    def turn():
        epoch = next(numbers)
        train_epoch(regime=regime, images=images, epoch=epoch, seed=0)
        bound = evaluate(
            posterior=regime.posterior,
            decode=regime.decoder,
            images=images,
            generator=random_generator(0, "loss"),
        )
        return -float(bound.elbo.mean())

    return turn


def growth(*, small, large, repeats):
    """In a line, how much longer LatentTable's step takes on the larger table, both in turns in the same rounds."""
    if (memory := available_memory()) and needed_memory("LatentTable", large) > memory:
        return f"LatentTable: {large:,} rows do not fit into memory"
    contestants = {
        size: partial(stepping, name="LatentTable", size=size, images=small, steps=4 * STEPS) for size in (small, large)
    }
    turns = contest(contestants=contestants, repeats=repeats)
    steps = {size: [turn.result[0] for turn in turns[size]] for size in contestants}
    return f"LatentTable: a step on {large:,} rows over one on {small:,}: {spread(ratios(steps[large], steps[small]))}"


def available_memory():
    """Bytes that can be had without swapping, or, where the system does not say, all there are; None on Windows."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else None


def needed_memory(name, size):
    """Bytes that a table of `size` rows takes, with PyTorch and the data."""
    return ARRAYS[name] * size * 2 * LATENT_DIM * 4 + 10**9


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=REPEATS, help="rounds that count (5)")
    parser.add_argument(
        "--sizes",
        type=int,
        nargs="+",
        default=[20_000, 200_000, 2_000_000],
        help="rows of the tables; the first is also the number of images (20000 200000 2000000)",
    )
    parser.add_argument("--epochs", type=int, default=5, help="epochs before the loss is taken (5)")
    arguments = parser.parse_args()
    images, memory = arguments.sizes[0], available_memory()

    learners = {name: partial(learning, name=name, size=images) for name in TABLES}
    learned = contest(contestants=learners, repeats=arguments.epochs, warm_up=False)
    rows = []
    for size in arguments.sizes:
        fits = [name for name in TABLES if memory is None or needed_memory(name, size) < memory]
        contestants = {}
        for name in fits:
            # Adam on the whole table takes seconds where it is large.
            steps = max(2, min(STEPS, 4_000_000 // size)) if name == "dense Adam" else STEPS
            contestants[name] = partial(stepping, name=name, size=size, images=images, steps=steps)
        together = memory is None or sum(needed_memory(name, size) for name in fits) < memory / 2
        turns = contest(contestants=contestants, repeats=arguments.repeats, stay=together)
        times = {name: [turn.result[0] for turn in turns[name]] for name in fits}
        for name in TABLES:
            loss = f"{learned[name][-1].result:.2f}" if size == images else ""
            if name not in fits:
                missing = f"left out: needs {needed_memory(name, size) / 1e9:.0f} GB, {memory / 1e9:.0f} GB are free"
                rows.append([f"{size:,}", name, missing, "", "", "", loss])
                continue
            milliseconds = spread([1000 * second for second in times[name]])
            ratio = spread(ratios(times[name], times["LatentTable"])) if "LatentTable" in fits else ""
            peak, before = turns[name][-1].peak_bytes, turns[name][-1].result[1]
            memories = [f"{peak / 1e9:.2f}", f"{before / 1e9:.2f}"] if peak else ["", ""]
            rows.append([f"{size:,}", name, milliseconds, ratio, *memories, loss])
    score = f"-ELBO after {arguments.epochs} epochs, nats"
    if len(arguments.sizes) > 1:
        print(growth(small=arguments.sizes[0], large=max(arguments.sizes), repeats=arguments.repeats))
    header = ["rows", "table", "ms per step", "over LatentTable", "peak memory, GB", "before the table, GB", score]
    print_table(header, rows)


if __name__ == "__main__":
    main()
