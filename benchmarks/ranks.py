"""What several ranks cost and give, on this machine: the memory of a rank's table, and a step of latent optimization.

    python -m benchmarks.ranks

Ranks are processes of torchrun with one thread each.
"""

import argparse
import os
import resource
import statistics
import time
from dataclasses import replace
from pathlib import Path

import torch
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from benchmarks.harness import median_and_range, print_table, ratios
from data import Data, load_data
from latent_optimization import LatentOptimization
from runtime import distributed
from runtime.config import TrainConfig

STEPS, WARM_UP = 60, 10


def time_steps(size):
    """(bytes of this rank's part of a table of `size` rows, seconds of a step of latent optimization)."""
    distributed.start(torch.device("cpu"))
    config = TrainConfig(train_size=size, precision="float32", epochs=1, latent_start="zero")
    some = load_data(TrainConfig(train_size=2000))
    few = some.train.at(distributed.own_shard().rows(size) % 2000)
    # The same memory for every row's image: only the table grows.
    few = replace(few, images=few.images[:1].expand(len(few.labels), *few.images.shape[1:]))
    before = resident()
    method = LatentOptimization(config, Data(few, some.validation, some.rest, some.test, shard=distributed.own_shard()))
    method.table.rows.add_(0)  # touches every page
    table, seconds, generator = resident() - before, [], torch.Generator().manual_seed(0)
    for _ in range(WARM_UP + STEPS):
        batch = torch.randint(size, (config.batch_size,), generator=generator).unique()
        noise = method.draw_noise(len(batch), generator)
        distributed.barrier()
        started = time.perf_counter()
        method.train_step(batch, noise)
        seconds.append(time.perf_counter() - started)
    return table, statistics.median(seconds[WARM_UP:])


def resident():
    """Bytes of this process in memory (Linux)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def launch(ranks, size):
    """What `time_steps` returns on rank 0 of so many ranks, as torchrun --standalone starts them."""
    options = {"start_method": "spawn", "rdzv_backend": "c10d", "rdzv_endpoint": "localhost:0", "run_id": "ranks"}
    config = LaunchConfig(1, 1, nproc_per_node=ranks, max_restarts=0, **options)
    return elastic_launch(config, time_steps)(size)[0]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[20_000, 2_000_000], help="rows of the table")
    parser.add_argument("--rounds", type=int, default=3, help="of the measurements (3)")
    given = parser.parse_args()
    first = given.sizes[0]
    os.environ["OMP_NUM_THREADS"] = "1"  # of the ranks
    found = {(size, ranks): [] for size in given.sizes for ranks in (1, 2)}
    for _ in range(given.rounds):
        for (size, ranks), values in found.items():
            values.append(launch(ranks, size))
    rows = []
    for (size, ranks), values in found.items():
        tables, steps = zip(*values, strict=True)
        memory, step = statistics.median(tables) / 1e6, 1e3 * statistics.median(steps)
        growth = median_and_range(ratios(steps, [step for _, step in found[first, ranks]]))
        rows.append([f"{size:,}", str(ranks), f"{memory:,.0f}", f"{step:.1f}", growth])
    print_table(["rows", "ranks", "MB of a rank's table", "ms per step", f"over {first:,} rows"], rows)


if __name__ == "__main__":
    main()
