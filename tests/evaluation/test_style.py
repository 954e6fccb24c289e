"""Titles that fit their figures, and intervals of too few images."""

import numpy as np
import torch

from evaluation import style
from evaluation.statistics import score


def test_a_title_is_as_wide_as_its_figure():
    title = "a title of many words that is wider than one sheet " * 3
    for count in (1, 9):
        sheets = {str(number): torch.zeros(4, 1, 8, 8) for number in range(count)}
        figure = style.sample_sheets(sheets=sheets, title=title)
        figure.canvas.draw()
        box = figure._suptitle.get_window_extent()
        assert 0 < box.x0 < box.x1 < figure.bbox.width
        assert "\n".join(figure.get_suptitle().split()) == "\n".join(title.split())
        assert ("\n" in figure.get_suptitle()) == (count == 1)


def test_two_images_have_no_interval_in_a_band_nor_in_the_title():
    entries = [score("elbo", {"mean": 1.0, "standard_error": 2.0, "images": 5, "freedom": n}) for n in (1, 2)]
    assert np.isnan(style.shown_intervals(entries)[1]).tolist() == [True, False]
    assert style.with_intervals(entries) == " with their 95% t intervals"
    assert style.with_intervals(entries[:1]) == ", of too few images for intervals"
