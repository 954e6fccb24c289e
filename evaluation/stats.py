"""How far a number may be off: Student's t for means, Wilson's interval for shares, the bootstrap for all else."""

import math

import numpy as np
import torch
from scipy.stats import sem, t


def t_interval(standard_error, count):
    """Half the width of the 95% interval of a mean over `count` values, by Student's t; 0 where it is not known.

    standard_error: of the mean, a number, an array, or None for a single value.
    """
    return 0.0 if standard_error is None else t.ppf(0.975, count - 1) * standard_error


def mean_and_interval(values):
    """Mean over the last axis of an array, and half the width of its 95% interval; 0 where there is one value."""
    count, mean = values.shape[-1], values.mean(-1)
    return mean, t_interval(sem(values, axis=-1), count) if count > 1 else np.zeros_like(mean)


def intervals(scores):
    """Means of scores, (n,), and half the widths of their 95% intervals, (n,)."""
    halves = [t_interval(score["standard_error"], score["images"]) for score in scores]
    return np.array([score["mean"] for score in scores]), np.array(halves)


def column_intervals(rows, name, images="images"):
    """The same for a column of a table; `name`_standard_error may be another column, `images` is that of the counts."""
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
    """How often each of `count` images is in each resample, (resamples, count) float64, on the generator's device.

    A resample is `count` draws with replacement (Efron 1979); every row sums to `count`.
    """
    drawn = torch.randint(count, (resamples, count), generator=generator, device=generator.device)
    counts = torch.zeros(resamples, count, dtype=torch.float64, device=generator.device)
    return counts.scatter_add_(1, drawn, torch.ones_like(counts))
