"""Runs that are killed at random moments and resumed until they finish must end like one that was left alone.

    python benchmarks/stress.py --runs 50

SIGKILL arrives after a random time, and half of the times only when, after that, a file is being written. Contents of
all files of both scripts' results are compared, without times. The scripts run unchanged, with small flags.
"""

import argparse
import collections
import csv
import importlib
import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import struct
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["PYTHONPATH"] = os.pathsep.join((str(ROOT), os.environ.get("PYTHONPATH", "")))  # for the process that forks

import numpy as np  # noqa: E402
import torch  # noqa: E402

from data import load_mnist  # noqa: E402
from runtime.checkpoint import PARTIAL  # noqa: E402
from runtime.cli import run_script  # noqa: E402

SCRIPTS = {
    "main_vae.py": "--epochs 3 --train-size 200 --latent-dim 8 --num-samples 5 --images-per-digit 1 "
    "--annealed-per-digit 1 --chains 2 --temperatures 3 --fit-steps 2 --fitted-images 20 --simulated-images 2 "
    "--classified-samples 200 --gap-images-per-digit 1",
    "sup_classification.py": "--epochs 4 --train-size 500",
}
WRITING = f"*/.*{PARTIAL}"  # files that a run is writing

# Every run is forked from a process that has imported the scripts and done nothing else: a start costs milliseconds.
processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload([script.removesuffix(".py") for script in SCRIPTS])


def small_mnist(directory, *, train=600, test=150):
    """Writes the first images of MNIST to `directory`/MNIST/raw, as torchvision unpacks them."""
    raw = Path(directory) / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for split, name, count in zip(load_mnist(data_dir=ROOT / "data"), ("train", "t10k"), (train, test), strict=True):
        images = ((split.images[:count] + 1) * 127.5).round().byte().numpy().tobytes()
        (raw / f"{name}-images-idx3-ubyte").write_bytes(struct.pack(">4i", 2051, count, 28, 28) + images)
        labels = split.labels[:count].byte().numpy().tobytes()
        (raw / f"{name}-labels-idx1-ubyte").write_bytes(struct.pack(">2i", 2049, count) + labels)


def start(script, arguments, folder, *, file_size=None, spare_memory=None):
    """Starts a script as its command line would, in `folder`, its output in the files `out` and `err` there.

    arguments: a list of strings; file_size: of the largest file that it may write, in bytes; spare_memory: what it
    may use beyond its imports, in bytes (Linux). Returns the process.
    """
    folder.mkdir(exist_ok=True)
    for name in ("out", "err"):
        (folder / name).unlink(missing_ok=True)
    process = processes.Process(target=_run, args=(script, arguments, str(folder), file_size, spare_memory))
    process.start()
    return process


def _run(script, arguments, folder, file_size, spare_memory):
    os.chdir(folder)
    for name, descriptor in (("out", 1), ("err", 2)):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666), descriptor)
    sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
    sys.argv = [script, *arguments]
    if file_size:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, file_size))
    if spare_memory:
        size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() + spare_memory
        resource.setrlimit(resource.RLIMIT_AS, (size, size))
    # As in a process of its own: a killed run then leaves no semaphore.
    multiprocessing.set_start_method("fork", force=True)
    run_script(importlib.import_module(script.removesuffix(".py")).main)


def killed_run(script, arguments, folder, *, seconds, seed):
    """A run that is killed one to three times, within the `seconds` that it takes alone, and resumed until its end.

    Returns (exit status, [what it was doing when it was killed]).
    """
    chance, kills = random.Random(seed), []
    while not kills:
        shutil.rmtree(folder, ignore_errors=True)
        process = start(script, arguments, folder)
        while len(kills) < 3:
            # Squared, since more happens in the beginning than in the drawing of figures at the end.
            process.join(seconds * chance.random() ** 2)
            in_writing = chance.random() < 0.5
            while in_writing and process.is_alive() and not list(folder.glob(WRITING)):
                time.sleep(0.0002)
            process.kill()
            process.join()
            if process.exitcode != -signal.SIGKILL:
                break
            lines = (folder / "out").read_text().splitlines() if (folder / "out").exists() else []
            writing = [f"writing {path.name}" for path in folder.glob(WRITING)]
            kills.append(writing[0] if writing else f"after {lines[-1].split(',')[0] if lines else 'start'}")
            process = start(script, [*arguments, "--resume"], folder)
    process.join()
    return process.exitcode, kills


