"""What the benchmarks measure is what they say, the other side included, on toy data; what the stress test compares."""

from argparse import Namespace
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from conftest import linear_gaussian, linear_with_images, seeded, toy_config, toy_data

from amortized_vae import AmortizedVAE
from benchmarks import accuracy, latents, literature, sensitivity, stress
from benchmarks import training as training_benchmark
from data import Data, Split, stratified_subset
from model import ConvVAE
from posterior_fit import fit_posterior
from runtime.config import EvalConfig, TrainConfig
from training import train_epoch
from vae_utils import elbo

FEW = partial(EvalConfig, num_samples=3, chains=2, temperatures=20, fit_steps=30)


def mnist_like(count=60):
    """A Data of random images of MNIST's shape."""
    labels, index = torch.arange(count) % 10, torch.arange(count)
    split = Split(torch.rand(count, 1, 28, 28, generator=seeded(0)) * 2 - 1, labels, index, tuple("0123456789"))
    return Data(train=split, validation=split, rest=split, test=split)


def test_the_textbooks_loss_is_the_negative_elbo_but_for_the_constant_of_the_likelihood():
    model, x, noise = ConvVAE(6, seed=0), torch.rand(5, 1, 28, 28, generator=seeded(0)), torch.randn(5, 6)
    with torch.no_grad():
        q = model.encode(x)
        loss = training_benchmark.textbook_loss(q, x, model.decode(q.mean + q.scale * noise), 0.4)
        bound = elbo(model, x, q, noise)
    constant = model.likelihood.log_prob(x, x).mean()  # of pixels that are decoded without an error
    assert loss.item() == pytest.approx(float(constant - bound.elbo.mean()), rel=1e-5)


def test_the_textbooks_loader_gives_our_images(mnist):
    train = stratified_subset(mnist[0], size=40)
    (x, labels), rows = next(iter(training_benchmark.textbook_loader(train.index, batch_size=32)))
    assert torch.allclose(x, train.images[rows], atol=1e-6)
    assert torch.equal(labels, train.labels[rows])


@pytest.mark.parametrize("name", training_benchmark.METHODS)
@pytest.mark.parametrize("side", [training_benchmark.our_epochs, training_benchmark.textbook_epochs])
def test_epochs_of_either_side_learn(monkeypatch, side, name):
    monkeypatch.setattr(training_benchmark, "load_data", lambda config: mnist_like(70))
    turn = side(name, TrainConfig(train_size=70, epochs=3, precision="float32"))
    first, second = turn(), turn()
    assert second < first


def test_the_tables_differ_in_what_they_are_said_to():
    images, means = mnist_like(100).train.images, {}
    for name in latents.TABLES:
        method = latents.TableMethod(images, name)
        for epoch in (1, 2, 3):
            train_epoch(method, epoch)
            with torch.no_grad():
                latents.fill_memory(method.table)
        with torch.no_grad():
            means[name] = method.posterior(None, torch.arange(100)).mean
    ours, dense, sparse = (means[name] for name in ("LatentTable", "dense Adam", "SparseAdam"))
    assert torch.allclose(ours, dense, atol=1e-3)
    assert (sparse - dense).abs().max() > 1e-2


def test_the_study_of_starts_makes_a_table_and_nothing_twice(tmp_path, monkeypatch, rough):
    given = Namespace(directory=tmp_path, epochs=1, train_size=60, images=10, device="cpu")
    monkeypatch.setattr(sensitivity, "TrainConfig", partial(TrainConfig, latent_dim=6))
    monkeypatch.setattr(sensitivity, "EvalConfig", FEW)
    monkeypatch.setattr(sensitivity, "fit_posterior", partial(fit_posterior, fit_steps=3))
    names, found = (sensitivity.AMORTIZED, "zero, 4 steps", "start at the VAE's codes"), {}
    for name in names:
        monkeypatch.setattr(sensitivity, "load_data", lambda config, device: mnist_like())
        found[name, 4] = sensitivity.work(name, 4, given)
        monkeypatch.setattr(sensitivity, "load_data", None)  # its numbers are there
        assert sensitivity.work(name, 4, given) == found[name, 4]
    _, seeds, *_, log_prob, _, less, gap = sensitivity.table_row("zero, 4 steps", [4], found)
    own, other = (torch.tensor(found[name, 4]["log_prob"]) for name in (names[1], names[0]))
    assert seeds == "1"
    assert log_prob == f"{own.mean():.1f} ± {own.std() / 10**0.5:.1f}"
    assert less == f"{(own - other).mean():.1f} ± {(own - other).std() / 10**0.5:.1f}"
    assert sensitivity.table_row(names[0], [4], found)[-3:] == ["", "", gap]
    assert not found[names[1], 4]["amortization_gap"]
    assert float(gap.split()[0]) == pytest.approx(np.mean(found[names[0], 4]["amortization_gap"]), abs=0.06)


