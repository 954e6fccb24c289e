"""main_vae.py as a user runs it, on a small part of MNIST: the tour, Bernoulli, and other methods."""

import csv
import json
import math
import os
import re
import shutil
import signal
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

import main_vae
import sup_classification
from amortized_vae import AmortizedVAE
from benchmarks import stress
from data import load_dataset
from evaluation.settings import prepare_again
from evaluation.statistics import TRACKED, find, select_scores
from evaluation.tables import read_scores
from latent_optimization import LatentOptimization
from model import ConvModel
from runtime.checkpoint import InputError, load_checkpoint
from semi_amortized_vae import SemiAmortizedVAE
from training import Method
from vae_utils import Fit, GaussianPosterior

DRAWN = ("recon_epoch", "latent_opt_recon_epoch", "samples_epoch", "comparison_epoch")


def files(*epochs):
    """The names of the files in results/."""
    return {f"{name}_{epoch}.png" for name in DRAWN for epoch in epochs} | {
        "training_curves.png",
        "log_probabilities.npy",
        "log_probabilities.csv",
        "log_probabilities.png",
        "scores.csv",
        "gaps_over_epochs.png",
        "quality_over_seconds.png",
        "gaps_per_digit.png",
        "latent_usage.csv",
        "latent_usage.png",
        "latent_probes.png",
        "latent_map.png",
        "traversals.png",
        "interpolation.png",
        "sample_quality.png",
        "history.csv",
        "summary.json",
        "report.html",
    }


TOY = "--epochs 2 --train-size 100 --latent-dim 5 --sigma-p 0.7 --beta 0.5 --batch-size 50"
SMALL = (
    "--num-samples 20 --images-per-digit 2 --annealed-per-digit 1 --chains 2 --temperatures 4 --fit-steps 5 "
    "--fitted-images 20 --simulated-images 2 --classified-samples 200"
)


def run(script, folder, *flags):
    command = [sys.executable, script, *flags]
    directories = ["--checkpoint-dir", str(folder / "checkpoints"), "--results-dir", str(folder / "results")]
    return subprocess.run(command + directories, cwd=ROOT, capture_output=True, text=True)


