"""Annealed importance sampling, its bounds and the Gauss-Newton posterior, on models whose log p(x) is known."""

import math

import pytest
import torch
from conftest import LINEAR, SIGMA, gaussian, linear_gaussian, seeded
from scipy.stats import t

from evaluation import ais
from evaluation.ais import Pilot, annealed_importance_sampling, bidirectional_bounds, log_mean_errors
from evaluation.hmc import AISTarget, hmc_step
from model import ConvModel, Gaussian
from posterior_fit import gauss_newton_posterior
from vae_utils import GaussianPosterior, Noise

WIDE = LINEAR["linear, latent dimension 200"]


def draw(model, *, count=6, seed=1):
    """(x, z, noise): images that the model has made, and a Noise for what is done with them."""
    return *model.sample(count, seeded(seed)), Noise(seed)


def test_annealing_from_a_poor_q_gives_log_prob(model):
    """Every image within four standard errors; all together, within three of theirs."""
    x, _, noise = draw(model)
    estimate = annealed_importance_sampling(model, x, model.poor(x), noise=noise, chains=32, temperatures=150)
    error = estimate.log_prob - model.log_prob(x)
    assert (error.abs() < 4 * estimate.standard_error + 1e-9).all()
    # The logarithm of a mean of K chains lies a little below the mean's: half the variance of that mean.
    pooled = error.mean() + 0.5 * estimate.standard_error.square().mean()
    assert pooled.abs() < 3 * estimate.standard_error.square().sum().sqrt() / len(x)
    assert estimate.standard_error.max() < 0.6


@pytest.mark.parametrize("temperatures", [3, None])
def test_p_and_its_inverse_are_met_in_the_mean(temperatures):
    """The mean of exp(w) is p(x), that of exp(-w) backwards 1 / p(x), whatever temperatures the images have."""
    model = linear_gaussian()
    x, z, noise = draw(model, count=4000)
    q = model.poor(x)
    q = GaussianPosterior(q.mean + torch.arange(4000).unsqueeze(1) % 2 * q.scale, q.scale)
    settings = {"chains": 3, "temperatures": temperatures, "log_weight_std": 1.5}
    bounds, exact = bidirectional_bounds(model, x, z, q, noise=noise, **settings), model.log_prob(x)
    for ratio in ((bounds.lower - exact).exp(), (exact - bounds.upper).exp()):
        assert abs(float(ratio.mean()) - 1) < 4 * float(ratio.std()) / math.sqrt(len(x))
        assert ratio.std() > 0.1


@pytest.mark.parametrize("aim", [1.0, 0.5])
def test_temperatures_are_as_many_as_the_accuracy_asked_for_needs(aim):
    """Images whose q is the posterior, and others whose q is ever farther off: each gets its own number."""
    x, _, noise = draw(WIDE, count=8)
    exact, far = WIDE.posterior(x), torch.tensor([0, 0, 1, 1, 2, 2, 4, 4]).double().unsqueeze(1) / 10
    q = GaussianPosterior(exact.mean + far * WIDE.best_diagonal(x)[0].scale, exact.scale)
    found = annealed_importance_sampling(WIDE, x, q, noise=noise, chains=16, log_weight_std=aim)
    assert found.temperatures[:2].tolist() == [16, 16]
    assert (found.temperatures[2::2].diff() > 0).all()
    assert 0.5 * aim < found.log_weight_std[2:].square().mean().sqrt() < 1.5 * aim


def test_the_temperatures_of_a_pilot_by_hand():
    """A deviation d at all of them: (1.7 d / aim)^2, rounded up to a power of the root of two, from 16 to 1,024."""
    deviations = torch.tensor([[0.1, 2.0, 3.0, 1000.0]]).expand(5, -1)
    pilot = Pilot(deviations, torch.ones_like(deviations))
    assert pilot.temperatures(0.5).tolist() == [16, 64, 128, 1024]  # 46.2 and 104
    assert pilot.temperatures(0.25).tolist() == [16, 256, 512, 1024]  # 185 and 416
    assert pilot.log_weight_std(torch.tensor([4, 25, 100, 1])).tolist() == pytest.approx([0.085, 0.68, 0.51, 1700])


