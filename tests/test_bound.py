"""The bound, its parts and importance sampling against closed forms and scikit-learn."""

import math

import numpy as np
import pytest
import torch
from conftest import linear_gaussian
from sklearn.decomposition import PCA
from torch.distributions import Normal

from model import ConvVAE
from vae_utils import elbo, evaluate, importance_sampling, kl, log_likelihood, mean_and_error, random_generator

CEILING = -392 * math.log(2 * math.pi * 0.4**2)


def exact_posterior(model, x):
    """p(z|x) of a LinearGaussian with orthogonal columns, whose posterior is diagonal."""
    mean, precision = model.posterior(x)
    assert torch.allclose(precision, torch.diag(precision.diagonal()))
    return Normal(mean, precision.diagonal().rsqrt().expand_as(mean))


def test_log_likelihood_is_the_normal_log_density():
    x, x_mean = torch.rand(3, 1, 28, 28).double(), torch.rand(5, 3, 1, 28, 28).double()
    expected = Normal(x_mean, 0.7).log_prob(x).sum((-3, -2, -1))
    assert torch.allclose(log_likelihood(x=x, x_mean=x_mean, sigma_p=0.7), expected)
    assert torch.allclose(log_likelihood(x=x, x_mean=x_mean[0], sigma_p=0.7), expected[0])


def test_log_likelihood_reaches_its_ceiling_at_a_perfect_mean():
    x = torch.rand(2, 1, 28, 28)
    assert log_likelihood(x=x, x_mean=x).tolist() == pytest.approx([CEILING] * 2)
    assert pytest.approx(-2.08, abs=0.005) == CEILING


def test_kl_is_the_closed_form():
    mean, log_var = torch.randn(4, 3).double(), torch.randn(4, 3).double()
    expected = 0.5 * (mean**2 + log_var.exp() - log_var - 1).sum(-1)
    assert torch.allclose(kl(Normal(mean, (log_var / 2).exp())), expected)


@pytest.mark.parametrize(("pixels", "latent_dim"), [(5, 2), (784, 200)])
def test_exact_posterior_has_no_variance(pixels, latent_dim):
    model = linear_gaussian(pixels=pixels, latent_dim=latent_dim, orthogonal=True)
    generator = random_generator(1)
    x = model.sample(6, generator)
    estimate = importance_sampling(
        q=exact_posterior(model, x),
        x=x,
        decode=model.decode,
        generator=generator,
        sigma_p=model.sigma_p,
        num_samples=1,
    )
    exact = model.log_prob(x)
    assert torch.allclose(estimate.log_prob, exact, rtol=0, atol=1e-8)
    assert torch.allclose(estimate.elbo, exact, rtol=0, atol=1e-8)
    assert torch.allclose(estimate.effective_sample_size, torch.ones(6).double())


def test_exact_posterior_agrees_with_scikit_learns_pca():
    """PCA with its noise variance is a linear-Gaussian model (Tipping & Bishop 1999)."""
    data = np.random.default_rng(0).normal(size=(500, 12)) @ np.random.default_rng(1).normal(size=(12, 12))
    pca = PCA(n_components=4).fit(data)
    model = linear_gaussian(pixels=12, latent_dim=4)._replace(
        weight=torch.from_numpy(pca.components_.T * np.sqrt(pca.explained_variance_ - pca.noise_variance_)),
        bias=torch.from_numpy(pca.mean_),
        sigma_p=math.sqrt(pca.noise_variance_),
    )
    x = torch.from_numpy(data[:20])
    estimate = importance_sampling(
        q=exact_posterior(model, x),
        x=x,
        decode=model.decode,
        generator=random_generator(0),
        sigma_p=model.sigma_p,
        num_samples=3,
    )
    assert estimate.log_prob.numpy() == pytest.approx(pca.score_samples(data[:20]), abs=1e-8)


