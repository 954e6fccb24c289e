"""Intervals against scipy's own, and the bootstrap."""

import numpy as np
import pytest
import torch
from scipy.stats import binomtest

from evaluation import statistics as stats
from evaluation.statistics import Score
from vae_utils import mean_and_error, random_generator


def test_a_score_is_found_by_its_fields_in_the_last_epoch():
    rows = [Score("elbo", "a", "test", epoch, group, epoch, 1.0, 5, 4) for epoch in (1, 3, 2) for group in ("", "b")]
    assert stats.find(rows, "elbo", "a") == rows[2]
    assert stats.find(rows, "elbo", "a", group="b", epoch=2) == rows[5]
    assert stats.find(rows, "elbo", "b") is None
    assert stats.select_scores(rows, group="b") == rows[1::2]


def test_a_stratified_mean_has_the_error_within_classes():
    classes, shares = [[1.0, 3, 7, 4], [10.0, 14, 18, 30, 12]], torch.tensor([0.7, 0.3])
    values, labels = torch.tensor([*classes[0], *classes[1]]), torch.tensor([0, 0, 0, 0, 1, 1, 1, 1, 1])
    order = torch.tensor([4, 0, 2, 8, 1, 5, 3, 7, 6])
    found = stats.stratified_mean(values[order], labels[order], shares)
    parts = np.square(shares.numpy()) * [np.var(part, ddof=1) / len(part) for part in classes]
    freedom = int(parts.sum() ** 2 / (parts**2 / [3, 4]).sum())  # Satterthwaite's
    mean = 0.7 * np.mean(classes[0]) + 0.3 * np.mean(classes[1])
    expected = {"mean": mean, "standard_error": parts.sum() ** 0.5, "images": 9, "freedom": freedom}
    assert found == pytest.approx(expected)


def test_classes_of_few_images_have_one_variance():
    values, labels = torch.tensor([1.0, 3, 10, 14, 18, -5, 7, -8, -8]), torch.tensor([0, 0, 1, 1, 1, 2, 0, 2, 2])
    shares = torch.tensor([0.5, 0.3, 0.2])
    variance = 2 * sum(np.var(part, ddof=1) for part in ([1, 3, 7], [10, 14, 18], [-5, -8, -8])) / 6
    error = np.sqrt(variance * (0.25 + 0.09 + 0.04) / 3)
    mean = 0.5 * 11 / 3 + 0.3 * 14 - 0.2 * 7
    found = stats.stratified_mean(values, labels, shares)
    assert found == pytest.approx({"mean": mean, "standard_error": error, "images": 9, "freedom": 6})
    few = stats.stratified_mean(values[:6], labels[:6], shares)  # three degrees of freedom: the variance of all
    error = np.sqrt(np.var(values[:6].numpy(), ddof=1) * (0.25 / 2 + 0.09 / 3 + 0.04))
    assert (few["standard_error"], few["freedom"]) == (pytest.approx(error), 5)
    alone = stats.stratified_mean(values[:5:2], torch.arange(3), torch.ones(3) / 3)  # one image of each class
    plain = mean_and_error(values[:5:2])
    assert alone == {**plain, "standard_error": pytest.approx(plain["standard_error"]), "freedom": 2}
    one = stats.stratified_mean(values[2:5], labels[2:5], shares)  # one class
    assert one == {**mean_and_error(values[2:5]), "standard_error": pytest.approx(4 / 3**0.5), "freedom": 2}
    assert stats.stratified_mean(values[:1], labels[:1], shares)["standard_error"] is None


SHARES = torch.tensor([2, 2, 1, 1]) / 6  # of the classes
MEAN = float((SHARES * (0.8 * -30 * torch.arange(4) + 12 + 8 * (torch.arange(4) < 2))).sum())


def draw_images(count, generator, spread=(3, 3, 3, 3)):
    """Values, whose mean is MEAN, bounds and classes of so many images; classes differ in size, mean and spread."""
    label = torch.arange(count) % 6 % 4
    bound = 20 * torch.randn(count, generator=generator).double() - 30 * label
    noise = torch.tensor(spread)[label] * torch.randn(count, generator=generator).double()
    return 0.8 * bound + 12 + 8 * (label < 2) + noise, bound, label


