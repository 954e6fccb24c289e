"""The class Score, a row of scores.csv; standard errors and 95% intervals."""

import math
from typing import NamedTuple

import numpy as np
from scipy.stats import binomtest, bootstrap, t

from vae_utils import mean_and_error

TRACKED = "tracked images"  # the group of the few images of each class that are scored at every saved epoch


class Score(NamedTuple):
    """One number of a run: a row of scores.csv."""

    quantity: str
    method: str  # a method's name, "a - b" for a paired difference, or what methods are compared with
    split: str  # "train", "test" or "simulated"
    epoch: int
    group: str  # a class's name, TRACKED, a number of labels for probes; empty: the whole split
    mean: float
    standard_error: float | None  # over images, but for Fréchet distances: over resamples; None: not known
    images: int
    freedom: int | None  # degrees of freedom of the standard error; None: it has no t interval


def score(quantity, values, *, method="", split="test", epoch=0, group=""):
    """The Score of a dict of `mean_and_error`, `stratified_mean` or `regression_estimate`."""
    freedom = values.get("freedom", values["images"] - 1)
    return Score(
        quantity, method, split, epoch, group, values["mean"], values["standard_error"], values["images"], freedom
    )


def plain_score(quantity, value, images, *, method="", split="test", epoch=0, group=""):
    """The Score of a count, a median or a cost, which has no standard error."""
    return Score(quantity, method, split, epoch, group, float(value), None, int(images), None)


def select_scores(scores, **values):
    """The Scores whose fields have these values, in their order."""
    return [entry for entry in scores if all(getattr(entry, name) == value for name, value in values.items())]


def find(scores, quantity, method, split="test", group="", **values):
    """The one Score of the last epoch with these values, or None."""
    matches = select_scores(scores, quantity=quantity, method=method, split=split, group=group, **values)
    return max(matches, key=lambda entry: entry.epoch, default=None)


def stratified_mean(values):
    """{"mean", "standard_error", "images", "freedom"} of one value per image, (classes, images per class) or (images,).

    Every class counts equally. The error is over images, that of a stratified sample (Cochran 1977, Eq. 5.12), with
    `freedom` degrees of freedom; with one image per class that of the classes' own values, and None for one image.
    """
    values = values.cpu().double()
    if values.dim() == 1 or values.shape[1] == 1:
        result = mean_and_error(values)
        return {**result, "freedom": result["images"] - 1}
    classes, count = values.shape
    error = float((values.var(1) / count).sum().sqrt() / classes)
    size = {"images": classes * count, "freedom": classes * (count - 1)}
    return {"mean": float(values.mean()), "standard_error": error, **size}


def proportional_error(values, labels):
    """Standard error of the mean of `values` (N,) of images whose classes have the shares of the population.

    labels: (N,). That of proportional stratified sampling (Cochran 1977, Eq. 5.34); classes of one image count as the
    whole.
    """
    values, labels = values.cpu().double(), labels.cpu()
    classes = [values[labels == label] for label in labels.unique()]
    variances = (len(members) * (members.var() if len(members) > 1 else values.var()) for members in classes)
    return float(sum(variances).sqrt() / len(values))


def regression_estimate(values, bounds, *, shares, known, known_error):
    """The mean of `values`, by their regression on `bounds` (two-phase sampling, Cochran 1977, sections 7.10 and 12.6).

    values, bounds: (classes, images per class), random images of every class; shares: (classes,), of all images; known:
    (M,), the bounds of many images, among which the classes have these shares; known_error: the standard error of their
    mean over images. The slope, common to all classes, and the residuals are taken within the classes where these have
    two images or more. Returns a dict like that of `stratified_mean`, with "known_images" and the "slope". The error is
    over draws of images: that of the residuals and that of the bounds' mean. Needs three images, not all of the same
    bound.
    """
    y, x, known = (tensor.cpu().double() for tensor in (values, bounds, known))
    classes, count = y.shape
    weights = (shares.cpu().double() / count).unsqueeze(1).expand_as(y)

    def centered(values):
        return values - (values.mean(1, keepdim=True) if count > 1 else values.mean())

    # Slope within the classes, and the shift from the sample's bounds to the known ones.
    slope = (weights * centered(x) * centered(y)).sum() / (weights * centered(x).square()).sum()
    shift = known.mean() - (weights * x).sum()

    # Variance: residuals, slope and known mean.
    freedom = y.numel() - (classes if count > 1 else 1) - 1
    residual_variance = (centered(y) - slope * centered(x)).square().sum() / freedom
    variance = residual_variance * (weights.square().sum() + shift.square() / centered(x).square().sum())
    variance += (slope * known_error).square()
    return {
        "mean": float((weights * y).sum() + slope * shift),
        "standard_error": float(variance.sqrt()),
        "images": y.numel(),
        "freedom": freedom,
        "known_images": len(known),
        "slope": float(slope),
    }


def half_width(standard_error, freedom):
    """Half the width of the 95% t interval; 0 where there is no standard error."""
    return 0.0 if standard_error is None else float(t.ppf(0.975, freedom) * standard_error)


def intervals(scores):
    """Means of Scores and half widths of their 95% t intervals, (n,) each."""
    halves = [half_width(entry.standard_error, entry.freedom) for entry in scores]
    return np.array([entry.mean for entry in scores]), np.array(halves)


def column_intervals(rows, name, images="images"):
    """Means and half widths of 95% t intervals of a column; its errors are in `name`_standard_error if it is there."""
    halves = [half_width(row.get(f"{name}_standard_error"), row[images] - 1) for row in rows]
    return np.array([row[name] for row in rows]), np.array(halves)


def wilson_interval(share, images):
    """The 95% interval of a share of so many images (Wilson 1927); the count is rounded to whole images."""
    interval = binomtest(round(share * images), images).proportion_ci(method="wilson")
    return interval.low, interval.high


def accuracy(correct):
    """{"accuracy", "interval_95", "images"} of a boolean tensor (N,), one entry per image."""
    share, count = float(correct.double().mean()), len(correct)
    return {"accuracy": share, "interval_95": wilson_interval(share, count), "images": count}


def count_interval(count, images, *, seed, resamples=200):
    """The 95% interval of a count that depends on which images there are: percentiles of its bootstrap resamples.

    count: function of the rows of a resample (images,), returning a whole number. Returns two whole numbers.
    """
    options = {"n_resamples": resamples, "vectorized": False, "method": "percentile", "rng": seed}
    interval = bootstrap((np.arange(images),), lambda rows: float(count(rows)), **options).confidence_interval
    return math.floor(interval.low), math.ceil(interval.high)
