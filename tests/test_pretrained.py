"""The weights in pretrained/ are worth what the summary beside them says; how they are made, and how they are read."""

from dataclasses import asdict

import pytest
import torch
from conftest import ROOT, toy_config, toy_data, train
from processes import read_csv

import amortized_vae
import latent_optimization
from benchmarks import pretrained
from benchmarks.pretrained import METHODS
from evaluation.measurements import draws_of
from evaluation.statistics import find
from evaluation.tables import read_scores
from posterior_fit import fit_posterior
from runtime.checkpoint import save_file
from runtime.config import InputError
from vae_utils import Noise, elbo, evaluate_bound

FOLDER = ROOT / "pretrained"


def test_the_amortized_elbo_of_all_test_images_is_the_summarys(mnist):
    """At the run's own draws."""
    model, x = amortized_vae.load_model(FOLDER / "vae.pt"), mnist[1].images
    with torch.no_grad():
        q = model.encode(x)
    noise = Noise(0, "final bound", "amortized", "test")
    bound = evaluate_bound(model, x, q, noise=noise, draws=draws_of(len(x)))
    known = find(read_scores(FOLDER / "scores.csv"), "elbo_all", "amortized")
    assert known.images == len(x)
    assert abs(bound.elbo.double().mean() - known.mean) < 0.01


def test_the_fitted_elbo_of_test_images_under_latent_optimization_is_that_of_the_run(mnist):
    """Within three standard errors, by how much repeated fits of the same images differ."""
    repeats, images = 2, 5
    rows = read_csv(FOLDER / "log_probabilities.csv")
    rows = [row for row in rows if (row["method"], row["split"]) == ("latent_optimization", "test")]
    rows = rows[:: len(rows) // images][:images]
    model = latent_optimization.load_model(FOLDER / "latent_opt.pt")
    x = mnist[1].images[[int(row["index"]) for row in rows]].repeat(repeats, 1, 1, 1)
    start = model.initial_posterior(x)
    q = fit_posterior(model, x, start, noise=Noise(1), fit_steps=250).q
    found = elbo(model, x, q, Noise(2).normal((1000, *q.mean.shape), like=x)).elbo.double().reshape(repeats, images)
    variance = found.var(0).mean()  # of one fit of one image
    difference = (found.mean(0) - torch.tensor([float(row["elbo"]) for row in rows])).mean()
    error = ((1 + 1 / repeats) * variance / images).sqrt()
    assert difference.abs() < 3 * error < 1.5


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A folder with the checkpoints of a short run, and results that are taken for its own."""
    folder = tmp_path_factory.mktemp("run")
    for method_class in METHODS[:2]:
        train(method_class(toy_config(), toy_data()), folder)
    save_file(folder / "summary.json", {"train_config": asdict(toy_config()), "scored_epoch": 2})
    (folder / "scores.csv").write_text("numbers")
    (folder / "log_probabilities.csv").write_text("numbers per image")
    return folder


def test_what_is_written_is_small_and_reads_as_the_checkpoints_but_for_rounding(run, tmp_path):
    assert sum(path.stat().st_size for path in FOLDER.glob("*.pt")) <= 6e6
    one, two = tmp_path / "one", tmp_path / "two"
    for folder in (one, two):
        pretrained.make(run, run, folder)
    for path in one.iterdir():
        assert path.read_bytes() == (two / path.name).read_bytes()
    for name in pretrained.FILES:
        assert (one / name).read_bytes() == (run / name).read_bytes()
    for method_class in METHODS[:2]:
        paths = run / f"{method_class.prefix}_epoch_2.pt", one / f"{method_class.prefix}.pt"
        whole, half = map(method_class.load_model, paths)
        assert (half.config, half.epoch) == (toy_config(), 2)
        assert torch.equal(half.train_index, whole.train_index)
        for exact, rounded in zip(whole.parameters(), half.parameters(), strict=True):
            assert rounded.dtype == torch.float32
            assert torch.equal(exact.half().float(), rounded)
    with pytest.raises(ValueError, match="this checkpoint holds no q of training images"):
        half.posterior(torch.arange(3))


def test_results_of_another_run_are_refused(run, tmp_path):
    for config, epoch in ((toy_config(seed=4), 2), (toy_config(), 1)):
        save_file(tmp_path / "summary.json", {"train_config": asdict(config), "scored_epoch": epoch})
        with pytest.raises(InputError, match="not of the last epoch of the checkpoints in"):
            pretrained.make(run, tmp_path, tmp_path / "pretrained")
        assert not (tmp_path / "pretrained").exists()
