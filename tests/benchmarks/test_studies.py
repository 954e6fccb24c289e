"""The studies in benchmarks/: the candidates and variants are what they say, on toy data."""

from argparse import Namespace
from dataclasses import replace
from functools import partial

import pytest
import torch
from conftest import gaussian, linear_gaussian, seeded, toy_config

from amortized_vae import AmortizedVAE
from benchmarks import accuracy, networks, sensitivity
from data import Data, Split
from latent_optimization import LatentOptimization
from runtime.config import EvalConfig
from vae_utils import Noise


def mnist_like(count=60):
    """A Data of random images of MNIST's shape."""
    labels, index = torch.arange(count) % 10, torch.arange(count)
    split = Split(torch.rand(count, 1, 28, 28, generator=seeded(0)) * 2 - 1, labels, index, tuple("0123456789"))
    return Data(train=split, validation=split, rest=split, test=split)


@pytest.mark.parametrize("method_class", [AmortizedVAE, LatentOptimization])
def test_the_first_candidate_is_the_default_network(method_class):
    config, data = toy_config(train_size=60), mnist_like()
    ours = networks.make_method(method_class, networks.CANDIDATES["the default"], config, data).model.state_dict()
    default = method_class(config, data).model.state_dict()
    assert ours.keys() == default.keys()
    assert all(torch.equal(ours[name], default[name]) for name in ours)


def test_every_candidate_trains_and_is_scored_and_is_not_trained_twice(tmp_path, monkeypatch):
    config, data, evaluation = toy_config(train_size=60, epochs=1), mnist_like(), networks.EvalConfig(fit_steps=5)
    for number, candidate in enumerate(networks.CANDIDATES.values()):
        for method_class in networks.METHODS:
            folder = tmp_path / str(number)
            method = networks.trained(method_class, candidate, config, data, folder)
            assert -3000 < networks.validation_elbo(method, data, evaluation) < 0
            monkeypatch.setattr(networks, "train", None)  # a checkpoint is there
            networks.trained(method_class, candidate, config, data, folder)
            monkeypatch.undo()


def test_the_study_of_starts_makes_a_table_and_nothing_twice(tmp_path, monkeypatch):
    data = mnist_like()
    given = Namespace(directory=tmp_path, runs=None, epochs=1, train_size=60, images=10, device="cpu")
    monkeypatch.setattr(sensitivity, "load_data", lambda config, data_dir, device: data)
    monkeypatch.setattr(sensitivity, "EvalConfig", partial(EvalConfig, num_samples=3, chains=2, fit_steps=3))
    names, found = (sensitivity.AMORTIZED, "zero, 4 steps", "start at the VAE's codes"), {}
    for name in names:
        found[name, 4] = sensitivity.work(name, 4, given)
        monkeypatch.setattr(sensitivity, "load_data", None)  # its numbers are there
        assert sensitivity.work(name, 4, given) == found[name, 4]
        monkeypatch.setattr(sensitivity, "load_data", lambda config, data_dir, device: data)
    _, seeds, *_, log_prob, _, less = sensitivity.table_row("zero, 4 steps", [4], found)
    own, other = (torch.tensor(found[name, 4]["log_prob"]) for name in (names[1], names[0]))
    assert seeds == "1"
    assert log_prob == f"{own.mean():.1f} ± {own.std() / 10**0.5:.1f}"
    assert less == f"{(own - other).mean():.1f} ± {(own - other).std() / 10**0.5:.1f}"
    assert sensitivity.table_row(names[0], [4], found)[-2:] == ["", ""]


def test_a_start_of_the_study_has_its_number_of_dimensions():
    data = mnist_like()
    images = torch.randn(60, 20, generator=seeded(1)) @ torch.randn(20, 784, generator=seeded(2))
    data = data._replace(train=replace(data.train, images=images.view(60, 1, 28, 28)))
    method = sensitivity.VARIANTS["pca, 16 dimensions"].method(toy_config(train_size=60, latent_dim=30), data)
    assert method.model.start.projection.shape[0] == 16
    q = method.model.initial_posterior(method.images)
    assert (q.mean[:, :16].std(0) > 0).all()
    assert (q.scale[:, :16] < 1).all()
    assert (q.mean[:, 16:] == 0).all()
    assert (q.scale[:, 16:] == 1).all()


def test_evenly_spaced_temperatures_meet_log_prob_from_the_prior():
    model = linear_gaussian()
    x, z = model.sample(12, seeded(1))
    prior = gaussian(torch.zeros(12, 3).double(), 1.0)
    gap, seconds = accuracy.evenly_spaced(model, x, z, prior, noise=Noise(2), temperatures=400)
    assert abs(float(gap.mean())) < 0.2
    short, _ = accuracy.evenly_spaced(model, x, z, prior, noise=Noise(2), temperatures=2)
    assert short.mean() > 1
    assert seconds > 0


def test_the_temperatures_are_raised_until_the_bounds_meet_or_extrapolated():
    def run(temperatures):
        return torch.full((4,), 100.0 / temperatures), temperatures / 10

    found = accuracy.until_the_bounds_meet(run, 50, limit=1000)
    assert found == ("281", "0.36 ± 0.00", 28.1)
    temperatures, gap, seconds = accuracy.until_the_bounds_meet(run, 50, limit=30)
    assert temperatures == "200 (extrapolated)"
    assert gap == "0.71 ± 0.00 with 141"
    assert seconds == pytest.approx(20)


def test_a_long_fit_finds_the_best_diagonal_normal():
    model = linear_gaussian(pixels=30, latent_dim=4)
    x, _ = model.sample(3, seeded(0))
    best, exact = model.best_diagonal(x)
    start = model.initial_posterior(x)
    found = accuracy.long_fit(model, x, start, steps=600)
    assert (exact - model.elbo(found, x)).max() < 0.02
    torch.testing.assert_close(accuracy.bound(model, x, best), exact, atol=0.2, rtol=0)
