"""The likelihoods, the generative model and the networks."""

import math

import pytest
import torch
from conftest import SIGMA, linear_gaussian, seeded, toy_data
from torch import distributions, nn
from torch.distributions import Normal

from model import Bernoulli, Classifier, ConvModel, ConvVAE, Decoder, Encoder, Gaussian

LIKELIHOODS = pytest.mark.parametrize("likelihood", [Gaussian(SIGMA), Bernoulli()], ids=lambda each: each.name)
SHAPE = (2, 12, 16)


def signs(*shape, seed=0):
    """Pixels that are -1 or 1."""
    return torch.randint(2, shape, generator=seeded(seed)).double() * 2 - 1


@LIKELIHOODS
def test_log_prob_is_that_of_pytorchs_distributions(likelihood):
    x, output = signs(3, *SHAPE), 3 * torch.randn(5, 3, *SHAPE).double()
    expected = Normal(output, SIGMA).log_prob(x)
    if likelihood.name == "bernoulli":
        expected = distributions.Bernoulli(logits=output).log_prob((x + 1) / 2)
    expected = expected.sum((-3, -2, -1))
    torch.testing.assert_close(likelihood.log_prob(x, output), expected)
    torch.testing.assert_close(likelihood.log_prob(x, output[0]), expected[0])


def test_a_gaussian_density_reaches_its_ceiling_at_a_perfect_mean():
    x = torch.rand(2, 1, 28, 28)
    assert Gaussian().log_prob(x, x).tolist() == pytest.approx([-2.08] * 2, abs=0.005)
    assert Gaussian(SIGMA).log_prob(x, x).tolist() == pytest.approx([-392 * math.log(2 * math.pi * SIGMA**2)] * 2)


@pytest.mark.parametrize("logit", [0.0, 5.0, 200.0, 1e6])
def test_log_probabilities_of_binary_pixels_are_never_above_zero(logit):
    x = signs(4, 50).float()
    right, wrong = (Bernoulli().log_prob(x, sign * logit * x) for sign in (1, -1))
    assert ((wrong <= right) & (right <= 0)).all()
    assert wrong.isfinite().all()


@LIKELIHOODS
def test_samples_have_the_mean_that_the_likelihood_says(likelihood):
    output = torch.tensor([-2.0, -0.3, 0.0, 1.5]).double()
    draws = likelihood.sample(output.expand(20_000, 4), seeded(0))
    error = draws.std(0) / math.sqrt(20_000)
    assert ((draws.mean(0) - likelihood.mean(output)).abs() < 4 * error).all()
    likelihood.check(draws)


@LIKELIHOODS
def test_curvature_is_the_second_derivative(likelihood):
    output = torch.linspace(-3, 3, 6, dtype=torch.float64)
    x = signs(1, 6)
    hessian = torch.autograd.functional.hessian(lambda output: -likelihood.log_prob(x, output[None])[0], output)
    torch.testing.assert_close(torch.diag(likelihood.curvature(output)), hessian)


def test_bernoulli_refuses_grey_pixels():
    Bernoulli().check(signs(3, *SHAPE))
    Gaussian().check(torch.rand(3, *SHAPE))
    with pytest.raises(ValueError, match="binarize"):
        Bernoulli().check(torch.rand(3, *SHAPE))


def test_samples_of_the_model_have_its_covariance():
    model = linear_gaussian(pixels=4, latent_dim=2)
    x, z = model.sample(40_000, seeded(0))
    expected = model.weight @ model.weight.T + SIGMA**2 * torch.eye(4)
    torch.testing.assert_close(x.T.cov(), expected, atol=0.05, rtol=0)
    torch.testing.assert_close(x.mean(0), model.bias, atol=0.05, rtol=0)
    assert (x - model.decode(z)).std().item() == pytest.approx(SIGMA, rel=0.02)


@LIKELIHOODS
def test_the_mean_is_that_of_the_likelihood(likelihood):
    model, z = ConvModel(3, likelihood, image_shape=SHAPE, seed=0), torch.randn(4, 2, 3)
    assert model.mean(z).shape == (4, 2, *SHAPE)
    torch.testing.assert_close(model.mean(z), likelihood.mean(model.decode(z)))
    assert model.mean(9 * z).abs().max() <= 1


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


def test_samples_that_lead_are_decoded_one_by_one():
    model, z = ConvModel(3, image_shape=SHAPE, seed=0), torch.randn(5, 4, 3)
    torch.testing.assert_close(model.decode(z), torch.stack([model.decode(each) for each in z]))


def test_networks_of_other_images_and_classes():
    x = toy_data().train.images[:6]
    assert Encoder(7, image_shape=SHAPE)(x).shape == (6, 14)
    assert Decoder(7, image_shape=SHAPE)(torch.randn(6, 7)).shape == x.shape
    classifier = Classifier(5, image_shape=SHAPE, seed=0)
    assert classifier(x).shape == (6, 5)
    assert classifier.features(x).shape == (6, 128)


@pytest.mark.parametrize("network", [Encoder, Decoder, Classifier])
def test_images_that_cannot_be_quartered_are_refused(network):
    with pytest.raises(ValueError, match="12 x 18 pixels"):
        network(5, image_shape=(1, 12, 18))


def test_only_the_decoders_last_convolution_begins_with_larger_weights():
    model = ConvVAE(3, image_shape=SHAPE, seed=0)
    (last,) = [layer for layer in model.decoder.modules() if isinstance(layer, nn.Conv2d)]
    assert 0.245 < last.weight.abs().max() <= 0.25
    assert last.weight.std().item() == pytest.approx(0.25 / math.sqrt(3), rel=0.03)
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d) and layer is not last:
            assert layer.weight.abs().max() <= 1 / math.sqrt(layer.weight[0].numel())  # PyTorch's default


def test_a_decoder_of_its_own_has_the_weights_of_the_vaes():
    vae, alone, other = ConvVAE(5, seed=4), ConvModel(5, seed=4), ConvModel(5, seed=5)
    assert all(map(torch.equal, vae.decoder.parameters(), alone.decoder.parameters()))
    assert not all(map(torch.equal, vae.decoder.parameters(), other.decoder.parameters()))


def test_seeding_leaves_the_global_generator_alone():
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    ConvVAE(5, seed=0)
    Classifier(seed=0)
    assert torch.equal(torch.rand(3), expected)
