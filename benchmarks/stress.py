"""Runs that are killed at random moments and resumed until they finish must end like one that was left alone.

    python -m benchmarks.stress --runs 50
    python -m benchmarks.stress --runs 30 --ranks 2

SIGKILL arrives after a random time, and with one process half of the times only when, after that, a file is being
written. All files of both scripts' results are compared, without times. The scripts run unchanged, with small flags.
"""

import argparse
import collections
import contextlib
import csv
import importlib
import json
import multiprocessing
import os
import random
import re
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
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["PYTHONPATH"] = os.pathsep.join((str(ROOT), os.environ.get("PYTHONPATH", "")))  # for the process that forks

import numpy as np  # noqa: E402
import torch  # noqa: E402
from torch.distributed.launcher.api import LaunchConfig, elastic_launch  # noqa: E402

from data import load_dataset, rows_per_class  # noqa: E402
from evaluation import style  # noqa: E402
from runtime.checkpoint import PARTIAL  # noqa: E402
from runtime.cli import run_script  # noqa: E402

SCRIPTS = {
    "main_vae.py": "--epochs 3 --train-size 100 --latent-dim 11 --seed 2 --sigma-p 0.3 --batch-size 33 --hidden 128 "
    "--precision float32 --num-samples 5 --images-per-digit 1 "
    "--chains 2 --temperatures 3 --fit-steps 2 --fitted-images 20 --simulated-images 2 "
    "--classified-samples 200 --gap-images-per-digit 1",
    "sup_classification.py": "--epochs 4 --train-size 500",
}
WRITING = f"*/.*{PARTIAL}"  # files that a run is writing

# Every run is forked from a process that has imported the scripts and done nothing else: a start costs milliseconds.
processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload([script.removesuffix(".py") for script in SCRIPTS])


def small_mnist(directory, *, train=600, test=150):
    """Writes images of MNIST to `directory`/MNIST/raw, as torchvision unpacks them, equally many of each digit.

    Every second pixel of their middle: 12 x 12 pixels, so that a run takes half as long.
    """
    raw = Path(directory) / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for split, name, count in zip(load_dataset(data_dir=ROOT / "data"), ("train", "t10k"), (train, test), strict=True):
        rows = rows_per_class(split, count // 10).T.flatten()
        images = ((split.images[rows, :, 2:26:2, 2:26:2] + 1) * 127.5).round().byte().numpy().tobytes()
        (raw / f"{name}-images-idx3-ubyte").write_bytes(struct.pack(">4i", 2051, count, 12, 12) + images)
        labels = split.labels[rows].byte().numpy().tobytes()
        (raw / f"{name}-labels-idx1-ubyte").write_bytes(struct.pack(">2i", 2049, count) + labels)


def start(script, arguments, folder, *, ranks=1, restarts=0, before=dict, **limits):
    """Starts a script with its arguments in `folder`, output in the files `out` and `err` there. Returns the process.

    ranks: more than 1 are started by what torchrun calls, which is then the process; restarts: of all of them, if one
    fails. before: called in the process before the script. limits: `file_size`, of the largest file that it may write;
    `spare_memory`, what it may use beyond its imports (Linux); in bytes.
    """
    folder.mkdir(exist_ok=True)
    for name in ("out", "err"):
        (folder / name).unlink(missing_ok=True)
    run = script, arguments, str(folder), ranks, restarts, before
    process = processes.Process(target=_run, args=run, kwargs=limits)
    process.start()
    return process


def _run(script, arguments, folder, ranks, restarts, before, file_size=None, spare_memory=None):
    os.chdir(folder)
    for name, descriptor in (("out", 1), ("err", 2)):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666), descriptor)
    sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
    sys.argv = [script, *arguments]
    if file_size:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, file_size))
    if spare_memory:
        size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() + spare_memory
        resource.setrlimit(resource.RLIMIT_AS, (size, size))
    style.STYLE["figure.dpi"] = 40
    before()
    # As in a process of its own: a killed run then leaves no semaphore.
    multiprocessing.set_start_method("fork", force=True)
    main = importlib.import_module(script.removesuffix(".py")).main
    if ranks > 1:  # as torchrun --standalone
        options = {"start_method": "fork", "rdzv_backend": "c10d", "rdzv_endpoint": "localhost:0", "run_id": folder}
        elastic_launch(LaunchConfig(1, 1, nproc_per_node=ranks, max_restarts=restarts, **options), run_script)(main)
    else:
        run_script(main)


def workers_of(launcher):
    """The process ids of the running ranks, in their order, of a process that `start` has started (Linux)."""
    found, command = [], Path(f"/proc/{launcher.pid}/cmdline").read_bytes()
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == launcher.pid and (path / "cmdline").read_bytes() == command:  # forked, as the ranks alone are
                found.append(int(path.name))
    return sorted(found)


