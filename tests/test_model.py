"""The likelihoods, the generative model and the networks."""

import math
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from conftest import SIGMA, NonlinearModel, gaussian, linear_gaussian, seeded, toy_data
from torch import distributions, nn
from torch.distributions import Normal

from evaluation.ais import annealed_importance_sampling
from evaluation.log_prob import log_prob
from model import (
    Bernoulli,
    Classifier,
    ConvModel,
    ConvVAE,
    Decoder,
    Encoder,
    Gaussian,
    LatentVariableModel,
    Likelihood,
    flat_pixels,
)
from posterior_fit import fit_posterior, gauss_newton_posterior
from vae_utils import Noise, elbo, importance_sampling

SHAPE = (2, 12, 16)


def signs(*shape, seed=0):
    """Pixels that are -1 or 1."""
    return torch.randint(2, shape, generator=seeded(seed)).double() * 2 - 1


@pytest.mark.parametrize("likelihood", [Gaussian(SIGMA), Bernoulli()], ids=lambda each: each.name)
def test_a_likelihood_is_pytorchs_distribution(likelihood):
    """Its log-probability, the second derivative of it, and draws with the mean that it says."""

    def log_prob(output):
        if likelihood.name == "bernoulli":
            return distributions.Bernoulli(logits=output).log_prob((x + 1) / 2).flatten(-3).sum(-1)
        return Normal(output, SIGMA).log_prob(x).flatten(-3).sum(-1)

    x, output = signs(3, *SHAPE), 3 * torch.randn(5, 3, *SHAPE).double()
    torch.testing.assert_close(likelihood.log_prob(x, output), log_prob(output))
    torch.testing.assert_close(likelihood.log_prob(x, output[0]), log_prob(output[0]))
    x, output = signs(1, 1, 1, 6), torch.linspace(-3, 3, 6, dtype=torch.float64)
    hessian = torch.autograd.functional.hessian(lambda output: -log_prob(output.view(1, 1, 1, 6))[0], output)
    torch.testing.assert_close(torch.diag(likelihood.curvature(output)), hessian)
    draws = likelihood.sample(output.expand(20_000, 6), seeded(0))
    error = draws.std(0) / math.sqrt(20_000)
    assert ((draws.mean(0) - likelihood.mean(output)).abs() < 4 * error).all()
    likelihood.check(draws)
    model, z = ConvModel(3, likelihood, image_shape=SHAPE, seed=0), torch.randn(4, 2, 3)
    assert model.mean(z).shape == (4, 2, *SHAPE)
    torch.testing.assert_close(model.mean(z), likelihood.mean(model.decode(z)))
    assert model.mean(9 * z).abs().max() <= 1
    # Old checkpoints have no entry of the likelihood.
    assert all(name.startswith("decoder.") for name in model.state_dict())


def test_probabilities_are_never_above_one():
    x = signs(4, 50).float()
    for logit in (0.0, 5.0, 200.0, 1e6):
        right, wrong = (Bernoulli().log_prob(x, sign * logit * x) for sign in (1, -1))
        assert ((wrong <= right) & (right <= 0) & wrong.isfinite()).all()


def test_samples_of_the_model_have_its_covariance():
    model = linear_gaussian(pixels=4, latent_dim=2)
    x, z = model.sample(40_000, seeded(0))
    expected = model.weight @ model.weight.T + SIGMA**2 * torch.eye(4)
    torch.testing.assert_close(x.T.cov(), expected, atol=0.05, rtol=0)
    torch.testing.assert_close(x.mean(0), model.bias, atol=0.05, rtol=0)
    assert (x - model.decode(z)).std().item() == pytest.approx(SIGMA, rel=0.02)
    assert all(map(torch.equal, (x, z), model.sample(40_000, seeded(0))))


