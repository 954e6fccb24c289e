"""main_vae.py as a user runs it, on a small part of MNIST: the tour, Bernoulli, and a third method."""

import json
import math
import os
import re
import subprocess
import sys
from argparse import Namespace
from itertools import combinations, product

import numpy as np
import processes
import pytest
import torch
from browser import open_page
from conftest import ROOT, image_folder
from processes import read_csv

import main_vae
import sup_classification
from data import load_dataset
from evaluation.figures import GAPS
from evaluation.settings import prepare_again
from evaluation.statistics import find
from evaluation.tables import read_scores
from model import ConvVAE
from posterior_fit import Fit
from runtime.checkpoint import load_checkpoint
from runtime.config import InputError
from training import Method
from vae_utils import GaussianPosterior

DRAWN = ("recon_epoch", "latent_opt_recon_epoch", "samples_epoch", "comparison_epoch")
WRITTEN = """where_the_nats_go.png
training_curves.png log_probabilities.npy log_probabilities.csv log_probabilities.png scores.csv
gaps_over_epochs.png quality_over_seconds.png gaps_per_digit.png latent_usage.csv latent_usage.png latent_probes.png
latent_map.png traversals.png interpolation.png sample_quality.png history.csv summary.json report.html"""
NAMES = "amortized", "latent_optimization"
CLASSES = ("a$", "b", "c", "a name that is far too long")
MINE = "--dataset folder:../mine --resize --epochs 1"
QUICK = "--num-samples 20 --chains 2 --temperatures 2 --fit-steps 2 --classified-samples 200"


def files(*epochs):
    return {f"{name}_{epoch}.png" for name in DRAWN for epoch in epochs} | set(WRITTEN.split())


def names_in(folder):
    return {path.name for path in folder.iterdir()}


@pytest.fixture(scope="module")
def tour(whole_run):
    return whole_run / "run"


@pytest.fixture(scope="module")
def folder_tour(folder_of_runs):
    """(folder, stdout) of a run with a Bernoulli likelihood, of four classes of 14 to 17 images, without counts."""
    counts = {name: 14 + number for number, name in enumerate(CLASSES)}
    image_folder(folder_of_runs / "mine", counts, size=(20, 30))
    settings = f"{MINE} --likelihood bernoulli --methods latent_optimization --latent-dim 5 --seed 1 {QUICK}"
    status, out, errors = processes.run(processes.MAIN, folder_of_runs / "bernoulli", settings=settings)
    assert (status, errors) == (0, [])
    return folder_of_runs / "bernoulli", out


def test_the_run_writes_every_file_that_is_promised(tour):
    assert names_in(tour / "results") == files(1, 3)
    states = {f"{prefix}_state{part}" for prefix in ("vae", "latent_opt") for part in (".json", "_3.pt")}
    checkpoints = {f"{prefix}_epoch_{epoch}.pt" for prefix in ("vae", "latent_opt") for epoch in (1, 3)}
    others = {"latent_opt_state_3_rows_0_of_1.pt", "classifier.pt"}
    assert names_in(tour / "checkpoints") == states | checkpoints | others


def test_the_run_prints_a_line_per_epoch_and_a_table_that_fits(tour):
    lines = (tour / "out").read_text().splitlines()
    assert max(map(len, lines)) <= 100
    assert sum("epoch 3/3" in line for line in lines) == 2
    for name, count in zip(NAMES, (500, 100), strict=True):
        assert sum(line.startswith(name) and f"validation ({count} images)" in line for line in lines) == 3
    assert sum(line.startswith("  = log p(x)") for line in lines) == 2
    assert any("too low" in line for line in lines if "effective samples" in line)
    assert "Gaussian p(x|z), sigma 0.3, pixels in [-1, 1]" in lines
    assert lines[-2] == "checkpoints: checkpoints"
    assert lines[-1].startswith(f"{os.path.join('results', 'report.html')}: open it")


