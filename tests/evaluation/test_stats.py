"""Intervals against scipy's own, and the bootstrap."""

import numpy as np
import pytest
import torch
from scipy import stats as scipy_stats

from evaluation import stats
from vae_utils import mean_and_error, random_generator


def test_t_interval_is_scipys():
    values = np.array([1.0, 2.0, 3.0, 6.0])
    low, high = scipy_stats.t.interval(0.95, 3, loc=3, scale=scipy_stats.sem(values))
    mean, half = stats.intervals([mean_and_error(torch.from_numpy(values[:count])) for count in (4, 1)])
    assert (mean[0] - half[0], mean[0] + half[0]) == pytest.approx((low, high))
    assert (mean[1], half[1]) == (1, 0)


def test_intervals_of_a_column_are_those_of_its_scores():
    rows = [{"a": 3.0, "a_standard_error": 0.5, "count": 7}, {"a": -1.0, "a_standard_error": None, "count": 1}]
    mean, half = stats.column_intervals(rows, "a", "count")
    assert mean.tolist() == [3, -1]
    assert half == pytest.approx([0.5 * 2.446912, 0])
    assert stats.column_intervals([{"b": 2.0, "images": 9}], "b")[1].tolist() == [0]  # without a column of errors


def test_a_stratified_mean_has_the_error_within_classes():
    values = torch.tensor([[1.0, 3.0], [10.0, 14.0], [-5.0, -5.0]])
    score = stats.stratified_mean(values)
    error = np.sqrt(np.var([1, 3], ddof=1) / 2 + np.var([10, 14], ddof=1) / 2) / 3
    assert score == {"mean": pytest.approx(3), "standard_error": pytest.approx(error), "images": 6, "freedom": 3}
    assert stats.intervals([score])[1] == pytest.approx([scipy_stats.t.ppf(0.975, 3) * error])
    alone = stats.stratified_mean(values[:, :1])  # one image of each class: the error is that of the classes
    assert alone == {**mean_and_error(values[:, 0]), "freedom": 2}


SHARES = torch.tensor([2, 2, 1, 1]) / 6  # of the classes
MEAN = float((SHARES * (0.8 * -30 * torch.arange(4) + 12 + 8 * (torch.arange(4) < 2))).sum())


def draw_images(count, generator):
    """Values, whose mean is MEAN, bounds and classes of so many new images; classes differ in size and in both."""
    label = torch.arange(count) % 6 % 4
    bound = 20 * torch.randn(count, generator=generator).double() - 30 * label
    value = 0.8 * bound + 12 + 8 * (label < 2) + 3 * torch.randn(count, generator=generator).double()
    return value, bound, label


def draw_sample(label, count, generator):
    """(classes, count): rows of random images of each class."""
    rows = (torch.nonzero(label == kind).flatten() for kind in range(4))
    return torch.stack([row[torch.randperm(len(row), generator=generator)[:count]] for row in rows])


def test_the_error_of_a_stratified_part_is_that_of_many():
    generator = random_generator(5)
    parts = [draw_images(60, generator) for _ in range(500)]
    found = np.std([float(value.mean()) for value, _, _ in parts])
    stated = np.mean([stats.proportional_error(value, label) for value, _, label in parts])
    assert stated == pytest.approx(found, rel=0.1)
    assert found < 0.7 * parts[0][0].std() / 60**0.5


@pytest.mark.parametrize("known", [3000, 300])
def test_the_regression_estimate_covers_the_mean_of_all_images(known):
    """Its 95% interval does so in 95 of 100 draws of images; the error is that of many draws."""
    generator, errors, stated, inside = random_generator(5), [], [], []
    for _ in range(600):
        value, bound, label = draw_images(known, generator)
        rows, error = draw_sample(label, 6, generator), stats.proportional_error(bound, label)
        found = stats.regression_estimate(value[rows], bound[rows], shares=SHARES, known=bound, known_error=error)
        (mean,), (half,) = stats.intervals([found])
        errors.append(mean - MEAN)
        stated.append(found["standard_error"])
        inside.append(abs(errors[-1]) < half)
    assert (found["images"], found["freedom"], found["known_images"]) == (24, 19, known)
    assert found["slope"] == pytest.approx(0.8, abs=0.3)
    assert abs(np.mean(errors)) < 4 * np.std(errors) / np.sqrt(600)
    assert np.sqrt(np.mean(np.square(stated))) == pytest.approx(np.std(errors), rel=0.12)
    assert np.mean(inside) == pytest.approx(0.95, abs=0.03)


def test_the_regression_estimate_is_sharper_than_the_plain_mean():
    value, bound, label = draw_images(3000, random_generator(5))
    rows = draw_sample(label, 6, random_generator(6))
    options = {"shares": SHARES, "known": bound, "known_error": stats.proportional_error(bound, label)}
    error = stats.regression_estimate(value[rows], bound[rows], **options)["standard_error"]
    assert error < stats.stratified_mean(value[rows])["standard_error"] / 3


@pytest.mark.parametrize(("correct", "count"), [(0, 10), (10, 10), (987, 1000)])
def test_wilson_interval(correct, count):
    expected = scipy_stats.binomtest(correct, count).proportion_ci(method="wilson")
    assert stats.wilson_interval(correct, count) == pytest.approx((expected.low, expected.high), abs=1e-6)
    found = stats.accuracy(torch.arange(count) < correct)
    assert (found["accuracy"], found["images"]) == (correct / count, count)
    assert found["interval_95"] == stats.wilson_interval(correct, count)


def test_bootstrap_counts_are_draws_with_replacement():
    counts = stats.bootstrap_counts(30, resamples=4000, generator=random_generator(3))
    assert counts.sum(1).tolist() == [30] * 4000
    found = torch.bincount(counts.flatten().long(), minlength=3)[:3] / counts.numel()
    assert found.numpy() == pytest.approx(scipy_stats.binom.pmf([0, 1, 2], 30, 1 / 30), abs=0.005)