def test_a_view_in_low_precision_shares_the_weights_and_changes_only_its_own_values():
    model, x = ConvVAE(3, image_shape=SHAPE, seed=0), toy_data().test.images[:4]
    z = torch.randn(4, 3, generator=seeded(0))
    before = model.decode(z), model.encode(x).mean
    view = model.in_precision("bfloat16")
    assert all(one is other for one, other in zip(model.parameters(), view.parameters(), strict=True))
    for exact, rough in zip(before, (view.decode(z), view.encode(x).mean), strict=True):
        assert rough.dtype == torch.float32
        assert 0 < (rough - exact).abs().max() < 0.05
    assert torch.equal(model.decode(z), before[0])
    assert torch.equal(view.in_precision("float32").decode(z), before[0])


def test_images_whose_size_the_networks_cannot_halve_twice_are_refused():
    for network in (Encoder, Decoder, Classifier):
        with pytest.raises(ValueError, match="12 x 18 pixels"):
            network(5, image_shape=(1, 12, 18))


def test_the_first_weights_depend_on_the_seed_alone_and_only_the_decoders_last_are_larger():
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    vae, alone, other = ConvVAE(3, seed=4), ConvModel(3, seed=4), ConvModel(3, seed=5)
    Classifier(seed=0)
    assert torch.equal(torch.rand(3), expected)  # the global generator is left alone
    assert all(map(torch.equal, vae.decoder.parameters(), alone.decoder.parameters()))
    assert not all(map(torch.equal, vae.decoder.parameters(), other.decoder.parameters()))
    (last,) = [layer for layer in vae.decoder.modules() if isinstance(layer, nn.Conv2d)]
    assert 0.245 < last.weight.abs().max() <= 0.25
    assert last.weight.std().item() == pytest.approx(0.25 / math.sqrt(3), rel=0.05)
    for layer in vae.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d) and layer is not last:
            assert layer.weight.abs().max() <= 1 / math.sqrt(layer.weight[0].numel())  # PyTorch's default


class Laplace(Likelihood):
    """A density with a scale that is learned."""

    name = "laplace"

    def __init__(self, scale=0.5):
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(math.log(scale)))

    def log_prob(self, x, output):
        scale = self.log_scale.exp()
        return flat_pixels(-(x - output).abs() / scale - (2 * scale).log(), x).sum(-1)

    def mean(self, output):
        return output

    def sample(self, output, generator):
        uniform = torch.rand(output.shape, generator=generator, dtype=output.dtype) - 0.5
        return output - self.log_scale.exp() * uniform.sign() * torch.log1p(-2 * uniform.abs())

    def curvature(self, output):
        return torch.ones_like(output) / self.log_scale.exp() ** 2  # the Fisher information

    def exact(self, output):
        return distributions.Laplace(output, self.log_scale.exp())


class Heteroscedastic(Likelihood):
    """A Gaussian whose mean and log-variance are drawn by the decoder, for each pixel."""

    name, channels = "heteroscedastic", 2

    def log_prob(self, x, output):
        mean, log_var = self.split(output)
        values = -0.5 * ((x - mean).square() / log_var.exp() + log_var + math.log(2 * math.pi))
        return flat_pixels(values, x).sum(-1)

    def mean(self, output):
        return self.split(output)[0]

    def sample(self, output, generator):
        mean, log_var = self.split(output)
        return mean + (0.5 * log_var).exp() * torch.randn(mean.shape, generator=generator, dtype=mean.dtype)

    def curvature(self, output):
        _, log_var = self.split(output)
        return torch.cat(((-log_var).exp(), torch.full_like(log_var, 0.5)), dim=-3)  # the Fisher information

    def exact(self, output):
        return Normal(output[..., :3, :, :], (0.5 * output[..., 3:, :, :]).exp())


