"""Fitted posteriors against the closed form and quadrature, and the method that uses them."""

import copy
import math
from unittest.mock import Mock

import pytest
import torch
from conftest import LinearGaussian, gaussian, linear_gaussian, linear_with_images, seeded, toy_config, toy_data
from torch.distributions import LowRankMultivariateNormal, MultivariateNormal, kl_divergence

import latent_optimization
import posterior_fit
from latent_optimization import LEAST_NATS, LatentOptimization, probabilistic_pca
from latent_table import LOADING_RATE
from posterior_fit import SEARCH_STEPS, Fit, balanced_noise, fit_posterior
from training import train_epoch
from vae_utils import GaussianPosterior, Noise

LONG = {"averaged_rate": 0.003, "tolerance": 0.01, "max_cycles": 9}


@pytest.fixture
def three():
    return linear_with_images(3, seed=0, pixels=30, latent_dim=4)


def test_a_fit_finds_the_best_diagonal_normal(linear):
    """To a hundredth of a nat, by the closed form of the bound; of 200 dimensions two of six seeds miss it."""
    x, _ = linear.sample(2, seeded(1))
    best, bound = linear.best_diagonal(x)
    torch.testing.assert_close(linear.elbo(best, x), bound)
    fit = fit_posterior(linear, x, linear.poor(x), noise=Noise(3), fit_steps=1200, **LONG)
    reached = linear.elbo(fit.q, x)
    assert (reached < bound + 1e-9).all()
    assert (bound - reached).max() < 0.01
    assert fit.converged.all()
    assert (fit.gradients >= 1200 + 2 * 800).all()


def test_a_fit_of_low_rank_finds_a_posterior_of_low_rank():
    """Three dimensions whose covariance is a diagonal and the square of one column: log p(x) itself is reached."""
    column = torch.tensor([[0.5], [-0.35], [0.3]]).double()
    covariance = torch.diag(torch.tensor([0.05, 0.1, 0.15]).double()) + column @ column.T
    weight = 0.6 * torch.linalg.cholesky(torch.linalg.inv(covariance) - torch.eye(3)).T  # W'W / 0.6^2 = C^-1 - I
    model = LinearGaussian(weight, torch.randn(3, generator=seeded(4)).double(), 0.6)
    x, _ = model.sample(4, seeded(1))
    start = GaussianPosterior(*torch.ones(2, 4, 3).double(), 0.1 * torch.randn(4, 3, 1, generator=seeded(2)).double())
    q = fit_posterior(model, x, start, noise=Noise(3), covariance="low rank", fit_steps=900, **LONG).q
    found = LowRankMultivariateNormal(q.mean, q.factor, q.scale.square())
    divergence = kl_divergence(found, MultivariateNormal(model.posterior(x).mean, covariance))
    assert divergence.max() < 0.06  # a few hundred noisy steps leave so much
    assert (model.log_prob(x) - model.best_diagonal(x)[1]).min() > 0.3  # what a diagonal q lacks
    assert fit_posterior(model, x, start, noise=Noise(3), fit_steps=5).q.is_diagonal


def test_balanced_noise_has_the_exact_first_two_moments_for_every_image_and_is_normal():
    q = gaussian(torch.zeros(4, 6).double(), 1.0)
    for source in (Noise(1), Noise.of_images(1, index=range(4))):
        noise = balanced_noise(500, q, noise=source)
        torch.testing.assert_close(noise.mean(0), q.mean)
        moments = torch.einsum("kbi,kbj->bij", noise, noise) / 500
        torch.testing.assert_close(moments, torch.eye(6).double().expand(4, 6, 6))
        assert not torch.equal(noise[:, 0].abs(), noise[:, 1].abs())  # another order
        assert noise.pow(4).mean() == pytest.approx(3, abs=0.4)


def test_a_fit_works_where_gradients_are_off_and_leaves_none_at_the_weights(three):
    model, x = three
    with torch.no_grad():
        fit = fit_posterior(model, x, model.poor(x), noise=Noise(2), fit_steps=20)
    again = fit_posterior(model, x, model.poor(x), noise=Noise(2), fit_steps=20)
    assert torch.equal(fit.q.mean, again.q.mean)
    assert not again.q.mean.requires_grad
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_fit_says_when_it_has_not_converged(three):
    model, x = three
    options = {"learning_rate": 0.01, "averaged_rate": 0.01, "tolerance": 0.01}  # too slow
    fit = fit_posterior(model, x, model.initial_posterior(x), noise=Noise(0), fit_steps=5, max_cycles=3, **options)
    assert not fit.converged.any()
    assert fit.trace.shape == (4, 3)
    assert (fit.trace.diff(dim=0) > 0).all()
    assert (fit.gradients == 2 * SEARCH_STEPS + 5 + 3 * 5).all()  # a cycle has one step more than dimensions


