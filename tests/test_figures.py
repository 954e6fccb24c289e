"""Intervals against scipy, which scikit-learn brings along, and what the figures are given."""

import numpy as np
import pytest
import torch
from scipy import stats

import figures
from baseline import augment
from intervals import wilson_interval
from vae_utils import random_generator


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 9, 30, 891])
def test_student_t(freedom):
    assert figures.student_t(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), rel=2e-3)


def test_mean_and_interval():
    values = np.array([[1.0, 2.0, 3.0, 6.0]])
    mean, half = figures.mean_and_interval(values)
    low, high = stats.t.interval(0.95, 3, loc=3, scale=stats.sem(values[0]))
    assert (mean[0] - half[0], mean[0] + half[0]) == pytest.approx((low, high), abs=0.01)
    assert figures.mean_and_interval(values[:, :1])[1].tolist() == [0]


@pytest.mark.parametrize(("correct", "count"), [(0, 10), (10, 10), (987, 1000)])
def test_wilson_interval(correct, count):
    expected = stats.binomtest(correct, count).proportion_ci(method="wilson")
    assert wilson_interval(correct, count) == pytest.approx((expected.low, expected.high), abs=1e-6)


def test_augmentation_moves_but_does_not_invent(mnist):
    images = mnist[1].images[:200]
    changed = augment(images, random_generator(0))
    assert changed.shape == images.shape
    assert changed.min() >= -1.0001
    assert changed.max() <= 1.0001
    ink, ink_before = ((part + 1).sum((1, 2, 3)) for part in (changed, images))
    assert ((ink / ink_before) > 0.7).all()
    assert ((ink / ink_before) < 1.35).all()
    assert not torch.equal(changed[0], images[0])
    assert torch.equal(changed, augment(images, random_generator(0)))


def test_a_row_shows_its_images_side_by_side_and_nothing_across_them():
    images = torch.rand(3, 1, 28, 28) * 2 - 1
    figure = figures.image_rows(rows=[("upper", images), ("lower", -images)], captions={"lower": "abc"}, title="")
    upper, lower = figure.axes
    shown = np.array(upper.images[0].get_array())
    for place, image in enumerate(images):
        assert np.array_equal(shown[:, 31 * place : 31 * place + 28], image[0].numpy())
    assert [label.get_text() for label in upper.get_yticklabels()] == ["upper"]
    assert not any(line.get_visible() for axes in figure.axes for line in axes.get_ygridlines())
    assert not upper.child_axes
    (below,) = lower.child_axes
    assert [label.get_text() for label in below.get_xticklabels()] == ["a", "b", "c"]
    assert below.get_xticks().tolist() == [13.5, 44.5, 75.5]
