"""What is measured of images, and the Scores made of it."""

import pytest
import torch
from conftest import seeded, toy_config, toy_data

from evaluation import measurements, scores
from evaluation.statistics import find, select_scores
from latent_optimization import LatentOptimization
from runtime.config import EvalConfig
from vae_utils import Bound, Fit


def made_up_columns(generator, classes=5, images=4):
    """Random columns, as of measurements.collect_images."""
    names = (*scores.MEANS, *scores.MEDIANS, "log_prob_standard_error", "log_prob_bias", "acceptance")
    names = (*names, "trusted", "modes", "fit_converged")
    return {name: torch.randn(classes, images, generator=generator, dtype=torch.float64) for name in names}


def test_differences_are_paired_and_signed():
    """Two methods that differ by a constant in each class: the error over images is zero, and the first is better."""
    data, config = toy_data(), EvalConfig(images_per_digit=4, annealed_per_digit=4)
    one = made_up_columns(seeded(0))
    shift = torch.tensor([[1.0], [2.0], [6.0], [2.0], [4.0]])
    other = {name: values - shift for name, values in one.items()} | {"log_prob": one["log_prob"] - 3 * shift}
    measured = {
        (name, split): columns for name, columns in {"a": one, "b": other}.items() for split in ("train", "test")
    }
    bound = Bound(*torch.randn(3, len(data.test.labels), generator=seeded(1)).double())
    bounds = dict.fromkeys(measured, (data.test, bound))
    rows = scores.image_scores(measured, bounds, data, config, epoch=3)
    for score in select_scores(rows, method="a - b"):
        assert score.mean == pytest.approx({"log_prob": 9, "inference_gap": 6}.get(score.quantity, 3))
        assert score.standard_error == pytest.approx(0, abs=1e-9)
        assert (score.images, score.epoch) == (20, 3)
    # The gaps add up, in every class, too.
    for group in ("", "a", "e"):
        parts = [find(rows, f"{name}_gap", "b", group=group).mean for name in ("approximation", "amortization")]
        assert sum(parts) == pytest.approx(find(rows, "inference_gap", "b", group=group).mean)


def test_what_is_said_beside_the_means():
    columns = made_up_columns(seeded(0))
    columns["log_prob_standard_error"] = torch.full((5, 4), 0.3, dtype=torch.float64)
    columns["trusted"] = torch.tensor([1.0, 0, 1, 1]).repeat(5, 1).double()
    columns["modes"] = torch.tensor([1.0, 2, 3, 0]).repeat(5, 1).double()
    measured = {("a", split): columns for split in ("train", "test")}
    data, config = toy_data(), EvalConfig(images_per_digit=4, annealed_per_digit=4)
    bound = Bound(*torch.randn(3, len(data.test.labels), generator=seeded(1)).double())
    rows = scores.image_scores(measured, dict.fromkeys(measured, (data.test, bound)), data, config, epoch=3)
    expected = {
        "images_not_trusted": 5,
        "images_with_several_modes": 10,
        "monte_carlo_error": 0.3 / 20**0.5,  # of the mean of 20 independent estimates
        "bias": columns["log_prob_bias"].mean(),
        "acceptance": columns["acceptance"].mean(),
        "fit_converged": columns["fit_converged"].mean(),
    }
    for quantity, value in expected.items():
        assert find(rows, quantity, "a").mean == pytest.approx(float(value))


def test_costs_count_the_gradients_of_each_visit():
    method = LatentOptimization(toy_config(latent_steps=3), toy_data())
    converged = torch.tensor([True, True, False, True])
    fit = Fit(None, None, converged, torch.tensor([10, 20, 30, 40]))
    rows = scores.cost_scores([method], 2, {method.name: fit}, {method.name: 0.5}, {})
    costs = {entry.quantity: entry.mean for entry in rows}
    assert costs == {
        "decoder_updates": 2 * 5,  # 150 images in batches of 32
        "training_gradients": 2 * 3 * 150,
        "training_gradients_per_q": 2 * 3,
        "unseen_image_gradients": 25,
        "unseen_image_seconds": 0.5,
        "inference_converged": 0.75,
    }


def small_work(method, data, **counts):
    config = EvalConfig(num_samples=16, chains=2, fit_steps=5, **counts)
    return config, measurements.image_tasks([method], data, config, "a test")


@pytest.mark.parametrize("converged", [True, False])
def test_whether_the_methods_own_fits_converged_is_said(converged, monkeypatch):
    """Of images whose q is q* already, as the method fitted it."""
    data = toy_data()
    method = LatentOptimization(toy_config(), data)
    infer = method.infer
    monkeypatch.setattr(
        method, "infer", lambda x, **options: infer(x, **options)._replace(converged=torch.full((len(x),), converged))
    )
    config, work = small_work(method, data, images_per_digit=2, annealed_per_digit=1, temperatures=2)
    results = {name: function() for name, function in work.items()}
    columns = measurements.collect_images([method], config, results, "a test")[method.name, "test"]
    assert columns["fit_converged"][:, 0].tolist() == [converged] * 5
    assert columns["fit_converged"][:, 1].isnan().all()
    assert torch.equal(columns["elbo"][:, 0], columns["fitted_elbo"][:, 0])
    table = measurements.image_table({(method.name, "test"): columns}, data, config)
    assert [row["log_prob"] is None for row in table] == [False, True] * 5


def test_more_images_per_class_change_no_bit_of_the_first_ones():
    data = toy_data()
    method = LatentOptimization(toy_config(), data)
    _, few = small_work(method, data, images_per_digit=2, annealed_per_digit=1)
    _, many = small_work(method, data, images_per_digit=4, annealed_per_digit=3)
    assert few.keys() < many.keys()
    for name in few:
        one, other = few[name](), many[name]()
        assert torch.equal(one["mean"], other["mean"])
        for column, values in one["columns"].items():
            assert torch.equal(values, other["columns"][column])
