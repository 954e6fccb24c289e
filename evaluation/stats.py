"""95% intervals: Student's t for means, Wilson's for shares, the bootstrap for all else."""

import math

import numpy as np
import torch
from scipy.stats import t

from vae_utils import mean_and_error


def stratified_mean(values):
    """{"mean", "standard_error", "images", "freedom"} of one value per image, (classes, images per class) or (images,).

    Every class counts equally. The error is over images, that of a stratified sample (Cochran 1977, Eq. 5.12), with
    `freedom` degrees of freedom; with one image per class that of the classes' own values, and None for one image.
    """
    values = values.cpu().double()
    if values.dim() == 1 or values.shape[1] == 1:
        score = mean_and_error(values)
        return {**score, "freedom": score["images"] - 1}
    classes, count = values.shape
    error = float((values.var(1) / count).sum().sqrt() / classes)
    return {
        "mean": float(values.mean()),
        "standard_error": error,
        "images": classes * count,
        "freedom": classes * (count - 1),
    }


def proportional_error(values, labels):
    """Standard error of the mean of `values` (N,) of images whose classes have the shares of the population.

    labels: (N,). That of proportional stratified sampling (Cochran 1977, Eq. 5.34); classes of one image count as the
    whole.
    """
    values, labels = values.cpu().double(), labels.cpu()
    of_classes = [values[labels == label] for label in labels.unique()]
    variances = (len(own) * (own.var() if len(own) > 1 else values.var()) for own in of_classes)
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
    y, x, known = (each.cpu().double() for each in (values, bounds, known))
    classes, count = y.shape
    weights = (shares.cpu().double() / count).unsqueeze(1).expand_as(y)

    def centered(values):
        return values - (values.mean(1, keepdim=True) if count > 1 else values.mean())

    slope = (weights * centered(x) * centered(y)).sum() / (weights * centered(x).square()).sum()
    shift = known.mean() - (weights * x).sum()
    freedom = y.numel() - (classes if count > 1 else 1) - 1
    of_one = (centered(y) - slope * centered(x)).square().sum() / freedom
    variance = of_one * (weights.square().sum() + shift.square() / centered(x).square().sum())
    variance += (slope * known_error).square()
    return {
        "mean": float((weights * y).sum() + slope * shift),
        "standard_error": float(variance.sqrt()),
        "images": y.numel(),
        "freedom": freedom,
        "known_images": len(known),
        "slope": float(slope),
    }


def intervals(scores):
    """Means of `mean_and_error` dicts and half widths of their 95% t intervals, (n,) each; a half of one image is 0."""
    errors = [(score.get("freedom", score["images"] - 1), score["standard_error"]) for score in scores]
    halves = [0.0 if error is None else t.ppf(0.975, freedom) * error for freedom, error in errors]
    return np.array([score["mean"] for score in scores]), np.array(halves)


def column_intervals(rows, name, images="images"):
    """The same for the column `name` of a table, the errors in `name`_standard_error if it is there; images: counts."""
    keys = {"mean": name, "standard_error": f"{name}_standard_error", "images": images}
    return intervals([{key: row.get(column) for key, column in keys.items()} for row in rows])


def wilson_interval(correct, count, z=1.959964):
    """The 95% interval of a share, correct of count, both ends in [0, 1] (Wilson 1927); correct need not be whole."""
    share = correct / count
    center = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z * math.sqrt(share * (1 - share) / count + z**2 / (4 * count**2)) / (1 + z**2 / count)
    return max(0.0, center - half), min(1.0, center + half)


def accuracy(correct):
    """{"accuracy", "interval_95", "images"} of a boolean tensor (N,), one entry per image."""
    right, count = int(correct.sum()), len(correct)
    return {"accuracy": right / count, "interval_95": wilson_interval(right, count), "images": count}


def bootstrap_counts(count, *, resamples, generator, size=None):
    """How often each of `count` images is in each bootstrap resample (Efron 1979): (resamples, count), float64.

    size: images in a resample, `count` by default.
    """
    drawn = torch.randint(count, (resamples, size or count), generator=generator, device=generator.device)
    counts = torch.zeros(resamples, count, dtype=torch.float64, device=generator.device)
    return counts.scatter_add_(1, drawn, torch.ones_like(drawn, dtype=torch.float64))


def count_interval(counts):
    """The 95% interval of a count by its bootstrap resamples (resamples,): percentiles, as two whole numbers."""
    counts = counts.cpu().numpy()
    return [int(np.quantile(counts, end, method=method)) for end, method in ((0.025, "lower"), (0.975, "higher"))]
