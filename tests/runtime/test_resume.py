"""Runs that are stopped, killed, continued, and kept apart: real processes, real signals."""

import csv
import os
import re
import shutil
import signal

import numpy as np
import pytest
from processes import CLASSIFIER, MAIN, arguments, contents, run, stop, wait_for

from benchmarks import stress
from runtime.checkpoint import load_checkpoint, load_json

AT_THE_START = "before an epoch of its own was over; give the same command again"


@pytest.fixture(scope="module")
def folder_of_runs(tmp_path_factory, whole_run):
    """A folder with a small MNIST, a run of each script left alone, and one of each that was interrupted."""
    folder = tmp_path_factory.mktemp("runs")
    shutil.copytree(whole_run / "data", folder / "data")
    shutil.copytree(whole_run / "run", folder / f"{MAIN} whole")
    assert run(CLASSIFIER, folder / f"{CLASSIFIER} whole")[0] == 0
    stop(MAIN, folder / f"{MAIN} stopped", after="latent_optimization: epoch 1/3", number=signal.SIGTERM)
    stop(CLASSIFIER, folder / f"{CLASSIFIER} stopped", after="classifier: epoch 2/4", number=signal.SIGTERM)
    return folder


@pytest.fixture
def copy(folder_of_runs, request):
    """Copies a run of `place`, to be continued."""
    copies = []

    def of(name):
        copies.append(folder_of_runs / f"{request.node.name} {len(copies)}".replace("/", " "))
        return shutil.copytree(folder_of_runs / name, copies[-1])

    yield of
    for folder in copies:
        shutil.rmtree(folder)


@pytest.mark.parametrize(("script", "runs"), [(MAIN, 1), (CLASSIFIER, 2)])
def test_killed_runs_end_as_if_nothing_had_happened(tmp_path, script, runs):
    failures, kills = stress.stress(script=script, runs=runs, folder=tmp_path, seed=os.getpid())
    assert failures == []
    assert kills.total() >= runs


@pytest.mark.parametrize(
    ("script", "after", "number", "status", "where"),
    [
        (MAIN, "training images on", signal.SIGINT, 130, AT_THE_START),
        (MAIN, "amortized: epoch 2/3", signal.SIGTERM, 143, "epoch 2 of 3, amortized"),
        (MAIN, "latent_optimization: epoch 1/3", signal.SIGINT, 130, "epoch 1 of 3, latent_optimization"),
        (MAIN, "results/recon_epoch_1.png", signal.SIGTERM, 143, "in the evaluation"),
        (CLASSIFIER, "classifier: epoch 2/4", signal.SIGINT, 130, "epoch 2 of 4"),
    ],
)
def test_a_stopped_run_says_where_it_stands(copy, script, after, number, status, where):
    folder = copy(f"{script} stopped")
    ended, said = stop(script, folder, after=after, number=number, flags=["--overwrite"])
    assert ended == status
    advice = "" if where == AT_THE_START else ".*; the same command with --resume continues"
    assert re.fullmatch(rf"{script}: stopped by {number.name} .*{where}{advice}\n", said)
    assert [path.name for path in folder.rglob(".*")] in ([], [".evaluation"])
    for path in folder.glob("checkpoints/*.pt"):
        load_checkpoint(path)


@pytest.mark.parametrize("script", stress.SCRIPTS)
def test_a_stopped_run_is_continued_to_the_same_bits(folder_of_runs, copy, script):
    folder = copy(f"{script} stopped")
    status, said, errors = run(script, folder, "--resume")
    assert (status, errors) == (0, [])
    assert "resumed after epoch" in said
    assert stress.differences(folder_of_runs / f"{script} whole", folder) == []