def read_csv(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def names_in(folder):
    return {path.name for path in folder.iterdir()}


@pytest.fixture(scope="module")
def tour(whole_run):
    """(folder, stdout, stderr) of the shared run."""
    folder = whole_run / "run"
    return folder, (folder / "out").read_text(), (folder / "err").read_text()


@pytest.fixture(scope="module")
def bernoulli_tour(whole_run, tmp_path_factory):
    """The same of a run with a Bernoulli likelihood."""
    folder = tmp_path_factory.mktemp("bernoulli")
    shutil.copytree(whole_run / "data", folder / "data")
    flags = ["--epochs", "1", "--likelihood", "bernoulli", "--images-per-digit", "2"]
    status, out, errors = processes.run(processes.MAIN, folder / "run", *flags)
    assert (status, errors) == (0, [])
    return folder / "run", out, ""


def test_the_run_writes_every_file_that_is_promised(tour):
    folder, _, _ = tour
    assert names_in(folder / "results") == files(1, 3)
    states = {f"{prefix}_state{part}" for prefix in ("vae", "latent_opt") for part in (".json", "_3.pt")}
    checkpoints = {f"{prefix}_epoch_{epoch}.pt" for prefix in ("vae", "latent_opt") for epoch in (1, 3)}
    others = {"latent_opt_state_3_rows_0_of_1.pt", "classifier.pt"}
    assert names_in(folder / "checkpoints") == states | checkpoints | others


def test_the_run_prints_a_line_per_epoch_and_a_table_that_fits(tour):
    _, out, err = tour
    lines = out.splitlines()
    assert max(map(len, lines)) <= 100
    assert sum("epoch 3/3" in line for line in lines) == 2
    assert sum(line.startswith("  log p(x), annealed from q*") for line in lines) == 2
    assert any("too low" in line for line in lines if "effective samples" in line)
    assert "Gaussian p(x|z), sigma 0.3, pixels in [-1, 1]" in lines
    assert err == ""


def test_array_table_and_scores_agree(tour):
    results = tour[0] / "results"
    array = np.load(results / "log_probabilities.npy", allow_pickle=False)
    rows, scores = read_csv(results / "log_probabilities.csv"), read_scores(results / "scores.csv")
    annealed = [row for row in rows if row["log_prob"]]
    assert (array.shape, array.dtype) == ((2, 2, 10, 1), np.float64)
    assert array.flatten().tolist() == [float(row["log_prob"]) for row in annealed]
    assert (array < -72 * math.log(2 * math.pi * 0.3**2)).all()
    assert [row["class"] for row in annealed] == [str(digit) for _ in range(4) for digit in range(10)]
    for row in rows:
        assert float(row["elbo"]) <= float(row["importance_sampling"])
        assert 1 <= float(row["effective_sample_size"]) <= 5.001
    for row in annealed:
        assert float(row["fitted_elbo"]) <= float(row["fitted_importance_sampling"])
    assert np.mean([float(row["log_prob"]) - float(row["fitted_elbo"]) for row in annealed]) > 0
    names = "amortized", "latent_optimization"
    columns = {}  # {(method, split): {column: values of the annealed images}}
    for method, split in product(names, ("train", "test")):
        part = [row for row in annealed if (row["method"], row["split"]) == (method, split)]
        values = columns[method, split] = {
            name: np.array([float(row[name]) for row in part]) for name in list(rows[0])[4:]
        }

        def mean(quantity, method=method, split=split, **others):
            return find(scores, quantity, method, split, **others).mean

        for quantity in ("importance_sampling", "fitted_elbo", "squared_error"):
            score = find(scores, quantity, method, split)
            assert score.images == 10
            assert score.mean == pytest.approx(values[quantity].mean())
            assert score.standard_error == pytest.approx(values[quantity].std(ddof=1) / math.sqrt(10))
        assert mean("log_prob_annealed") == pytest.approx(values["log_prob"].mean())
        assert mean("bias") == pytest.approx(values["log_prob_bias"].mean())
        of_classes = [mean("log_prob", group=str(digit)) for digit in range(10)]
        assert of_classes == pytest.approx(values["log_prob"].tolist())
        assert mean("elbo") == pytest.approx(mean("log_likelihood") - mean("kl"), rel=1e-4)
        parts = mean("approximation_gap") + mean("amortization_gap")
        assert parts == pytest.approx(mean("inference_gap"), rel=1e-4)
        assert parts == pytest.approx(mean("log_prob_annealed") - mean("elbo_annealed"), rel=1e-4)
        assert find(scores, "log_prob", method, split, group=TRACKED).mean == mean("log_prob_annealed")
    for split, quantity in product(("train", "test"), ("squared_error", "log_prob", "elbo")):
        difference = columns[names[0], split][quantity] - columns[names[1], split][quantity]
        assert find(scores, quantity, " - ".join(names), split).mean == pytest.approx(difference.mean(), rel=1e-4)
    summary = json.loads((results / "summary.json").read_text())
    images = [find(scores, "elbo", name).images for name in names]
    assert images == [150, summary["eval_config"]["fitted_images"]]
    assert summary["train_config"]["train_size"] == 100
    assert set(summary["seconds"]["training"]) == set(names)


def test_the_rows_of_the_csv_are_images_of_their_class(tour, whole_run):
    rows = read_csv(tour[0] / "results/log_probabilities.csv")
    splits = load_dataset(data_dir=whole_run / "data")
    train_index = load_checkpoint(tour[0] / "checkpoints/vae_epoch_1.pt")["train_index"].tolist()
    for row in rows:
        part = splits[row["split"] == "test"]
        assert str(int(part.labels[int(row["index"])])) == row["class"]
        assert row["split"] == "test" or int(row["index"]) in train_index


def test_history_has_a_row_per_method_and_epoch(tour):
    rows = read_csv(tour[0] / "results/history.csv")
    names = [(row["method"], row["epoch"]) for row in rows]
    assert names == list(product(("amortized", "latent_optimization"), "123"))
    for row in rows:
        parts = float(row["validation_log_likelihood"]) - float(row["validation_kl"])
        assert float(row["validation_elbo"]) == pytest.approx(parts, rel=1e-4)
        assert float(row["seconds"]) > 0
    assert [row["validation_images"] for row in rows] == ["500"] * 3 + ["100"] * 3


def test_costs_count_gradients_and_updates(tour):
    scores = read_scores(tour[0] / "results/scores.csv")
    names = "amortized", "latent_optimization"
    amortized, latent = ({s.quantity: s.mean for s in select_scores(scores, method=name, group="")} for name in names)
    for cost in (amortized, latent):
        assert (cost["decoder_updates"], cost["training_gradients"]) == (12, 300)
        assert cost["training_seconds"] > 0
    assert (amortized["training_gradients_per_q"], latent["training_gradients_per_q"]) == (300, 3)
    assert amortized["unseen_image_gradients"] == 0 < latent["unseen_image_gradients"]
    assert 0 < amortized["unseen_image_seconds"] < latent["unseen_image_seconds"]


def test_bernoulli_writes_every_file_and_no_number_above_zero(bernoulli_tour):
    folder, out, _ = bernoulli_tour
    assert names_in(folder / "results") == files(1)
    assert "Bernoulli p(x|z), binarized pixels" in out
    rows = read_csv(folder / "results/log_probabilities.csv")
    values = [float(row[name]) for row in rows for name in ("importance_sampling", "elbo", "log_prob") if row[name]]
    assert len(values) == 2 * 80 + 40
    assert max(values) < 0
    summary = json.loads((folder / "results/summary.json").read_text())
    assert summary["train_config"]["binarize"] is True
    assert "log-probabilities, never above 0" in (folder / "results/report.html").read_text()


def test_the_pages_of_both_likelihoods_draw_and_show_every_figure(tour, bernoulli_tour):
    for folder, epochs in ((tour[0], (1, 3)), (bernoulli_tour[0], (1,))):
        with open_page(folder / "results/report.html") as page:
            assert float(re.search(r"at most ([\d.]+)/255", page.page_source)[1]) < 0.5
            images = page.find_elements("css selector", "figure img")
            shown = {image.get_attribute("alt").rpartition(": ")[2] for image in images}
            assert shown == {name for name in files(*epochs) if name.endswith(".png")}


def test_bernoulli_checkpoints_are_scored_again(bernoulli_tour):
    folder, *_ = bernoulli_tour
    flags = ["--evaluate-only", "--epochs", "1", "--likelihood", "bernoulli", "--images-per-digit", "2"]
    status, _, errors = processes.run(processes.MAIN, folder, *flags, "--results-dir", "again")
    assert (status, errors) == (0, [])
    arrays = [np.load(folder / name / "log_probabilities.npy", allow_pickle=False) for name in ("results", "again")]
    assert np.array_equal(*arrays)


class LinearModel(ConvModel):
    """A decoder with an encoder of one layer."""

    def __init__(self, latent_dim, likelihood, *, image_shape, seed, precision):
        super().__init__(latent_dim, likelihood, image_shape=image_shape, seed=seed, precision=precision)
        self.encoder = torch.nn.Linear(math.prod(image_shape), latent_dim)


class LinearEncoder(Method):
    """A toy method: q from one linear layer."""

    name, label, color, prefix = "linear", "Linear encoder", "#CC79A7", "linear"
    model_class = LinearModel

    def posterior(self, x, rows):
        mean = self.model.encoder(x.flatten(1))
        return GaussianPosterior.from_log_var(mean, torch.full_like(mean, -2.0))

    @torch.no_grad()
    def infer(self, x, *, noise, fit_steps=300):
        return Fit.given(self.posterior(x, None))


CHOSEN = ["--methods", "latent_optimization", "semi_amortized", "amortized"]
RANK_AND_STEPS = ["--latent-rank", "2", "--refinement-steps", "3"]


@pytest.mark.parametrize(
    ("methods", "flags"),
    [((AmortizedVAE, SemiAmortizedVAE, LatentOptimization), [*CHOSEN, *RANK_AND_STEPS]), ((LinearEncoder,), [])],
)
def test_a_new_method_is_one_class_and_one_entry_of_the_list(tmp_path, monkeypatch, capsys, methods, flags):
    stress.small_mnist(tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(main_vae, "METHODS", methods)
    monkeypatch.setattr("sys.argv", ["main_vae.py", *TOY.split(), *SMALL.split(), *flags])
    main_vae.main()
    results = tmp_path / "results"
    expected = [method.name for method in methods]
    assert np.load(results / "log_probabilities.npy", allow_pickle=False).shape == (len(methods), 2, 10, 1)
    for name in ("log_probabilities.csv", "latent_usage.csv", "history.csv"):
        assert list(dict.fromkeys(row["method"] for row in read_csv(results / name))) == expected
    assert list(json.loads((results / "summary.json").read_text())["labels"]) == expected
    out = capsys.readouterr().out
    assert all(method.label in out for method in methods)
    scores = read_scores(results / "scores.csv")
    assert {score.method for score in scores if score.quantity == "elbo"} == {
        *expected,
        *(f"{one} - {other}" for one, other in combinations(expected, 2)),
    }
    assert {score.epoch for score in scores if score.group == TRACKED} == {1, 2}
    assert max(map(len, out.splitlines())) <= 100
    for method in methods:  # each says its own gradients
        visits = 2 * (3 if method is SemiAmortizedVAE else 1)
        assert find(scores, "training_gradients", method.name, "train").mean == 100 * visits
    for method in methods:
        assert (results / f"{method.reconstruction_prefix}_epoch_2.png").exists()
        assert (tmp_path / "checkpoints" / f"{method.prefix}_epoch_1.pt").exists()


def test_methods_can_be_added_to_a_run_and_scored_alone(whole_run, tmp_path):
    """A run of one that is stopped, to which the others are added, ends as one of all of them."""
    shutil.copytree(whole_run / "data", tmp_path / "data")
    options = ["--epochs", "1", *RANK_AND_STEPS]
    flags, alone = [*options, *CHOSEN], [*options, "--methods", "semi_amortized"]
    together, added = tmp_path / "together", tmp_path / "added"
    assert processes.run(processes.MAIN, together, *flags)[0] == 0
    after = {"after": "semi_amortized: epoch 1/1", "number": signal.SIGTERM}
    assert processes.stop(processes.MAIN, added, flags=alone, **after)[0] == 143
    status, _, errors = processes.run(processes.MAIN, added, *flags)
    assert status == 2
    assert "of a run of --methods semi_amortized, to which --resume adds the others" in errors[0]
    assert processes.run(processes.MAIN, added, *flags, "--resume")[0] == 0
    # Alike but for the settings of the run that began it
    assert stress.differences(together, added) == ["checkpoints/semi_amortized_vae_state.json: not alike"]

    # Scored alone, or not at all
    assert processes.run(processes.MAIN, added, *alone, "--evaluate-only", "--results-dir", "alone")[0] == 0
    scores, expected = (read_scores(added / name / "scores.csv") for name in ("alone", "results"))
    for quantity in ("elbo", "log_prob", "amortization_gap"):
        assert find(scores, quantity, "semi_amortized") == find(expected, quantity, "semi_amortized")
    assert {entry.method for entry in scores if entry.quantity == "elbo"} == {"semi_amortized"}
    for path in (added / "checkpoints").glob("vae_epoch*"):
        path.unlink()
    status, _, errors = processes.run(processes.MAIN, added, *flags, "--evaluate-only")
    assert (status, len(errors)) == (2, 1)
    assert "checkpoints: no checkpoints vae_epoch_N.pt and latent_opt_epoch_N.pt and semi_" in errors[0]


def test_a_new_metric_is_one_function_and_one_entry_of_the_list(whole_run, tmp_path):
    """In a process of its own, since other modules read the list when they are imported."""
    code = """if True:
        from evaluation import gaps

        def brightness(model, x, q):
            return model.mean(q.mean).flatten(1).mean(1)

        gaps.METRICS += (brightness,)
        import main_vae
        main_vae.main()
    """
    shutil.copytree(whole_run / "data", tmp_path / "data")
    shutil.copytree(whole_run / "run/checkpoints", tmp_path / "checkpoints")
    command = [sys.executable, "-c", code, *processes.arguments(processes.MAIN), "--data-dir", "data"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([*command, "--evaluate-only"], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("  brightness") == 1
    rows, scores = (read_csv(tmp_path / "results/log_probabilities.csv"), read_scores(tmp_path / "results/scores.csv"))
    values = [float(row["brightness"]) for row in rows if (row["method"], row["split"]) == ("amortized", "test")]
    assert find(scores, "brightness", "amortized").mean == pytest.approx(np.mean(values))
    assert find(scores, "brightness", "amortized - latent_optimization") is not None
    assert "brightness" in (tmp_path / "results/report.html").read_text()


def test_a_folder_of_images_without_further_counts(tmp_path, monkeypatch, capsys):
    """Training, evaluation and baseline, four classes of 14 to 17 images of another size, one name long."""
    names = ("a$", "b", "c", "a name that is far too long")
    image_folder(tmp_path / "mine", {name: 14 + number for number, name in enumerate(names)}, size=(20, 30))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(main_vae, "METHODS", (LatentOptimization,))
    flags = ["--dataset", "folder:mine", "--resize", "--epochs", "1", "--latent-dim", "5", "--seed", "1"]
    quick = "--num-samples 20 --chains 2 --temperatures 2 --fit-steps 2 --simulated-images 2 --classified-samples 200"
    monkeypatch.setattr("sys.argv", ["main_vae.py", *flags, *quick.split()])
    main_vae.main()
    summary = json.loads((tmp_path / "results/summary.json").read_text())
    config = {name: summary["train_config"][name] for name in ("dataset", "resize", "train_size")}
    assert config == {"dataset": "folder:mine", "resize": True, "train_size": 51 - 51 // 8}
    assert summary["eval_config"]["images_per_digit"] == 2  # of the test images there are no more
    scores = read_scores(tmp_path / "results/scores.csv")
    assert find(scores, "log_prob_annealed", "latent_optimization") is None  # four are too few to be regressed
    assert np.load(tmp_path / "results/log_probabilities.npy", allow_pickle=False).shape == (1, 2, 4, 1)
    rows = read_csv(tmp_path / "results/log_probabilities.csv")
    assert [row["class"] for row in rows[:8:2]] == sorted(names)
    assert names_in(tmp_path / "results") == files(1) - {"recon_epoch_1.png"}
    monkeypatch.setattr("sys.argv", ["main_vae.py", "--evaluate-only", "--dataset", "mnist"])
    with pytest.raises(InputError, match="--dataset folder:mine there, mnist here"):
        main_vae.main()
    summary["train_config"].pop("dataset")  # as of an older version, whose data set was MNIST
    (tmp_path / "results/summary.json").write_text(json.dumps(summary))
    with pytest.raises(InputError, match="of another run \\(--dataset mnist there, folder:mine here\\)"):
        prepare_again(Namespace(), owned=main_vae.owned())  # the checkpoints say which one to read
    capsys.readouterr()
    directories = ["--checkpoint-dir", "baseline", "--results-dir", "baseline"]
    monkeypatch.setattr("sys.argv", ["sup_classification.py", *flags[:3], "--epochs", "1", *directories])
    sup_classification.main()
    table = capsys.readouterr().out.splitlines()[-7:-1]
    assert {line.index("%") for line in table[1:]} == {line.index("%") for line in table[1:2]}
    result = json.loads((tmp_path / "baseline/classification.json").read_text())
    assert list(result["classes"]) == sorted(names)
    assert result["test"]["images"] == 2 + 3 + 3 + 3


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
    assert [score["images"] for score in result["classes"].values()] == confusion.sum(1).tolist()
    assert names_in(tmp_path / "results") == {"classification.png", "classification.json"}
    assert names_in(tmp_path / "checkpoints") == {"classifier.pt", "classifier_state.json", "classifier_state_2.pt"}
