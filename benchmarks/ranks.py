"""What several ranks cost and give, on this machine: training, the table's memory and steps.

    python benchmarks/ranks.py --parts training table

Ranks are processes of torchrun with one thread each. training: both methods for three epochs, on one rank, on two, on
two again and on three; their weights should be alike but for rounding, and those of the same ranks to the bit. table:
the memory of a rank's share of the latent table, and a step of latent optimization.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from amortized_vae import AmortizedVAE  # noqa: E402
from benchmarks.harness import median_and_range, print_table, ratios  # noqa: E402
from data import Data, load_data, take_shard  # noqa: E402
from latent_optimization import LatentOptimization  # noqa: E402
from runtime import distributed  # noqa: E402
from runtime.checkpoint import load_checkpoint  # noqa: E402
from runtime.config import RunConfig, TrainConfig  # noqa: E402
from runtime.run import Run  # noqa: E402
from training import train_epoch, validate  # noqa: E402

METHODS = (AmortizedVAE, LatentOptimization)
STEPS, WARM_UP, EPOCHS = 60, 10, 3


def train_both(folder, size, precision):
    """Trains both methods; rank 0 writes the last rows of the histories to `folder`."""
    config = TrainConfig(epochs=EPOCHS, precision=precision, train_size=size)
    data = take_shard(load_data(config, data_dir=ROOT / "data"))
    run = Run(RunConfig(checkpoint_dir=str(folder), results_dir=str(folder)), {})
    for method_class in METHODS:
        method = method_class(config, data)
        for epoch in run.epochs(method, resumable=False):
            run.record(train_epoch(method, epoch, progress=run.progress), validate(method, epoch))
    if distributed.rank() == 0:
        (folder / "found.json").write_text(json.dumps(run.history[EPOCHS - 1 :: EPOCHS]))


def time_steps(folder, size, precision):
    """Steps of latent optimization on a table of `size` rows; rank 0 writes what they took."""
    config = TrainConfig(train_size=size, precision=precision, epochs=1, latent_start="zero")
    some = load_data(TrainConfig(train_size=2000), data_dir=ROOT / "data")
    few = some.train.at(distributed.own_shard().rows(size) % 2000)
    # The same memory for every row's image: only the table grows.
    few = replace(few, images=few.images[:1].expand(len(few.labels), *few.images.shape[1:]))
    before = resident()
    method = METHODS[1](config, Data(few, some.validation, some.rest, some.test, shard=distributed.own_shard()))
    method.table.rows.add_(0)  # touches every page
    table, seconds, generator = resident() - before, [], torch.Generator().manual_seed(0)
    for _ in range(WARM_UP + STEPS):
        batch = torch.randint(size, (config.batch_size,), generator=generator).unique()
        noise = method.draw_noise(len(batch), generator)
        distributed.barrier()
        started = time.perf_counter()
        method.train_step(batch, noise)
        seconds.append(time.perf_counter() - started)
    if distributed.rank() == 0:
        (folder / "found.json").write_text(json.dumps([table, statistics.median(seconds[WARM_UP:])]))


def resident():
    """Bytes of this process in memory (Linux)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def launch(ranks, folder, part, size, precision="float32"):
    """Runs this file as a worker on so many ranks. Returns what rank 0 wrote."""
    worker = ["--worker", str(folder), "--parts", part, "--sizes", str(size), "--precisions", precision]
    folder.mkdir(parents=True)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", __file__]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([*command, *worker], check=True, env=environment, capture_output=True)
    return json.loads((folder / "found.json").read_text())


def compare_training(folder, size, precision):
    """Prints ELBOs by number of ranks, and how far the weights are from those of another run."""
    rows, weights = [], {}
    for name, ranks, other in (("1", 1, "1"), ("2", 2, "1"), ("2 again", 2, "2"), ("3", 3, "1")):
        found = launch(ranks, folder / name, "training", size, precision)
        for method, row in zip(METHODS, found, strict=True):
            path = folder / name / f"{method.prefix}_epoch_{EPOCHS}.pt"
            own = weights[method, name] = flat(load_checkpoint(path)["weights"])
            difference = (own - weights[method, other]).norm() / own.norm()
            elbos = [f"{row[f'{split}_elbo']:.4f}" for split in ("train", "validation")]
            far = f"{difference:.1e} from {other}" if name != other else ""
            rows.append([name, precision, method.label, *elbos, far])
    print_table(["ranks", "precision", "method", "ELBO, training", "validation", "weights, relative difference"], rows)


def flat(weights):
    """All tensors of nested dicts as one."""
    parts = (flat(part) if isinstance(part, dict) else part for part in weights.values())
    return torch.cat([part.flatten().double() for part in parts if isinstance(part, torch.Tensor)])


def compare_tables(folder, sizes, rounds):
    """Prints the memory of a rank's table and the time of a step, by rows and ranks."""
    found = {(size, ranks): [] for size in sizes for ranks in (1, 2)}
    for number in range(rounds):
        for size, ranks in found:
            found[size, ranks].append(launch(ranks, folder / f"{size} {ranks} {number}", "table", size))
    rows = []
    for (size, ranks), values in found.items():
        tables, steps = zip(*values, strict=True)
        memory, step = statistics.median(tables) / 1e6, 1e3 * statistics.median(steps)
        growth = median_and_range(ratios(steps, [step for _, step in found[sizes[0], ranks]]))
        rows.append([f"{size:,}", str(ranks), f"{memory:,.0f}", f"{step:.1f}", growth])
    print_table(["rows", "ranks", "MB of a rank's table", "ms per step", f"over {sizes[0]:,} rows"], rows)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", default=["training", "table"], choices=("training", "table"))
    parser.add_argument("--precisions", nargs="+", default=["float32", "bfloat16"], help="of the training")
    parser.add_argument("--sizes", type=int, nargs="+", default=[20_000, 2_000_000], help="training: the first")
    parser.add_argument("--rounds", type=int, default=3, help="of the table's measurements (3)")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        distributed.start(torch.device("cpu"))
        work = {"training": train_both, "table": time_steps}[given.parts[0]]
        work(given.worker, given.sizes[0], given.precisions[0])
        return
    with tempfile.TemporaryDirectory() as folder:
        if "training" in given.parts:
            for precision in given.precisions:
                compare_training(Path(folder) / precision, given.sizes[0], precision)
        if "table" in given.parts:
            compare_tables(Path(folder) / "table", given.sizes, given.rounds)


if __name__ == "__main__":
    main()
