"""Annealed importance sampling and its certificate against linear-Gaussian models, whose log p(x) is known."""

import math

import pytest
import torch
from conftest import linear_gaussian
from torch.distributions import MultivariateNormal, Normal

import gaps
from annealing import (
    Target,
    annealed_importance_sampling,
    bidirectional_bounds,
    linearized_posterior,
    move,
    simulate,
)
from latent_optimization import fit_posterior
from model import seeded_decoder

MODELS = {
    "small": {"pixels": 12, "latent_dim": 3},
    "latent dimension 200": {"pixels": 60, "latent_dim": 200},
    "nearly singular": {"pixels": 20, "latent_dim": 5, "nearly_singular": True},
}


@pytest.fixture(params=MODELS.values(), ids=MODELS.keys())
def model(request):
    return linear_gaussian(**request.param)


def poor(model, x):
    """A q that is off on purpose: the best diagonal Normal moved by half its own width, and a third too wide."""
    best, _ = model.best_diagonal(x)
    return Normal(best.mean + 0.5 * best.stddev, 1.3 * best.stddev, validate_args=False)


def draw(model, *, count=6, seed=1):
    generator = torch.Generator().manual_seed(seed)
    x, z = simulate(
        decode=model.decode,
        count=count,
        latent_dim=model.weight.shape[1],
        generator=generator,
        sigma_p=model.sigma_p,
        dtype=torch.float64,
    )
    return x, z, generator


def settings(model, generator):
    return {"decode": model.decode, "sigma_p": model.sigma_p, "generator": generator, "leapfrog_steps": 5}


def test_annealing_from_a_poor_q_gives_log_p(model):
    x, _, generator = draw(model)
    q = poor(model, x)
    estimate = annealed_importance_sampling(q=q, x=x, chains=32, temperatures=300, **settings(model, generator))
    exact = model.log_prob(x)
    error = estimate.log_prob - exact
    assert (error.abs() < 4 * estimate.standard_error + 1e-9).all()
    # The logarithm of a mean of 32 lies a little below the mean's: half the variance of that mean.
    pooled = error.mean() + 0.5 * estimate.standard_error.square().mean()
    assert pooled.abs() < 3 * estimate.standard_error.square().sum().sqrt() / len(x)
    assert estimate.standard_error.max() < 0.6


def test_the_bounds_enclose_log_p(model):
    x, z, generator = draw(model, seed=2)
    bounds = bidirectional_bounds(q=poor(model, x), x=x, z=z, chains=16, temperatures=300, **settings(model, generator))
    exact = model.log_prob(x)
    below, above = exact - bounds.lower, bounds.upper - exact
    # Each bounds in expectation only.
    for side in (below, above):
        assert side.mean() > -3 * side.std() / math.sqrt(len(x))
        assert side.mean() < 1


def test_short_annealing_is_low_and_backwards_high():
    """With three temperatures neither is near, and the sides show: swapped or without their signs they would fail."""
    model = linear_gaussian(**MODELS["latent dimension 200"])
    x, z, generator = draw(model)
    bounds = bidirectional_bounds(q=poor(model, x), x=x, z=z, chains=4, temperatures=3, **settings(model, generator))
    exact = model.log_prob(x)
    assert (bounds.lower < exact - 1).all()
    assert (bounds.upper > exact + 1).all()


def test_backwards_the_inverse_of_p_is_met_in_the_mean():
    """exp(-w) has mean 1 / p(x), however few the temperatures: what another way to combine the chains would miss."""
    model = linear_gaussian(**MODELS["small"])
    x, z, generator = draw(model, count=400)
    bounds = bidirectional_bounds(q=poor(model, x), x=x, z=z, chains=4, temperatures=3, **settings(model, generator))
    ratio = (model.log_prob(x) - bounds.upper).exp()
    assert abs(float(ratio.mean()) - 1) < 4 * float(ratio.std()) / math.sqrt(len(x))
    assert ratio.std() > 0.1


def test_a_move_leaves_the_posterior_as_it_is():
    """At steps so long that a third is refused: without the refusals the density would drift."""
    model = linear_gaussian(**MODELS["small"])
    x, _, generator = draw(model, count=1)
    q = poor(model, x)
    mean, precision = model.posterior(x)
    posterior = MultivariateNormal(mean[0], precision_matrix=precision)
    count = 20_000
    root = torch.linalg.cholesky(posterior.covariance_matrix)
    z = mean + torch.randn(count, 1, 3, generator=generator, dtype=torch.float64) @ root.T
    target = Target(q=q, x=x, decode=model.decode, sigma_p=model.sigma_p)
    state = target.state((z - q.mean) / q.stddev)
    before = posterior.log_prob(q.mean + q.stddev * state.noise)
    shares = []
    for _ in range(5):
        state, acceptance = move(
            state=state,
            beta=1.0,
            step_size=torch.tensor([1.2], dtype=torch.float64),
            target=target,
            leapfrog_steps=3,
            generator=generator,
        )
        shares.append(float(acceptance.mean()))
    after = posterior.log_prob(q.mean + q.stddev * state.noise)
    assert min(shares) > 0.3
    assert max(shares) < 0.9
    error = math.sqrt((before.var() + after.var()) / count)
    assert abs(float((after - before).mean())) < 4 * error
    torch.testing.assert_close(state.log_weight, target.value(state.noise))


