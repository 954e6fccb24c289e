"""log p(x) where posteriors have several modes, against one-dimensional quadrature and closed forms."""

import math

import pytest
import torch
from conftest import SIGMA, LinearGaussian, gaussian, linear_gaussian, seeded
from scipy.stats import t
from torch import nn
from torch.distributions import Normal

from evaluation import modes
from evaluation.ais import AISEstimate, annealed_importance_sampling
from evaluation.modes import estimate_log_prob, find_modes
from evaluation.quadrature import integrate
from model import Gaussian, LatentVariableModel
from posterior_fit import fit_posterior, gauss_newton_posterior
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


def absolute_first(z):
    """|z| of the first dimension and z of the others: two modes, however many the dimensions."""
    return torch.cat((z[..., :1].abs(), z[..., 1:]), dim=-1)


FEATURES = {"square": torch.square, "sine": lambda z: torch.sin(3 * z), "absolute value": torch.abs}


def images_of(model, count):
    return model.sample(count, seeded(1))[0]


def estimate(model, x, index=None, *, fit_steps=100, chains=6, log_weight_std=0.7):
    noise = Noise.of_images(3, "modes", index=torch.arange(len(x)) if index is None else index)
    options = {"noise": noise, "fit_steps": fit_steps}
    q = fit_posterior(model, x, model.initial_posterior(x), **options).q
    full = fit_posterior(model, x, q, covariance="full", **options).q
    return estimate_log_prob(model, x, q, full, chains=chains, log_weight_std=log_weight_std, **options)


@pytest.mark.parametrize("sigma", [SIGMA, 0.01])  # 0.01: modes far narrower than the first cells
@pytest.mark.parametrize("latent_dim", [1, 2])
@pytest.mark.parametrize("feature", FEATURES.values(), ids=FEATURES.keys())
def test_one_or_two_dimensions_are_integrated(feature, latent_dim, sigma):
    model = EvenModel(feature, latent_dim, sigma)
    x = images_of(model, 8)
    found = estimate(model, x)
    assert ((found["log_prob"] - model.log_prob(x)).abs() <= found["log_prob_standard_error"]).all()
    assert (found["log_prob_standard_error"] < 0.01).all()
    assert (found["modes"] == 0).all()
    assert found["trusted"].all()


def test_the_grid_grows_until_it_holds_the_posterior():
    """A posterior 20 standard deviations from the prior's mean, far narrower than a cell of the grid."""
    model = LinearGaussian(torch.full((9, 1), 2.0).double(), torch.zeros(9).double(), sigma=0.02)
    x = 2.0 * torch.tensor([[20.0], [0.0], [-11.0]]).double().expand(3, 9)
    found, error = integrate(model, x)
    assert ((found - model.log_prob(x)).abs() <= error).all()
    assert (error < 0.01).all()


@pytest.mark.parametrize("name", ["square", "sine"])
def test_the_intervals_of_five_dimensions_hold_log_prob(name):
    """Up to 32 modes that are alike, and thousands."""
    model = EvenModel(FEATURES[name], 5)
    x = images_of(model, 20)
    found = estimate(model, x)
    allowed = t.ppf(0.975, 5) * found["log_prob_standard_error"] + found["log_prob_bias"].abs()
    assert ((found["log_prob"] - model.log_prob(x)).abs() < allowed).sum() >= 18
    assert found["log_prob_standard_error"].median() < 0.6


def test_the_shares_of_two_modes_add_up(monkeypatch):
    """Of 12 dimensions: annealing from one mode misses the other, half of p(x)."""
    monkeypatch.setattr(modes, "STARTS", 8)
    model = EvenModel(absolute_first, 12, sigma=0.3)
    x = images_of(model, 8)
    exact, found, noise = model.log_prob(x), estimate(model, x), Noise(0)
    several = found["modes"] == 2
    assert several.sum() >= 4
    assert ((found["log_prob"] - exact).abs() < 4 * found["log_prob_standard_error"] + 0.02).all()
    q = fit_posterior(model, x, model.initial_posterior(x), noise=noise).q
    alone = annealed_importance_sampling(model, x, gauss_newton_posterior(model, x, q, noise=noise), noise=noise)
    assert (exact - alone.log_prob)[several].mean() == pytest.approx(math.log(2), abs=0.2)