def test_array_table_and_scores_agree(tour):
    results = tour / "results"
    array = np.load(results / "log_probabilities.npy", allow_pickle=False)
    rows, scores = read_csv(results / "log_probabilities.csv"), read_scores(results / "scores.csv")
    annealed = [row for row in rows if row["log_prob"]]
    assert (array.shape, array.dtype) == ((2, 2, 10, 1), np.float64)
    assert array.flatten().tolist() == [float(row["log_prob"]) for row in annealed]
    assert (array < -72 * math.log(2 * math.pi * 0.3**2)).all()
    assert [row["class"] for row in annealed] == [str(digit) for _ in range(4) for digit in range(10)]
    for row in annealed:
        assert float(row["elbo"]) - 20 <= float(row["importance_sampling"])
        assert 1 <= float(row["full_effective_sample_size"]) <= 5.001
        parts = sum(float(row[name]) for name in GAPS)
        assert parts == pytest.approx(float(row["log_prob"]) - float(row["elbo"]))
    for method, split in product(NAMES, ("train", "test")):
        part = [row for row in rows if (row["method"], row["split"]) == (method, split)]
        labels = np.array([int(row["class"]) for row in part])

        def of_classes(name, part=part, labels=labels):
            values = np.array([float(row[name] or "nan") for row in part])
            return np.array([np.nanmean(values[labels == label]) for label in range(10)])

        def means(quantity, method=method, split=split):
            return [find(scores, quantity, method, split, str(label)).mean for label in range(10)]

        def mean(quantity, method=method, split=split):
            return find(scores, quantity, method, split).mean

        for quantity in ("elbo", "fitted_elbo", "squared_error", "mean_field_gap", "non_gaussian_gap"):
            assert means(quantity) == pytest.approx(of_classes(quantity).tolist())
            count = 10 if quantity in GAPS else len(part)  # too few to regress
            assert find(scores, quantity, method, split).images == count
        regressed = of_classes("fitted_elbo") + of_classes("approximation_gap")
        assert means("log_prob") == pytest.approx(regressed.tolist())
        for whole in (mean("inference_gap"), mean("log_prob") - mean("elbo")):
            assert sum(map(mean, GAPS)) == pytest.approx(whole)
        if whole := find(scores, "elbo_all", method, split):
            assert whole.mean == pytest.approx(mean("log_likelihood") - mean("kl"), rel=1e-4)
            assert whole.images == {"train": 100, "test": 150}[split]
    assert set(json.loads((results / "summary.json").read_text())["seconds"]["training"]) == set(NAMES)


def test_the_rows_of_the_csv_are_images_of_their_class(tour, whole_run):
    rows = read_csv(tour / "results/log_probabilities.csv")
    splits = load_dataset(data_dir=whole_run / "data")
    train_index = load_checkpoint(tour / "checkpoints/vae_epoch_1.pt")["train_index"].tolist()
    for row in rows:
        part = splits[row["split"] == "test"]
        assert str(int(part.labels[int(row["index"])])) == row["class"]
        assert row["split"] == "test" or int(row["index"]) in train_index


def test_a_folder_of_images_under_a_bernoulli_likelihood(folder_tour, monkeypatch):
    """Training, evaluation and baseline, of images of another size; no number is above zero."""
    folder, out = folder_tour
    results = folder / "results"
    assert names_in(results) == files(1) - {"recon_epoch_1.png"}
    assert "Bernoulli p(x|z), binarized pixels" in out
    rows, scores = read_csv(results / "log_probabilities.csv"), read_scores(results / "scores.csv")
    values = [float(row[name]) for row in rows for name in ("importance_sampling", "elbo", "log_prob") if row[name]]
    assert len(values) == len(rows) + 2 * 2 * 4  # one of each class is annealed
    assert max(values) < 0
    assert [row["class"] for row in rows[:4]] == sorted(CLASSES)
    assert {score.method for score in scores if score.quantity == "elbo"} == {"latent_optimization"}
    assert np.load(results / "log_probabilities.npy", allow_pickle=False).shape == (1, 2, 4, 1)
    assert "log-probabilities, never above 0" in (results / "report.html").read_text()
    summary = json.loads((results / "summary.json").read_text())
    config = {name: summary["train_config"][name] for name in ("dataset", "resize", "train_size", "binarize")}
    assert config == {"dataset": "folder:../mine", "resize": True, "train_size": 51, "binarize": True}
    assert summary["eval_config"]["images_per_digit"] == 1

    # Scored again
    monkeypatch.chdir(folder)
    experiment = prepare_again(Namespace(device="cpu"), owned=main_vae.owned())
    assert (experiment.data.test.images.abs() == 1).all()
    monkeypatch.setattr("sys.argv", ["main_vae.py", "--evaluate-only", "--dataset", "mnist"])
    with pytest.raises(InputError, match=r"--dataset folder:\.\./mine there, mnist here"):
        main_vae.main()
    # The baseline
    directories = "--checkpoint-dir baseline --results-dir baseline"
    monkeypatch.setattr("sys.argv", f"sup_classification.py {MINE} {directories}".split())
    sup_classification.main()
    result = json.loads((folder / "baseline/classification.json").read_text())
    assert list(result["classes"]) == sorted(CLASSES)
    assert result["test"]["images"] == 2 + 3 + 3 + 3


