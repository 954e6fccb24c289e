"""The bound, its parts and importance sampling against closed forms, quadrature and scikit-learn."""

import math

import numpy as np
import pytest
import torch
from conftest import SIGMA, LinearGaussian, gaussian, linear_gaussian, seeded
from sklearn.decomposition import PCA
from torch.distributions import Independent, LowRankMultivariateNormal, MultivariateNormal, Normal, kl_divergence

import vae_utils
from evaluation.ais import annealed_importance_sampling, bidirectional_bounds
from model import Bernoulli, Gaussian, LatentVariableModel
from posterior_fit import fit_posterior, gauss_newton_posterior
from vae_utils import (
    GaussianPosterior,
    Noise,
    elbo,
    evaluate_bound,
    importance_sampling,
    mean_and_error,
    random_generator,
)


def exact_posterior(model, x):
    """p(z|x) of a LinearGaussian with orthogonal columns, whose posterior is diagonal."""
    best, bound = model.best_diagonal(x)
    torch.testing.assert_close(bound, model.log_prob(x))
    return best


@pytest.fixture(params=["diagonal", "full", "rank 1", "rank 4"])
def pair(request):
    """(q, the same distribution of PyTorch), four images, three dimensions."""
    generator = seeded(0)
    mean, root = (torch.randn(*shape, generator=generator).double() for shape in ((4, 3), (4, 3, 3)))
    if request.param == "diagonal":
        return GaussianPosterior.from_log_var(mean, 2 * mean), Independent(Normal(mean, mean.exp()), 1)
    if request.param != "full":
        factor = torch.randn(4, 3, int(request.param[-1]), generator=generator).double()
        return GaussianPosterior(mean, mean.exp(), factor), LowRankMultivariateNormal(mean, factor, (2 * mean).exp())
    precision = root @ root.mT + torch.eye(3)
    return GaussianPosterior.from_precision(mean, precision), MultivariateNormal(mean, precision_matrix=precision)


def test_a_posterior_is_pytorchs_gaussian(pair):
    """Its density and its divergence from the prior; whitening is the inverse of sampling."""
    q, expected = pair
    prior = MultivariateNormal(torch.zeros(4, 3).double(), torch.eye(3).double())
    if q.is_diagonal:
        prior = Independent(Normal(torch.zeros(4, 3).double(), 1.0), 1)
        torch.testing.assert_close(q.kl_per_dimension(), kl_divergence(expected.base_dist, prior.base_dist))
    torch.testing.assert_close(q.kl(), kl_divergence(expected, prior))
    for shape in ((4, 3), (5, 4, 3)):
        noise = torch.randn(shape, generator=seeded(1)).double()
        z = q.rsample(noise)
        torch.testing.assert_close(q.whiten(z), noise)
        torch.testing.assert_close(q.log_prob(z), expected.log_prob(z))
    draws = q.rsample(torch.randn(20_000, 4, 3, generator=seeded(0)).double())[:, 1]
    covariance = torch.diag(expected.variance[1]) if q.is_diagonal else expected.covariance_matrix[1]
    torch.testing.assert_close(draws.T.cov(), covariance, atol=0.05 * covariance.max().item(), rtol=0)


def test_rows_are_selected_and_concatenated_in_their_order(pair):
    q, _ = pair
    both = GaussianPosterior.concatenate([q[torch.tensor([2, 0])], q])
    assert len(both) == 6
    assert torch.equal(both.mean, torch.cat((q.mean[[2, 0]], q.mean)))
    assert torch.equal(both.scale, torch.cat((q.scale[[2, 0]], q.scale)))
    assert {part.dtype for part in both.to(torch.float32).tensors().values()} == {torch.float32}
    if q.factor is not None:
        assert torch.equal(both.factor, torch.cat((q.factor[[2, 0]], q.factor)))


