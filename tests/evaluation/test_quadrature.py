"""Integrals over one or two dimensions, and fits where a posterior has several modes."""

import math
from functools import partial

import pytest
import torch
from conftest import SIGMA, LinearGaussian, gaussian, seeded
from torch import nn
from torch.distributions import Normal

from evaluation.log_prob import bound_log_prob, estimate_log_prob
from evaluation.quadrature import integrate
from model import Gaussian, LatentVariableModel
from posterior_fit import fit_diagonal, fit_posterior
from runtime.config import EvalConfig
from vae_utils import GaussianPosterior, Noise


class Even(nn.Module):
    """A decoder that draws three pixels for each dimension of z from the feature of that dimension alone."""

    def __init__(self, feature, latent_dim):
        super().__init__()
        self.feature = feature
        self.slope = nn.Parameter(0.5 + torch.rand(latent_dim, 3, generator=seeded(3), dtype=torch.float64))

    def forward(self, z):
        return (self.feature(z).unsqueeze(-1) * self.slope).flatten(-2)


class EvenModel(LatentVariableModel):
    """log p(x) is a sum of one-dimensional integrals, since no pixel depends on two dimensions of z."""

    def __init__(self, feature, latent_dim, sigma=SIGMA):
        super().__init__(Even(feature, latent_dim), Gaussian(sigma), latent_dim=latent_dim)

    @torch.no_grad()
    def log_prob(self, x, points=40_001):
        """log p(x), (B,), by the trapezoidal rule."""
        axis = torch.linspace(-9, 9, points, dtype=torch.float64)
        z = axis.unsqueeze(1).expand(points, self.latent_dim)
        drawn = self.decoder.feature(z).unsqueeze(-1) * self.decoder.slope  # (points, D, 3)
        log_likelihood = Normal(drawn, self.likelihood.sigma).log_prob(x.view(len(x), 1, self.latent_dim, 3)).sum(-1)
        log_prior = Normal(0.0, 1.0).log_prob(axis) + math.log(18 / (points - 1))
        return (log_likelihood + log_prior[:, None]).logsumexp(1).sum(-1)


FEATURES = {"square": torch.square, "sine": lambda z: torch.sin(3 * z), "absolute value": torch.abs}


def estimate(model, x):
    q = gaussian(torch.zeros(len(x), model.latent_dim).double(), 1.0)
    return estimate_log_prob(model, x, q, noise=Noise(0), config=EvalConfig())


@pytest.mark.parametrize("sigma", [SIGMA, 0.01])  # 0.01: modes far narrower than the first cells
@pytest.mark.parametrize("latent_dim", [1, 2])
@pytest.mark.parametrize("feature", FEATURES.values(), ids=FEATURES.keys())
def test_one_or_two_dimensions_are_integrated(feature, latent_dim, sigma):
    model = EvenModel(feature, latent_dim, sigma)
    x, z = model.sample(8, seeded(1))
    found, exact = estimate(model, x), model.log_prob(x)
    assert ((found["log_prob"] - exact).abs() <= found["log_prob_standard_error"]).all()
    assert (found["log_prob_standard_error"] < 0.01).all()
    assert (found["temperatures"] == 0).all()
    assert found["trusted"].all()
    lower, upper = bound_log_prob(model, x[:2], z[:2], noise=Noise(0), config=EvalConfig())
    assert ((lower <= exact[:2]) & (exact[:2] <= upper) & (upper - lower < 0.01)).all()


def test_the_grid_grows_until_it_holds_the_posterior():
    """A posterior 20 standard deviations from the prior's mean, far narrower than a cell of the grid."""
    model = LinearGaussian(torch.full((9, 1), 2.0).double(), torch.zeros(9).double(), sigma=0.02)
    x = 2.0 * torch.tensor([[20.0], [0.0], [-11.0]]).double().expand(3, 9)
    found, error = integrate(model, x)
    assert ((found - model.log_prob(x)).abs() <= error).all()
    assert (error < 0.01).all()


def test_the_error_of_a_large_integral_is_that_of_its_type():
    model = LinearGaussian(torch.full((256, 1), 0.1).double(), torch.zeros(256).double(), sigma=0.01)
    x = torch.rand(4, 256, generator=seeded(1)) - 0.5
    exact = model.log_prob(x.double())
    found, error = integrate(model.float(), x)
    assert exact.max() < -5e4
    assert ((found - exact).abs() <= error).all()
    assert (error < 0.1).all()


def test_an_integral_without_a_value_is_not_trusted():
    model = EvenModel(torch.square, 2)
    x, _ = model.sample(2, seeded(1))
    x[1, 0] = 1e200  # its square is infinite
    found = estimate(model, x)
    assert found["trusted"].tolist() == [True, False]
    assert found["log_prob_standard_error"][1] == math.inf


def test_a_fit_leaves_a_worse_mode_and_stays_at_the_better_one():
    """Three features (z - 0.5)^2, eight modes; a fit from the farthest stays there unless it also begins elsewhere."""
    model = EvenModel(lambda z: (z - 0.5).square(), 3)
    x = model.mean(torch.full((5, 3), 2.0).double()).detach()  # z is 2 or, nearer to the mean of the prior, -1
    worse, better = (gaussian(torch.full((5, 3), z).double(), 0.1) for z in (2.0, -1.0))

    def fit(function, start, rows):
        return function(model, x[rows], start[rows], noise=Noise.of_images(0, index=rows), fit_steps=60).q.mean

    every, few = torch.arange(5), torch.tensor([3, 1])
    found = fit(fit_posterior, worse, every)
    assert (fit(fit_diagonal, worse, every) > 1.5).all()
    assert (found < -0.5).all()
    torch.testing.assert_close(fit(fit_posterior, worse, few), found[few])
    stays = fit(fit_diagonal, better, every)
    torch.testing.assert_close(fit(fit_posterior, better, every), stays, atol=0.05, rtol=0)
    with_factor = GaussianPosterior(worse.mean, worse.scale, torch.full((5, 3, 1), 0.01).double())
    found = fit(partial(fit_posterior, covariance="low rank"), with_factor, every)
    assert (found < -0.5).all()
