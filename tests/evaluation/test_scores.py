"""What is measured of images, and the Scores made of it."""

import runpy
from dataclasses import replace
from itertools import product
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import seeded, toy_config, toy_data

from evaluation import gaps, measurements, scores
from evaluation.figures import GAPS
from evaluation.measurements import Measured, draw_sample, draw_samples, gap_columns, image_tasks
from evaluation.statistics import find, select_scores, stratified_mean
from latent_optimization import LatentOptimization
from posterior_fit import Fit
from runtime.config import EvalConfig
from semi_amortized_vae import SemiAmortizedVAE

SAMPLE = draw_sample(toy_data().test, size=25, per_class=4, seed=2)
SAMPLES = {"train": SAMPLE, "test": SAMPLE}


def made_up_columns():
    """Random columns, as of measurements.collect_images, with what is beyond the annealed images missing."""
    annealed = """log_prob full_elbo importance_sampling full_importance_sampling log_prob_standard_error log_prob_bias
        acceptance trusted fit_converged"""
    names, generator = ("elbo", "fitted_elbo", *scores.KNOWN[3:], *annealed.split(), *scores.MEDIANS), seeded(0)
    columns = {name: torch.randn(25, generator=generator, dtype=torch.float64) for name in names}
    for name in names[len(scores.KNOWN) - 1 :]:  # the amortization gap follows
        columns[name][SAMPLE.annealed :] = torch.nan
    return columns | gap_columns(columns)


def measured(**methods):
    return {(name, split): Measured(columns, None, 0.0) for (name, columns), split in product(methods.items(), SAMPLES)}


def test_a_sample_holds_every_class_by_its_share_and_grows_without_change():
    split = toy_data().test
    split = split.at(torch.cat((torch.arange(35), torch.arange(0, 35, 5), torch.arange(0, 35, 5))))  # 21 of class 0
    small, large = (draw_sample(split, size=size, per_class=count, seed=2) for size, count in ((0, 2), (21, 3)))
    assert small.labels.tolist() == sorted([*range(5)] * 2)
    assert small.shares.tolist() == pytest.approx([3 / 7, *[1 / 7] * 4])
    counts = large.labels.bincount().tolist()
    assert counts == [9, 3, 3, 3, 3]
    assert len(draw_sample(split, size=22, per_class=3, seed=2).rows) == 22
    assert torch.equal(large.part.index, split.index[large.rows])
    assert large.labels[: large.annealed].tolist() == sorted([*range(5)] * 3)
    assert torch.equal(large.rows[large.first(2)].flatten(), small.rows)
    assert large.first(2).shape == (5, 2)
    other = draw_sample(split, size=21, per_class=3, seed=3)
    assert not torch.equal(other.rows, large.rows)


def test_a_rare_class_does_not_make_the_sample_larger():
    split = toy_data().test
    rows = torch.cat((torch.arange(0, 35, 5).repeat(40), torch.tensor([1, 6])))  # 280 of class 0, 2 of class 1
    split = replace(split.at(rows), classes=split.classes[:2])
    sample = draw_sample(split, size=20, per_class=1, least=2, seed=2)
    assert sample.labels.bincount().tolist() == [18, 2]
    assert (sample.annealed, sample.labels[:2].tolist()) == (2, [0, 1])
    assert torch.equal(sample.first(2)[1].sort().values, torch.nonzero(sample.labels).flatten())
    assert draw_sample(split, size=0, per_class=1, least=2, seed=2).labels.tolist() == [0, 1, 0, 1]


def test_results_go_to_the_method_whose_name_is_theirs_and_not_to_one_that_begins_alike():
    results = {
        f"bidirectional_{name}_{block}": torch.tensor([[value], [value + 2]])
        for name, block, value in (("a", 0, 3.0), ("a_1", 0, 5.0), ("a", 1, 4.0))
    }
    rows = scores.bidirectional_scores([SimpleNamespace(name="a"), SimpleNamespace(name="a_1")], results, epoch=3)
    means = [(entry.method, entry.quantity.removeprefix("bidirectional_"), entry.mean, entry.images) for entry in rows]
    assert means[:3] == [("a", "lower", 3.5, 2), ("a", "upper", 5.5, 2), ("a", "gap", 2, 2)]
    assert means[3:] == [("a_1", "lower", 5, 1), ("a_1", "upper", 7, 1), ("a_1", "gap", 2, 1)]


