"""The bound, its parts and importance sampling against closed forms and quadrature."""

from functools import partial

import numpy as np
import pytest
import torch
from conftest import SIGMA, gaussian, linear_gaussian, linear_with_images, seeded
from torch.distributions import Independent, LowRankMultivariateNormal, MultivariateNormal, Normal, kl_divergence

import vae_utils
from evaluation.ais import annealed_importance_sampling, bidirectional_bounds
from evaluation.log_prob import log_prob
from model import Bernoulli, ConvVAE, Gaussian, LatentVariableModel
from posterior_fit import fit_posterior, gauss_newton_posterior
from vae_utils import GaussianPosterior, Noise, elbo, evaluate_bound, importance_sampling, random_generator


@pytest.mark.parametrize("form", ["diagonal", "low rank", "full"])
def test_a_posterior_is_pytorchs_gaussian(form):
    """Its density, its divergence from the prior, its draws and its rows; whitening is the inverse of sampling."""
    generator = seeded(0)
    mean, root = (torch.randn(*shape, generator=generator).double() for shape in ((4, 3), (4, 3, 3)))
    prior = MultivariateNormal(torch.zeros(4, 3).double(), torch.eye(3).double())
    if form == "diagonal":
        q, expected = GaussianPosterior.from_log_var(mean, 2 * mean), Independent(Normal(mean, mean.exp()), 1)
        prior = Independent(Normal(torch.zeros(4, 3).double(), 1.0), 1)
        torch.testing.assert_close(q.kl_per_dimension(), kl_divergence(expected.base_dist, prior.base_dist))
    elif form == "low rank":
        q = GaussianPosterior(mean, mean.exp(), root[..., :2])
        expected = LowRankMultivariateNormal(mean, q.factor, q.scale.square())
        torch.testing.assert_close(q.diagonal().scale.square(), expected.variance)
        torch.testing.assert_close(GaussianPosterior.from_parameters(q.parameters(), 2).factor, q.factor)
    else:
        expected = MultivariateNormal(mean, precision_matrix=root @ root.mT + torch.eye(3))
        q = GaussianPosterior(mean, expected.scale_tril)
    torch.testing.assert_close(q.kl(), kl_divergence(expected, prior))
    for shape in ((4, 3), (5, 4, 3)):
        noise = torch.randn(shape, generator=seeded(1)).double()
        z = q.rsample(noise)
        torch.testing.assert_close(q.whiten(z), noise)
        torch.testing.assert_close(q.log_prob(z), expected.log_prob(z))
    draws = q.rsample(torch.randn(20_000, 4, 3, generator=seeded(0)).double())[:, 1]
    covariance = torch.diag(expected.variance[1]) if form == "diagonal" else expected.covariance_matrix[1]
    torch.testing.assert_close(draws.T.cov(), covariance, atol=0.05 * covariance.max().item(), rtol=0)
    both = GaussianPosterior.concatenate([q[torch.tensor([2, 0])], q]).to(torch.float32)
    assert len(both) == 6
    for name, whole in q.tensors().items():
        assert torch.equal(getattr(both, name), torch.cat((whole[[2, 0]], whole)).float())


def test_importance_sampling_from_the_exact_posterior_has_no_variance():
    model, x = linear_with_images(6, pixels=784, latent_dim=200, orthogonal=True)
    estimate = importance_sampling(model, x, model.best_diagonal(x)[0], noise=Noise(1), num_samples=50)
    torch.testing.assert_close(estimate.log_prob, model.log_prob(x))
    torch.testing.assert_close(estimate.effective_sample_size, torch.full((6,), 50.0).double())


def test_importance_sampling_from_a_poor_q(nonlinear):
    """Within four standard errors of log p(x)."""
    x, _ = nonlinear.sample(8, seeded(2))
    torch.testing.assert_close(nonlinear.log_prob(x), nonlinear.log_prob(x, points=323), atol=1e-5, rtol=0)
    count = 20_000
    estimate = importance_sampling(nonlinear, x, nonlinear.poor(x), noise=Noise(3), num_samples=count, chunk=320)
    assert (estimate.effective_sample_size > 100).all()
    # By the delta method, var(log_prob) = 1 / ESS - 1 / K.
    error = torch.sqrt(1 / estimate.effective_sample_size - 1 / count)
    assert ((estimate.log_prob - nonlinear.log_prob(x)).abs() < 4 * error).all()


