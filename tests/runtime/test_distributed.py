"""Several ranks, as torchrun starts them, end like one process, but for rounding, and like each other to the bit."""

import os
import re
import shutil
import signal

import pytest
import torch
from processes import EVALUATE_ONLY, MAIN, arguments, read_csv, run, start, stop, wait_for

from benchmarks import stress
from evaluation.statistics import find
from evaluation.tables import read_scores
from runtime.checkpoint import load_checkpoint, load_json

pytestmark = pytest.mark.skipif(not os.path.isdir("/proc"), reason="finds the ranks in /proc")
FLAGS = arguments(MAIN)  # an odd batch size: the ranks have unequal shares


@pytest.fixture(scope="module")
def folder_of_runs(folder_of_runs):
    """A folder with a run of one process, and one of two ranks, one of which was killed and restarted."""
    folder = folder_of_runs / "two"
    launcher = start(MAIN, [*FLAGS, "--evaluation", "quick"], folder, ranks=2, restarts=1)
    wait_for("latent_optimization: epoch 1/3", launcher, folder)
    os.kill(stress.workers_of(launcher)[1], signal.SIGKILL)
    launcher.join()
    assert launcher.exitcode == 0, (folder / "err").read_text()
    return folder_of_runs


def said(folder):
    """What the script, not torchrun, has said on stderr: one line, how the run continues."""
    (line,) = re.findall("main_vae.py: .*", (folder / "err").read_text())
    assert "--resume continues" in line


def test_a_killed_rank_ends_the_others_and_torchrun_starts_them_again_to_end_like_one_process(folder_of_runs):
    said(folder_of_runs / "two")
    assert "latent_optimization: resumed after epoch" in (folder_of_runs / "two/out").read_text()
    folders = [folder_of_runs / name for name in ("whole", "two")]
    names = [{path.name for path in folder.glob("checkpoints/*_epoch_*.pt")} for folder in folders]
    assert names[0] == names[1]
    histories = (read_csv(folder / "results/history.csv") for folder in folders)
    for row, other in zip(*histories, strict=True):
        for name in ("train_elbo", "validation_elbo"):
            assert float(row[name]) == pytest.approx(float(other[name]), abs=0.02)
    one, two = (load_checkpoint(folder / "checkpoints/latent_opt_epoch_3.pt") for folder in folders)
    assert torch.equal(one["train_index"], two["train_index"])
    torch.testing.assert_close(one["weights"]["mean"], two["weights"]["mean"], rtol=0, atol=0.01)
    elbos = [find(read_scores(folder / "results/scores.csv"), "elbo", "amortized").mean for folder in folders]
    assert elbos[0] == pytest.approx(elbos[1], abs=0.1)


def test_an_evaluation_by_two_ranks_has_the_bits_of_the_run_of_one_process(folder_of_runs):
    """Of checkpoints that are scored again with the same settings, in the directories of a seed."""
    folder, parts = folder_of_runs / "seeds", ("checkpoints", "results")
    for part in parts:
        shutil.copytree(folder_of_runs / "whole" / part, folder / part / "seed_2")
    (folder / "checkpoints/seed_2/classifier.pt").unlink()  # the ranks train it again; it is then among the results
    status, said, errors = run(MAIN, folder, "--seeds", "2", settings=EVALUATE_ONLY, ranks=2)
    assert (status, errors) == (0, [])
    assert "epoch 1/3" not in said
    assert said.count("epoch 3 of 3, 100 training images, seed 2") == 1
    assert (folder / "results/seeds.csv").exists()
    for part in parts:  # where stress.differences looks for them
        shutil.copytree(folder / part / "seed_2", folder_of_runs / "again" / part)
    classifier = folder_of_runs / "again/results/classifier.pt"
    classifier.rename(folder_of_runs / "again/checkpoints/classifier.pt")
    one, two = (load_json(folder_of_runs / name / "results/summary.json") for name in ("whole", "again"))
    assert one["seconds"]["training"] == two["seconds"]["training"]
    assert one["seconds"]["total"] != two["seconds"]["total"]
    assert stress.differences(folder_of_runs / "whole", folder_of_runs / "again") == []


def test_a_stopped_torchrun_leaves_a_run_for_another_number_of_ranks(folder_of_runs):
    """Two ranks that were not killed have the same bits, in checkpoints and in the state that one process takes up."""
    folder, last = folder_of_runs / "stopped", "latent_opt_epoch_3.pt"
    launcher = start(MAIN, FLAGS, folder, ranks=2)
    wait_for("latent_optimization: epoch 3/3", launcher, folder)
    workers = stress.workers_of(launcher)
    launcher.terminate()
    launcher.join()
    assert not [pid for pid in workers if os.path.exists(f"/proc/{pid}")]
    said(folder)
    (folder / "checkpoints" / last).unlink()  # one process writes it again, from the state of two
    (folder / "results/history.csv").unlink(missing_ok=True)
    assert stop(MAIN, folder, "--resume", after="results/history.csv", number=signal.SIGTERM)[0] == 143
    for name in ("vae_epoch_1.pt", "vae_epoch_3.pt", "latent_opt_epoch_1.pt", last):
        one, two = (stress.contents(path / "checkpoints" / name) for path in (folder, folder_of_runs / "two"))
        assert one == two