class UsersModel(NonlinearModel):
    """A decoder that ends in nn.Unflatten, of images of 3 channels and 1 x 2 pixels, in float64."""

    def __init__(self, likelihood, latent_dim):
        width = 6 * likelihood.channels
        layers = nn.Linear(latent_dim, 5), nn.Tanh(), nn.Linear(5, width), nn.Unflatten(1, (width // 2, 1, 2))
        LatentVariableModel.__init__(self, nn.Sequential(*layers), likelihood, latent_dim=latent_dim)
        self.double()
        for parameter in self.decoder.parameters():
            nn.init.normal_(parameter, std=0.7, generator=seeded(2))

    def _log_likelihood(self, x, z):
        output = self.decoder(z.flatten(0, 1)).unflatten(0, z.shape[:2])
        return self.likelihood.exact(output).log_prob(x).flatten(-3).sum(-1)


@pytest.mark.parametrize("latent_dim", [1, 2])
@pytest.mark.parametrize("likelihood", [Laplace, Heteroscedastic])
def test_a_new_likelihood_is_one_class(likelihood, latent_dim):
    """The bound, its best q, importance sampling and annealing against quadrature with PyTorch's densities."""
    model = UsersModel(likelihood(), latent_dim)
    x, _ = model.sample(4, seeded(3))
    best = fit_posterior(model, x, model.initial_posterior(x), noise=Noise(1), fit_steps=150).q
    points = 181 if latent_dim == 2 else 2001
    exact, exact_log_prob = model.elbo(best, x, points), model.log_prob(x, points)
    bound = elbo(model, x, best, torch.randn(20_000, *best.mean.shape, generator=seeded(4)).double())
    torch.testing.assert_close(bound.elbo, exact, atol=0.05, rtol=0)
    assert ((exact < exact_log_prob) & (exact > exact_log_prob - 2)).all()
    sampled = importance_sampling(model, x, best, noise=Noise(2), num_samples=20_000)
    torch.testing.assert_close(sampled.log_prob, exact_log_prob, atol=0.1, rtol=0)
    full = gauss_newton_posterior(model, x, best, noise=Noise(3))
    annealed = annealed_importance_sampling(model, x, full, noise=Noise(4), chains=64, temperatures=60)
    assert ((annealed.log_prob - exact_log_prob).abs() < 4 * annealed.standard_error + 0.01).all()
    assert model.mean(best.mean).shape == x.shape


def test_a_likelihoods_parameters_are_trained_and_saved_with_the_decoders():
    model, other = UsersModel(Laplace(3.0), 2), UsersModel(Laplace(), 2)
    x, _ = UsersModel(Laplace(0.2), 2).sample(500, seeded(5))
    optimizer, zeros = torch.optim.Adam(model.parameters(), lr=0.05), torch.zeros(500, 2).double()
    for _ in range(300):
        optimizer.zero_grad()
        (-elbo(model, x, gaussian(zeros, 1e-3), zeros).elbo.mean()).backward()
        optimizer.step()
    distance = (x - model.decode(zeros)).abs().mean().item()
    assert model.likelihood.log_scale.exp().item() == pytest.approx(distance, rel=0.02)  # the maximum likelihood
    other.load_state_dict(model.state_dict())
    assert torch.equal(other.likelihood.log_scale, model.likelihood.log_scale)


def test_the_networks_draw_two_channels_for_a_pixel_if_the_likelihood_needs_them():
    model = ConvVAE(3, Heteroscedastic(), image_shape=SHAPE, seed=0)
    x, z = model.sample(4, seeded(0))
    assert model.decode(z).shape == (4, 4, 12, 16)
    assert x.shape == model.mean(z).shape == (4, *SHAPE)
    assert elbo(model, x, model.encode(x), torch.randn(5, 4, 3)).elbo.shape == (4,)


def test_threads_that_make_models_get_the_weights_of_their_seeds():
    with ThreadPoolExecutor(4) as pool:
        models = list(pool.map(lambda seed: ConvVAE(3, image_shape=SHAPE, seed=seed), [1, 2] * 10))
    for number, model in enumerate(models):
        weights = ConvVAE(3, image_shape=SHAPE, seed=1 + number % 2).state_dict()
        assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


class Viewed(nn.Module):
    def forward(self, z):
        return z.repeat(1, 4).view(-1, 2, 2, 3)


def test_a_decoder_may_have_no_parameters_and_end_in_a_view():
    model = LatentVariableModel(Viewed(), Gaussian(SIGMA), latent_dim=3)
    x, _ = model.sample(4, seeded(0))
    draws = torch.randn(5, 4, 3, generator=seeded(1))
    assert torch.equal(model.decode(draws), draws.repeat(1, 1, 4).view(5, 4, 2, 2, 3))
    assert log_prob(model, x.clamp(-1, 1), chains=2).log_prob.shape == (4,)


def test_a_decoder_may_change_its_input():
    z = torch.randn(5, 3, generator=seeded(1))
    model = LatentVariableModel(nn.Sequential(nn.ReLU(inplace=True), nn.Linear(3, 12)), Gaussian(SIGMA), latent_dim=3)
    before = z.clone()
    model.decode(z)
    assert torch.equal(z, before)


def test_a_decoder_that_does_not_fit_is_refused():
    for decoder, message in (
        (nn.Linear(3, 12), r"x \(4, 2, 2, 3\): log_likelihood\(x, z\) takes x \(B, 12\)"),
        (nn.Flatten(0), "not a row for each z"),
        (nn.LSTM(3, 12), r"into \('tuple',\): not a row for each z"),
        (torch.no_grad()(nn.Linear(3, 12).forward), "decoder: its output has no gradient"),
    ):
        model = LatentVariableModel(decoder, Gaussian(SIGMA), latent_dim=3)
        with pytest.raises(ValueError, match=message):
            model.log_likelihood(torch.zeros(4, 2, 2, 3), torch.zeros(4, 3).requires_grad_())
    with pytest.raises(ValueError, match=r"likelihood: one such as Gaussian\(0.4\), not 'gaussian'"):
        LatentVariableModel(nn.Linear(3, 12), "gaussian", latent_dim=3)
    with pytest.raises(ValueError, match="its decoder gives pixels that are no finite numbers"):
        log_prob(LatentVariableModel(nn.Threshold(9, torch.nan), Gaussian(SIGMA), latent_dim=3), torch.zeros(2, 3))


class Flattened(Gaussian):
    """Right of z (B, D), wrong of z (K, B, D); of two values per pixel, of which `mean` gives both."""

    def log_prob(self, x, output):
        return super().log_prob(x, output).flatten(1).sum(1) if output.dim() > x.dim() else super().log_prob(x, output)


def test_a_likelihood_that_gives_other_shapes_is_refused():
    model = LatentVariableModel(nn.Linear(3, 8), Flattened(0.5), latent_dim=3)
    x, z = torch.zeros(4, 8), torch.zeros(6, 4, 3)
    assert model.log_likelihood(x, z[0]).shape == model.log_likelihood(x[:1], z[0]).shape == (4,)
    with pytest.raises(ValueError, match=r"log_prob gives \(6,\), where \(6, 4\) is needed"):
        model.log_likelihood(x, z)
    model.likelihood.channels = 2
    with pytest.raises(ValueError, match=r"mean gives \(4, 8\) of outputs \(4, 8\)"):
        model.mean(z[0])


def test_an_autocast_around_a_call_does_not_reach_the_networks():
    model = ConvVAE(5, image_shape=(1, 8, 8), hidden=16, seed=1)
    x, z = torch.zeros(2, 1, 8, 8), torch.randn(2, 5, generator=seeded(1))
    with torch.no_grad():
        outside = model.mean(z), model.encode(x).mean
        with torch.autocast("cpu", torch.bfloat16):
            inside = model.mean(z), model.encode(x).mean
        assert not torch.equal(model.in_precision("bfloat16").mean(z), outside[0])
    assert all(map(torch.equal, outside, inside))