def test_a_start_of_the_study_has_its_number_of_dimensions():
    data = mnist_like()
    images = torch.randn(60, 20, generator=seeded(1)) @ torch.randn(20, 784, generator=seeded(2))
    data = data._replace(train=replace(data.train, images=images.view(60, 1, 28, 28)))
    method = sensitivity.VARIANTS["pca, 16 dimensions"].method(toy_config(train_size=60, latent_dim=30), data)
    q = method.model.initial_posterior(method.images)
    assert (q.mean[:, :16].std(0) > 0).all()
    assert (q.mean[:, 16:] == 0).all()
    assert (q.scale[:, 16:] == 1).all()


def test_the_bounds_of_every_start_are_around_the_true_log_prob():
    """A linear model's posterior is Gaussian, so that annealing from it has nothing to do."""
    model = linear_gaussian(pixels=6, latent_dim=2)
    rows = accuracy.cost_rows(model, "float32", images=6, num_samples=500)
    short, full, gauss_newton, diagonal, prior = (float(gap.split(" ")[0]) for _, _, gap, _ in rows[:5])
    assert max(abs(full), abs(gauss_newton)) < 0.05
    assert max(abs(short), abs(diagonal), abs(prior)) < 0.5
    assert int(rows[1][1]) < int(rows[4][1])  # temperatures
    assert rows[5][2].startswith("short by ")


def test_a_long_fit_finds_the_best_diagonal_normal():
    model, x = linear_with_images(3, seed=0, pixels=30, latent_dim=4)
    best, exact = model.best_diagonal(x)
    start = model.initial_posterior(x)
    found = accuracy.long_fit(model, x, start, steps=400)
    assert (exact - model.elbo(found, x)).max() < 0.02
    torch.testing.assert_close(accuracy.bound(model, x, best), exact, atol=0.2, rtol=0)


def test_the_row_that_is_annealed_agrees_with_importance_sampling(monkeypatch):
    monkeypatch.setattr(literature, "EvalConfig", FEW)
    data = toy_data(binary=True)
    model = AmortizedVAE(toy_config(likelihood="bernoulli"), data).model
    value, bound, bias = literature.annealed(model, data, 4)
    log_prob, error = map(float, value.split(" ± "))
    assert log_prob == pytest.approx(float(literature.sampled(model, data.test, 300).split()[0]), abs=4 * error + 0.2)
    assert log_prob < float(bound) - 0.2
    assert abs(bias) < 0.2


NAN = float("nan")
HELD = {  # what a file holds, the same in other bytes or but for times, and something else
    "vae.pt": (
        {"weights": {"a": torch.arange(5.0), "b": torch.tensor(NAN)}, "seconds": 1.5},
        {"seconds": 2.5, "weights": {"b": torch.tensor(NAN), "a": torch.arange(5.0)}},
        {"weights": {"a": torch.arange(5), "b": torch.tensor(NAN)}},
    ),
    "values.npy": (np.array([0.5, NAN]), np.array([0.5, NAN]), np.array([0.5, 0.0])),
    "history.csv": ("epoch,training_seconds\n1,1.5", "epoch,training_seconds\n1,2.5", "epoch,training_seconds\n2,1.5"),
    "scores.csv": ("quantity,mean\nelbo,3\nseconds,1.5", "quantity,mean\nelbo,3\nseconds,2.5", "quantity,mean\nelbo,4"),
    "summary.json": ('{"cost": [{"seconds": 1, "share": NaN}]}', '{"cost": [{"share": NaN}]}', '{"cost": [{}]}'),
    "figure.png": ("pixels", "pixels", "other pixels"),
}


@pytest.mark.parametrize("name", HELD)
def test_runs_are_compared_by_what_their_files_hold(tmp_path, name):
    runs = [tmp_path / part for part in ("one", "same", "other")]
    for run, held in zip(runs, HELD[name], strict=True):
        path = run / "results" / name
        path.parent.mkdir(parents=True)
        if path.suffix == ".pt":
            torch.save(held, path)
        elif path.suffix == ".npy":
            np.save(path, held)
        else:
            path.write_text(held)
    one, same, other = runs
    assert stress.differences(one, same) == []
    assert stress.differences(one, other) == [f"results/{name}: not alike"]
    (same / "results" / name).unlink()
    assert stress.differences(one, same) == [f"results/{name}: only in one of the two"]
