"""How far a number may be off: intervals of shares, and bootstrap resamples for whatever has no formula."""

import math

import torch


def wilson_interval(correct, count, z=1.959964):
    """The 95% interval of a share, correct of count, both ends in [0, 1] (Wilson 1927)."""
    share = correct / count
    centre = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z * math.sqrt(share * (1 - share) / count + z**2 / (4 * count**2)) / (1 + z**2 / count)
    return max(0.0, centre - half), min(1.0, centre + half)


def accuracy(correct):
    """{"accuracy", "interval_95", "images"} of a boolean tensor, one entry per image."""
    right, count = int(correct.sum()), len(correct)
    return {"accuracy": right / count, "interval_95": wilson_interval(right, count), "images": count}


def bootstrap_counts(count, *, resamples, generator):
    """How often each of `count` images is in each resample, (resamples, count) float64, on the generator's device.

    A resample is `count` draws with replacement (Efron 1979); every row sums to `count`.
    """
    drawn = torch.randint(count, (resamples, count), generator=generator, device=generator.device)
    counts = torch.zeros(resamples, count, dtype=torch.float64, device=generator.device)
    return counts.scatter_add_(1, drawn, torch.ones_like(counts))