def test_a_lower_bound_is_no_convergence_and_the_best_q_is_kept(three):
    """Steps so long that the bound falls from that of the best q."""
    model, x = three
    best, bound = model.best_diagonal(x)
    options = {"learning_rate": 2.0, "averaged_rate": 2.0, "max_cycles": 4}
    fit = fit_posterior(model, x, best, noise=Noise(0), fit_steps=9, **options)
    assert not fit.converged.any()
    torch.testing.assert_close(model.elbo(fit.q, x), bound)
    torch.testing.assert_close(fit.trace[-1], fit.trace[0])


def test_a_fits_trace_is_the_bound_however_few_samples_are_taken_at_once(monkeypatch, three):
    monkeypatch.setattr(posterior_fit, "SCORED_AT_ONCE", 15)  # five of 16 draws, and one that is left
    model, x = three
    start = gaussian(torch.zeros(3, 4).double(), 0.1)
    fit = fit_posterior(model, x, start, noise=Noise(1), fit_steps=100)
    torch.testing.assert_close(fit.trace[0], model.elbo(start, x), rtol=0.02, atol=0)
    torch.testing.assert_close(fit.trace[-1], model.elbo(fit.q, x), rtol=0.01, atol=1.5)


def test_unseen_images_are_fitted_in_batches_and_come_back_in_their_order():
    method = LatentOptimization(toy_config(), toy_data())
    method.model = linear_gaussian()
    x, _ = method.model.sample(5, seeded(1))
    fit = method.infer(x, noise=Noise(2), fit_steps=300, batch_size=2)
    assert (method.model.best_diagonal(x)[1] - method.model.elbo(fit.q, x)).max() < 0.1
    assert fit.converged.all()
    assert fit.gradients.shape == (5,)


def test_validation_goes_on_from_where_the_epoch_before_left_it():
    method = LatentOptimization(toy_config(), toy_data())
    elbos = [method.validate(epoch).elbo for epoch in (1, 2, 3)]
    assert elbos[0].shape == (40,)
    assert elbos[0].mean() < elbos[1].mean() < elbos[2].mean()


def of_covariance(covariance, count=4000):
    """Rows (count, P) in float64 whose sample covariance is exactly this one."""
    drawn = torch.randn(count, len(covariance), generator=seeded(1), dtype=torch.float64)
    standard = torch.linalg.qr(drawn - drawn.mean(0))[0] * math.sqrt(count - 1)
    return standard @ torch.linalg.cholesky(covariance.double()).T


def test_the_start_is_the_exact_posterior_of_a_linear_model():
    """The columns of W are orthogonal: the posterior is diagonal, and z has the eigenvalues' order, but for signs."""
    weight = torch.linalg.qr(torch.randn(12, 3, generator=seeded(1), dtype=torch.float64))[0]
    weight *= torch.tensor([9.0, 6.0, 4.0])
    model = LinearGaussian(weight, torch.randn(12, generator=seeded(2), dtype=torch.float64), sigma=0.6)
    images = model.bias + of_covariance(weight @ weight.T + 0.36 * torch.eye(12))
    start = probabilistic_pca(images, 5, 0.36).double()
    x, _ = model.sample(7, seeded(4))
    q, exact = start(x), model.posterior(x)
    torch.testing.assert_close(q.mean[:, :3].abs(), exact.mean.abs(), rtol=1e-4, atol=1e-5)
    variance = exact.scale.square().sum(-1)
    torch.testing.assert_close(q.scale[:, :3].square(), variance, rtol=1e-4, atol=0)
    assert (q.mean[:, 3:] == 0).all()
    assert (q.scale[:, 3:] == 1).all()
    assert start.projection.is_contiguous()  # a file gives it back so; another layout gives other bits


def test_a_dimension_is_used_where_it_carries_enough():
    """Directions whose eigenvalues are a little above and below the threshold."""
    noise = 0.25
    wanted = noise * torch.tensor([2 * LEAST_NATS + 2, 2 * LEAST_NATS + 0.1, 2 * LEAST_NATS - 0.1]).exp()
    images = of_covariance(torch.cat((wanted, torch.full((3,), noise))).diag())
    start = probabilistic_pca(images, 4, noise)
    assert (start.stddev < 1).tolist() == [True, True, False, False]
    assert (probabilistic_pca(images, 1, noise).stddev < 1).tolist() == [True]
    assert (probabilistic_pca(images, 4, 1e4).stddev == 1).all()  # noise that hides all


