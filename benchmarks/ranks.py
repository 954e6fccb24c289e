"""What several ranks cost and give, on this machine: training, the table's memory and steps, the evaluation.

    python benchmarks/ranks.py --parts training table

Ranks are processes of torchrun with one thread each.
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
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from data import Data, load_data, shard  # noqa: E402
from main_vae import METHODS  # noqa: E402
from runtime import distributed  # noqa: E402
from runtime.checkpoint import load_checkpoint  # noqa: E402
from runtime.config import TrainConfig  # noqa: E402
from training import train  # noqa: E402

SIZES = (20_000, 2_000_000)  # rows of the table
STEPS, WARM_UP = 60, 10


def train_both(folder, precision):
    """Trains both methods for three epochs; rank 0 writes the histories to `folder`."""
    config = TrainConfig(epochs=3, precision=precision)
    data = shard(load_data(config, data_dir=ROOT / "data"))
    histories = [train(method(config, data), checkpoint_dir=folder) for method in METHODS]
    if distributed.rank() == 0:
        (folder / "history.json").write_text(json.dumps(histories))


def time_steps(folder, size):
    """Steps of latent optimization on a table of `size` rows, whose images repeat; rank 0 writes what it took."""
    config = TrainConfig(train_size=size, precision="float32", epochs=1)
    some = load_data(TrainConfig(train_size=2000), data_dir=ROOT / "data")
    rows = distributed.own_rows(size)
    few = some.train.at(rows % 2000)
    # The same memory for every row's image: only the table grows.
    few = few.__class__(few.images[:1].expand(len(rows), *few.images.shape[1:]), few.labels, few.index, few.classes)
    data = Data(few, some.validation, some.rest, some.test, ranks=distributed.size())
    before = resident()
    method, seconds = METHODS[1](config, data), []
    method.table.rows.add_(0)  # touches every page
    table = resident() - before
    generator = torch.Generator().manual_seed(0)
    for _ in range(WARM_UP + STEPS):
        batch = torch.randint(size, (config.batch_size,), generator=generator).unique()
        noise = torch.randn(len(batch), config.latent_dim, generator=generator)
        distributed.barrier()
        started = time.perf_counter()
        method.train_step(batch, noise)
        seconds.append(time.perf_counter() - started)
    started = time.perf_counter()
    for _ in range(20):
        distributed.add_gradients(method.model.parameters())
    reduced = (time.perf_counter() - started) / 20
    if distributed.rank() == 0:
        count = sum(parameter.numel() for parameter in method.model.parameters())
        found = {"table": table, "step": statistics.median(seconds[WARM_UP:]), "reduce": reduced, "parameters": count}
        (folder / "steps.json").write_text(json.dumps(found))


def resident():
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def launch(ranks, folder, *arguments):
    """Runs this file as a worker on so many ranks."""
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", __file__]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([*command, "--worker", str(folder), *arguments], check=True, env=environment, capture_output=True)


def compare_training(folder, precision):
    """Prints ELBOs at N = 1, 2, 3, the differences of weights, and whether N = 2 twice has the same bits."""
    for name, ranks in (("1", 1), ("2", 2), ("2 again", 2), ("3", 3)):
        started = time.perf_counter()
        launch(ranks, folder / name, "--precision", precision)
        histories, parts = json.loads((folder / name / "history.json").read_text()), []
        for method, rows in zip(METHODS, histories, strict=True):
            first, own = (
                load_checkpoint(folder / run / f"{method.prefix}_epoch_3.pt")["weights"] for run in ("1", name)
            )
            first, own = (_flat(weights) for weights in (first, own))
            same = float((own - first).norm() / first.norm())
            parts.append(
                f"{method.name} train {rows[-1]['train_elbo']:.4f}, validation {rows[-1]['validation_elbo']:.4f}, "
                f"weights differ by {same:.1e}"
            )
        print(f"N = {name}, {precision}: {'; '.join(parts)} ({time.perf_counter() - started:.0f} s)", flush=True)
    for method in METHODS:
        one, other = (
            _flat(load_checkpoint(folder / run / f"{method.prefix}_epoch_3.pt")["weights"]) for run in ("2", "2 again")
        )
        print(f"{method.name}, N = 2 twice: {'the same bits' if torch.equal(one, other) else 'NOT the same'}")


def _flat(weights):
    """All tensors of nested dicts as one."""
    parts = (_flat(part) if isinstance(part, dict) else part for part in weights.values())
    return torch.cat([part.flatten().double() for part in parts if isinstance(part, torch.Tensor)])


def compare_tables(folder, rounds):
    """Prints the memory of a rank's table and the time of a step, by rows and ranks."""
    found = {}
    for number in range(rounds):
        for size in SIZES:
            for ranks in (1, 2):
                launch(ranks, folder / f"{size} {ranks} {number}", "--size", str(size))
                values = json.loads((folder / f"{size} {ranks} {number}" / "steps.json").read_text())
                found.setdefault((size, ranks), []).append(values)
    for (size, ranks), values in found.items():
        memory, step, reduced = (statistics.median(v[name] for v in values) for name in ("table", "step", "reduce"))
        text = f"{memory / 1e6:,.0f} MB of table, step {1e3 * step:.1f} ms, of that all-reduce {1e3 * reduced:.1f} ms"
        print(f"{size:,} rows, N = {ranks}: {text}, of {values[0]['parameters']:,} parameters")
    small, large = SIZES
    tables = [statistics.median(v["table"] for v in found[large, ranks]) for ranks in (1, 2)]
    pairs = zip(found[large, 2], found[small, 2], strict=True)
    steps = [one["step"] / other["step"] for one, other in pairs]
    print(f"memory of a rank's table of {large:,} rows, N = 2 over N = 1: {tables[1] / tables[0]:.2f}")
    print(
        f"step at {large:,} over {small:,} rows, N = 2: {statistics.median(steps):.2f} "
        f"({min(steps):.2f} to {max(steps):.2f})"
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", default=["training", "table"], choices=("training", "table"))
    parser.add_argument("--precisions", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--rounds", type=int, default=3, help="of the table's measurements (3)")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--size", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--precision", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        distributed.start(torch.device("cpu"))
        if given.size:
            time_steps(given.worker, given.size)
        else:
            train_both(given.worker, given.precision)
        return
    with tempfile.TemporaryDirectory() as folder:
        if "training" in given.parts:
            for precision in given.precisions:
                compare_training(Path(folder) / precision, precision)
        if "table" in given.parts:
            compare_tables(Path(folder) / "table", given.rounds)


if __name__ == "__main__":
    main()
