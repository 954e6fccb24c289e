"""Runs that are killed at random moments and resumed until they finish must end like one that was left alone.

    python benchmarks/soak.py --runs 50

SIGKILL comes after a random time, and half of the times only when, after that, a file is just being written. All
files of both scripts' results are compared bit by bit, times apart. The configuration is small in all that flags
can make small, in the number of MNIST's images, and in the steps by which latents of unseen images are fitted.
"""

import argparse
import collections
import csv
import importlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import struct
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["PYTHONPATH"] = os.pathsep.join((str(ROOT), os.environ.get("PYTHONPATH", "")))  # for the process that forks

SCRIPTS = {
    "main_vae.py": "--epochs 3 --train-size 200 --latent-dim 8 --num-samples 5 --images-per-digit 1 "
    "--chains 2 --temperatures 3 --fit-steps 5 --fitted-images 20 --simulated-images 2 --judged-samples 200 "
    "--gap-images-per-digit 1",
    "sup_classification.py": "--epochs 4 --train-size 500",
}
TIMES = ("training_seconds", "seconds")

# Every run is forked from a process that has imported the scripts and done nothing else: a start costs milliseconds.
processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload([script.removesuffix(".py") for script in SCRIPTS])


def small_mnist(directory, *, train=600, test=150):
    """Writes the first images of MNIST to `directory`/MNIST/raw, as torchvision unpacks them."""
    from data import load_mnist

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
    if file_size or spare_memory:
        import resource

        if file_size:
            resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, file_size))
        if spare_memory:
            used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (used + spare_memory, used + spare_memory))
    from tqdm import tqdm

    import cli
    import latent_optimization

    tqdm.set_lock(threading.RLock())  # its own, between processes, would outlive a killed one
    latent_optimization.HELD_OUT_STEPS = 4
    latent_optimization.fit_posterior.__kwdefaults__.update(max_cycles=2)
    cli.run(importlib.import_module(script.removesuffix(".py")).main)


def kill(process, *, delay, folder, in_writing):
    """Sends SIGKILL after `delay` seconds, or later, when a file is being written. Says whether it was in time."""
    process.join(delay)
    while in_writing and process.is_alive() and not list(folder.glob("*/.*.partial")):
        time.sleep(0.0002)
    process.kill()
    process.join()
    return process.exitcode == -signal.SIGKILL


def killed_run(*, script, arguments, folder, length, seed):
    """A run that is killed one to three times, and resumed until it finishes. Returns (exit status, where killed).

    length: seconds that it takes when left alone.
    """
    chance, places = random.Random(seed), []
    while not places:
        shutil.rmtree(folder, ignore_errors=True)
        process = start(script, arguments, folder)
        # Squared, since more happens in the beginning than in the drawing of figures at the end.
        while len(places) < 3 and kill(
            process,
            delay=length * chance.random() ** 2,
            folder=folder,
            in_writing=chance.random() < 0.5,
        ):
            places.append(stage(folder))
            process = start(script, [*arguments, "--resume"], folder)
    process.join()
    return process.exitcode, places


def differences(one, two):
    """What is not alike in two folders with `checkpoints` and `results`, times apart: a list of lines."""
    names = [
        {path.relative_to(folder) for part in ("checkpoints", "results") for path in (folder / part).rglob("*")}
        for folder in (one, two)
    ]
    found = [f"{name}: only in one of the two" for name in sorted(names[0] ^ names[1])]
    return found + [
        f"{name}: not alike" for name in sorted(names[0] & names[1]) if _read(one / name) != _read(two / name)
    ]


def _read(path):
    """A file's contents without times."""
    if path.suffix == ".csv":
        with open(path, newline="", encoding="utf-8") as file:
            return [_without_times(row) for row in csv.DictReader(file)]
    if path.suffix == ".json":
        return json.loads(path.read_text(encoding="utf-8"), object_hook=_without_times)
    return path.read_bytes()


def _without_times(row):
    return {name: value for name, value in row.items() if name not in TIMES}


def stage(folder):
    """Where a killed run stood, by what it has said and left."""
    said = (folder / "out").read_text().splitlines() if (folder / "out").exists() else []
    last = said[-1].split(",")[0] if said else "start"
    writing = [path.name for path in folder.glob("*/.*.partial")]
    return f"writing {writing[0]}" if writing else f"after {last}"


def soak(*, script, runs, folder, seed=0, jobs=2):
    """`runs` killed and resumed runs of a script in `folder`, `jobs` at a time. Returns (failures, kills by place).

    failures: a list of lines; kills by place: a Counter.
    """
    if not (folder / "data").exists():
        small_mnist(folder / "data")
    arguments = [*SCRIPTS[script].split(), "--data-dir", "../data"]
    whole = folder / f"{script} left alone"
    start(script, ["--help"], whole).join()  # the process that forks is then awake
    started = time.perf_counter()
    process = start(script, arguments, whole)
    process.join()
    length = time.perf_counter() - started
    if process.exitcode:
        return [f"{script}, left alone: {ending(process.exitcode, whole)}"], collections.Counter()

    def one(number):
        killed = folder / f"{script} killed {number}"
        status, places = killed_run(
            script=script, arguments=arguments, folder=killed, length=length, seed=f"{seed} {script} {number}"
        )
        found = [ending(status, killed)] if status else differences(whole, killed)
        print(f"{script}, run {number}: killed {len(places)} times, {'; '.join(found) or 'alike'}", flush=True)
        if not found:
            shutil.rmtree(killed)
        return [f"{script}, run {number}: {line}" for line in found], places

    with ThreadPoolExecutor(jobs) as pool:
        results = list(pool.map(one, range(1, runs + 1)))
    failures = [line for found, _ in results for line in found]
    return failures, collections.Counter(place for _, places in results for place in places)


def ending(status, folder):
    """How a run ended, in a line."""
    return f"ended with {status}: {(folder / 'err').read_text().strip()}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=50, help="of each script (50)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments at which runs are killed (0)")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time (2)")
    arguments = parser.parse_args()
    failures = []
    with tempfile.TemporaryDirectory() as folder:
        for script in SCRIPTS:
            found, places = soak(
                script=script, runs=arguments.runs, folder=Path(folder), seed=arguments.seed, jobs=arguments.jobs
            )
            failures += found
            print(f"{script}: {places.total()} kills")
            for place, count in places.most_common():
                print(f"{count:8} {place}", flush=True)
    sys.exit("\n".join(failures) or 0)


if __name__ == "__main__":
    main()
