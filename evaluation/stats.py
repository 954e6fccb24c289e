"""95% intervals: Student's t for means, Wilson's for shares, the bootstrap for all else."""

import math

import numpy as np
import torch
from scipy.stats import t


def intervals(scores):
    """Means of `mean_and_error` dicts and half widths of their 95% t intervals, (n,) each; a half of one image is 0."""
    errors = [(score["images"] - 1, score["standard_error"]) for score in scores]
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


def bootstrap_counts(count, *, resamples, generator):
    """How often each of `count` images is in each bootstrap resample (Efron 1979): (resamples, count), float64."""
    drawn = torch.randint(count, (resamples, count), generator=generator, device=generator.device)
    counts = torch.zeros(resamples, count, dtype=torch.float64, device=generator.device)
    return counts.scatter_add_(1, drawn, torch.ones_like(counts))