def killed_run(script, arguments, folder, *, seconds, seed, ranks=1, resume=False, **options):
    """A run that is killed up to three times, within the `seconds` that it takes alone, and resumed until its end.

    resume: it goes on with what is in the folder; options: of `start`. Returns (exit status, [what it was doing when it
    was killed, or which of its ranks was]), of one kill at least, unless it resumes.
    """
    chance, kills, kill = random.Random(seed), [], kill_process if ranks == 1 else kill_rank
    while True:
        going_on = resume or kills
        if not going_on:
            shutil.rmtree(folder, ignore_errors=True)
        process = start(script, [*arguments, *(["--resume"] if going_on else [])], folder, ranks=ranks, **options)
        killed = kill(process, folder, seconds, chance) if len(kills) < 3 else None
        process.join()
        if killed:
            kills.append(killed)
        elif process.exitcode or going_on:
            return process.exitcode, kills


def kill_process(process, folder, seconds, chance):
    """Kills a process after a random time. Returns what it was doing, or None if it had ended."""
    # Squared, since more happens in the beginning than in the drawing of figures at the end.
    process.join(seconds * chance.random() ** 2)
    in_writing = chance.random() < 0.5
    while in_writing and process.is_alive() and not list(folder.glob(WRITING)):
        time.sleep(0.0002)
    process.kill()
    process.join()
    if process.exitcode != -signal.SIGKILL:
        return None
    lines = (folder / "out").read_text().splitlines() if (folder / "out").exists() else []
    writing = [f"writing {path.name}" for path in folder.glob(WRITING)]
    return writing[0] if writing else f"after {lines[-1].split(',')[0] if lines else 'start'}"


def kill_rank(launcher, folder, seconds, chance):
    """Kills a random rank; all must then end, in half a minute. Returns which one, or None if they had ended."""
    launcher.join(seconds * chance.random())
    if not launcher.is_alive() or not (workers := workers_of(launcher)):
        return None
    rank = chance.randrange(len(workers))
    with contextlib.suppress(ProcessLookupError):
        os.kill(workers[rank], signal.SIGKILL)
    launcher.join(30)
    if left := [pid for pid in (launcher.pid, *workers) if Path(f"/proc/{pid}").exists()]:
        raise RuntimeError(f"processes {left} are still there after rank {rank} was killed")
    return f"rank {rank}"


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
        rows = csv.DictReader(path.read_text(encoding="utf-8").splitlines())
        return _comparable([row for row in rows if not row.get("quantity", "").endswith("seconds")])
    if path.suffix == ".json":
        return _comparable(json.loads(path.read_text(encoding="utf-8"), parse_constant=str))
    if path.suffix == ".html":  # its other parts show the files above
        return re.findall('id="explorer">(.*)</script>', path.read_text(encoding="utf-8"))
    return path.read_bytes() if path.is_file() and not path.stem.endswith("seconds") else None


def _comparable(value):
    if isinstance(value, dict):
        of_this_call = ("seconds", "launch")
        return {name: _comparable(part) for name, part in value.items() if not str(name).endswith(of_this_call)}
    if isinstance(value, list | tuple):
        return [_comparable(part) for part in value]
    if isinstance(value, torch.Tensor | np.ndarray):
        return str(value.dtype), tuple(value.shape), np.asarray(value).tobytes()
    return value


def stress(*, script, runs, folder, seed=0, jobs=2, ranks=1):
    """`runs` killed and resumed runs of a script in `folder`, `jobs` at a time. Returns (failures, kills).

    failures: a list of lines; kills: a Counter of what the killed runs were doing; ranks: more than 1 uses torchrun.
    """
    if not (folder / "data").exists():
        small_mnist(folder / "data")
    arguments, whole = [*SCRIPTS[script].split(), "--data-dir", "../data"], folder / f"{script} left alone"
    start(script, ["--help"], whole).join()  # the process that forks is then awake
    started = time.perf_counter()
    process = start(script, arguments, whole, ranks=ranks)
    process.join()
    seconds = time.perf_counter() - started
    if process.exitcode:
        raise RuntimeError(f"{script}, left alone, ended with {process.exitcode}: {(whole / 'err').read_text()}")

    def one(number):
        killed = folder / f"{script} killed {number}"
        options = {"seconds": seconds, "seed": f"{seed} {script} {number}"}
        status, kills = killed_run(script, arguments, killed, ranks=ranks, **options)
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
    parser.add_argument("--ranks", type=int, default=1, help="of main_vae.py, of which a random one is killed (1)")
    arguments, failures = vars(parser.parse_args()), []
    with tempfile.TemporaryDirectory() as folder:
        for script in SCRIPTS if arguments["ranks"] == 1 else ["main_vae.py"]:
            found, kills = stress(script=script, folder=Path(folder), **arguments)
            failures += found
            print(f"{script}: {kills.total()} kills", *(f"{n:8} {doing}" for doing, n in kills.most_common()), sep="\n")
    sys.exit("\n".join(failures) or 0)


if __name__ == "__main__":
    main()
