"""The studies in benchmarks/: the candidates and variants are what they say, on toy data."""

import pytest
import torch
from conftest import linear_gaussian, seeded, toy_config, toy_data
from torch.distributions import Normal

from amortized_vae import AmortizedVAE
from benchmarks import accuracy, networks, sensitivity
from data import Data, Split
from latent_optimization import LatentOptimization


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


def test_further_steps_move_the_table_and_not_the_decoder():
    config, data = toy_config(), toy_data()
    once, often = LatentOptimization(config, data), sensitivity.StepsPerVisit(config, data)
    often.further_steps = 0
    rows, noise = torch.arange(32), torch.randn(32, 5, generator=seeded(1))
    assert torch.equal(once.train_step(rows, noise), often.train_step(rows, noise))
    often.further_steps = 3
    decoder = [parameter.clone() for parameter in often.model.parameters()]
    often.optimizers[0].step = lambda: None
    often.train_step(rows, noise)
    assert all(torch.equal(one, other) for one, other in zip(decoder, often.model.parameters(), strict=True))
    assert int(often.table.steps) == 1 + 4
    assert all(parameter.requires_grad for parameter in often.model.parameters())


def test_evenly_spaced_temperatures_meet_log_prob_from_the_prior():
    model = linear_gaussian()
    x, z = model.sample(12, seeded(1))
    prior = Normal(torch.zeros(12, 3).double(), torch.ones(12, 3).double())
    gap, seconds = accuracy.evenly_spaced(model, x, z, prior, generator=seeded(2), temperatures=400)
    assert abs(float(gap.mean())) < 0.2
    short, _ = accuracy.evenly_spaced(model, x, z, prior, generator=seeded(2), temperatures=2)
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