def test_the_pages_of_both_likelihoods_draw_and_show_every_figure(tour, folder_tour):
    for folder in (tour, folder_tour[0]):
        with open_page(folder / "results/report.html") as page:
            assert float(re.search(r"at most ([\d.]+)/255", page.page_source)[1]) < 0.5
            assert not re.findall(r'(?:src|href)="(?!data:|#)', (folder / "results/report.html").read_text("utf-8"))
            images = page.find_elements("css selector", "figure img")
            shown = {image.get_attribute("alt").rpartition(": ")[2] for image in images}
            assert shown == {path.name for path in (folder / "results").glob("*.png")}


class FullEncoder(Method):
    """A toy method: q of full covariance from an encoder."""

    name, label, color, prefix = "full", "Full encoder", "#CC79A7", "full"
    model_class = ConvVAE

    def posterior(self, x, rows):
        q = self.model.encode(x)
        return GaussianPosterior(q.mean, torch.diag_embed(q.scale))

    @torch.no_grad()
    def infer(self, x, *, noise, fit_steps=300):
        return Fit.given(self.posterior(x, None))


def test_a_new_method_likelihood_and_metric_are_a_class_or_function_and_an_entry_each(folder_of_runs):
    """In a process of its own, since other modules read the list of metrics when they are imported."""
    code = """if True:
        from evaluation import gaps
        from rough import make_rough

        def brightness(model, x, q):
            return model.mean(q.mean).flatten(1).mean(1)

        gaps.METRICS += (brightness,)
        make_rough()
        import main_vae
        import training
        from test_main_vae import FullEncoder
        from test_model import Laplace

        main_vae.METHODS = (FullEncoder, main_vae.LatentOptimization, main_vae.SemiAmortizedVAE)
        training.make_likelihood = lambda config: Laplace(config.sigma_p)
        main_vae.main()
    """
    folder = folder_of_runs / "three"
    folder.mkdir()
    expected = ["full", "latent_optimization", "semi_amortized"]
    flags = processes.arguments(processes.MAIN, "--epochs", "1", "--latent-rank", "2", "--methods", *expected)
    options = {"env": {**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "tests")))}, "cwd": folder}
    done = subprocess.run([sys.executable, "-c", code, *flags], **options, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert max(map(len, done.stdout.splitlines())) <= 100
    assert done.stdout.count("  brightness (not nats)") == 6  # of each method, and of every two
    results = folder / "results"
    assert np.load(results / "log_probabilities.npy", allow_pickle=False).shape == (3, 2, 10, 1)
    for name in ("log_probabilities.csv", "latent_usage.csv", "history.csv"):
        assert list(dict.fromkeys(row["method"] for row in read_csv(results / name))) == expected
    labels = json.loads((results / "summary.json").read_text())["labels"]
    assert list(labels) == expected
    rows, scores = read_csv(results / "log_probabilities.csv"), read_scores(results / "scores.csv")
    pairs = {f"{one} - {other}" for one, other in combinations(expected, 2)}
    for quantity in ("elbo", "log_prob", "brightness"):
        assert {score.method for score in scores if score.quantity == quantity} == {*expected, *pairs}
    of_one = [row for row in rows if (row["method"], row["split"], row["class"]) == ("full", "test", "4")]
    values = [float(row["brightness"]) for row in of_one]
    assert find(scores, "brightness", "full", group="4").mean == pytest.approx(np.mean(values))
    page = (results / "report.html").read_text()
    for prefix, method in zip(("full", "latent_opt", "semi_amortized_vae"), labels.values(), strict=True):
        scale = load_checkpoint(folder / f"checkpoints/{prefix}_epoch_1.pt")["weights"]["likelihood.log_scale"]
        assert scale.exp() != pytest.approx(0.3)  # it was trained
        assert (results / f"{prefix}_recon_epoch_1.png").exists()
        assert method in done.stdout
        assert method in page
    for text in ("brightness", "Laplace p(x|z)", "log-densities, which do not compare"):
        assert text in page


def test_the_supervised_baseline(folder_of_runs):
    """Small, so that it only has to be far better than chance."""
    folder = folder_of_runs / "baseline"
    assert processes.run(processes.CLASSIFIER, folder, "--epochs", "16")[0] == 0
    result = json.loads((folder / "results/classification.json").read_text())
    confusion = np.array(result["confusion"])
    assert confusion.sum() == 150
    assert result["test"]["accuracy"] == confusion.trace() / 150 > 0.6
    low, high = result["test"]["interval_95"]
    assert low < result["test"]["accuracy"] < high
    assert [score["images"] for score in result["classes"].values()] == confusion.sum(1).tolist()
    last = (folder / "out").read_text().splitlines()[-1]
    assert last.startswith(f"{os.path.join('results', 'classification.png')}: open it")
    assert last.endswith(os.path.join("checkpoints", "classifier.pt"))
    assert names_in(folder / "results") == {"classification.png", "classification.json"}
    assert names_in(folder / "checkpoints") == {"classifier.pt", "classifier_state.json", "classifier_state_16.pt"}