def test_counts_of_chains_at_once_do_not_matter():
    """Chains in blocks of any size are the same estimate but for the draws."""
    model = linear_gaussian(**MODELS["small"])
    x, _, generator = draw(model)
    whole, parts = (
        annealed_importance_sampling(
            q=poor(model, x), x=x, chains=64, temperatures=50, chunk=chunk, **settings(model, generator)
        )
        for chunk in (1000, 24)
    )
    assert whole.log_weights.shape == parts.log_weights.shape == (64, 6)
    error = (whole.standard_error.square() + parts.standard_error.square()).sqrt()
    assert ((whole.log_prob - parts.log_prob).abs() < 4 * error).all()


def test_the_fit_finds_the_best_diagonal_normal(model):
    """To a hundredth of a nat, by the closed form of the bound."""
    x, _, generator = draw(model, count=2)
    _, bound = model.best_diagonal(x)
    fit = fit_posterior(
        x=x,
        decode=model.decode,
        initial=poor(model, x),
        generator=generator,
        sigma_p=model.sigma_p,
        learning_rate=0.01,
        cycle=1000,
        draws=128,
        tolerance=0.001,
        max_cycles=2,
    )
    reached = model.elbo(fit.q, x)
    assert (reached < bound + 1e-9).all()
    assert (bound - reached).max() < 0.01


def test_the_linearized_posterior_of_a_linear_decoder_has_its_covariance(model):
    x, _, generator = draw(model)
    q = poor(model, x)
    found = linearized_posterior(q=q, x=x, decode=model.decode, generator=generator, sigma_p=model.sigma_p)
    _, precision = model.posterior(x)
    torch.testing.assert_close(found.mean, q.mean)
    torch.testing.assert_close(found.precision_matrix, precision.expand(len(x), -1, -1))


def test_a_full_covariance_leaves_annealing_little_to_do():
    """From the exact posterior moved by half its width, where a diagonal q would need far more temperatures."""
    model = linear_gaussian(**MODELS["latent dimension 200"])
    x, z, generator = draw(model)
    best, _ = model.best_diagonal(x)
    full = linearized_posterior(q=best, x=x, decode=model.decode, generator=generator, sigma_p=model.sigma_p)
    spread = {}
    for name, q in (("diagonal", best), ("full", full)):
        case = {"q": q, "x": x, "chains": 16, "temperatures": 20, **settings(model, generator)}
        estimate = annealed_importance_sampling(**case)
        spread[name] = float(estimate.spread.median())
    exact = model.log_prob(x)
    assert spread["full"] < 0.05 < spread["diagonal"]
    assert (estimate.log_prob - exact).abs().max() < 0.1
    bounds = bidirectional_bounds(z=z, **case)
    assert (bounds.upper - bounds.lower).abs().max() < 0.2


@pytest.mark.parametrize("fitted", [False, True])
def test_the_gaps_of_a_linear_model_are_the_exact_ones(fitted, monkeypatch):
    if fitted:
        monkeypatch.setattr(gaps, "fit_posterior", None)  # then nothing is fitted
    model = linear_gaussian(**MODELS["small"])
    x, _, generator = draw(model)
    best, bound = model.best_diagonal(x)
    q = best if fitted else poor(model, x)
    found = gaps.measure(
        q=q,
        x=x,
        decode=model.decode,
        generator=generator,
        sigma_p=model.sigma_p,
        num_samples=4000,
        chains=16,
        temperatures=50,
        fitted=fitted,
    )
    exact, own = model.log_prob(x), model.elbo(q, x)
    torch.testing.assert_close(found.elbo, own, atol=0.15, rtol=0)
    torch.testing.assert_close(found.fitted_elbo, bound, atol=0.15, rtol=0)
    torch.testing.assert_close(found.annealed_log_prob, exact, atol=0.05, rtol=0)
    scores = gaps.summarize(found)
    assert scores["approximation_gap"]["mean"] == pytest.approx((exact - bound).mean().item(), abs=0.1)
    assert scores["amortization_gap"]["mean"] == pytest.approx((bound - own).mean().item(), abs=0.1)
    if fitted:
        assert torch.equal(found.elbo, found.fitted_elbo)
        assert scores["amortization_gap"]["mean"] == 0


def test_a_jacobian_in_low_precision_gives_nearly_the_same_gaussian():
    decoder, generator = seeded_decoder(6, seed=0), torch.Generator().manual_seed(0)
    q = Normal(torch.randn(3, 6, generator=generator), torch.full((3, 6), 0.3))
    x = torch.zeros(3, 1, 28, 28)
    exact, rough = (
        linearized_posterior(
            q=q, x=x, decode=decoder, generator=torch.Generator().manual_seed(1), precision=precision
        ).precision_matrix
        for precision in ("float32", "bfloat16")
    )
    assert rough.dtype == torch.float32
    error = (rough - exact).flatten(1).norm(dim=1) / exact.flatten(1).norm(dim=1)
    assert (error > 0).all()
    assert (error < 0.02).all()
