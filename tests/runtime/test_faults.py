"""Runs that fail, each by the real fault: one line on stderr, an exit status, and no good file is lost."""

import contextlib
import os
import shutil
import signal
import subprocess

import pytest
import torch
from processes import MAIN, Poison, arguments, contents, run, start, stop, wait_for

from benchmarks import stress
from runtime.checkpoint import exclusive_lock, load_checkpoint, load_json


@pytest.fixture(scope="module")
def folder_of_runs(folder_of_runs):
    """A folder with a finished run, and one that was interrupted after an epoch of the first method."""
    stop(MAIN, folder_of_runs / "stopped", after="amortized: epoch 1/3", number=signal.SIGTERM)
    return folder_of_runs


@pytest.fixture
def stopped(copy):
    """A copy of the latter."""
    return copy("stopped")


def poison(path, trace):
    """Puts something that makes `trace` when it is unpickled into a checkpoint or a state."""
    torch.save({**load_checkpoint(path), "others": Poison(trace)}, path)


@contextlib.contextmanager
def small_disk(path, size):
    """A file system of `size` bytes at `path`; skips the test where mounting is not allowed."""
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(path)]
    if not shutil.which("mount") or subprocess.run(command, capture_output=True).returncode:
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
        assert stop(MAIN, folder, "--resume", after="amortized: epoch 3/3", number=signal.SIGTERM)[0] == 143
        assert len(load_json(folder / "checkpoints/vae_state.json")["history"]) == 3


def test_a_limit_on_the_size_of_files(stopped):
    before = contents(stopped)
    refused(run(MAIN, stopped, "--resume", file_size=100_000), "cannot be written (File too large)", status=1)
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
def test_a_directory_that_vanishes(stopped, part):
    process = start(MAIN, arguments(MAIN, "--resume"), stopped)
    wait_for("amortized: resumed", process, stopped)
    shutil.rmtree(stopped / part)
    process.join()
    result = process.exitcode, None, (stopped / "err").read_text().splitlines()
    refused(result, f"{part}/", "cannot be written (No such file or directory)", status=1)


def test_a_state_that_cannot_be_continued(stopped):
    poison(stopped / "checkpoints/vae_state_1.pt", stopped / "trace")
    before = contents(stopped)
    refused(run(MAIN, stopped, "--resume"), "vae_state_1.pt", "refused", status=2)
    assert contents(stopped) == before


def test_a_directory_in_use_is_said_before_what_it_holds(stopped):
    for name in ("checkpoints", "results"):
        (stopped / name).mkdir(exist_ok=True)
        with exclusive_lock(stopped / name):
            refused(run(MAIN, stopped), f"{name}: in use by another run", status=2)


def test_a_checkpoint_that_the_figures_cannot_use(copy):
    """The evaluation reads the epochs' checkpoints: here those of a run that is trained, but not evaluated."""
    folder = copy()
    (folder / "results/summary.json").unlink()
    poison(folder / "checkpoints/vae_epoch_1.pt", folder / "trace")
    refused(run(MAIN, folder, "--resume"), "vae_epoch_1.pt", status=2)
    assert not (folder / "trace").exists()
    assert (folder / "checkpoints/latent_opt_state.json").exists()


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="needs Linux's /proc")
def test_out_of_memory_names_the_flag_to_lower(folder_of_runs):
    result = run(MAIN, folder_of_runs / "large", "--latent-dim", "10000", spare_memory=60_000_000)
    refused(result, "out of memory; lower --batch-size (33) or --latent-dim (10,000)", status=1)
