"""The gaps of models whose log p(x) and best bounds are known."""

import pytest
import torch
from conftest import linear_with_images, seeded

from evaluation import gaps
from posterior_fit import fit_posterior
from runtime.config import EvalConfig
from vae_utils import Noise, importance_sampling

CONFIG = EvalConfig(num_samples=4000, chains=16, temperatures=50, fit_steps=150, precision="float32")


@pytest.mark.parametrize("fitted", [False, True])
def test_the_gaps_of_a_linear_model_are_the_exact_ones(fitted):
    model, x = linear_with_images(6)
    best, bound = model.best_diagonal(x)
    q = best if fitted else model.poor(x)
    noise = Noise.of_images(2, index=range(6))
    found = gaps.measure(model, x, q, CONFIG, noise=noise, annealed=6, fitted=fitted)
    exact, own = model.log_prob(x), model.elbo(q, x)
    torch.testing.assert_close(found["elbo"], own, atol=1, rtol=0)  # of 100 draws
    torch.testing.assert_close(found["fitted_elbo"], bound, atol=1, rtol=0)
    torch.testing.assert_close(found["full_elbo"], exact, atol=0.2, rtol=0)  # at the posterior no draw differs
    torch.testing.assert_close(found["log_prob"], exact, atol=0.05, rtol=0)
    torch.testing.assert_close(found["squared_error"], (model.decoder(q.mean) - x).square().sum(1))
    assert found["trusted"].all()
    assert found["fit_converged"].all()
    # The gaps are the differences of these means.
    for one, other, difference in (("log_prob", "fitted_elbo", exact - bound), ("fitted_elbo", "elbo", bound - own)):
        assert (found[one] - found[other]).mean().item() == pytest.approx(difference.mean().item(), abs=0.3)
    if fitted:
        assert torch.equal(found["elbo"], found["fitted_elbo"])


def test_a_q_that_has_diverged_is_said():
    model, x = linear_with_images(2)
    q = model.poor(x)
    q.scale[1] = 1e200
    with pytest.raises(FloatingPointError, match="the training has diverged"):
        gaps.measure(model, x, q, CONFIG, noise=Noise(0), annealed=2)


def test_every_estimate_of_log_prob_is_the_quadratures(nonlinear):
    x, _ = nonlinear.sample(6, seeded(1))
    found = gaps.measure(nonlinear, x, nonlinear.poor(x), CONFIG, noise=Noise(2), annealed=6)
    for name in ("importance_sampling", "full_importance_sampling", "log_prob"):
        torch.testing.assert_close(found[name], nonlinear.log_prob(x), atol=0.2, rtol=0)
    assert found["elbo"].mean() < found["fitted_elbo"].mean() < found["full_elbo"].mean() + 0.1
    assert found["full_elbo"].mean() < found["log_prob"].mean() + 0.1
    # Of samples from the method's own q, here the prior
    own = importance_sampling(nonlinear, x, nonlinear.poor(x), noise=Noise(5), num_samples=4000).effective_sample_size
    assert found["effective_sample_size"].log().sub(own.log()).abs().max() < 0.3


def test_of_images_that_are_not_annealed_the_bounds_at_q_and_at_q_star_are_left():
    model, x = linear_with_images(3)
    every, some, few, unfitted = (
        gaps.measure(model, x, model.poor(x), CONFIG, noise=Noise.of_images(2, index=range(3)), annealed=count)
        for count in (3, 1, 0, None)
    )
    metrics = {metric.__name__ for metric in gaps.METRICS}
    assert set(few) == {"elbo", "fitted_elbo", "fit_converged", *metrics}
    assert set(unfitted) == {"elbo", *metrics}
    assert all(torch.equal(values, few[name]) for name, values in unfitted.items())
    assert some.keys() == every.keys()
    for name, values in some.items():  # what an image is worth does not depend on it; other batches round otherwise
        same = 3 if name in few else 1
        torch.testing.assert_close(values[:same], every[name][:same], atol=1e-4, rtol=0)
        assert values[same:].isnan().all()


@pytest.mark.parametrize(("latent_dim", "draws"), [(2, 1000), (3, 100)])
def test_bounds_beside_an_exact_log_prob_have_more_draws(monkeypatch, latent_dim, draws):
    asked, bound = [], gaps.evaluate_bound
    monkeypatch.setattr(gaps, "evaluate_bound", lambda *args, **o: asked.append(o["draws"]) or bound(*args, **o))
    model, x = linear_with_images(2, latent_dim=latent_dim)
    q, _ = model.best_diagonal(x)
    noise = Noise.of_images(0, index=range(2))
    first, again = (gaps.bound_at(model, x, q, noise=noise) for _ in range(2))
    assert asked == [draws] * 2
    assert torch.equal(first, again)  # of the same draws


def test_a_metric_is_a_number_of_each_image_and_changes_none(monkeypatch):
    def numbers(model, x, q):
        x += 1
        q.mean.zero_()
        return list(range(len(x)))

    def scalar(model, x, q):
        return q.mean.sum()

    model, x = linear_with_images(3)
    before, q, options = x.clone(), model.poor(x), {"noise": Noise(0), "annealed": None}
    monkeypatch.setattr(gaps, "METRICS", (numbers,))
    assert gaps.measure(model, x, q, CONFIG, **options)["numbers"].tolist() == [0, 1, 2]
    assert torch.equal(x, before)
    assert torch.equal(q.mean, model.poor(x).mean)
    monkeypatch.setattr(gaps, "METRICS", (scalar,))
    with pytest.raises(ValueError, match=r"METRICS: scalar gives \(\), where \(3,\) is needed"):
        gaps.measure(model, x, model.poor(x), CONFIG, **options)


@pytest.mark.parametrize("covariance", ["diagonal", "full"])
def test_the_fits_of_an_annealed_image_have_converged_if_both_have(covariance, monkeypatch):
    def fit(*arguments, **options):
        fit = fit_posterior(*arguments, **options)
        return fit._replace(converged=fit.converged & (options.get("covariance", "diagonal") != covariance))

    monkeypatch.setattr(gaps, "fit_posterior", fit)
    model, x = linear_with_images(3)
    columns = gaps.measure(model, x, model.poor(x), CONFIG, noise=Noise.of_images(0, index=range(3)), annealed=2)
    assert columns["fit_converged"].tolist() == [0, 0, covariance == "full"]
