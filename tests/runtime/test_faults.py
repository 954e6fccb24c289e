"""Runs that fail, each by the real fault: one line on stderr, an exit status, and no good file is lost."""

import contextlib
import os
import re
import shutil
import signal
import subprocess

import numpy as np
import pytest
import torch
from conftest import ROOT, train
from processes import CLASSIFIER, MAIN, arguments, contents, run, stop, wait_for

from amortized_vae import AmortizedVAE
from benchmarks import stress
from data import load_data
from runtime.checkpoint import InputError, exclusive_lock, load_checkpoint, load_json, save_checkpoint, save_json
from runtime.config import TrainConfig

ARCHIVE = "train-images-idx3-ubyte.gz"


class Poison:
    """What it does when it is unpickled leaves a trace."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return os.mkdir, (str(self.trace),)


@pytest.fixture(scope="module")
def folder_of_runs(tmp_path_factory, whole_run):
    """A folder with a small MNIST and one run of main_vae.py, interrupted after an epoch of the first method."""
    folder = tmp_path_factory.mktemp("faults")
    shutil.copytree(whole_run / "data", folder / "data")
    stop(MAIN, folder / "stopped", after="amortized: epoch 1/3", number=signal.SIGTERM)
    return folder


@pytest.fixture
def stopped(folder_of_runs):
    """A copy of that run."""
    folder = shutil.copytree(folder_of_runs / "stopped", folder_of_runs / "run")
    yield folder
    shutil.rmtree(folder)


@contextlib.contextmanager
def small_disk(path, size):
    """A file system of `size` bytes at `path`; skips the test where mounting is not allowed."""
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(path)]
    try:
        mounted = subprocess.run(command, capture_output=True).returncode == 0
    except FileNotFoundError:
        mounted = False
    if not mounted:
        path.rmdir()
        pytest.skip("a file system cannot be mounted here")
    try:
        yield
    finally:
        subprocess.run(["umount", str(path)], check=True)
        path.rmdir()


def refused(result, *texts, status):
    """The one line of a run that ended badly."""
    ended, _, errors = result
    assert ended == status, errors
    assert len(errors) == 1, "\n".join(errors)
    assert all(text in errors[0] for text in texts), errors
    return errors[0]


def test_a_full_disk(folder_of_runs):
    size = sum(path.stat().st_size for path in (folder_of_runs / "stopped").rglob("*") if path.is_file())
    with small_disk(folder_of_runs / "disk", 4 * size):
        folder = folder_of_runs / "disk" / "run"
        shutil.copytree(folder_of_runs / "stopped", folder)
        (folder_of_runs / "disk/data").symlink_to(folder_of_runs / "data")
        filler = folder_of_runs / "disk/filler"
        with contextlib.suppress(OSError), open(filler, "wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        # Room for the checkpoint that is written again first, and for a part of the next state.
        room = 1.2 * (folder / "checkpoints/vae_epoch_1.pt").stat().st_size
        os.truncate(filler, filler.stat().st_size - int(room))
        files = sorted(path for path in folder.rglob("*") if path.name not in ("out", "err"))
        before = [stress.contents(path) for path in files]
        refused(run(MAIN, folder, "--resume"), "vae_state_2.pt", "No space left on device", status=1)
        assert sorted(path for path in folder.rglob("*") if path.name not in ("out", "err")) == files
        assert [stress.contents(path) for path in files] == before
        filler.unlink()
        assert stop(MAIN, folder, after="amortized: epoch 3/3", number=signal.SIGTERM, flags=["--resume"])[0] == 143
        assert len(load_json(folder / "checkpoints/vae_state.json")["history"]) == 3


def test_a_limit_on_the_size_of_files(stopped):
    before = contents(stopped)
    result = run(MAIN, stopped, "--resume", file_size=100_000)
    refused(result, "cannot be written (File too large)", status=1)
    assert contents(stopped) == before


def test_a_read_only_directory(folder_of_runs):
    with small_disk(folder_of_runs / "disk", 1_000_000):
        subprocess.run(["mount", "-o", "remount,ro", str(folder_of_runs / "disk")], check=True)
        for flag in ("--checkpoint-dir", "--results-dir"):
            for name in ("../disk", "../disk/new"):
                result = run(MAIN, folder_of_runs / "refused", flag, name)
                refused(result, f"{flag} {name}: cannot be written to", status=2)
        assert not contents(folder_of_runs / "refused")


@pytest.mark.parametrize("part", ["checkpoints", "results"])
def test_a_directory_that_vanishes(folder_of_runs, part):
    folder = folder_of_runs / f"without {part}"
    process = stress.start(MAIN, arguments(MAIN), folder)
    wait_for("amortized: epoch 1/3", process, folder)
    shutil.rmtree(folder / part)
    process.join()
    result = process.exitcode, None, (folder / "err").read_text().splitlines()
    refused(result, f"{part}/", "cannot be written (No such file or directory)", status=1)


@pytest.mark.parametrize("damage", ["truncated", "empty", "a directory", "overwritten"])
def test_a_damaged_archive(folder_of_runs, tmp_path, damage):
    raw = tmp_path / "data/MNIST/raw"
    shutil.copytree(ROOT / "data/MNIST/raw", raw, ignore=shutil.ignore_patterns("*-ubyte"))
    archive = raw / ARCHIVE
    whole = archive.read_bytes()
    archive.unlink()
    if damage == "a directory":
        archive.mkdir()
    else:
        changed = {"truncated": whole[:100_000], "empty": b"", "overwritten": whole[:-100] + bytes(100)}
        archive.write_bytes(changed[damage])
    refused(run(MAIN, tmp_path / "run"), ARCHIVE, "damaged", status=2)
    assert not contents(tmp_path / "run")
    assert not list(raw.glob("*-ubyte"))


def test_a_truncated_image_file_without_its_archive(folder_of_runs, tmp_path):
    shutil.copytree(folder_of_runs / "data", tmp_path / "data")
    os.truncate(tmp_path / "data/MNIST/raw/train-images-idx3-ubyte", 10_000)
    refused(run(CLASSIFIER, tmp_path / "run"), "MNIST cannot be read", status=2)
    assert not contents(tmp_path / "run")


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        ("truncated", "damaged"),
        ("empty", "damaged"),
        ("noise", "refused|damaged"),
        ("a checkpoint", "do not fit"),
        ("another network's", "do not fit"),
        ("half a state", "do not fit"),
        ("poisoned", "refused"),
        ("a directory", "Is a directory"),
    ],
)
def test_a_state_that_cannot_be_continued(stopped, damage, reason):
    path, trace = stopped / "checkpoints/vae_state_1.pt", stopped / "trace"
    state, size = load_checkpoint(path), path.stat().st_size
    if damage in ("truncated", "empty"):
        os.truncate(path, size // 2 if damage == "truncated" else 0)
    elif damage == "noise":
        path.write_bytes(np.random.default_rng(0).bytes(size))
    elif damage == "a directory":
        path.unlink()
        path.mkdir()
    elif damage == "poisoned":
        torch.save({**state, "others": Poison(trace)}, path)
    elif damage == "a checkpoint":
        shutil.copy(stopped / "checkpoints/vae_epoch_1.pt", path)
    elif damage == "half a state":
        save_checkpoint(path, {name: values for name, values in state.items() if name.startswith("model")})
    else:
        cut = {name: values[..., :1] for name, values in state.items() if name.startswith("model")}
        save_checkpoint(path, {**state, **cut})
    before = contents(stopped)
    line = refused(run(MAIN, stopped, "--resume"), "vae_state_1.pt", status=2)
    assert re.search(reason, line)
    assert contents(stopped) == before
    assert not trace.exists()


@pytest.mark.parametrize("name", ["checkpoints", "results"])
def test_a_directory_in_use_is_said_before_what_it_holds(stopped, name):
    (stopped / "results").mkdir(exist_ok=True)
    with exclusive_lock(stopped / name):
        refused(run(MAIN, stopped), f"{name}: in use by another run", status=2)


@pytest.mark.parametrize("change", [{"prefix": "classifier"}, {"ranks": 0}, {"epoch": 2}])
def test_a_state_of_another_script_or_half_of_one(stopped, change):
    path = stopped / "checkpoints/vae_state.json"
    save_json(path, {**load_json(path), **change})
    before = contents(stopped)
    refused(run(MAIN, stopped, "--resume"), "vae_state.json", "do not fit", status=2)
    assert contents(stopped) == before


@pytest.mark.parametrize("damage", ["truncated", "poisoned", "foreign"])
def test_a_checkpoint_that_the_figures_cannot_use(folder_of_runs, damage):
    """The evaluation reads the epochs' checkpoints."""
    folder = folder_of_runs / f"{damage} checkpoint"
    process = stress.start(MAIN, arguments(MAIN), folder)
    wait_for("latent_optimization: epoch 1/3", process, folder)
    path, trace = folder / "checkpoints/vae_epoch_1.pt", folder / "trace"
    if damage == "truncated":
        os.truncate(path, 1000)
    elif damage == "poisoned":
        torch.save({**load_checkpoint(path), "config": Poison(trace)}, path)
    else:
        save_checkpoint(path, {"method": "amortized", "config": {"latent_dim": 3}, "weights": {}})
    process.join()
    result = process.exitcode, None, (folder / "err").read_text().splitlines()
    assert result[0] != 0
    refused(result, "vae_epoch_1.pt", status=result[0])
    assert not trace.exists()
    assert (folder / "checkpoints/latent_opt_state.json").exists()