def test_a_schedule_is_close_where_the_log_weight_varies_most():
    deviations = torch.tensor([[3.0, 1.0], [1.0, 1.0]])  # the first image: three quarters of the temperatures below 0.5
    steps = torch.tensor([[0.1, 0.3], [0.2, 0.4]])
    betas, step_sizes = Pilot(deviations, steps).schedule(torch.arange(2), torch.tensor([8, 4]))
    torch.testing.assert_close(betas[:, 0], torch.tensor([0, 1, 2, 3, 4, 5, 6, 9, 12]) / 12)
    torch.testing.assert_close(betas[:, 1], torch.tensor([0, 1, 2, 3, 4, 4, 4, 4, 4]) / 4)
    assert step_sizes[1, 0] == 0.1
    assert step_sizes[-1].tolist() == pytest.approx([0.2, 0.4])


@pytest.mark.parametrize(("std", "chains"), [(0.5, 4), (0.9, 8), (3.0, 8)])
def test_the_stated_errors_of_normal_log_weights_are_the_true_ones(std, chains):
    """log(mean exp(w)) of w ~ N(-std^2 / 2, std^2) estimates 0; errors whose like many runs have."""
    log_w = std * torch.randn(chains, 40_000, generator=seeded(1)).double() - std**2 / 2
    estimate = log_w.logsumexp(0) - math.log(chains)
    (error,), (bias,) = log_mean_errors(torch.tensor([std]), chains)
    assert float(error) == pytest.approx(float(estimate.std()), rel=0.03)
    assert float(bias) == pytest.approx(float(estimate.mean()), rel=0.1)
    assert all(value.isnan().all() for value in log_mean_errors(torch.tensor([math.nan]), 1))  # of one chain


def test_the_interval_of_an_estimate_holds_log_prob_in_95_of_100_cases():
    """Student's t times the error, and the bias; the pilot's prediction keeps chains that agree by chance from it."""
    model = linear_gaussian(pixels=30, latent_dim=10)
    x, _, noise = draw(model, count=400)
    exact = model.posterior(x)
    q = GaussianPosterior(exact.mean + 1.2 * model.best_diagonal(x)[0].scale, exact.scale)
    found = annealed_importance_sampling(model, x, q, noise=noise, chains=5, log_weight_std=1.2)
    error, allowed = (found.log_prob - model.log_prob(x)).abs(), t.ppf(0.975, 4)
    assert float((error < allowed * found.standard_error + found.bias.abs()).double().mean()) > 0.94
    of_chains, _ = log_mean_errors(found.log_weight_std, 5)
    assert (found.standard_error >= of_chains).all()
    agreeing = found.log_weight_std < 0.4 * found.log_weight_std.mean()
    assert agreeing.any()
    assert (found.standard_error[agreeing] > 1.5 * of_chains[agreeing]).all()


def test_the_number_of_chains_at_once_does_not_matter():
    model = linear_gaussian()
    x, _, noise = draw(model)
    settings = {"noise": noise, "chains": 64, "temperatures": 50, "chunk": 24}  # of one image after the other
    found = annealed_importance_sampling(model, x, model.poor(x), **settings)
    assert ((found.log_prob - model.log_prob(x)).abs() < 4 * found.standard_error).all()


