"""The steps of the semi-amortized VAE against closed forms, and what encoder and decoder learn."""

import torch
from conftest import linear_gaussian, linear_with_images, seeded, toy_config, toy_data

from semi_amortized_vae import SemiAmortizedVAE
from vae_utils import Noise, elbo

CONFIG = toy_config(refinement_steps=3, refinement_rate=0.3)


def of_model(model, rate):
    method = SemiAmortizedVAE(toy_config(refinement_rate=rate), toy_data())
    method.model = model
    return method


def test_steps_lead_to_the_best_diagonal_q():
    """By the closed form of the bound: higher after eight steps than after four, and near the best one after many."""
    model, x = linear_with_images(50, pixels=30, latent_dim=4)
    _, bound = model.best_diagonal(x)
    start = model.poor(x)
    short = [(bound - model.elbo(start, x)).mean()]  # of the best bound
    for steps, rate in ((4, 0.2), (8, 0.2), (400, 0.1)):
        noise = torch.randn(steps, 50, 4, generator=seeded(2), dtype=torch.float64)
        q, _ = of_model(model, rate).refine(x, start, noise)
        assert not q.mean.requires_grad
        short.append((bound - model.elbo(q, x)).mean())
    assert short[0] > 1.5 * short[1] > 1.5 * short[2] > 15 * short[3] > 0


def test_a_step_is_as_long_as_it_says():
    model, x = linear_with_images(50, pixels=30, latent_dim=4)
    q, e = model.poor(x), torch.randn(50, 4, generator=seeded(2), dtype=torch.float64)
    z = q.rsample(e).requires_grad_()
    (gradient,) = torch.autograd.grad((model.log_joint(x, z) - q.log_prob(z)).sum(), z)
    found, _ = of_model(model, 0.3).refine(x, q, e.unsqueeze(0))
    torch.testing.assert_close(found.mean, q.mean + 0.3 * q.scale**2 * gradient)
    change = 0.5 * e * q.scale * gradient
    assert change.abs().min() < 1 < change.abs().max()  # some of them are cut off
    torch.testing.assert_close(2 * (found.scale / q.scale).log(), 0.3 * change.clamp(-1, 1))


def test_the_steps_of_a_training_image_are_its_own():
    method, rows = SemiAmortizedVAE(CONFIG, toy_data()), torch.tensor([7, 2])
    x = method.images[rows]
    noise = Noise.of_images(CONFIG.seed, "refinement", index=method.train_index[rows])
    assert torch.equal(method.posterior(x, rows).mean, method.infer(x, noise=noise).q.mean)
    assert not torch.equal(method.train_index, torch.arange(len(method.images)))


def test_the_first_gradient_is_that_of_the_weighted_bound():
    """Its mean over many draws, against autograd of the closed form."""
    model, beta = linear_gaussian(pixels=30, latent_dim=4), 0.4
    x, _ = model.sample(2, seeded(1))
    method, q = of_model(model, 0.2), model.poor(x)
    parameters = q.parameters().requires_grad_()
    q = type(q).from_parameters(parameters)
    loss = model.elbo(q, x) + (1 - beta) * q.kl()
    (expected,) = torch.autograd.grad(loss.sum(), parameters)
    copies = x.repeat(20_000, 1), type(q)(q.mean.repeat(20_000, 1), q.scale.repeat(20_000, 1))
    noise = torch.randn(1, 40_000, 4, generator=seeded(3), dtype=torch.float64)
    _, gradients = method.refine(*copies, noise, beta=beta)
    gradients = gradients.view(-1, 2, 8)
    error = gradients.std(0) / 20_000**0.5
    assert ((gradients.mean(0) - expected).abs() < 4 * error).all()


def test_the_decoder_learns_at_the_refined_q_and_the_encoder_at_its_own():
    method, rows = SemiAmortizedVAE(CONFIG, toy_data()), torch.arange(9)
    noise, x = method.draw_noise(9, seeded(1)), toy_data().train.images[:9]
    assert noise.shape == (4, 9, 5)
    refined, first = method.refine(x, method.model.encode(x), noise[:3], beta=CONFIG.beta)
    bound = elbo(method.model, x, refined, noise[3])
    weights = list(method.model.decoder.parameters())
    of_decoder = torch.autograd.grad((CONFIG.beta * bound.kl - bound.log_likelihood).sum(), weights)
    of_encoder = torch.autograd.grad(method.model.encode(x).parameters(), method.model.encoder.parameters(), -first)
    sums = method.backward(rows, noise)
    assert torch.equal(sums, torch.stack([part.detach().sum() for part in bound]))
    weights += method.model.encoder.parameters()
    for weight, gradient in zip(weights, (*of_decoder, *of_encoder), strict=True):
        torch.testing.assert_close(weight.grad, gradient)
    assert method.gradients_per_visit == 3 == method.infer(x, noise=Noise(1)).gradients[0]