@pytest.mark.parametrize(
    ("known", "per_class", "spread"),
    [(3000, 6, (3, 3, 3, 3)), (300, 6, (3, 3, 3, 3)), (300, 3, (3, 3, 3, 3)), (3000, 6, (9, 9, 1, 1))],
)
def test_the_regression_estimate_covers_the_mean_of_all_images(known, per_class, spread):
    """Its 95% interval does so in 95 of 100 draws of images, with few images, too; the error is that of many draws.

    Also where the large classes, whose images count for more, vary more.
    """
    generator, errors, stated, inside = random_generator(5), [], [], []
    for _ in range(600):
        value, bound, label = draw_images(known, generator, spread)
        rows = [torch.nonzero(label == kind).flatten() for kind in range(4)]
        rows = torch.cat([row[torch.randperm(len(row), generator=generator)[:per_class]] for row in rows])
        few = (value - 0.3 * bound)[rows], label[rows], bound[rows, None]
        options = {"known_labels": label, "shares": SHARES, "offset": 0.3 * bound}
        found = stats.regression_estimate(*few, bound[:, None], **options)
        (mean,), (half,) = stats.intervals([stats.score("log_prob", found)])
        errors.append(mean - MEAN)
        stated.append(found["standard_error"])
        inside.append(abs(errors[-1]) < half)
    assert found["images"] == known
    assert abs(np.mean(errors)) < 4 * np.std(errors) / np.sqrt(600)
    assert np.sqrt(np.mean(np.square(stated))) == pytest.approx(np.std(errors), rel=0.12)
    assert np.mean(inside) == pytest.approx(0.95, abs=0.03)
    plain = stats.stratified_mean(value[rows], label[rows], SHARES)  # of the few alone
    assert np.mean(stated) < plain["standard_error"] / (3 if (known, spread[0]) == (3000, 3) else 1.1)


@pytest.mark.parametrize(("shares", "per_class"), [([0.91, *[0.01] * 9], 3), ([0.9, 0.1], 8)])
def test_the_regression_estimate_covers_the_mean_where_one_class_is_nearly_all(shares, per_class):
    """Its images count for more than the others: as many as count alike decide whether there are enough."""
    generator, inside = random_generator(5), []
    counts = [round(1000 * share) for share in shares]
    label = torch.arange(len(shares)).repeat_interleave(torch.tensor(counts))
    rows = torch.cat([torch.nonzero(label == kind).flatten()[:per_class] for kind in range(len(shares))])
    for _ in range(400):
        bounds = 20 * torch.randn(1000, 2, generator=generator).double() - 5 * label[:, None]
        value = bounds @ torch.tensor([0.8, -0.3]).double() + 3 * torch.randn(1000, generator=generator)
        options = {"known_labels": label, "shares": torch.tensor(shares)}
        found = stats.regression_estimate(value[rows], label[rows], bounds[rows], bounds, **options)
        truth = float((0.5 * -5 * torch.arange(len(shares)) * torch.tensor(shares)).sum())
        (mean,), (half,) = stats.intervals([stats.score("log_prob", found)])
        inside.append(abs(mean - truth) < half)
    assert np.mean(inside) == pytest.approx(0.95, abs=0.035)


def test_the_regression_estimate_depends_neither_on_the_units_of_bounds_nor_on_their_repetition():
    """Under a narrow likelihood bounds vary by thousands of nats; two methods may have the same ones."""
    value, bound, label = draw_images(300, random_generator(5))
    options = {"known_labels": label, "shares": SHARES}
    found = [
        stats.regression_estimate(value[:40], label[:40], bounds[:40], bounds, **options)
        for bounds in (bound[:, None], 1e7 * bound[:, None], 1e-7 * bound[:, None], bound[:, None].expand(-1, 2))
    ]
    assert all(other == pytest.approx(found[0], rel=1e-6) for other in found)
    alike = torch.full((300, 1), -80.0).double()
    constant = stats.regression_estimate(value[:40], label[:40], alike[:40], alike, **options)
    plain = stats.stratified_mean(value[:40], label[:40], SHARES)
    assert constant["mean"] == pytest.approx(plain["mean"])


