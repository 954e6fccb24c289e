"""Annealed importance sampling and its certificate against linear-Gaussian models, whose log p(x) is known."""

import math

import pytest
import torch
from conftest import linear_gaussian
from torch.distributions import Normal

from annealing import annealed_importance_sampling, bidirectional_bounds, simulate

IMAGES = 12
MODELS = {
    "small": {"pixels": 12, "latent_dim": 3},
    "latent dimension 200": {"pixels": 60, "latent_dim": 200},
    "nearly singular": {"pixels": 20, "latent_dim": 5, "nearly_singular": True},
}


@pytest.fixture(params=MODELS.values(), ids=MODELS.keys())
def model(request):
    return linear_gaussian(**request.param)


def poor(model, x, *, shift=0.7, width=1.5):
    """A q that is off on purpose: the best diagonal Normal, moved by `shift` of its own widths and too wide."""
    best, _ = model.best_diagonal(x)
    return Normal(best.mean + shift * best.stddev, width * best.stddev, validate_args=False)


def draw(model, seed=1):
    generator = torch.Generator().manual_seed(seed)
    x, z = simulate(
        decode=model.decode,
        count=IMAGES,
        latent_dim=model.weight.shape[1],
        generator=generator,
        sigma_p=model.sigma_p,
        dtype=torch.float64,
    )
    return x, z, generator


def test_annealing_from_a_poor_q_gives_log_p(model):
    x, _, generator = draw(model)
    estimate = annealed_importance_sampling(
        q=poor(model, x),
        x=x,
        decode=model.decode,
        generator=generator,
        sigma_p=model.sigma_p,
        chains=32,
        temperatures=200,
    )
    exact = model.log_prob(x)
    # p(x) itself is the unbiased estimate; log p(x) lies below by about half the variance over the chains.
    ratio = (estimate.log_weights - exact).exp()  # (K, B), of mean one
    error = ratio.std(0) / math.sqrt(len(ratio))
    assert ((ratio.mean(0) - 1).abs() < 4 * error + 1e-9).all()
    total = ratio.mean() - 1
    print(
        "AIS",
        (estimate.log_prob - exact),
        estimate.spread,
        estimate.acceptance,
        float(total),
        float(error.square().mean().sqrt() / math.sqrt(IMAGES)),
    )
    assert total.abs() < 3 * error.square().mean().sqrt() / math.sqrt(IMAGES)


def test_the_bounds_enclose_log_p(model):
    x, z, generator = draw(model, seed=2)
    lower, upper = bidirectional_bounds(
        q=poor(model, x),
        x=x,
        z=z,
        decode=model.decode,
        generator=generator,
        sigma_p=model.sigma_p,
        chains=16,
        temperatures=200,
    )
    exact = model.log_prob(x)
    print("BD", (exact - lower), (upper - exact))
