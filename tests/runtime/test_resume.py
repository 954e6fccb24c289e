"""Runs that are stopped, killed, continued, and kept apart: real processes, real signals."""

import os
import re
import signal

import pytest
from processes import CLASSIFIER, MAIN, arguments, read_csv, run, stop
from rough import make_rough

from benchmarks import stress
from runtime.checkpoint import load_checkpoint, load_json

AT_THE_START = "before an epoch of its own was over; give the same command again"
TRAINED = "results/.evaluation/identity.json"  # is written between training and evaluation
SCRIPTS = pytest.mark.parametrize("script", stress.SCRIPTS)


@pytest.fixture(scope="module")
def folder_of_runs(folder_of_runs):
    """A folder with a run of each script left alone, and one of each that was interrupted."""
    (folder_of_runs / "whole").rename(folder_of_runs / f"{MAIN} whole")
    assert run(CLASSIFIER, folder_of_runs / f"{CLASSIFIER} whole")[0] == 0
    for script, after in ((MAIN, "latent_optimization: epoch 1/3"), (CLASSIFIER, "classifier: epoch 2/4")):
        stop(script, folder_of_runs / f"{script} stopped", after=after, number=signal.SIGTERM)
    return folder_of_runs


@pytest.mark.parametrize(
    ("script", "after", "number", "status", "where"),
    [
        (MAIN, "training images on", signal.SIGINT, 130, AT_THE_START),
        (MAIN, "amortized: epoch 2/3", signal.SIGTERM, 143, "epoch 2 of 3, amortized"),
        (MAIN, TRAINED, signal.SIGTERM, 143, "in the evaluation, after all training"),
        (CLASSIFIER, "classifier: epoch 2/4", signal.SIGINT, 130, "epoch 2 of 4"),
    ],
)
def test_a_stopped_run_says_where_it_stands(copy, script, after, number, status, where):
    folder = copy(f"{script} stopped")
    ended, said = stop(script, folder, "--overwrite", after=after, number=number)
    assert ended == status
    advice = "" if where == AT_THE_START else ".*; the same command with --resume( in place of --overwrite)? continues"
    assert re.fullmatch(rf"{script}: stopped by {number.name} .*{where}{advice}\n", said)
    assert [path.name for path in folder.rglob(".*")] in ([], [".evaluation"])
    for path in folder.glob("checkpoints/*.pt"):
        load_checkpoint(path)


@SCRIPTS
def test_a_stopped_and_killed_run_is_continued_to_the_same_bits(folder_of_runs, copy, script):
    """Killed between a state and its checkpoint, too, and then at random moments."""
    folder, whole = copy(f"{script} stopped"), folder_of_runs / f"{script} whole"
    if script == MAIN:
        states = [load_json(folder / f"checkpoints/{prefix}_state.json") for prefix in ("vae", "latent_opt")]
        before = [row for state in states for row in state["history"]]
        (folder / "checkpoints/latent_opt_epoch_1.pt").unlink()
    summary = load_json(whole / "results" / {MAIN: "summary.json", CLASSIFIER: "classification.json"}[script])
    seconds = summary["seconds"]["total"] if script == MAIN else summary["seconds"]
    options = {"seconds": seconds, "seed": os.getpid(), "resume": True, "before": make_rough}
    status, kills = stress.killed_run(script, arguments(script), folder, **options)
    assert status == 0, (kills, (folder / "err").read_text())
    assert re.search("resumed after epoch|this run is finished", (folder / "out").read_text())
    assert stress.differences(whole, folder) == [], kills
    if script == MAIN:  # the times of its parts are added up
        rows = read_csv(folder / "results/history.csv")
        assert [row["epoch"] for row in before] == [1, 2, 3, 1]
        assert [float(row["seconds"]) for row in rows[:4]] == [row["seconds"] for row in before]


def trained(folder):
    """{name: contents} of the checkpoints, without times and without those of the user."""
    paths = [path for path in (folder / "checkpoints").iterdir() if not path.stem.endswith("_keep")]
    return {path.name: stress.contents(path) for path in paths}


def test_a_lengthened_run_trains_like_one_that_was_longer_from_the_start(folder_of_runs, copy):
    """Also if it is killed on its way; the last checkpoint and figures of the shorter one go."""
    long, folder, flags = folder_of_runs / "long", copy(f"{MAIN} whole"), ["--epochs", "6"]
    mine = [folder / name for name in ("checkpoints/vae_epoch_3_keep.pt", "results/my_epoch_3.png", "results/log.xlsx")]
    for path in mine:
        path.touch()
    stop(MAIN, long, *flags, after=TRAINED, number=signal.SIGTERM)
    between = ["--epochs", "4"]  # its checkpoint of epoch 4 does not stay either
    stop(MAIN, folder, "--resume", *between, after="latent_optimization: epoch 4/4", number=signal.SIGKILL)
    stop(MAIN, folder, "--resume", *flags, after="latent_optimization: epoch 5/6", number=signal.SIGKILL)
    assert stop(MAIN, folder, "--resume", *flags, after=TRAINED, number=signal.SIGTERM)[0] == 143
    assert trained(long) == trained(folder)
    names = {path.name for path in (folder / "results").iterdir()}
    assert "recon_epoch_1.png" in names
    assert not names & {"report.html", "scores.csv", "where_the_nats_go.png"}
    assert [name for name in names if re.search("_epoch_[3-6]", name)] == ["my_epoch_3.png"]
    assert all(path.exists() for path in mine)


def test_evaluation_changes_no_training(folder_of_runs):
    """Another number of samples and of images per digit: the same bits in the checkpoints."""
    folder, counts = folder_of_runs / "evaluated otherwise", ["--num-samples", "7", "--images-per-digit", "2"]
    stop(MAIN, folder, *counts, after=TRAINED, number=signal.SIGKILL)
    whole = folder_of_runs / f"{MAIN} whole"
    for name in {path.name for path in (whole / "checkpoints").glob("*.pt")}:
        assert (folder / "checkpoints" / name).read_bytes() == (whole / "checkpoints" / name).read_bytes()
