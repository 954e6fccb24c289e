"""The gaps of models whose log p(x) and best bounds are known."""

import pytest
import torch
from conftest import linear_gaussian, seeded, toy_config, toy_data

from evaluation import gaps, log_prob, scores
from latent_optimization import LatentOptimization
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


def test_differences_are_paired_and_signed():
    """Two methods that differ by a constant in each class: the error over images is zero, and the first is better."""
    generator = seeded(0)
    one = scores.Gaps(*torch.randn(len(scores.Gaps._fields), 3, 4, generator=generator).double())
    shift = torch.tensor([[1.0], [2.0], [6.0]])
    other = scores.Gaps(*(field - shift for field in one))._replace(log_prob=one.log_prob - 3 * shift)
    for name, score in scores.differences(one, other).items():
        assert score["mean"] == pytest.approx({"log_prob": 9, "inference_gap": 6}.get(name, 3))
        assert score["standard_error"] == pytest.approx(0, abs=1e-9)
        assert score["images"] == 12


@pytest.mark.parametrize("converged", [True, False])
def test_whether_the_methods_own_fits_converged_is_said(converged, monkeypatch):
    """Of images whose q is q* already, as the method fitted it."""
    data = toy_data()
    method, config = (
        LatentOptimization(toy_config(), data),
        EvalConfig(num_samples=16, images_per_digit=2, annealed_per_digit=1, chains=2, temperatures=2, fit_steps=5),
    )
    infer = method.infer
    monkeypatch.setattr(
        method, "infer", lambda x, **options: infer(x, **options)._replace(converged=torch.full((len(x),), converged))
    )
    done = {name: work() for name, work in scores.image_tasks([method], data, config, "a test").items()}
    found = scores.collect_images([method], data, config, done, "a test")[method.name]["test"]
    assert found.fit_converged[:, 0].tolist() == [converged] * 5
    assert found.fit_converged[:, 1].isnan().all()
    assert torch.equal(found.elbo[:, 0], found.fitted_elbo[:, 0])


def test_more_images_per_class_change_no_bit_of_the_first_ones():
    data = toy_data()
    method = LatentOptimization(toy_config(), data)
    counts = {"num_samples": 16, "chains": 2, "fit_steps": 5}
    few, many = (
        EvalConfig(images_per_digit=images, annealed_per_digit=annealed, **counts)
        for images, annealed in ((2, 1), (4, 3))
    )
    work = [scores.image_tasks([method], data, config, "a test") for config in (few, many)]
    assert work[0].keys() < work[1].keys()
    for name in work[0]:
        one, other = (of_config[name]() for of_config in work)
        measured = ~one["gaps"].isnan()
        assert torch.equal(one["gaps"][measured], other["gaps"][measured])
        assert torch.equal(one["mean"], other["mean"])
