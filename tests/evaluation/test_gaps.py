"""The gaps of models whose log p(x) and best bounds are known."""

import pytest
import torch
from conftest import linear_gaussian, seeded

from evaluation import gaps, log_prob
from runtime.config import EvalConfig
from vae_utils import Noise

CONFIG = EvalConfig(num_samples=4000, chains=16, temperatures=50, fit_steps=150, precision="float32")


@pytest.mark.parametrize("fitted", [False, True])
def test_the_gaps_of_a_linear_model_are_the_exact_ones(fitted, monkeypatch):
    if fitted:
        monkeypatch.setattr(log_prob, "fit_posterior", None)  # then nothing is fitted
    model = linear_gaussian()
    x, _ = model.sample(6, seeded(1))
    best, bound = model.best_diagonal(x)
    q = best if fitted else model.poor(x)
    found = gaps.measure(model, x, q, CONFIG, noise=Noise(2), fitted=fitted, batch_size=4)
    exact, own = model.log_prob(x), model.elbo(q, x)
    torch.testing.assert_close(found["elbo"], own, atol=0.15, rtol=0)
    torch.testing.assert_close(found["fitted_elbo"], bound, atol=0.15, rtol=0)
    torch.testing.assert_close(found["log_prob"], exact, atol=0.05, rtol=0)
    torch.testing.assert_close(found["squared_error"], (model.decoder(q.mean) - x).square().sum(1))
    assert all(column.shape == (6,) and column.dtype == x.dtype for column in found.values())
    assert found["trusted"].all()
    assert found["fit_converged"].all()
    # The gaps are the differences of these means.
    for one, other, difference in (("log_prob", "fitted_elbo", exact - bound), ("fitted_elbo", "elbo", bound - own)):
        assert (found[one] - found[other]).mean().item() == pytest.approx(difference.mean().item(), abs=0.1)
    if fitted:
        assert torch.equal(found["elbo"], found["fitted_elbo"])


def test_every_estimate_of_log_prob_is_the_quadratures(nonlinear):
    x, _ = nonlinear.sample(6, seeded(1))
    found = gaps.measure(nonlinear, x, nonlinear.poor(x), CONFIG, noise=Noise(2), batch_size=4)
    for name in ("importance_sampling", "fitted_importance_sampling", "log_prob"):
        torch.testing.assert_close(found[name], nonlinear.log_prob(x), atol=0.2, rtol=0)
    assert found["elbo"].mean() < found["fitted_elbo"].mean() < found["log_prob"].mean()
    sizes = found["effective_sample_size"], found["fitted_effective_sample_size"]
    assert all(((size >= 1) & (size <= 4000)).all() for size in sizes)


def test_a_new_metric_is_one_function_and_one_entry(monkeypatch):
    def brightness(model, x, q):
        return x.sum(-1)

    model = linear_gaussian()
    x, _ = model.sample(3, seeded(1))
    arguments = model, x, model.poor(x), CONFIG
    before = gaps.measure(*arguments, noise=Noise(2))
    monkeypatch.setattr(gaps, "METRICS", (*gaps.METRICS, brightness))
    after = gaps.measure(*arguments, noise=Noise(2))
    torch.testing.assert_close(after.pop("brightness"), x.sum(-1))
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert before.keys() == after.keys()
