"""Runs that fail, each by the real fault: one line on stderr, an exit status, and no good file is lost."""

import os
import shutil
import signal
import subprocess

import pytest
from processes import MAIN, arguments, contents, run, start, stop, wait_for

from runtime.checkpoint import load_json


@pytest.fixture(scope="module")
def folder_of_runs(folder_of_runs):
    """A folder with a finished run, and one that was interrupted after an epoch of the first method."""
    stop(MAIN, folder_of_runs / "stopped", after="amortized: epoch 1/3", number=signal.SIGTERM)
    return folder_of_runs


@pytest.fixture
def stopped(copy):
    return copy("stopped")


@pytest.fixture
def read_only(folder_of_runs):
    """A file system that can only be read; skips the test where mounting is not allowed."""
    path = folder_of_runs / "disk"
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "ro,size=1M", "tmpfs", str(path)]
    if not shutil.which("mount") or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("a file system cannot be mounted here")
    yield path
    subprocess.run(["umount", str(path)], check=True)


def refused(result, *texts, status):
    """The one line of a run that ended badly."""
    ended, _, errors = result
    assert ended == status, errors
    assert len(errors) == 1, "\n".join(errors)
    assert all(text in errors[0] for text in texts), errors


def test_a_file_that_does_not_fit(stopped):
    """As on a full disk; once there is room the run goes on."""
    before = contents(stopped)
    refused(run(MAIN, stopped, "--resume", file_size=100_000), "cannot be written (File too large)", status=1)
    assert contents(stopped) == before
    assert stop(MAIN, stopped, "--resume", after="amortized: epoch 3/3", number=signal.SIGTERM)[0] == 143
    assert len(load_json(stopped / "checkpoints/vae_state.json")["history"]) == 3


def test_a_read_only_directory(folder_of_runs, read_only):
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


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="needs Linux's /proc")
def test_out_of_memory_names_the_flag_to_lower(folder_of_runs):
    result = run(MAIN, folder_of_runs / "large", "--latent-dim", "10000", spare_memory=60_000_000)
    refused(result, "out of memory; lower --batch-size (33) or --latent-dim (10,000)", status=1)