def test_low_precision_is_for_gradients_and_jacobians_alone():
    model = ConvModel(6, Gaussian(SIGMA), image_shape=(2, 12, 16), seed=1, precision="bfloat16")
    x, z = model.sample(3, seeded(0))
    q, e, in_float32 = gaussian(z, 0.3), torch.randn(4, 3, 6, generator=seeded(2)), model.in_precision("float32")
    target = AISTarget(model, x, q)
    found, exact = target.at(e), AISTarget(in_float32, x, q).at(e)
    assert torch.equal(found.log_weight, exact.log_weight)
    assert not torch.equal(target.at(e, exact=False).log_weight, exact.log_weight)
    assert 0 < (found.gradient - exact.gradient).norm() / exact.gradient.norm() < 0.05
    rough, exact = (
        torch.cholesky_inverse(gauss_newton_posterior(network, x, q, noise=Noise(1)).scale)  # the precision
        for network in (model, in_float32)
    )
    assert rough.dtype == torch.float32
    error = (rough - exact).flatten(1).norm(dim=1) / exact.flatten(1).norm(dim=1)
    assert ((error > 0) & (error < 0.02)).all()


def test_step_sizes_fall_until_chains_move_however_far_the_image_is(monkeypatch):
    """From a q that is far too wide, of images far from the data: at first the steps are too long a hundred times."""
    monkeypatch.setattr(ais, "PILOT_TEMPERATURES", 3)  # each must find its own step size
    model = linear_gaussian(pixels=40, latent_dim=6)
    x, _, noise = draw(model)
    x *= torch.tensor([1.0, 1, 1, 30, 30, 30])[:, None]
    model.likelihood.sigma = 0.02
    prior = gaussian(torch.zeros(6, 6).double(), 1.0)
    found = annealed_importance_sampling(model, x, prior, noise=noise, temperatures=60)
    assert found.acceptance.min() > 0.35
    assert not found.trusted.all()  # so few temperatures


def test_log_weights_that_agree_by_chance_are_not_trusted(monkeypatch):
    """The pilot run predicts how much they vary."""
    model = linear_gaussian()
    x, _, noise = draw(model, count=2)
    ones, predicted = torch.ones(2).double(), torch.tensor([0.5, 5.0]).double()
    monkeypatch.setattr(ais, "weighted_runs", lambda *args, **o: (ones.expand(3, 2), None, ones, 9 * ones, predicted))
    found = annealed_importance_sampling(model, x, model.poor(x), noise=noise)
    assert found.log_weight_std.tolist() == [0, 0]
    assert found.trusted.tolist() == [True, False]
    assert found.standard_error[0] < found.standard_error[1]


class Walled(Gaussian):
    """Where the first pixel is drawn light, x has no probability, or none that is a number."""

    wall = -math.inf

    def log_prob(self, x, output):
        return super().log_prob(x, output).masked_fill(output[..., 0] > 0.3, self.wall)


def test_a_path_that_ends_where_there_is_no_number_is_refused():
    model = linear_gaussian(pixels=12, latent_dim=3)
    x, _, noise = draw(model)
    model.likelihood, model.likelihood.wall = Walled(SIGMA), math.nan
    target = AISTarget(model, x, gaussian(torch.zeros(6, 3).double(), 1.0))
    state = target.at(noise.normal((40, 6, 3), like=x))
    inside = state.log_weight.isfinite()
    after, acceptance = hmc_step(state, target, 0.5, torch.full((6,), 0.3).double(), noise=noise)
    assert after.log_weight[inside].isfinite().all()
    assert (acceptance[inside] == 0).any()


def test_log_weights_that_are_not_finite_make_no_small_error():
    model = linear_gaussian(pixels=12, latent_dim=3)
    x, _, noise = draw(model)
    model.likelihood = Walled(SIGMA)
    prior = gaussian(torch.zeros(6, 3).double(), 1.0)
    found = annealed_importance_sampling(model, x, prior, noise=noise, temperatures=1, chains=30)
    broken = found.log_weight_std == math.inf
    assert broken.any()
    assert (found.standard_error[broken] == math.inf).all()
    assert (found.bias[broken] == -math.inf).all()
    assert not found.trusted[broken].any()
    assert not found.log_prob.isnan().any()
    by_the_pilot = annealed_importance_sampling(model, x, prior, noise=noise, chains=3)
    assert (by_the_pilot.temperatures > 500).any()