def test_a_run_killed_between_its_state_and_its_checkpoint(folder_of_runs, copy):
    """The checkpoint is written when the run is continued; the times of its parts are added up."""
    folder = copy(f"{MAIN} stopped")
    states = [load_json(folder / f"checkpoints/{prefix}_state.json") for prefix in ("vae", "latent_opt")]
    before = [row for state in states for row in state["history"]]
    assert [row["epoch"] for row in before] == [1, 2, 3, 1]
    (folder / "checkpoints/latent_opt_epoch_1.pt").unlink()
    assert run(MAIN, folder, "--resume")[0] == 0
    assert stress.differences(folder_of_runs / f"{MAIN} whole", folder) == []
    with open(folder / "results/history.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["seconds"]) for row in rows[:4]] == [row["seconds"] for row in before]


@pytest.mark.parametrize("script", stress.SCRIPTS)
@pytest.mark.parametrize("flags", [[], ["--resume"]])
def test_a_finished_run_started_again_does_nothing_but_say_so(copy, script, flags):
    folder = copy(f"{script} whole")
    before = contents(folder)
    status, said, errors = run(script, folder, *flags)
    assert (status, errors) == (0, [])
    assert said.count("\n") == 1
    assert "this run is finished, there is nothing to do" in said
    assert contents(folder) == before


@pytest.mark.parametrize("state", ["stopped", "whole"])
@pytest.mark.parametrize("resumed", [[], ["--resume"]])
def test_a_run_with_other_flags_changes_nothing(copy, state, resumed):
    for script, flags, named in (
        (MAIN, ["--seed", "5", "--sigma-p", "0.5"], ["--seed 2 there, 5 here", "--sigma-p 0.3 there, 0.5 here"]),
        (CLASSIFIER, ["--batch-size", "32", "--epochs", "5"], ["--batch-size 128 there", "--epochs 4 there, 5 here"]),
    ):
        folder = copy(f"{script} {state}")
        before = contents(folder)
        status, _, errors = run(script, folder, *flags, *resumed)
        assert status == 2
        assert len(errors) == 1
        assert all(text in errors[0] for text in (*named, "--overwrite removes its files"))
        assert errors[0].count(" there, ") == len(named)
        assert contents(folder) == before


def test_a_run_that_overwrites_leaves_nothing_of_the_other(copy):
    folder = copy(f"{MAIN} whole")
    stop(MAIN, folder, after="amortized: epoch 1/2", number=signal.SIGTERM, flags=["--epochs", "2", "--overwrite"])
    names = {path.name for part in ("checkpoints", "results") for path in (folder / part).iterdir()}
    assert names <= {"vae_state.json", "vae_state_1.pt", "vae_state_2.pt", "vae_epoch_1.pt", "vae_epoch_2.pt"} | {
        "classifier.pt"
    }


def test_a_lengthened_run_ends_like_one_that_was_longer_from_the_start(folder_of_runs, copy):
    """Also if it is killed on its way; the last checkpoint and figures of the shorter one go."""
    long = folder_of_runs / "long"
    assert run(MAIN, long, "--epochs", "6")[0] == 0
    folder = copy(f"{MAIN} whole")
    flags = ["--epochs", "6", "--resume"]
    between = ["--epochs", "4", "--resume"]  # its checkpoint of epoch 4 does not stay either
    stop(MAIN, folder, after="latent_optimization: epoch 4/4", number=signal.SIGKILL, flags=between)
    stop(MAIN, folder, after="latent_optimization: epoch 5/6", number=signal.SIGKILL, flags=flags)
    assert run(MAIN, folder, *flags)[0] == 0
    assert stress.differences(long, folder) == []


def test_resuming_where_nothing_has_begun_begins(folder_of_runs):
    folder = folder_of_runs / "begun"
    status, said, errors = run(CLASSIFIER, folder, "--resume")
    assert (status, errors) == (0, [])
    assert "nothing to resume" in said
    assert stress.differences(folder_of_runs / f"{CLASSIFIER} whole", folder) == []


@pytest.mark.skipif(os.name != "posix", reason="the lock is POSIX's")
def test_two_runs_cannot_have_the_same_directory(folder_of_runs):
    first, second = folder_of_runs / "first", folder_of_runs / "second"
    holder = stress.start(CLASSIFIER, arguments(CLASSIFIER), first)
    wait_for("training images", holder, first)
    os.kill(holder.pid, signal.SIGSTOP)  # or it might end too soon
    try:
        before = contents(first)
        for flags in (
            ["--checkpoint-dir", "../first/checkpoints"],
            ["--results-dir", "../first/results"],
            ["--checkpoint-dir", "../first/results", "--results-dir", "new", "--resume"],
        ):
            status, _, errors = run(CLASSIFIER, second, *flags)
            assert status == 2
            assert len(errors) == 1
            assert "in use by another run" in errors[0]
            assert not contents(second)
        assert contents(first) == before
    finally:
        os.kill(holder.pid, signal.SIGKILL)
        holder.join()
    status, _, errors = run(CLASSIFIER, first, "--resume")
    assert (status, errors) == (0, [])
    assert stress.differences(folder_of_runs / f"{CLASSIFIER} whole", first) == []


def test_one_directory_may_hold_both_checkpoints_and_results(folder_of_runs):
    folder = folder_of_runs / "both"
    assert run(CLASSIFIER, folder, "--checkpoint-dir", "all", "--results-dir", "all")[0] == 0
    names = {path.name for path in (folder / "all").iterdir()}
    states = {"classifier_state.json", "classifier_state_4.pt"}
    assert names == states | {"classifier.pt", "classification.png", "classification.json"}


def test_evaluation_changes_no_training(folder_of_runs):
    """Another number of samples and of images per digit: the same bits in the checkpoints."""
    folder = folder_of_runs / "evaluated otherwise"
    assert run(MAIN, folder, "--num-samples", "7", "--images-per-digit", "2")[0] == 0
    names = sorted(path.name for path in (folder / "checkpoints").glob("*.pt"))
    assert len(names) == 8
    for name in names:
        same = (folder_of_runs / f"{MAIN} whole/checkpoints" / name).read_bytes()
        assert (folder / "checkpoints" / name).read_bytes() == same
    assert np.load(folder / "results/log_probabilities.npy", allow_pickle=False).shape == (2, 2, 10, 1)
