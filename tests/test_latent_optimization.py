"""Fitted posteriors against the closed form and quadrature, and the method that uses them."""

import pytest
import torch
from conftest import linear_gaussian, seeded, toy_config, toy_data
from torch.distributions import Normal

import latent_optimization
from latent_optimization import LatentOptimization, fit_posterior, initial_posterior


def test_a_fit_finds_the_best_diagonal_normal(linear):
    """To a hundredth of a nat, by the closed form of the bound."""
    x, _ = linear.sample(2, seeded(1))
    best, bound = linear.best_diagonal(x)
    torch.testing.assert_close(linear.elbo(best, x), bound)
    fit = fit_posterior(
        linear,
        x,
        linear.poor(x),
        generator=seeded(2),
        learning_rate=0.01,
        fit_steps=1000,
        draws=128,
        tolerance=0.001,
        max_cycles=2,
    )
    reached = linear.elbo(fit.q, x)
    assert (reached < bound + 1e-9).all()
    assert (bound - reached).max() < 0.01
    assert fit.gradients == 128 * 1000 * (len(fit.trace) - 1)


def test_a_fit_raises_the_bound_but_not_above_log_prob(nonlinear):
    x, _ = nonlinear.sample(8, seeded(1))
    start = nonlinear.poor(x)
    fit = fit_posterior(nonlinear, x, start, generator=seeded(2), fit_steps=150)
    reached = nonlinear.elbo(fit.q, x)
    assert (reached > nonlinear.elbo(start, x)).all()
    assert (reached < nonlinear.log_prob(x)).all()


def test_a_fit_works_where_gradients_are_off_and_leaves_none_at_the_weights():
    model = linear_gaussian()
    x, _ = model.sample(3, seeded(1))
    with torch.no_grad():
        fit = fit_posterior(model, x, model.poor(x), generator=seeded(2), fit_steps=20)
    again = fit_posterior(model, x, model.poor(x), generator=seeded(2), fit_steps=20)
    assert torch.equal(fit.q.mean, again.q.mean)
    assert not again.q.mean.requires_grad
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_fit_says_when_it_has_not_converged():
    model = linear_gaussian(pixels=30, latent_dim=4)
    x, _ = model.sample(3, seeded(0))
    start = initial_posterior(3, 4, dtype=torch.float64)
    fit = fit_posterior(model, x, start, generator=seeded(0), fit_steps=5, max_cycles=1)
    assert not fit.converged
    assert fit.trace.shape == (2, 3)
    assert (fit.trace[1] > fit.trace[0]).all()


@pytest.mark.parametrize("at_once", [500, 15])  # all 16 draws together; five, and one that is left
def test_a_fits_trace_is_the_bound_however_many_samples_are_taken_at_once(monkeypatch, at_once):
    monkeypatch.setattr(latent_optimization, "SCORED_AT_ONCE", at_once)
    model = linear_gaussian(pixels=30, latent_dim=4)
    x, _ = model.sample(3, seeded(0))
    start = Normal(torch.zeros(3, 4).double(), 0.1)
    fit = fit_posterior(model, x, start, generator=seeded(1), fit_steps=100)
    torch.testing.assert_close(fit.trace[0], model.elbo(start, x), rtol=0.02, atol=0)
    torch.testing.assert_close(fit.trace[-1], model.elbo(fit.q, x), rtol=0, atol=1.5)


def test_unseen_images_are_fitted_in_batches_and_come_back_in_their_order():
    method = LatentOptimization(toy_config(), toy_data())
    method.model = linear_gaussian()
    x, _ = method.model.sample(5, seeded(1))
    fit = method.infer(x, generator=seeded(2), fit_steps=300, batch_size=2)
    _, bound = method.model.best_diagonal(x)
    assert (bound - method.model.elbo(fit.q, x)).max() < 0.1
    assert fit.converged


def test_validation_goes_on_from_where_the_epoch_before_left_it():
    method = LatentOptimization(toy_config(), toy_data())
    elbos = [method.validate(epoch).elbo for epoch in (1, 2, 3)]
    assert elbos[0].shape == (40,)
    assert elbos[0].mean() < elbos[1].mean() < elbos[2].mean()