def test_dimensions_alone_and_parameters_are_those_of_the_posterior(pair):
    """The marginals of its dimensions, and a diagonal q of them; what `parameters` gives makes the same q."""
    q, expected = pair
    alone = q.diagonal()
    assert alone.is_diagonal
    torch.testing.assert_close(alone.scale.square(), expected.variance)
    if q.is_full:
        with pytest.raises(ValueError, match="no KL per dimension"):
            q.kl_per_dimension()
        return
    marginal = kl_divergence(Normal(expected.mean, expected.stddev), Normal(torch.zeros(4, 3).double(), 1.0))
    torch.testing.assert_close(q.kl_per_dimension(), marginal)
    again = GaussianPosterior.from_parameters(q.parameters(), 0 if q.factor is None else q.factor.shape[-1])
    torch.testing.assert_close(again.tensors(), q.tensors())


@pytest.mark.parametrize(("pixels", "latent_dim"), [(5, 2), (784, 200)])
def test_importance_sampling_from_the_exact_posterior_has_no_variance(pixels, latent_dim):
    model = linear_gaussian(pixels=pixels, latent_dim=latent_dim, orthogonal=True)
    x, _ = model.sample(6, seeded(1))
    estimate = importance_sampling(model, x, exact_posterior(model, x), noise=Noise(1), num_samples=1)
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
    estimate = importance_sampling(model, x, exact_posterior(model, x), noise=Noise(0), num_samples=3)
    assert estimate.log_prob.numpy() == pytest.approx(pca.score_samples(data[:20]), abs=1e-8)


def test_the_quadrature_agrees_with_itself(nonlinear):
    x, _ = nonlinear.sample(8, seeded(1))
    torch.testing.assert_close(nonlinear.log_prob(x), nonlinear.log_prob(x, points=323), atol=1e-5, rtol=0)


@pytest.mark.parametrize("chunk", [320, 80_000])
def test_importance_sampling_from_a_poor_q(nonlinear, chunk):
    """Within four standard errors of log p(x), whatever the chunk."""
    x, _ = nonlinear.sample(8, seeded(2))
    q, count = nonlinear.poor(x), 20_000
    estimate = importance_sampling(nonlinear, x, q, noise=Noise(3), num_samples=count, chunk=chunk)
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
    importance_sampling(model, x, model.poor(x), noise=Noise(2), num_samples=50, chunk=chunk)
    assert max(seen) == largest
    assert sum(seen) == 11 * 50


def test_what_importance_sampling_finds_for_an_image_depends_on_no_other():
    model = linear_gaussian()
    x, _ = model.sample(11, seeded(1))
    q, index = model.poor(x), torch.arange(11)

    def estimate(rows, chunk):
        own = Noise.of_images(2, "importance", index=index[rows])
        return importance_sampling(model, x[rows], q[rows], noise=own, num_samples=75, chunk=chunk)

    alone = estimate(torch.tensor([9]), 500)
    for rows, chunk in ((torch.arange(11), 500), (torch.arange(7, 11), 500), (torch.arange(11), 33)):
        together, place = estimate(rows, chunk), int((rows == 9).nonzero())
        torch.testing.assert_close(together.log_prob[place], alone.log_prob[0])


def test_many_equal_weights_are_added_without_stalling(monkeypatch):
    """Weights as small as those of a large image: a sum in float32 stops growing after a few thousand of them."""
    monkeypatch.setattr(vae_utils, "DRAWN_AT_ONCE", 1)
    monkeypatch.setattr(vae_utils, "log_weight", lambda model, x, q, noise: torch.full(noise.shape[:2], -10_000.0))
    model = LatentVariableModel(torch.nn.Linear(2, 3), Gaussian(SIGMA), latent_dim=2)
    q = gaussian(torch.zeros(1, 2), 1.0)
    estimate = importance_sampling(model, torch.zeros(1, 3), q, noise=Noise(0), num_samples=20_000, chunk=1)
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
    q = gaussian(torch.zeros(1, 1).double(), 1.0)
    x = torch.full((1, 1), 3).double()
    for weight, sigma, size in ((0.0, 1.0, 50), (1.0, 1e-3, 1)):
        model = LinearGaussian(torch.full((1, 1), weight).double(), torch.zeros(1).double(), sigma)
        estimate = importance_sampling(model, x, q, noise=Noise(0), num_samples=50)
        assert estimate.effective_sample_size.item() == pytest.approx(size, abs=1e-6)


