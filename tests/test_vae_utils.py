"""The bound, its parts and importance sampling against closed forms, quadrature and scikit-learn."""

import math

import numpy as np
import pytest
import torch
from conftest import SIGMA, LinearGaussian, linear_gaussian, seeded
from sklearn.decomposition import PCA
from torch.distributions import MultivariateNormal, Normal

import vae_utils
from evaluation.ais import annealed_importance_sampling, bidirectional_bounds, gauss_newton_posterior
from latent_optimization import fit_posterior
from model import Bernoulli, Gaussian, LatentVariableModel
from vae_utils import (
    concatenate,
    draw,
    elbo,
    evaluate_bound,
    generators_of,
    image_generators,
    importance_sampling,
    kl_per_dimension,
    mean_and_error,
    random_generator,
    reparameterize,
    select,
    whiten,
)


def exact_posterior(model, x):
    """p(z|x) of a LinearGaussian with orthogonal columns, whose posterior is diagonal."""
    best, bound = model.best_diagonal(x)
    torch.testing.assert_close(bound, model.log_prob(x))
    return best


def some_q(*, full):
    generator = seeded(0)
    mean, root = (torch.randn(*shape, generator=generator).double() for shape in ((4, 3), (4, 3, 3)))
    return MultivariateNormal(mean, root @ root.mT + torch.eye(3)) if full else Normal(mean, mean.exp())


def test_kl_is_the_closed_form():
    mean, log_var = torch.randn(4, 3).double(), torch.randn(4, 3).double()
    q, expected = Normal(mean, (log_var / 2).exp()), 0.5 * (mean**2 + log_var.exp() - log_var - 1)
    torch.testing.assert_close(kl_per_dimension(q), expected)


@pytest.mark.parametrize("full", [False, True])
def test_whitening_undoes_reparameterization(full):
    q, noise = some_q(full=full), torch.randn(4, 3).double()
    torch.testing.assert_close(whiten(q, reparameterize(q, noise)), noise)
    draws = reparameterize(q, torch.randn(20_000, 4, 3, generator=seeded(0)).double())
    expected = q.covariance_matrix[1] if full else torch.diag(q.variance[1])
    torch.testing.assert_close(draws[:, 1].T.cov(), expected, atol=0.05 * expected.max().item(), rtol=0)


@pytest.mark.parametrize("full", [False, True])
def test_rows_are_selected_and_concatenated_in_their_order(full):
    q = some_q(full=full)
    part = select(q, torch.tensor([2, 0]))
    assert torch.equal(part.mean, q.mean[[2, 0]])
    torch.testing.assert_close(part.variance, q.variance[[2, 0]])
    if not full:
        assert torch.equal(concatenate([part, q]).stddev, torch.cat((part.stddev, q.stddev)))


@pytest.mark.parametrize(("pixels", "latent_dim"), [(5, 2), (784, 200)])
def test_importance_sampling_from_the_exact_posterior_has_no_variance(pixels, latent_dim):
    model = linear_gaussian(pixels=pixels, latent_dim=latent_dim, orthogonal=True)
    x, _ = model.sample(6, seeded(1))
    estimate = importance_sampling(model, x, exact_posterior(model, x), generator=seeded(1), num_samples=1)
    exact = model.log_prob(x)
    torch.testing.assert_close(estimate.log_prob, exact)
    torch.testing.assert_close(estimate.elbo, exact)
    torch.testing.assert_close(estimate.effective_sample_size, torch.ones(6).double())


def test_the_exact_posterior_gives_the_log_prob_of_scikit_learns_pca():
    """PCA with its noise variance is a linear-Gaussian model (Tipping & Bishop 1999)."""
    data = np.random.default_rng(0).normal(size=(500, 12)) @ np.random.default_rng(1).normal(size=(12, 12))
    pca = PCA(n_components=4).fit(data)
    weight = torch.from_numpy(pca.components_.T * np.sqrt(pca.explained_variance_ - pca.noise_variance_))
    model = LinearGaussian(weight, torch.from_numpy(pca.mean_), math.sqrt(pca.noise_variance_))
    x = torch.from_numpy(data[:20])
    estimate = importance_sampling(model, x, exact_posterior(model, x), generator=seeded(0), num_samples=3)
    assert estimate.log_prob.numpy() == pytest.approx(pca.score_samples(data[:20]), abs=1e-8)