def test_importance_sampling_decodes_no_more_than_a_chunk_and_depends_on_no_other_image():
    model, seen = linear_gaussian(), []
    x, _ = model.sample(11, seeded(1))
    q = model.poor(x)
    hook = model.decoder.register_forward_hook(lambda _, inputs, output: seen.append(output[..., 0].numel()))
    for chunk, largest in ((64, 64), (4, 16)):
        seen.clear()
        importance_sampling(model, x, q, noise=Noise(2), num_samples=50, chunk=chunk)
        assert (max(seen), sum(seen)) == (largest, 11 * 50)
    hook.remove()

    def estimate(rows, chunk):
        own = Noise.of_images(2, "importance", index=rows)
        return importance_sampling(model, x[rows], q[rows], noise=own, num_samples=75, chunk=chunk)

    alone = estimate(torch.tensor([9]), 500)
    for rows, chunk in ((torch.arange(11), 500), (torch.arange(7, 11), 500), (torch.arange(11), 33)):
        together, place = estimate(rows, chunk), int((rows == 9).nonzero())
        torch.testing.assert_close(together.log_prob[place], alone.log_prob[0])


def test_thousands_of_small_weights_are_summed_without_loss(monkeypatch):
    """As small as those of a large image: a sum in float32 stops growing after a few thousand of them."""
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


def test_a_bound_of_several_draws_is_the_mean_over_them():
    """Whatever is computed together: five draws of three images, in two batches, and two or three draws at a time.

    Every image is scored once, in its place.
    """
    model, x = linear_with_images(3)
    q, noise = model.poor(x), Noise.of_images(2, index=range(3))
    draws = [noise.normal((1, *q.mean.shape), like=x)[0] for _ in range(5)]
    expected = sum(torch.stack(elbo(model, x, q, draw)) for draw in draws) / 5
    for batch_size in (2, 6, 9, 100):
        same = Noise.of_images(2, index=range(3))
        found = evaluate_bound(model, x, q, noise=same, draws=5, batch_size=batch_size)
        torch.testing.assert_close(torch.stack(found), expected)


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
    spawned = three.spawn("bound").normal((9, 3), like=like)
    assert torch.equal(one.spawn("bound").normal((9, 1), like=like), spawned[:, 1:2])
    assert not torch.equal(one.spawn("fit").normal((9, 1), like=like), spawned[:, 1:2])
    assert Noise(5)[torch.tensor([2])].images is None


def test_a_generator_depends_on_the_seed_and_every_purpose():
    purposes = (1,), (2,), (1, 2), (1, "noise"), (1, 2, "noise"), (12,), (np.int64(1), np.int64(2), "noise")
    draws = [torch.rand(1, generator=random_generator(*purpose)).item() for purpose in purposes]
    assert len(set(draws)) == 6
    assert draws[6] == draws[4]


def test_noise_is_indexed_like_a_tensor():
    like, mask = torch.empty(0), torch.tensor([False, True, True, False])
    whole = Noise.of_images(0, index=range(4)).normal((1, 4), like=like)
    for rows, expected in ((mask, [1, 2]), (slice(2), [0, 1]), (3, [3]), ([0, 2], [0, 2])):
        fresh = Noise.of_images(0, index=np.arange(4))[rows]
        assert torch.equal(fresh.normal((1, len(expected)), like=like), whole[:, expected])


ESTIMATORS = {
    "importance sampling": importance_sampling,
    "fit": fit_posterior,
    "annealing": annealed_importance_sampling,
    "bounds": lambda model, x, q, **kwargs: bidirectional_bounds(model, x, q.mean, q, **kwargs),
    "Gauss-Newton": gauss_newton_posterior,
}
MISTAKES = [  # shape of q, noise, what the message names
    ((1, 3), Noise(0), r"x \(5, 12\) and q \(1, 3\)"),  # it would broadcast
    ((5, 1), Noise(0), r"x \(5, 12\) and q \(5, 1\)"),  # this, too
    ((5, 3), None, "noise"),
    ((5, 3), Noise.of_images(0, index=range(4)), "an entry for each image"),
]


@pytest.mark.parametrize("estimate", ESTIMATORS.values(), ids=ESTIMATORS.keys())
@pytest.mark.parametrize(("shape", "noise", "message"), MISTAKES)
def test_obvious_mistakes_are_refused(estimate, shape, noise, message):
    x, q = torch.zeros(5, 12).double(), gaussian(torch.zeros(shape).double(), 1.0)
    with pytest.raises(ValueError, match=message):
        estimate(linear_gaussian(), x, q, noise=noise)