def test_without_a_noise_of_the_likelihood_it_is_estimated():
    """Probabilistic PCA's estimate for as many dimensions as are kept: here the two of eigenvalues 36 and 16."""
    images = of_covariance(torch.tensor([36.0, 0.5, 16.0, *[0.4, 0.6] * 20]).diag())
    expected = torch.tensor([(0.5 / 36) ** 0.5, (0.5 / 16) ** 0.5, 1, 1])
    torch.testing.assert_close(probabilistic_pca(images, 4).stddev, expected, rtol=1e-5, atol=0)
    few = torch.randn(60, 784, generator=seeded(1))
    for noise in (1.0, None):  # the noise of few images is no dimension
        assert (probabilistic_pca(few, 200, noise).stddev == 1).all()


@pytest.mark.parametrize("likelihood", ["gaussian", "bernoulli"])
def test_rows_and_fits_of_unseen_images_start_alike(likelihood, monkeypatch):
    data, rows = toy_data(binary=likelihood == "bernoulli"), torch.tensor([3, 77])
    x = data.train.images[rows]
    monkeypatch.setattr(latent_optimization, "fit_posterior", lambda model, x, q, **options: Fit.given(q))
    for start in ("pca", "zero", "normal"):
        config = toy_config(likelihood=likelihood, latent_start=start)
        method = LatentOptimization(config, data)
        one, other = (Noise.of_images(config.seed, "start", index=data.train.index[rows]) for _ in range(2))
        expected = method.model.initial_posterior(x, one)
        for q in (method.posterior(None, rows), method.infer(x, noise=other).q):
            torch.testing.assert_close(q.mean, expected.mean)
            torch.testing.assert_close(q.scale, expected.scale)
        assert bool(q.mean[0].ne(q.mean[1]).any()) == (start != "zero")
    with pytest.raises(ValueError, match="needs a Noise"):
        method.model.initial_posterior(x)


@pytest.mark.parametrize("likelihood", ["gaussian", "bernoulli"])
def test_the_start_is_better_than_zero(likelihood):
    data, ends = toy_data(binary=likelihood == "bernoulli"), []
    for start in ("pca", "zero"):
        method = LatentOptimization(toy_config(likelihood=likelihood, latent_start=start, epochs=6), data)
        ends.append([train_epoch(method, epoch)["train_elbo"] for epoch in range(1, 7)][-1])
    assert ends[0] > ends[1] + 0.5


@pytest.mark.parametrize("rank", [0, 2])
def test_further_steps_are_those_of_adam_on_the_rows_and_leave_the_decoder(rank):
    """A visit of three steps, against dense Adam and autograd written out."""
    config, data = toy_config(latent_steps=3, latent_rank=rank, beta=1.0), toy_data()
    method = LatentOptimization(config, data)
    rows, noise = torch.arange(40, 72), method.draw_noise(32, seeded(1))
    assert noise.shape == (3, 32, 5)
    parts = [value.clone().requires_grad_() for value in method.table.current()]
    rates = [rate * config.latent_learning_rate for rate in (1, 1, LOADING_RATE)]
    adam = torch.optim.Adam([{"params": [part], "lr": rate} for part, rate in zip(parts, rates, strict=False)])
    decoder = copy.deepcopy(method.model.decoder)
    for e in noise:
        adam.zero_grad()
        q = GaussianPosterior.from_log_var(*(part[rows] for part in parts))
        assert rank == 0 or 0 < (q.factor / q.scale.unsqueeze(-1)).std() < 0.02
        (q.kl().sum() - method.model.log_likelihood(data.train.images[rows], q.rsample(e)).sum()).backward()
        adam.step()
    assert method.table.rows.shape == (150, 3, (2 + rank) * 5)
    method.optimizers[0].step = lambda: None
    method.train_step(rows, noise)
    for own, expected in zip(method.table.current(), parts, strict=True):
        torch.testing.assert_close(own, expected, atol=1e-4, rtol=0)
    assert int(method.table.steps) == 3
    assert all(map(torch.equal, decoder.parameters(), method.model.decoder.parameters()))
    assert all(parameter.requires_grad for parameter in method.model.parameters())


@pytest.mark.parametrize("latent_steps", [1, 3])
def test_what_is_frozen_stays_frozen(latent_steps):
    method = LatentOptimization(toy_config(latent_steps=latent_steps), toy_data())
    first, *_ = method.model.decoder.layers
    first.requires_grad_(False)
    before, rows = first.weight.clone(), method.table.rows.clone()
    train_epoch(method, 1)
    assert torch.equal(first.weight, before)
    assert not any(weight.requires_grad for weight in first.parameters())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(method, "backward", Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            train_epoch(method, 2)
    assert sum(weight.requires_grad for weight in method.model.parameters()) > 3
    method.model.requires_grad_(False)  # the rows alone
    weights = [weight.clone() for weight in method.model.parameters()]
    train_epoch(method, 2)
    assert all(map(torch.equal, weights, method.model.parameters()))
    assert not torch.equal(method.table.rows, rows)