def test_the_shares_of_gaussians_that_overlap_add_up_too():
    """Three in one mode, off its centre on purpose: each alone would find all of p(x)."""
    model = linear_gaussian()
    x, _ = model.sample(5, seeded(1))
    posterior, rows = model.posterior(x), torch.arange(5).repeat(3)
    scale = posterior.scale[rows] * torch.tensor([0.8, 1.0, 1.3]).repeat_interleave(5)[:, None, None]
    shift = torch.tensor([-0.5, 0.0, 0.9]).repeat_interleave(5)[:, None]
    stddev = posterior.scale.square().sum(-1).sqrt()[rows]
    full = GaussianPosterior(posterior.mean[rows] + shift * stddev, scale)
    options = {"noise": Noise(2), "chains": 100, "temperatures": 60, "mixture": modes._mixtures(full, rows)}
    found = annealed_importance_sampling(model, x[rows], full, **options)
    shares = found.log_prob.view(3, 5) - model.log_prob(x)
    torch.testing.assert_close(shares.logsumexp(0), torch.zeros(5).double(), atol=0.03, rtol=0)
    assert (shares < -0.3).all()


def of_modes(log_prob, std, error):
    """An AISEstimate of the modes of one image."""
    bias, acceptance, temperatures = ([value] * len(std) for value in (0.0, 0.9, 50))
    values = (log_prob, error, bias, std, acceptance, temperatures, std)
    return AISEstimate(*(torch.tensor(value).double() for value in values))


@pytest.mark.parametrize("std", [5.0, math.inf])
def test_a_mode_that_is_badly_annealed_is_no_small_share(std):
    """It comes out low, which makes its share small, and its log-weights are as wide as the image's."""
    owner = torch.zeros(2, dtype=torch.int64)
    found = modes._combine(of_modes([-100.0, -106.0], [0.5, std], [0.2, 3.0]), owner, 1)
    assert not found.trusted.any()
    good = modes._combine(of_modes([-100.0, -106.0], [0.5, 0.6], [0.2, 0.2]), owner, 1)
    assert good.trusted.all()
    assert float(good.log_prob) == pytest.approx(math.log(math.exp(-100) + math.exp(-106)))


def test_the_pilot_and_not_the_result_decides_what_is_taken():
    """Chains from the prior are sure of the first image; not of the others, where they find two nats more, or less."""
    estimate = of_modes([-9.0, -9.0, -9.0], [0.5] * 3, [0.1] * 3)
    from_prior = of_modes([-11.0, -7.0, -11.0], [0.0, 9.0, 9.0], [0.3] * 3)
    assert modes._take_better(estimate, from_prior, torch.arange(3)).tolist() == [0]
    assert estimate.log_prob.tolist() == [-11, -9, -9]
    assert estimate.standard_error.tolist() == pytest.approx([0.3, 2, 0.1])


def test_an_integral_without_a_value_is_not_trusted():
    model = EvenModel(torch.square, 2)
    x = images_of(model, 2)
    x[1, 0] = 1e200  # its square is infinite
    q = gaussian(torch.zeros(2, 2).double(), 1.0)
    found = estimate_log_prob(model, x, q, q, noise=Noise(0))
    assert found["trusted"].tolist() == [True, False]
    assert found["log_prob_standard_error"][1] == math.inf


def test_a_posterior_of_one_mode_is_not_split():
    model = linear_gaussian(pixels=30, latent_dim=12)
    x, _ = model.sample(4, seeded(1))
    best, _ = model.best_diagonal(x)
    owner, found, noise = find_modes(model, x, best, noise=Noise(2))
    assert owner.tolist() == [0, 1, 2, 3]
    assert found is best
    assert noise.images is None


@pytest.mark.parametrize("latent_dim", [5, 12])
def test_what_is_found_for_an_image_depends_on_no_other(latent_dim):
    model = EvenModel(torch.square, latent_dim, sigma=0.4)
    x, rows, rough = images_of(model, 3), torch.tensor([2, 0]), {"fit_steps": 20, "chains": 2, "log_weight_std": 2.0}
    together, alone = estimate(model, x, **rough), estimate(model, x[rows], index=rows, **rough)
    assert together["modes"].max() > 1 or latent_dim == 5
    for name, column in together.items():
        torch.testing.assert_close(column[rows], alone[name])