def test_a_q_that_has_diverged_is_refused():
    for mean, scale in ((torch.nan, 1.0), (0.0, 0.0)):
        q = gaussian(torch.full((2, 3), mean).double(), scale)
        with pytest.raises(ValueError, match="its scale must be above 0, its mean finite"):
            fit_posterior(linear_gaussian(), torch.zeros(2, 12).double(), q, noise=Noise(0))


def test_bounds_of_different_images_are_refused():
    x, q = torch.zeros(5, 12).double(), gaussian(torch.zeros(5, 3).double(), 1.0)
    for images, noise in ((1, (5, 3)), (5, (1, 3)), (5, (7, 5, 1)), (5, (3,)), (5, (2, 4, 5, 3)), (5, (0, 5, 3))):
        with pytest.raises(ValueError, match=r"q \(5, 3\)"):
            elbo(linear_gaussian(), x[:images], q, torch.zeros(noise).double())
    with pytest.raises(ValueError, match=r"z \(1, 3\) and q \(5, 3\)"):
        bidirectional_bounds(linear_gaussian(), x, q.mean[:1], q, noise=Noise(0))


def binary(vae):
    vae.likelihood = Bernoulli()
    return vae


def dropping(vae):
    vae.decoder = torch.nn.Sequential(vae.decoder, torch.nn.Dropout())
    return vae


def full(q):
    return GaussianPosterior(q.mean, torch.diag_embed(q.scale))