def test_poison_is_poisonous_and_refused(tmp_path):
    """The file would run code, and does not when read as this program reads it."""
    trace = tmp_path / "trace"
    torch.save({"weights": Poison(trace)}, tmp_path / "poison.pt")
    with pytest.raises(InputError, match="refused"):
        load_checkpoint(tmp_path / "poison.pt")
    assert not trace.exists()
    torch.load(tmp_path / "poison.pt", weights_only=False)
    assert trace.is_dir()


def test_a_loss_that_is_not_finite(stopped):
    """The weights of the last epoch are made so large that the next one really diverges."""
    path = stopped / "checkpoints/vae_state_1.pt"
    state = load_checkpoint(path)
    for name, values in state.items():
        if name.startswith("model"):
            values *= 1e15
    save_checkpoint(path, state)
    before = path.read_bytes()
    refused(run(MAIN, stopped, "--resume"), "amortized: the loss is not finite at epoch 2, step 1", status=1)
    assert path.read_bytes() == before


def test_a_last_step_that_leads_nowhere_is_seen_too(folder_of_runs, tmp_path):
    """One step is an epoch here: only the validation images can tell."""
    data = load_data(TrainConfig(train_size=20), data_dir=folder_of_runs / "data")
    config = TrainConfig(epochs=1, train_size=20, latent_dim=3, learning_rate=1000.0, precision="float32")
    method = AmortizedVAE(config, data)
    method.optimizers[0].param_groups[0]["lr"] = 1e30
    with pytest.raises(FloatingPointError, match="validation loss is not finite after epoch 1"):
        train(method, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="needs Linux's /proc")
def test_out_of_memory_names_the_flag_to_lower(folder_of_runs):
    flags = ["--latent-dim", "10000"]
    result = run(MAIN, folder_of_runs / "large", *flags, spare_memory=60_000_000)
    refused(result, "out of memory; lower --batch-size (33) or --latent-dim (10,000)", status=1)
