"""The gaps of models whose log p(x) and best bounds are known."""

import pytest
import torch
from conftest import linear_gaussian, seeded

from evaluation import gaps
from runtime.config import EvalConfig

CONFIG = EvalConfig(num_samples=4000, chains=16, temperatures=50, fit_steps=150, precision="float32")


@pytest.mark.parametrize("fitted", [False, True])
def test_the_gaps_of_a_linear_model_are_the_exact_ones(fitted, monkeypatch):
    if fitted:
        monkeypatch.setattr(gaps, "fit_posterior", None)  # then nothing is fitted
    model = linear_gaussian()
    x, _ = model.sample(6, seeded(1))
    best, bound = model.best_diagonal(x)
    q = best if fitted else model.poor(x)
    found = gaps.measure(model, x, q, CONFIG, generator=seeded(2), fitted=fitted, batch_size=4)
    exact, own = model.log_prob(x), model.elbo(q, x)
    torch.testing.assert_close(found.elbo, own, atol=0.15, rtol=0)
    torch.testing.assert_close(found.fitted_elbo, bound, atol=0.15, rtol=0)
    torch.testing.assert_close(found.ais_log_prob, exact, atol=0.05, rtol=0)
    torch.testing.assert_close(found.squared_error, (model.decoder(q.mean) - x).square().sum(1))
    scores = gaps.summarize(found)
    both = scores["approximation_gap"]["mean"] + scores["amortization_gap"]["mean"]
    assert scores["inference_gap"]["mean"] == pytest.approx(both, abs=1e-4)
    assert scores["approximation_gap"]["mean"] == pytest.approx((exact - bound).mean().item(), abs=0.1)
    assert scores["amortization_gap"]["mean"] == pytest.approx((bound - own).mean().item(), abs=0.1)
    if fitted:
        assert torch.equal(found.elbo, found.fitted_elbo)
        assert scores["amortization_gap"]["mean"] == 0


def test_every_estimate_of_log_prob_is_the_quadratures(nonlinear):
    x, _ = nonlinear.sample(6, seeded(1))
    found = gaps.measure(nonlinear, x, nonlinear.poor(x), CONFIG, generator=seeded(2), batch_size=4)
    for estimate in (found.is_log_prob, found.fitted_is_log_prob, found.ais_log_prob):
        torch.testing.assert_close(estimate, nonlinear.log_prob(x), atol=0.2, rtol=0)
    assert found.elbo.mean() < found.fitted_elbo.mean() < found.ais_log_prob.mean()