sampled, annealed, fitted = (
    partial(estimate, noise=Noise(0)) for estimate in (importance_sampling, annealed_importance_sampling, fit_posterior)
)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda vae, x, q: vae.encode(x[0]), r"x \(2, 12, 16\): encode\(x\) .* encode\(x.reshape\(1, 2, 12, 16\)\)"),
        (lambda vae, x, q: vae.encode(x[:, :1]), r"x \(3, 1, 12, 16\): encode\(x\) takes x \(B, 2, 12, 16\)$"),
        (lambda vae, x, q: elbo(vae, x, q), r"noise: elbo\(model, x, q, torch.randn_like\(q.mean\)\)"),
        (lambda vae, x, q: vae.log_joint(x[0], q.mean), r"x \(2, 12, 16\): .*x.reshape\(1, 2, 12, 16\), z\)"),
        (lambda vae, x, q: importance_sampling(vae, x, q, noise=0), r"importance_sampling\(model, x, q, noise=Noise"),
        (lambda vae, x, q: fit_posterior(vae, x, q), r"noise: fit_posterior\(model, x, q, noise=Noise\(seed\)\)"),
        (lambda vae, x, q: fitted(vae, x, q, covariance="low"), "'low': diagonal, low rank or"),
        (lambda vae, x, q: evaluate_bound(vae, x, q), r"noise: evaluate_bound\(model, x, q"),
        (lambda vae, x, q: elbo(vae, x.numpy(), q, q.mean), "x: a tensor of floats"),
        (lambda vae, x, q: sampled(vae, x, q, num_samples=10.5), "num_samples 10.5: not a whole number above 0"),
        (lambda vae, x, q: vae.encode(x.double()), "x: of torch.float64, where .* torch.float32: x.to\\(model.like\\)"),
        (lambda vae, x, q: sampled(vae, x.double(), q), "x: of torch.float64, where the model's weights are of"),
        (lambda vae, x, q: elbo(vae, x, GaussianPosterior(q.mean, torch.ones(3, 4, 4)), q.mean), "lower triangular"),
        (lambda vae, x, q: elbo(vae, x, GaussianPosterior(q.mean, -q.scale), q.mean), "scale must be above 0"),
        (lambda vae, x, q: sampled(vae, x[:0], q[torch.arange(0)]), "no images"),
        (lambda vae, x, q: evaluate_bound(vae, x, q[torch.arange(2)], noise=Noise(0)), r"and q \(2, 4\) do not fit"),
        (lambda vae, x, q: elbo(x, x, q, q.mean), "model: .* such as method.model, not Tensor"),
        (lambda vae, x, q: vae.encode(255 * x.abs()), r"pixels from .* they must be scaled to \[-1, 1\]"),
        (lambda vae, x, q: elbo(vae, x.fill_(-torch.inf), q, q.mean), "pixels from -inf to -inf: they must be scaled"),
        (lambda vae, x, q: sampled(vae, x.fill_(torch.nan), q), "pixels from nan to nan: they must be scaled"),
        (lambda vae, x, q: elbo(vae, x, Normal(q.mean, q.scale), q.mean), "q: a GaussianPosterior"),
        (lambda vae, x, q: sampled(vae, x, Normal(q.mean, q.scale)), "q: a GaussianPost"),
        (lambda vae, x, q: GaussianPosterior(q.mean, q.scale[:, :1]), r"\[\(3, 4\), \(3, 1\)\]: a q has mean \(B, D\)"),
        (lambda vae, x, q: GaussianPosterior(q.mean, q.scale, q.scale[:2, :, None]), r"\(2, 4, 1\)\]: a q has"),
        (lambda vae, x, q: sampled(vae, x, GaussianPosterior(q.mean, torch.ones(3, 4, 4))), "must be lower triangular"),
        (lambda vae, x, q: sampled(dropping(vae), x, q), r"model.eval\(\)"),
        (lambda vae, x, q: evaluate_bound(dropping(vae), x, q, noise=Noise(0)), r"model.eval\(\)"),
        (lambda vae, x, q: GaussianPosterior(q.mean, q.scale, q.mean), r"\(3, 4\)\]: a q has"),
        (lambda vae, x, q: GaussianPosterior(q.mean, full(q).scale, q.mean[..., None]), r"\(3, 4, 1\)\]: a q has"),
        (lambda vae, x, q: elbo(binary(vae), x, q, q.mean), "pixels that are -1 or 1"),
        (lambda vae, x, q: Noise(torch.Generator()), r"Noise\(.*\): takes a seed"),
        (lambda vae, x, q: evaluate_bound(vae, x, q, noise=Noise(0), draws=0), "draws 0: not a whole"),
        (lambda vae, x, q: fitted(vae, x, q, max_cycles=0), "max_cycles 0: not a whole number"),
        (lambda vae, x, q: fitted(vae, x, q, tolerance=0), "tolerance 0: not above 0"),
        (lambda vae, x, q: annealed(vae, x, q, temperatures=-3), "temperatures -3: not a whole"),
        (lambda vae, x, q: annealed(vae, x, q, log_weight_std=-1.0), "log_weight_std -1.0: not above 0"),
        (lambda vae, x, q: annealed(vae, x, q, chains=0), "chains 0"),
        (lambda vae, x, q: vae.mean(q.mean[:, :3]), r"z \(3, 3\) of .*: this model takes z \(..., 4\) of torch"),
        (lambda vae, x, q: elbo(vae, x, q, q.mean.double()), r"z \(3, 4\) of torch.float64 on cpu: this model takes"),
        (lambda vae, x, q: vae.mean(q.mean.to("meta")), "on meta: this model takes z .* on cpu"),
        (lambda vae, x, q: vae.log_joint(x[:2], q.mean), r"x \(2, 2, 12, 16\) and z \(3, 4\) are of different images"),
        (lambda vae, x, q: q.log_prob_of_noise(q.mean[:, :1]), r"noise or z \(3, 1\) for a q \(3, 4\)"),
        (lambda vae, x, q: q.rsample(q.mean[0]), r"noise or z \(4,\) for a q"),
        (lambda vae, x, q: q.whiten(q.mean[:1]), r"noise or z \(1, 4\) for a q"),
        (lambda vae, x, q: sampled(vae.half(), x, q), r"weights are of torch.float16.*: model.float\(\)"),
        (lambda vae, x, q: log_prob(vae.bfloat16(), x), r"weights are of torch.bfloat16.*: model.float\(\)"),
        (lambda vae, x, q: log_prob(x, vae), "model: a LatentVariableModel, such as method.model, not Tensor"),
        (lambda vae, x, q: fitted(vae, x, full(q), covariance="low rank"), "'low rank': starts from a q with a factor"),
        (lambda vae, x, q: gauss_newton_posterior(vae, x, q, noise=Noise(0), draws=0), "draws 0: not a whole"),
        (torch.inference_mode()(lambda vae, x, q: fitted(vae, x, q)), "torch.no_grad"),
        (lambda vae, x, q: vae.sample(0, torch.Generator()), "count 0: not a whole number above 0"),
        (lambda vae, x, q: Gaussian(-0.4), "sigma -0.4: not a number above 0"),
        (lambda vae, x, q: vae.sample(3), r"generator: sample\(3, torch.Generator\('cpu'\).manual_seed\(0\)\)"),
    ],
)
def test_a_wrong_call_is_answered_with_the_right_one(call, message):
    vae = ConvVAE(4, image_shape=(2, 12, 16), seed=1)
    x = torch.rand(3, 2, 12, 16)
    with torch.no_grad(), pytest.raises(ValueError, match=message):
        call(vae, x, vae.encode(x))
