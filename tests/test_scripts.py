"""The scripts as a user runs them, on a small part of MNIST."""

import csv
import json
import math
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT

CEILING = -392 * math.log(2 * math.pi * 0.4**2)


def run(script, folder, *flags):
    command = [sys.executable, script, *flags]
    directories = ["--checkpoint-dir", str(folder / "checkpoints"), "--results-dir", str(folder / "results")]
    return subprocess.run(command + directories, cwd=ROOT, capture_output=True, text=True)


def read_csv(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def tour(tmp_path_factory):
    """The one-minute tour of the README."""
    folder = tmp_path_factory.mktemp("tour")
    done = run("main_vae.py", folder, "--epochs", "1", "--train-size", "1000")
    assert done.returncode == 0, done.stderr
    return folder, done


def test_the_tour_writes_every_file_that_is_promised(tour):
    folder, _ = tour
    names = {path.name for directory in folder.iterdir() for path in directory.iterdir() if path.name[0] != "."}
    assert names >= {
        "vae_epoch_1.pt",
        "latent_opt_epoch_1.pt",
        "recon_epoch_1.png",
        "latent_opt_recon_epoch_1.png",
        "samples_epoch_1.png",
        "comparison_epoch_1.png",
        "training_curves.png",
        "log_probabilities.npy",
        "log_probabilities.csv",
        "log_probabilities.png",
        "gaps.csv",
        "gaps_over_epochs.png",
        "gaps_per_digit.png",
        "latent_usage.csv",
        "latent_usage.png",
        "latent_probes.png",
        "latent_map.png",
        "traversals.png",
        "interpolation.png",
        "sample_quality.png",
        "classifier.pt",
        "history.csv",
        "summary.json",
    }
    assert not list(folder.rglob("*.partial"))


def test_the_tour_prints_a_line_per_epoch_and_a_table_that_fits(tour):
    _, done = tour
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) <= 100
    assert sum("epoch 1/1" in line for line in lines) == 2
    assert sum(line.startswith("  log p(x), annealed from q*") for line in lines) == 2
    assert any("too low" in line for line in lines if "effective samples" in line)
    assert done.stderr == ""


def test_array_table_and_summary_agree(tour):
    results = tour[0] / "results"
    array = np.load(results / "log_probabilities.npy", allow_pickle=False)
    rows = read_csv(results / "log_probabilities.csv")
    assert array.shape == (2, 2, 10, 10)
    assert array.dtype == np.float64
    assert array.flatten().tolist() == [float(row["log_prob"]) for row in rows]
    assert (array < CEILING).all()
    for row in rows:
        assert float(row["elbo"]) <= float(row["log_prob"])
        assert 1 <= float(row["effective_sample_size"]) <= 1000
        if row["annealed_log_prob"]:
            assert float(row["fitted_elbo"]) <= float(row["fitted_log_prob"])
            assert float(row["annealed_log_prob"]) > float(row["fitted_elbo"])
    annealed = [row["digit"] for row in rows if row["annealed_log_prob"]]
    assert annealed == [str(digit) for _ in range(4) for digit in range(10)]
    summary = json.loads((results / "summary.json").read_text())
    for regime, values in zip(("amortized", "latent_optimization"), array, strict=True):
        for split, of_split in zip(("train", "test"), values, strict=True):
            overall = summary["log_prob"][regime][split]["overall"]
            assert overall["images"] == 100
            assert overall["mean"] == pytest.approx(of_split.mean())
            assert overall["standard_error"] == pytest.approx(of_split.std(ddof=1) / 10)
            digits = summary["log_prob"][regime][split]["digits"]
            assert [score["mean"] for score in digits] == pytest.approx(of_split.mean(-1).tolist())
            bound = summary[regime][split]
            assert bound["elbo"]["mean"] == pytest.approx(
                bound["log_likelihood"]["mean"] - bound["kl"]["mean"], rel=1e-4
            )
    assert summary["amortized"]["test"]["elbo"]["images"] == 10_000
    assert summary["latent_optimization"]["test"]["elbo"]["images"] == summary["config"]["fitted_images"]
    for gap in (summary["gaps"][regime][split] for regime in summary["gaps"] for split in ("train", "test")):
        parts = gap["approximation_gap"]["mean"] + gap["amortization_gap"]["mean"]
        assert parts == pytest.approx(gap["log_prob"]["mean"] - gap["elbo"]["mean"], rel=1e-4)
    assert set(summary["samples"]) >= {"amortized", "latent_optimization", "held_out", "pixel_gaussian", "test"}
    assert summary["config"]["train_size"] == 1000
    assert set(summary["seconds"]) == {"amortized_training", "latent_training", "evaluation", "total"}


def test_history_has_a_row_per_regime_and_epoch(tour):
    rows = read_csv(tour[0] / "results/history.csv")
    assert [(row["regime"], row["epoch"]) for row in rows] == [("amortized", "1"), ("latent_optimization", "1")]
    for row in rows:
        assert float(row["held_out_elbo"]) == pytest.approx(
            float(row["held_out_log_likelihood"]) - float(row["held_out_kl"]), rel=1e-4
        )
        assert float(row["seconds"]) > 0


def test_the_supervised_baseline(tmp_path):
    """Small, so that it only has to be far better than chance."""
    done = run("sup_classification.py", tmp_path, "--epochs", "2", "--train-size", "1500")
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "results/classification.json").read_text())
    confusion = np.array(result["confusion"])
    assert confusion.sum() == 10_000
    assert result["test"]["accuracy"] == confusion.trace() / 10_000 > 0.8
    low, high = result["test"]["interval_95"]
    assert low < result["test"]["accuracy"] < high
    assert [score["images"] for score in result["digits"]] == confusion.sum(1).tolist()
    assert (tmp_path / "results/classification.png").exists()
    assert (tmp_path / "checkpoints/classifier.pt").exists()