def differences(one, two):
    """What differs between two folders with `checkpoints` and `results`, without times: a list of lines."""
    files, others = (
        {path.relative_to(folder): path for part in ("checkpoints", "results") for path in (folder / part).rglob("*")}
        for folder in (one, two)
    )
    found = [f"{name}: only in one of the two" for name in sorted(files.keys() ^ others)]
    common = sorted(files.keys() & others)
    return found + [f"{name}: not alike" for name in common if contents(files[name]) != contents(others[name])]


def contents(path):
    """What a file holds, without times, as values that can be compared with ==."""
    if path.suffix == ".pt":
        return _comparable(torch.load(path, map_location="cpu", weights_only=True))
    if path.suffix == ".npy":
        return _comparable(np.load(path, allow_pickle=False))
    if path.suffix == ".csv":
        return _comparable(list(csv.DictReader(path.read_text(encoding="utf-8").splitlines())))
    if path.suffix == ".json":
        return _comparable(json.loads(path.read_text(encoding="utf-8"), parse_constant=str))
    return path.read_bytes() if path.is_file() and not path.stem.endswith("seconds") else None


def _comparable(value):
    if isinstance(value, dict):
        return {name: _comparable(part) for name, part in value.items() if not str(name).endswith("seconds")}
    if isinstance(value, list | tuple):
        return [_comparable(part) for part in value]
    if isinstance(value, torch.Tensor | np.ndarray):
        return str(value.dtype), tuple(value.shape), np.asarray(value).tobytes()
    return value


def stress(*, script, runs, folder, seed=0, jobs=2):
    """`runs` killed and resumed runs of a script in `folder`, `jobs` at a time. Returns (failures, kills).

    failures: a list of lines; kills: a Counter of what the killed runs were doing.
    """
    if not (folder / "data").exists():
        small_mnist(folder / "data")
    arguments, whole = [*SCRIPTS[script].split(), "--data-dir", "../data"], folder / f"{script} left alone"
    start(script, ["--help"], whole).join()  # the process that forks is then awake
    started = time.perf_counter()
    process = start(script, arguments, whole)
    process.join()
    seconds = time.perf_counter() - started
    if process.exitcode:
        raise RuntimeError(f"{script}, left alone, ended with {process.exitcode}: {(whole / 'err').read_text()}")

    def one(number):
        killed = folder / f"{script} killed {number}"
        status, kills = killed_run(script, arguments, killed, seconds=seconds, seed=f"{seed} {script} {number}")
        found = [f"ended with {status}: {(killed / 'err').read_text()}"] if status else differences(whole, killed)
        print(f"{script}, run {number}: killed {len(kills)} times, {'; '.join(found) or 'alike'}", flush=True)
        if not found:
            shutil.rmtree(killed)
        return [f"{script}, run {number}: {line}" for line in found], kills

    with ThreadPoolExecutor(jobs) as pool:
        results = list(pool.map(one, range(1, runs + 1)))
    failures = [line for found, _ in results for line in found]
    return failures, collections.Counter(doing for _, kills in results for doing in kills)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=50, help="of each script (50)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments at which runs are killed (0)")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time (2)")
    arguments, failures = vars(parser.parse_args()), []
    with tempfile.TemporaryDirectory() as folder:
        for script in SCRIPTS:
            found, kills = stress(script=script, folder=Path(folder), **arguments)
            failures += found
            print(f"{script}: {kills.total()} kills", *(f"{n:8} {doing}" for doing, n in kills.most_common()), sep="\n")
    sys.exit("\n".join(failures) or 0)


if __name__ == "__main__":
    main()