def test_every_image_is_scored_once():
    """In batches that do not divide the number of images, in their order."""
    model = linear_gaussian(orthogonal=True)
    x, _ = model.sample(23, seeded(0))
    q = exact_posterior(model, x)
    bound = evaluate_bound(model, x, lambda x, rows: q[rows], noise=Noise(0), batch_size=10)
    torch.testing.assert_close(bound.kl, q.kl_per_dimension().sum(-1))
    torch.testing.assert_close(bound.elbo, bound.log_likelihood - bound.kl)


def test_mean_and_error():
    score = mean_and_error(torch.tensor([1.0, 2.0, 3.0, 6.0]))
    assert score == {"mean": 3.0, "standard_error": pytest.approx(math.sqrt(14 / 3) / 2), "images": 4}
    assert mean_and_error(torch.tensor([1.0]))["standard_error"] is None


def test_every_image_has_random_numbers_of_its_own():
    three, one = Noise.of_images(5, "fit", index=torch.tensor([4, 9, 2])), Noise.of_images(5, "fit", index=[9])
    like = torch.zeros(1).double()
    draws = three.normal((6, 3, 2), like=like)
    assert (draws.shape, draws.dtype) == ((6, 3, 2), torch.float64)
    assert torch.equal(draws[:, 1:2], one.normal((6, 1, 2), like=like))
    assert not torch.equal(draws[:, 0], draws[:, 1])
    uniform = three[torch.tensor([2, 1])].uniform((400, 2), like=like)
    assert torch.equal(uniform[:, 1:], one.uniform((400, 1), like=like))
    assert 0 <= uniform.min() < 0.02 < 0.98 < uniform.max() < 1
    children = three.spawn([1, 0, 1], "mode")
    first, again, second = children.normal((9, 3), like=like).T[[0, 2, 1]]
    assert not torch.equal(first, again)
    assert not torch.equal(first, second)
    assert torch.equal(one.spawn([0], "mode").normal((9, 1), like=like)[:, 0], first)
    assert Noise.concatenate([three, children]).images == 6
    assert Noise(5)[torch.tensor([2])].images is None


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
MISTAKES = [  # shape of q, noise, likelihood, what the message names
    ((1, 3), Noise(0), Gaussian(SIGMA), r"x \(5, 12\) and q \(1, 3\)"),  # it would broadcast
    ((6, 3), Noise(0), Gaussian(SIGMA), r"x \(5, 12\) and q \(6, 3\)"),
    ((5, 1), Noise(0), Gaussian(SIGMA), r"x \(5, 12\) and q \(5, 1\)"),  # this, too
    ((5, 3), None, Gaussian(SIGMA), "noise"),
    ((5, 3), Noise.of_images(0, index=range(4)), Gaussian(SIGMA), "an entry for each image"),
    ((5, 3), Noise(0), Bernoulli(), "binarize"),
]


@pytest.mark.parametrize("estimate", ESTIMATORS.values(), ids=ESTIMATORS.keys())
@pytest.mark.parametrize(("shape", "noise", "likelihood", "message"), MISTAKES)
def test_obvious_mistakes_are_refused(estimate, shape, noise, likelihood, message):
    model = LatentVariableModel(linear_gaussian().decoder, likelihood, latent_dim=3)
    grey, q = torch.zeros(5, 12).double(), gaussian(torch.zeros(shape).double(), 1.0)
    with pytest.raises(ValueError, match=message):
        estimate(model, grey, q, noise=noise)


@pytest.mark.parametrize(("images", "noise"), [(1, (5, 3)), (5, (1, 3)), (5, (7, 5, 1)), (5, (3,))])
def test_a_bound_of_different_images_is_refused(images, noise):
    q = gaussian(torch.zeros(5, 3).double(), 1.0)
    with pytest.raises(ValueError, match=r"q \(5, 3\)"):
        elbo(linear_gaussian(), torch.zeros(images, 12).double(), q, torch.zeros(noise).double())


def test_bounds_refuse_a_z_of_other_images():
    x, q = torch.zeros(5, 12).double(), gaussian(torch.zeros(5, 3).double(), 1.0)
    with pytest.raises(ValueError, match=r"z \(1, 3\) and q \(5, 3\)"):
        bidirectional_bounds(linear_gaussian(), x, q.mean[:1], q, noise=Noise(0))