def test_the_quadrature_agrees_with_itself(nonlinear):
    x, _ = nonlinear.sample(8, seeded(1))
    torch.testing.assert_close(nonlinear.log_prob(x), nonlinear.log_prob(x, points=323), atol=1e-5, rtol=0)


@pytest.mark.parametrize("chunk", [320, 80_000])
def test_importance_sampling_from_a_poor_q(nonlinear, chunk):
    """Within four standard errors of log p(x), whatever the chunk."""
    x, _ = nonlinear.sample(8, seeded(2))
    q, count = nonlinear.poor(x), 20_000
    estimate = importance_sampling(nonlinear, x, q, generator=seeded(3), num_samples=count, chunk=chunk)
    assert (estimate.effective_sample_size > 100).all()
    # By the delta method, var(log_prob) = 1 / ESS - 1 / K.
    error = torch.sqrt(1 / estimate.effective_sample_size - 1 / count)
    assert ((estimate.log_prob - nonlinear.log_prob(x)).abs() < 4 * error).all()
    torch.testing.assert_close(estimate.elbo, nonlinear.elbo(q, x), rtol=0.02, atol=0.05)


@pytest.mark.parametrize(("chunk", "largest"), [(64, 64), (4, 16)])
def test_no_more_samples_than_the_chunk_are_decoded_at_once_however_many_images(chunk, largest):
    model, seen = linear_gaussian(), []
    x, _ = model.sample(11, seeded(1))
    model.decoder.register_forward_hook(lambda _, inputs, output: seen.append(output[..., 0].numel()))
    importance_sampling(model, x, model.poor(x), generator=seeded(2), num_samples=50, chunk=chunk)
    assert max(seen) == largest
    assert sum(seen) == 11 * 50


def test_what_importance_sampling_finds_for_an_image_depends_on_no_other():
    model = linear_gaussian()
    x, _ = model.sample(11, seeded(1))
    q, index = model.poor(x), torch.arange(11)

    def estimate(rows, chunk):
        own = image_generators(2, "importance", index=index[rows])
        return importance_sampling(model, x[rows], select(q, rows), generator=own, num_samples=75, chunk=chunk)

    alone = estimate(torch.tensor([9]), 500)
    for rows, chunk in ((torch.arange(11), 500), (torch.arange(7, 11), 500), (torch.arange(11), 33)):
        together, place = estimate(rows, chunk), int((rows == 9).nonzero())
        torch.testing.assert_close(together.log_prob[place], alone.log_prob[0])


def test_many_equal_weights_are_added_without_stalling(monkeypatch):
    """Weights as small as those of a large image: a sum in float32 stops growing after a few thousand of them."""
    monkeypatch.setattr(vae_utils, "DRAWN_AT_ONCE", 1)
    monkeypatch.setattr(vae_utils, "log_weight", lambda model, x, q, noise: torch.full(noise.shape[:2], -10_000.0))
    model = LatentVariableModel(torch.nn.Linear(2, 3), Gaussian(SIGMA), latent_dim=2)
    q = Normal(torch.zeros(1, 2), 1.0)
    estimate = importance_sampling(model, torch.zeros(1, 3), q, generator=seeded(0), num_samples=20_000, chunk=1)
    assert estimate.log_prob.item() == pytest.approx(-10_000, abs=0.01)
    assert estimate.effective_sample_size.item() == pytest.approx(20_000, rel=1e-3)


def test_the_bound_is_an_expectation_and_below_log_prob(model):
    x, _ = model.sample(8, seeded(2))
    q = model.poor(x)
    bound = elbo(model, x, q, torch.randn(8000, 8, model.latent_dim, generator=seeded(3)).double())
    torch.testing.assert_close(bound.elbo, model.elbo(q, x), rtol=0.03, atol=0.05)
    torch.testing.assert_close(bound.elbo, bound.log_likelihood - bound.kl)
    assert (model.elbo(q, x) < model.log_prob(x)).all()


def test_effective_sample_size_counts_equal_and_dominating_weights():
    q = Normal(torch.zeros(1, 1).double(), 1.0)
    x = torch.full((1, 1), 3).double()
    for weight, sigma, size in ((0.0, 1.0, 50), (1.0, 1e-3, 1)):
        model = LinearGaussian(torch.full((1, 1), weight).double(), torch.zeros(1).double(), sigma)
        estimate = importance_sampling(model, x, q, generator=seeded(0), num_samples=50)
        assert estimate.effective_sample_size.item() == pytest.approx(size, abs=1e-6)


