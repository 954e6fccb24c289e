"""q*full against the exact posterior of linear models, and against quadrature where it is correlated."""

import pytest
import torch
from conftest import NONLINEAR, gaussian, linear_with_images, seeded
from torch import nn
from torch.distributions import MultivariateNormal, kl_divergence

from model import Gaussian, LatentVariableModel
from posterior_fit import decoder_jacobian, fit_posterior, gauss_newton_posterior
from vae_utils import GaussianPosterior, Noise, evaluate_bound, seeded_weights


def exact_bound(model, q, x, points=121):
    """The bound of a full q of two dimensions, by the trapezoidal rule over its noise."""
    noise, log_weight = model._grid(points)
    z = q.mean + (q.scale @ noise.movedim(1, -1).expand(len(noise), 2, len(x)).permute(2, 1, 0)).permute(2, 0, 1)
    return (log_weight.exp() * model._log_likelihood(x, z)).sum(0) - q.kl()


def test_the_full_fit_of_a_linear_model_is_its_posterior(linear):
    """Also where the start is far off: then the first steps are as long as they may be."""
    x, _ = linear.sample(5, seeded(1))
    exact, far = linear.posterior(x), gaussian(linear.posterior(x).mean + 1.5, 1.3)
    start = GaussianPosterior(far.mean, torch.diag_embed(far.scale))
    options = {"noise": Noise(2), "covariance": "full", "fit_steps": 600, "max_cycles": 30, "tolerance": 0.01}
    for q in (linear.poor(x), start) if linear.latent_dim < 9 else (linear.best_diagonal(x)[0],):
        fit = fit_posterior(linear, x, q, **options)
        found, expected = (MultivariateNormal(p.mean, scale_tril=p.scale) for p in (fit.q, exact))
        assert kl_divergence(found, expected).max() < 0.01
        assert fit.converged.all()
        assert (fit.trace.diff(dim=0) >= 0).all()


@pytest.mark.parametrize("likelihood", ["gaussian", "bernoulli"])
def test_the_full_fit_has_the_best_bound_by_quadrature(likelihood):
    """Better than Gauss-Newton and q* for every image, and no change of one entry gains more than its noise."""
    model = NONLINEAR[f"{likelihood}, latent dimension 2"]
    x, _ = model.sample(6, seeded(1))
    noise, steps = Noise.of_images(3, index=range(6)), {"fit_steps": 900, "tolerance": 0.005, "max_cycles": 8}
    best = fit_posterior(model, x, model.poor(x), noise=noise).q
    start = gauss_newton_posterior(model, x, best, noise=noise)
    full = fit_posterior(model, x, best, noise=noise, covariance="full", **steps).q
    bound = exact_bound(model, full, x)
    assert (bound > model.elbo(best, x) - 0.01).all()
    assert (bound > exact_bound(model, start, x) - 0.01).all()
    assert bound.mean() > exact_bound(model, start, x).mean() + 0.005
    assert (bound < model.log_prob(x)).all()
    for row, column in ((0, 0), (1, 0), (1, 1)):
        for change in (-0.3, 0.3):
            scale = full.scale.clone()
            scale[:, row, column] += change * scale[:, row, row]
            assert (exact_bound(model, GaussianPosterior(full.mean, scale), x) < bound + 0.03).all()


def test_gauss_newton_takes_the_curvature_at_the_drawn_z():
    model = NONLINEAR["bernoulli, latent dimension 2"]
    x, _ = model.sample(3, seeded(1))
    q = gaussian(torch.randn(3, 2, generator=seeded(2), dtype=torch.float64), 0.7)
    found = gauss_newton_posterior(model, x, q, noise=Noise(4), draws=2, images=2).scale
    precision = torch.eye(2).double().repeat(3, 1, 1)
    for z in q.rsample(Noise(4).normal((2, 3, 2), like=x)):
        slopes = torch.stack([torch.autograd.functional.jacobian(model.decoder, one) for one in z])
        share = model.decoder(z).sigmoid().detach()
        precision += torch.einsum("bpi,bp,bpj->bij", slopes, share * (1 - share), slopes) / 2
    torch.testing.assert_close(found @ found.mT, precision.inverse())


class Recurrent(nn.Module):
    """A decoder whose layer has no forward differentiation, and which counts its calls in place."""

    def __init__(self):
        super().__init__()
        self.layer, self.to_pixels = nn.LSTM(2, 6), nn.Linear(6, 5)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, z):
        self.calls += 1
        return self.to_pixels(self.layer(z.unsqueeze(0))[0][0]).reshape(-1, 1, 1, 5)