@pytest.mark.parametrize(
    ("known", "correlation", "shares"),
    [
        (12, -0.8, (1, 1, 1)),
        (12, 0.8, (1, 1, 1)),
        (18, 0.8, (1, 1, 1)),
        (60, -0.8, (1, 1, 1)),
        (60, -0.8, (18, 1, 1)),  # those beyond the few are of the large class alone
        (60, 0.8, (18, 1, 1)),
    ],
)
def test_without_a_regression_the_error_knows_that_the_few_are_among_the_many(known, correlation, shares):
    generator, errors, squares, shares = random_generator(5), [], [], torch.tensor(shares) / sum(shares)
    label = torch.arange(known) % 3
    label[12:] *= int(shares[0] == shares[1])
    for _ in range(800):
        z = torch.randn(2, known, generator=generator).double()
        value, offset = 4 * (correlation * z[0] + 0.6 * z[1]) + label, 5 * z[0] - 20 * label
        few, options = (value[:12], label[:12], z[:1, :12].T), {"known_labels": label, "shares": shares}
        found = stats.regression_estimate(*few, z[:1].T, **options, offset=offset)
        errors.append(found["mean"] + 19 * float(shares @ torch.arange(3.0)))
        squares.append(found["standard_error"] ** 2)
    assert np.sqrt(np.mean(squares)) == pytest.approx(np.sqrt(np.mean(np.square(errors))), rel=0.1)


def test_of_one_image_of_each_class_no_covariance_is_known():
    value, bound, label = draw_images(300, random_generator(5))
    few, options = (value[:4], label[:4], bound[:4, None], bound[:, None]), {"known_labels": label, "shares": SHARES}
    parts = (value[:4], label[:4]), (bound, label)
    errors = [stats.stratified_mean(*part, SHARES)["standard_error"] for part in parts]
    found = stats.regression_estimate(*few, **options, offset=bound)
    assert found["standard_error"] == pytest.approx(np.hypot(*errors))


@pytest.mark.parametrize("bad", [torch.inf, -torch.inf, torch.nan])
def test_a_value_that_is_not_finite_leaves_a_mean_without_an_interval(bad):
    value, bound, label = draw_images(300, random_generator(5))
    value[3] = bad
    for count in (40, 6):
        few, options = (value[:count], label[:count], bound[:count, None]), {"known_labels": label, "shares": SHARES}
        estimates = (
            stats.stratified_mean(value, label, SHARES),
            stats.regression_estimate(*few, bound[:, None], **options, offset=bound),
        )
        for found in estimates:
            assert not np.isfinite(found["mean"])
            assert not np.isfinite(stats.intervals([stats.score("log_prob", found)])[1]).any()


def test_without_a_regression_the_images_are_those_that_were_used():
    value, bound, label = draw_images(300, random_generator(5))
    few, options = (value[:6], label[:6], bound[:6, None], bound[:, None]), {"known_labels": label, "shares": SHARES}
    found, with_offset = (stats.regression_estimate(*few, **options, offset=offset) for offset in (None, bound))
    assert found == stats.stratified_mean(value[:6], label[:6], SHARES)
    assert with_offset["images"] == 300
    assert with_offset["mean"] == pytest.approx(found["mean"] + stats.stratified_mean(bound, label, SHARES)["mean"])


def test_shares_and_columns_have_the_intervals_of_their_counts():
    expected = binomtest(29, 100).proportion_ci(method="wilson")
    assert stats.wilson_interval(0.29, 100) == (expected.low, expected.high)  # 0.29 * 100 is below 29
    rows = [{"elbo": 3.0, "elbo_standard_error": 0.5, "images": 5}, {"elbo": 4.0, "images": 5}]
    means, halves = stats.column_intervals(rows, "elbo")
    assert means.tolist() == [3, 4]
    assert halves == pytest.approx([2.776445 * 0.5, np.nan], nan_ok=True)  # Student's t with four degrees of freedom


def test_the_interval_of_a_count_holds_95_of_100_resamples():
    low, high = stats.count_interval(lambda rows: 10 * (rows < 50).sum(), 100, seed=0)
    assert (low, high) == pytest.approx((500 - 98, 500 + 98), abs=20)  # with 80: 64


def test_no_number_is_minus_zero():
    assert [stats.rounded(value) for value in (-0.004, 0.0, -0.006, 1.239)] == ["0.00", "0.00", "-0.01", "1.24"]