@pytest.mark.parametrize("chunk", [40, 10_000])
def test_importance_sampling_from_a_poor_q(chunk):
    """Within three standard errors of the exact answer, whatever the chunk; the bound below it."""
    model = linear_gaussian(pixels=4, latent_dim=2)
    generator = random_generator(2)
    x = model.sample(8, generator)
    mean, _ = model.posterior(x)
    q = Normal(mean + 0.3, torch.full_like(mean, 0.9))
    count = 20_000
    estimate = importance_sampling(
        q=q, x=x, decode=model.decode, generator=generator, sigma_p=model.sigma_p, num_samples=count, chunk=chunk * 8
    )
    assert (estimate.effective_sample_size > 100).all()
    # By the delta method, var(log_prob) = 1 / ESS - 1 / K.
    error = torch.sqrt(1 / estimate.effective_sample_size - 1 / count)
    assert ((estimate.log_prob - model.log_prob(x)).abs() < 3 * error).all()
    assert (estimate.elbo < model.log_prob(x)).all()
    noise = torch.randn(count, *mean.shape, generator=generator, dtype=torch.float64)
    bound = elbo(q=q, x=x, decode=model.decode, noise=noise, sigma_p=model.sigma_p)
    assert torch.allclose(bound.elbo, estimate.elbo, rtol=0.02)
    assert torch.allclose(bound.elbo, bound.log_likelihood - bound.kl)


def test_effective_sample_size_counts_equal_and_dominating_weights():
    x = torch.zeros(1, 1, dtype=torch.float64)
    q = Normal(torch.zeros(1, 1).double(), torch.ones(1, 1).double())
    flat = importance_sampling(q=q, x=x, decode=torch.zeros_like, generator=random_generator(0), num_samples=50)
    assert flat.effective_sample_size.item() == pytest.approx(50)
    peaked = importance_sampling(
        q=q, x=x + 3, decode=lambda z: z, generator=random_generator(0), sigma_p=1e-3, num_samples=50
    )
    assert peaked.effective_sample_size.item() == pytest.approx(1, abs=1e-6)


def test_gradients_reach_q_and_decoder():
    model = ConvVAE(latent_dim=3, seed=0)
    x = torch.rand(2, 1, 28, 28)
    q = model.encode(x)
    elbo(q=q, x=x, decode=model.decode, noise=torch.randn(2, 3)).elbo.sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in model.parameters())


def test_no_density_exceeds_the_ceiling(mnist):
    """A generous test of the constants: an untrained network on images that it could not do better on."""
    x = mnist[1].images[:5]
    model = ConvVAE(latent_dim=3, seed=0)
    with torch.no_grad():
        estimate = importance_sampling(
            q=model.encode(x), x=x, decode=model.decode, generator=random_generator(0), num_samples=20
        )
    assert (estimate.log_prob <= CEILING).all()
    perfect = importance_sampling(
        q=Normal(torch.zeros(5, 3), torch.ones(5, 3)),
        x=x,
        decode=lambda z: x.expand(len(z), *x.shape),
        generator=random_generator(0),
    )
    assert perfect.log_prob.tolist() == pytest.approx([CEILING] * 5, abs=1e-3)


def test_evaluate_scores_every_image_once():
    """In batches that do not divide the number of images, in their order."""
    model = linear_gaussian(pixels=4, latent_dim=2, orthogonal=True)
    x = model.sample(23, random_generator(0))
    bound = evaluate(
        posterior=lambda x, index: exact_posterior(model, x),
        decode=model.decode,
        images=x,
        generator=random_generator(0),
        sigma_p=model.sigma_p,
        batch_size=10,
    )
    single = [kl(exact_posterior(model, x[row : row + 1])).item() for row in range(23)]
    assert bound.kl.tolist() == pytest.approx(single)
    assert torch.allclose(bound.elbo, bound.log_likelihood - bound.kl)


def test_mean_and_error():
    score = mean_and_error(torch.tensor([1.0, 2.0, 3.0, 6.0]))
    assert score == {"mean": 3.0, "standard_error": pytest.approx(math.sqrt(14 / 3) / 2), "images": 4}
    assert mean_and_error(torch.tensor([1.0]))["standard_error"] is None