def test_differences_are_paired_and_signed_and_gaps_add_up():
    """Two methods that differ by a constant: the error of the difference is zero, and the first is better."""
    one = made_up_columns()
    shifts = {"elbo": 3, "fitted_elbo": 4, "full_elbo": 6, "log_prob": 9}
    other = one | {name: one[name] - shift for name, shift in shifts.items()}
    other |= gap_columns(other)
    rows = scores.image_scores(measured(a=one, b=other), SAMPLES, epoch=3)
    gaps = {"amortization_gap": 1, "mean_field_gap": 2, "non_gaussian_gap": 3, "inference_gap": 6}
    for quantity, value in {**gaps, "approximation_gap": 5, **shifts, "squared_error": 0}.items():
        if entry := find(rows, quantity, "a - b"):
            assert entry.mean == pytest.approx(value)
            assert entry.standard_error == pytest.approx(0, abs=1e-6)
            assert (entry.images, entry.epoch) == (25, 3)
    assert {entry.quantity for entry in select_scores(rows, method="a - b")} == set(scores.PAIRED)
    for method, group, split in product("ab", ("", "a", "e"), SAMPLES):
        values = {name: find(rows, name, method, split, group).mean for name in (*GAPS, "inference_gap", *shifts)}
        assert sum(values[name] for name in GAPS) == pytest.approx(values["inference_gap"])
        assert values["inference_gap"] == pytest.approx(values["log_prob"] - values["elbo"])
    for label, name in enumerate(SAMPLE.part.classes):  # a group is a class
        mean = float(one["elbo"][label == SAMPLE.labels].mean())
        assert find(rows, "elbo", "a", group=name).mean == pytest.approx(mean)


def test_what_is_measured_of_all_images_carries_the_annealed_ones():
    """log p(x) = 2 ELBO(q*) + 5: the mean over all images is known without error but for the images."""
    columns = made_up_columns()
    columns["log_prob"] = torch.where(columns["log_prob"].isnan(), torch.nan, 2 * columns["fitted_elbo"] + 5)
    columns |= gap_columns(columns)
    rows = scores.image_scores(measured(a=columns), SAMPLES, epoch=3)
    score, known = find(rows, "log_prob", "a"), find(rows, "fitted_elbo", "a")
    expected = sum(columns["fitted_elbo"][SAMPLE.labels == label].mean() for label in range(5)) / 5
    assert score.mean == pytest.approx(2 * float(expected) + 5)
    assert score.standard_error == pytest.approx(2 * known.standard_error)


def test_what_is_said_beside_the_means():
    columns = made_up_columns()
    first = slice(SAMPLE.annealed)
    columns["log_prob_standard_error"][first] = 0.3
    columns["trusted"][first] = torch.tensor([1.0, 0, 1, 1]).repeat(5).double()
    rows = scores.image_scores(measured(a=columns), SAMPLES, epoch=3)
    expected = {
        "annealed_images": 20,
        "images_not_trusted": 5,
        "monte_carlo_error": 0.3 / 20**0.5,  # of the mean of 20 independent estimates
        "bias": columns["log_prob_bias"][first].mean(),
        "acceptance": columns["acceptance"][first].mean(),
        "fit_converged": columns["fit_converged"].nanmean(),
        **{name: np.median(columns[name][first]) for name in scores.MEDIANS},
    }
    for quantity, value in expected.items():
        assert find(rows, quantity, "a").mean == pytest.approx(float(value))


def test_costs_count_the_gradients_of_each_visit():
    method = LatentOptimization(toy_config(latent_steps=3), toy_data())
    fit = Fit(None, None, torch.tensor([True, True, False, True]), torch.tensor([10, 20, 30, 40]))
    rows = scores.cost_scores([method], 2, {(method.name, "test"): Measured({}, fit, 2.0)}, {})
    costs = {entry.quantity: entry.mean for entry in rows}
    assert costs == {
        "decoder_updates": 2 * 5,  # 150 images in batches of 32
        "training_gradients": 2 * 3 * 150,
        "training_gradients_per_q": 2 * 3,
        "unseen_image_gradients": 25,
        "unseen_image_seconds": 0.5,
        "inference_converged": 0.75,
    }
    method = SemiAmortizedVAE(toy_config(refinement_steps=3), toy_data())
    rows = scores.cost_scores([method], 2, {(method.name, "test"): Measured({}, fit, 2.0)}, {})
    assert find(rows, "training_gradients", method.name, "train").mean == 2 * 3 * 150
    assert find(rows, "training_gradients_per_q", method.name, "train").mean == 2 * 150  # the encoder's


