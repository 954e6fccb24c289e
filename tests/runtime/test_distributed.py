"""Several ranks, by the real torchrun: they end like one process, but for rounding, and like each other to the bit."""

import csv
import os
import re
import shutil
import signal
import time

import pytest
import torch
from processes import MAIN, arguments, run

from benchmarks import stress
from evaluation.statistics import find
from evaluation.tables import read_scores
from runtime.checkpoint import load_checkpoint

pytestmark = pytest.mark.skipif(not os.path.isdir("/proc"), reason="finds the ranks in /proc")
FLAGS = arguments(MAIN)  # an odd batch size: the ranks have unequal shares


def wait_for(text, torchrun, folder):
    while text not in (folder / "out").read_text():
        assert torchrun.poll() is None, (folder / "err").read_text()
        time.sleep(0.01)


@pytest.fixture(scope="module")
def folder_of_runs(tmp_path_factory, whole_run):
    """A folder with a small MNIST, and a run of one process and one of two ranks."""
    folder = tmp_path_factory.mktemp("ranks")
    shutil.copytree(whole_run / "data", folder / "data")
    shutil.copytree(whole_run / "run", folder / "one")
    torchrun = stress.start_ranks(MAIN, FLAGS, folder / "two", ranks=2)
    assert torchrun.wait() == 0, (folder / "two" / "err").read_text()
    return folder


def test_two_ranks_end_like_one_process(folder_of_runs):
    one, two = (folder_of_runs / name for name in ("one", "two"))
    names = [sorted(p.name for p in f.rglob("*") if p.is_file() and "state" not in p.name) for f in (one, two)]
    assert names[0] == names[1]
    histories = []
    for folder in (one, two):
        with open(folder / "results/history.csv", newline="") as file:
            histories.append(list(csv.DictReader(file)))
    for row, other in zip(*histories, strict=True):
        for name in ("train_elbo", "validation_elbo"):
            assert float(row[name]) == pytest.approx(float(other[name]), abs=0.02)
    for name in ("vae_epoch_3.pt", "latent_opt_epoch_3.pt"):
        checkpoints = [load_checkpoint(folder / "checkpoints" / name) for folder in (one, two)]
        assert torch.equal(*(checkpoint["train_index"] for checkpoint in checkpoints))
        weights = [checkpoint["weights"] for checkpoint in checkpoints]
        tables = [w for w in weights if "mean" in w]
        if tables:
            torch.testing.assert_close(tables[0]["mean"], tables[1]["mean"], rtol=0, atol=0.01)
    scores = [read_scores(folder / "results/scores.csv") for folder in (one, two)]
    elbos = [find(entries, "elbo", "amortized").mean for entries in scores]
    assert elbos[0] == pytest.approx(elbos[1], abs=0.1)


def test_an_evaluation_by_two_ranks_has_the_same_bits(folder_of_runs):
    folder = shutil.copytree(folder_of_runs / "two", folder_of_runs / "evaluated by one")
    before = (folder / "results/summary.json").stat().st_mtime_ns
    assert stress.start_ranks(MAIN, [*FLAGS, "--evaluate-only"], folder, ranks=1).wait() == 0
    assert (folder / "results/summary.json").stat().st_mtime_ns > before
    assert stress.differences(folder_of_runs / "two", folder) == []


def test_several_seeds_by_two_ranks_find_what_is_finished(folder_of_runs):
    folder = folder_of_runs / "seeds"
    for name in ("checkpoints", "results"):
        shutil.copytree(folder_of_runs / "one" / name, folder / f"{name}/seed_2")
    flags = stress.SCRIPTS[MAIN].replace("--seed 2 ", "").split()
    torchrun = stress.start_ranks(MAIN, [*flags, "--data-dir", "../data", "--seeds", "2", "--resume"], folder, ranks=2)
    assert torchrun.wait() == 0, (folder / "err").read_text()
    assert (folder / "out").read_text().count("this run is finished") == 1
    assert (folder / "results/seeds.csv").exists()


def test_a_killed_rank_ends_the_others_and_torchrun_starts_them_again(folder_of_runs):
    folder = folder_of_runs / "killed"
    torchrun = stress.start_ranks(MAIN, FLAGS, folder, ranks=2, restarts=1)
    wait_for("latent_optimization: epoch 1/3", torchrun, folder)
    os.kill(stress.workers_of(torchrun)[1], signal.SIGKILL)
    assert torchrun.wait() == 0, (folder / "err").read_text()
    assert "latent_opt: resumed after epoch" in (folder / "out").read_text()
    ours = [line for line in (folder / "err").read_text().splitlines() if line.startswith("main_vae.py")]
    assert len(ours) == 1
    assert "--resume continues" in ours[0]
    assert stress.differences(folder_of_runs / "two", folder) == []


def test_a_stopped_torchrun_leaves_a_run_for_another_number_of_ranks(folder_of_runs):
    folder = folder_of_runs / "stopped"
    torchrun = stress.start_ranks(MAIN, FLAGS, folder, ranks=2)
    wait_for("latent_optimization: epoch 1/3", torchrun, folder)
    workers = stress.workers_of(torchrun).values()
    torchrun.terminate()
    torchrun.wait()
    assert not [pid for pid in workers if os.path.exists(f"/proc/{pid}")]
    said = re.findall("main_vae.py: .*", (folder / "err").read_text())
    assert len(said) == 1
    assert "--resume continues" in said[0]
    assert run(MAIN, folder, "--resume")[0] == 0
    with open(folder / "results/history.csv", newline="") as file:
        last = list(csv.DictReader(file))[-1]
    with open(folder_of_runs / "one/results/history.csv", newline="") as file:
        expected = list(csv.DictReader(file))[-1]
    assert float(last["train_elbo"]) == pytest.approx(float(expected["train_elbo"]), abs=0.02)