def test_every_image_is_scored_once():
    """In batches that do not divide the number of images, in their order."""
    model = linear_gaussian(orthogonal=True)
    x, _ = model.sample(23, seeded(0))
    q = exact_posterior(model, x)
    bound = evaluate_bound(model, x, lambda x, rows: select(q, rows), generator=seeded(0), batch_size=10)
    torch.testing.assert_close(bound.kl, kl_per_dimension(q).sum(-1))
    torch.testing.assert_close(bound.elbo, bound.log_likelihood - bound.kl)


def test_mean_and_error():
    score = mean_and_error(torch.tensor([1.0, 2.0, 3.0, 6.0]))
    assert score == {"mean": 3.0, "standard_error": pytest.approx(math.sqrt(14 / 3) / 2), "images": 4}
    assert mean_and_error(torch.tensor([1.0]))["standard_error"] is None


def test_every_image_has_a_generator_of_its_own():
    three, one = (
        image_generators(5, "fit", index=torch.tensor([4, 9, 2])),
        image_generators(5, "fit", index=torch.tensor([9])),
    )
    noise = draw(torch.randn, three, (6, 3, 2), like=torch.zeros(1).double())
    assert noise.shape == (6, 3, 2)
    assert noise.dtype == torch.float64
    assert torch.equal(noise[:, 1:2], draw(torch.randn, one, (6, 1, 2), like=noise))
    assert not torch.equal(noise[:, 0], noise[:, 1])
    assert generators_of(three, torch.tensor([2, 0])) == [three[2], three[0]]


def test_a_generator_depends_on_the_seed_and_every_purpose():
    def draw(*purpose):
        return torch.rand(1, generator=random_generator(*purpose)).item()

    draws = [draw(1), draw(2), draw(1, 2), draw(1, "noise"), draw(1, 2, "noise"), draw(12)]
    assert len(set(draws)) == len(draws)
    assert draw(1, 2, "noise") == draws[4]


ESTIMATORS = {
    "importance sampling": importance_sampling,
    "fit": fit_posterior,
    "annealing": annealed_importance_sampling,
    "bounds": lambda model, x, q, **kwargs: bidirectional_bounds(model, x, q.mean, q, **kwargs),
    "Gauss-Newton": gauss_newton_posterior,
}
MISTAKES = [  # shape of q, generator, likelihood, what the message names
    ((1, 3), seeded(0), Gaussian(SIGMA), r"x \(5, 12\) and q \(1, 3\)"),  # it would broadcast
    ((6, 3), seeded(0), Gaussian(SIGMA), r"x \(5, 12\) and q \(6, 3\)"),
    ((5, 1), seeded(0), Gaussian(SIGMA), r"x \(5, 12\) and q \(5, 1\)"),  # this, too
    ((5, 3), None, Gaussian(SIGMA), "generator"),
    ((5, 3), seeded(0), Bernoulli(), "binarize"),
]


@pytest.mark.parametrize("estimate", ESTIMATORS.values(), ids=ESTIMATORS.keys())
@pytest.mark.parametrize(("shape", "generator", "likelihood", "message"), MISTAKES)
def test_obvious_mistakes_are_refused(estimate, shape, generator, likelihood, message):
    model = LatentVariableModel(linear_gaussian().decoder, likelihood, latent_dim=3)
    grey, q = torch.zeros(5, 12).double(), Normal(torch.zeros(shape).double(), 1.0)
    with pytest.raises(ValueError, match=message):
        estimate(model, grey, q, generator=generator)


@pytest.mark.parametrize(("images", "noise"), [(1, (5, 3)), (5, (1, 3)), (5, (7, 5, 1)), (5, (3,))])
def test_a_bound_of_different_images_is_refused(images, noise):
    q = Normal(torch.zeros(5, 3).double(), 1.0)
    with pytest.raises(ValueError, match=r"q \(5, 3\)"):
        elbo(linear_gaussian(), torch.zeros(images, 12).double(), q, torch.zeros(noise).double())


def test_bounds_refuse_a_z_of_other_images():
    x, q = torch.zeros(5, 12).double(), Normal(torch.zeros(5, 3).double(), 1.0)
    with pytest.raises(ValueError, match=r"z \(1, 3\) and q \(5, 3\)"):
        bidirectional_bounds(linear_gaussian(), x, q.mean[:1], q, generator=seeded(0))