def test_the_tracked_scores_are_of_the_first_images_of_each_class():
    columns, places = made_up_columns(), SAMPLE.first(2).flatten()
    shares = torch.tensor([0.6, 0.1, 0.1, 0.1, 0.1]).double()
    rows = scores.tracked_scores(measured(a=columns), SAMPLES | {"test": SAMPLE._replace(shares=shares)}, 5, 2)
    found = next(entry for entry in rows if (entry.quantity, entry.split) == ("elbo", "test"))
    expected = stratified_mean(columns["elbo"][places], SAMPLE.labels[places], shares)
    assert (found.mean, found.images) == (pytest.approx(expected["mean"]), 10)


def test_the_bound_of_few_images_has_more_draws():
    assert [measurements.draws_of(images) for images in (10_000, 400, 3)] == [4, 10, 64]


def small_work(method, data, *, fitted=20, **counts):
    config = EvalConfig(num_samples=16, chains=2, fit_steps=12, fitted_images=fitted, **counts)
    samples = draw_samples(data, config, last=True)
    return samples, image_tasks([method], samples, 2, config)


@pytest.mark.parametrize(("best", "converged"), [(True, True), (True, False), (False, False)])
def test_q_is_taken_for_the_best_one_only_where_the_method_says_so(best, converged, monkeypatch, rough):
    """If so, the method also says whether its fits have converged; what was not annealed is missing."""
    monkeypatch.setattr(LatentOptimization, "infers_best", best)  # not so of one that fits means alone
    data = toy_data()
    method, infer = LatentOptimization(toy_config(), data), LatentOptimization.infer

    def counted(self, x, **options):
        return infer(self, x, **options)._replace(converged=torch.full((len(x),), converged))

    monkeypatch.setattr(LatentOptimization, "infer", counted)
    samples, work = small_work(method, data, images_per_digit=1, temperatures=2)
    results = {name: function() for name, function in work.items()}
    collected = measurements.collect_images([method], samples, results, 2)
    columns = collected[method.name, "test"].columns
    assert set(columns["fit_converged"][5:].tolist()) == {float(converged)}
    assert (columns["elbo"] == columns["fitted_elbo"]).tolist() == [best] * 20
    assert (collected[method.name, "train"].columns["amortization_gap"] != 0).all()
    assert columns["log_prob"][:5].isfinite().all()


def test_simulated_images_may_lie_far_beyond_the_range_of_pixels(monkeypatch, rough):
    """As under a likelihood with long tails."""
    method = LatentOptimization(toy_config(), toy_data())
    monkeypatch.setattr(method.model, "reach", 1e-3)
    config = EvalConfig(simulated_images=2, chains=2, temperatures=2, fit_steps=12)
    (work,) = measurements.bidirectional_tasks([method], config).values()
    assert work().isfinite().all()


def test_more_images_do_not_change_what_is_found_for_the_first_ones(rough):
    data = toy_data()
    method = LatentOptimization(toy_config(), data)
    _, few = small_work(method, data, images_per_digit=1)
    samples, many = small_work(method, data, images_per_digit=3, fitted=30)
    name = next(name for name in few if "_test_0" in name)
    one, other = few[name]()["columns"], many[name]()["columns"]
    places = samples["test"].first(1).flatten()
    for column in ("elbo", "squared_error", "full_elbo"):  # in other batches sums are rounded otherwise
        torch.testing.assert_close(one[column][:5], other[column][places], atol=1e-2, rtol=0)


@pytest.mark.parametrize("name", ["elbo", "kl", "mean_field_gap", "temperatures", "bias"])
def test_a_metric_cannot_have_the_name_of_another_quantity(monkeypatch, name):
    monkeypatch.setattr(gaps, "METRICS", (SimpleNamespace(__name__=name),))
    with pytest.raises(ValueError, match=f"METRICS: {name} is the name of another quantity"):
        runpy.run_path(scores.__file__)