def test_a_decoder_that_cannot_be_differentiated_forward_has_its_slopes_by_differences():
    with seeded_weights(3):
        model = LatentVariableModel(Recurrent(), Gaussian(0.5), latent_dim=2, precision="bfloat16")
    z = torch.randn(4, 2, generator=seeded(1))
    slopes, output = decoder_jacobian(model, z)
    exact = [torch.autograd.functional.jacobian(model.decoder, one.reshape(1, 2)).reshape(5, 2) for one in z]
    torch.testing.assert_close(slopes, torch.stack(exact), atol=1e-4, rtol=0)
    torch.testing.assert_close(output, model.decoder(z))


def test_steps_that_are_too_long_leave_the_start():
    model, x = linear_with_images(4)
    start = GaussianPosterior(model.posterior(x).mean + 0.3, 0.8 * model.posterior(x).scale)
    wild = {"covariance": "full", "rate": 3.0, "longest_step": 50.0, "fit_steps": 12, "max_cycles": 2}
    fit = fit_posterior(model, x, start, noise=Noise(3), **wild)
    gain = fit.trace[-1] - fit.trace[0]
    stays = [torch.equal(fit.q.scale[row], start.scale[row]) for row in range(4)]
    assert stays == (gain == 0).tolist()
    assert 0 < sum(stays) < 4
    assert (gain >= 0).all()


def test_the_longest_step_is_that_of_each_image():
    """Far from the posterior, so that it decides how far the fit comes."""
    model, x = linear_with_images(3, latent_dim=7, pixels=30)
    far = GaussianPosterior(model.posterior(x).mean + 1, 3 * model.posterior(x).scale)

    def fit(rows):
        options = {"covariance": "full", "fit_steps": 18, "max_cycles": 1, "longest_step": 0.02}
        return fit_posterior(model, x[rows], far[rows], noise=Noise.of_images(4, index=rows), **options).q

    together, alone = fit(torch.arange(3)), fit(torch.tensor([1]))
    torch.testing.assert_close(together.scale[1:2], alone.scale)
    torch.testing.assert_close(together.mean[1:2], alone.mean)
    assert not torch.equal(alone.scale, far.scale[1:2])


@pytest.mark.parametrize("covariance", ["diagonal", "full"])
def test_short_cycles_have_converged_by_a_lower_tolerance(covariance, monkeypatch):
    """As 30 of 300 steps: a tenth of it. Of a diagonal q to the exact best one."""
    model, x = linear_with_images(20, latent_dim=7, pixels=30)
    best, _ = model.best_diagonal(x)
    q = GaussianPosterior(best.mean + 3, 3 * best.scale)
    options = {"covariance": covariance, "fit_steps": 30, "max_cycles": 60}
    short, same, loose = (
        fit_posterior(model, x, q, noise=Noise(2), **options, **tolerance)
        for tolerance in ({}, {"tolerance": 0.5 if covariance == "full" else 0.4}, {"tolerance": 4.0})
    )
    assert torch.equal(short.q.mean, same.q.mean)
    monkeypatch.setattr("posterior_fit.FIT_STEPS", 30)
    default = fit_posterior(model, x, q, noise=Noise(2), **options)
    assert default.gradients.sum() < short.gradients.sum()
    assert short.gradients.sum() > loose.gradients.sum()
    if covariance == "diagonal":
        short, exact = (evaluate_bound(model, x, q, noise=Noise(7), draws=2000).elbo for q in (short.q, best))
        assert (exact - short).mean() < 0.3


@pytest.mark.parametrize("options", [{"tolerance": 0.1}, {"tolerance": 0.3, "covariance": "full", "max_cycles": 6}])
def test_the_fit_of_an_image_is_its_own_and_goes_on_until_it_has_converged(options):
    """Alone, and beside images that converge before it, with a generator for each."""
    model, x = linear_with_images(4, latent_dim=7, pixels=30)
    q = GaussianPosterior(model.posterior(x).mean + 0.02, model.best_diagonal(x)[0].scale)
    q.mean[0] += 2  # needs more cycles

    def fit(rows):
        noise = Noise.of_images(4, index=rows)
        return fit_posterior(model, x[rows], q[rows], noise=noise, fit_steps=18, **options)

    together, alone = fit(torch.arange(4)), fit(torch.tensor([0]))
    torch.testing.assert_close(together.q.mean[:1], alone.q.mean)
    torch.testing.assert_close(together.q.scale[:1], alone.q.scale)
    torch.testing.assert_close(together.trace[: len(alone.trace), :1], alone.trace)
    assert together.gradients[0] == alone.gradients[0] > together.gradients[1:].max()
