"""Fitted posteriors against the closed form and quadrature, and the method that uses them."""

import pytest
import torch
from conftest import linear_gaussian, seeded, toy_config, toy_data
from torch.distributions import Normal

import posterior_fit
from latent_optimization import LatentOptimization
from posterior_fit import balanced_noise, fit_posterior
from vae_utils import image_generators, select


def test_a_fit_finds_the_best_diagonal_normal(linear):
    """To a hundredth of a nat, by the closed form of the bound."""
    x, _ = linear.sample(2, seeded(1))
    best, bound = linear.best_diagonal(x)
    torch.testing.assert_close(linear.elbo(best, x), bound)
    settings = {"fit_steps": 1200, "averaged_rate": 0.003, "tolerance": 0.01, "max_cycles": 9}
    fit = fit_posterior(linear, x, linear.poor(x), generator=seeded(2), **settings)
    reached = linear.elbo(fit.q, x)
    assert (reached < bound + 1e-9).all()
    assert (bound - reached).max() < 0.01
    assert fit.converged.all()
    assert (fit.gradients >= 1200 + 2 * 800).all()


@pytest.mark.parametrize("generator", [seeded(1), [seeded(number) for number in range(4)]])
def test_balanced_noise_has_the_exact_first_two_moments_for_every_image(generator):
    noise = balanced_noise(7, Normal(torch.zeros(4, 6).double(), 1.0), generator=generator)
    torch.testing.assert_close(noise.mean(0), torch.zeros(4, 6).double())
    moments = torch.einsum("kbi,kbj->bij", noise, noise) / 7
    torch.testing.assert_close(moments, torch.eye(6).double().expand(4, 6, 6))
    first, second = noise[:, 0], noise[:, 1]
    assert not torch.equal(first, second)
    assert not torch.equal(first.abs(), second.abs())  # another order, too


def test_balanced_noise_is_normal_where_it_has_many_draws():
    noise = balanced_noise(500, Normal(torch.zeros(40, 2).double(), 1.0), generator=seeded(0))
    assert noise.abs().max() > 2.5
    assert noise.pow(4).mean() == pytest.approx(3, abs=0.4)


def test_what_a_fit_finds_for_an_image_depends_on_no_other():
    """Alone, and beside images that converge before it, with a generator for each."""
    model = linear_gaussian(pixels=30, latent_dim=4)
    x, _ = model.sample(3, seeded(0))
    x[2] *= 30
    index, start = torch.tensor([7, 3, 9]), model.initial_posterior(x)

    def fit(rows):
        own = image_generators(1, "a fit", index=index[rows])
        return fit_posterior(model, x[rows], select(start, rows), generator=own, fit_steps=30, tolerance=0.05)

    together, alone = fit(torch.arange(3)), fit(torch.tensor([2]))
    assert together.gradients[2] > together.gradients[0]
    assert together.gradients[2] == alone.gradients[0]
    torch.testing.assert_close(together.q.mean[2:], alone.q.mean)
    torch.testing.assert_close(together.trace[: len(alone.trace), 2:], alone.trace)


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
    start = model.initial_posterior(x)
    options = {"learning_rate": 0.01, "averaged_rate": 0.01, "tolerance": 0.01}  # too slow
    fit = fit_posterior(model, x, start, generator=seeded(0), fit_steps=5, max_cycles=3, **options)
    assert not fit.converged.any()
    assert fit.trace.shape == (4, 3)
    assert (fit.trace.diff(dim=0) > 0).all()
    assert (fit.gradients == 5 + 3 * 5).all()  # a cycle has one step more than dimensions


def test_a_lower_bound_is_no_convergence_and_the_best_q_is_kept():
    """Steps so long that the bound falls from that of the best q."""
    model = linear_gaussian(pixels=30, latent_dim=4)
    x, _ = model.sample(3, seeded(0))
    best, bound = model.best_diagonal(x)
    options = {"learning_rate": 2.0, "averaged_rate": 2.0, "max_cycles": 4}
    fit = fit_posterior(model, x, best, generator=seeded(0), fit_steps=9, **options)
    assert not fit.converged.any()
    torch.testing.assert_close(model.elbo(fit.q, x), bound)
    torch.testing.assert_close(fit.trace[-1], fit.trace[0])


@pytest.mark.parametrize("at_once", [500, 15])  # all 16 draws together; five, and one that is left
def test_a_fits_trace_is_the_bound_however_many_samples_are_taken_at_once(monkeypatch, at_once):
    monkeypatch.setattr(posterior_fit, "SCORED_AT_ONCE", at_once)
    model = linear_gaussian(pixels=30, latent_dim=4)
    x, _ = model.sample(3, seeded(0))
    start = Normal(torch.zeros(3, 4).double(), 0.1)
    fit = fit_posterior(model, x, start, generator=seeded(1), fit_steps=100)
    torch.testing.assert_close(fit.trace[0], model.elbo(start, x), rtol=0.02, atol=0)
    torch.testing.assert_close(fit.trace[-1], model.elbo(fit.q, x), rtol=0.01, atol=1.5)


def test_unseen_images_are_fitted_in_batches_and_come_back_in_their_order():
    method = LatentOptimization(toy_config(), toy_data())
    method.model = linear_gaussian()
    x, _ = method.model.sample(5, seeded(1))
    fit = method.infer(x, generator=seeded(2), fit_steps=300, batch_size=2)
    _, bound = method.model.best_diagonal(x)
    assert (bound - method.model.elbo(fit.q, x)).max() < 0.1
    assert fit.converged.all()
    assert fit.gradients.shape == (5,)


def test_validation_goes_on_from_where_the_epoch_before_left_it():
    method = LatentOptimization(toy_config(), toy_data())
    elbos = [method.validate(epoch).elbo for epoch in (1, 2, 3)]
    assert elbos[0].shape == (40,)
    assert elbos[0].mean() < elbos[1].mean() < elbos[2].mean()
