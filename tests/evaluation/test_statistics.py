"""Intervals against scipy's own, and the bootstrap."""

import numpy as np
import pytest
import torch
from scipy import stats as scipy_stats

from evaluation import statistics as stats
from evaluation.statistics import Score
from vae_utils import mean_and_error, random_generator


def test_t_interval_is_scipys():
    values = np.array([1.0, 2.0, 3.0, 6.0])
    low, high = scipy_stats.t.interval(0.95, 3, loc=3, scale=scipy_stats.sem(values))
    scores = [stats.score("elbo", mean_and_error(torch.from_numpy(values[:count]))) for count in (4, 1)]
    mean, half = stats.intervals(scores)
    assert (mean[0] - half[0], mean[0] + half[0]) == pytest.approx((low, high))
    assert (mean[1], half[1]) == (1, 0)


def test_a_score_is_found_by_its_fields_in_the_last_epoch():
    rows = [Score("elbo", "a", "test", epoch, group, epoch, 1.0, 5, 4) for epoch in (1, 3, 2) for group in ("", "b")]
    assert stats.find(rows, "elbo", "a") == rows[2]
    assert stats.find(rows, "elbo", "a", group="b", epoch=2) == rows[5]
    assert stats.find(rows, "elbo", "b") is None
    assert stats.select_scores(rows, group="b") == rows[1::2]


def test_a_stratified_mean_has_the_error_within_classes():
    values = torch.tensor([[1.0, 3.0], [10.0, 14.0], [-5.0, -5.0]])
    score = stats.stratified_mean(values)
    error = np.sqrt(np.var([1, 3], ddof=1) / 2 + np.var([10, 14], ddof=1) / 2) / 3
    assert score == {"mean": pytest.approx(3), "standard_error": pytest.approx(error), "images": 6, "freedom": 3}
    assert stats.intervals([stats.score("elbo", score)])[1] == pytest.approx([scipy_stats.t.ppf(0.975, 3) * error])
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
        (mean,), (half,) = stats.intervals([stats.score("log_prob", found)])
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
def test_a_share_has_wilsons_interval(correct, count):
    z, share = 1.959964, correct / count
    half = z * np.sqrt(share * (1 - share) / count + z**2 / (4 * count**2)) / (1 + z**2 / count)
    center = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    found = stats.accuracy(torch.arange(count) < correct)
    assert found["interval_95"] == pytest.approx((center - half, center + half), abs=1e-6)
    assert (found["accuracy"], found["images"]) == (share, count)


def test_the_interval_of_a_count_is_that_of_resampled_images():
    """The count of a binomial variable: its resamples have the binomial's percentiles."""
    values = np.arange(40) % 4 == 0
    low, high = stats.count_interval(lambda rows: values[rows].sum(), 40, seed=3, resamples=4000)
    expected = scipy_stats.binom.ppf([0.025, 0.975], 40, 0.25)
    assert (low, high) == pytest.approx(expected, abs=1)
    assert type(low) is int
