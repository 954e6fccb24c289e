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
