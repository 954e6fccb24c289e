"""The class Score, a row of scores.csv; standard errors and 95% intervals."""

import math
from typing import NamedTuple

import numpy as np
import torch
from scipy.stats import binomtest, bootstrap, t
from torch.nn.functional import one_hot

FEWEST_REGRESSED = 10  # images to spare: the errors of a regression on fewer are not to be trusted
FEWEST_OF_CLASS = 4  # images, and degrees of freedom, of which a variance is estimated
FEWEST_FREE = 2  # degrees of freedom of a class's interval in a figure: that of two images would dwarf all others
TRACKED = "/tracked"  # the group of the few images of each class that are scored at every saved epoch; no class's name


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
    """The Score of a dict of `mean_and_error`, `stratified_mean`, `regression_estimate`."""
    mean, error, images = (values[name] for name in ("mean", "standard_error", "images"))
    return Score(quantity, method, split, epoch, group, mean, error, images, values.get("freedom", images - 1))


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


def rounded(value, digits=2):
    """A number as text, never "-0.00"."""
    return f"{round(value, digits) + 0:.{digits}f}"


def how_found(scores, method):
    """In words, how log p(x) of a method's annealed images was found."""
    return "annealed" if find(scores, "temperatures", method).mean else "integrated on a grid"


def stratified_mean(values, labels, shares):
    """{"mean", "standard_error", "images", "freedom"} of one value per image, (N,), of images drawn class by class.

    labels: (N,); shares: (classes,), of the classes in the population. The error is over images, that of a stratified
    sample (Cochran 1977, Eq. 5.7); its `freedom` is Satterthwaite's (ibid., 5.16). Where a class has fewer than
    FEWEST_OF_CLASS images, all have one variance: that within the classes, or, with too few degrees of freedom, of all.
    """
    y, labels, shares = values.cpu().double(), labels.cpu(), shares.cpu().double()
    present, labels, counts = labels.unique(return_inverse=True, return_counts=True)
    shares = shares[present] / shares[present].sum()
    zeros = torch.zeros(len(present), dtype=y.dtype)
    means = zeros.index_add(0, labels, y) / counts
    result = {"mean": float(shares @ means), "standard_error": None, "images": len(y), "freedom": len(y) - 1}
    squares, free = zeros.index_add(0, labels, (y - means[labels]).square()), len(y) - len(present)
    if counts.min() >= FEWEST_OF_CLASS:
        result |= _combined(shares.square() * squares / (counts - 1) / counts, counts - 1)
    elif len(y) > 1:
        variance, freedom = (squares.sum() / free, free) if free >= FEWEST_OF_CLASS else (y.var(), len(y) - 1)
        result |= _combined([variance * (shares.square() / counts).sum()], [freedom])
    return result


def _combined(variances, freedoms):
    """{"standard_error", "freedom"} of a sum of independent estimates (Satterthwaite 1946); NaN if a part is."""
    total = sum(map(float, variances))
    spread = sum(float(variance) ** 2 / int(freedom) for variance, freedom in zip(variances, freedoms, strict=True))
    known = 0 < spread < math.inf
    freedom = max(1, int(total**2 / spread + 1e-9)) if known else sum(map(int, freedoms))
    return {"standard_error": math.sqrt(total), "freedom": freedom}


def regression_estimate(values, labels, predictors, known, *, known_labels, shares, offset=None):
    """The mean over many images of what is measured of a few: two-phase sampling (Cochran 1977, sections 7.10, 12.6).

    values (n,): of images drawn class by class, with labels (n,) and predictors (n, P): what is measured less `offset`,
    (N,), which is known of many images, and whose mean is added again. known (N, P), known_labels (N,): the predictors
    of the many, of which these are the first; shares: (classes,). The slopes are those of a weighted least-squares fit,
    with an intercept for each class if every class has two of the n images or more, else with one; they are 0 if fewer
    than FEWEST_REGRESSED images, counted by their weights, are left beyond its parameters. Returns a dict like that of
    `stratified_mean`. The error is over draws of images: that of the residuals, which may differ in size (HC2,
    MacKinnon & White 1985), and that of the many. With the same predictors estimates of sums are sums of them.
    """
    unit = known.std(0, correction=0)  # beside large predictors the intercept of a small class would seem to be 0
    unit[unit == 0] = 1
    known, predictors = known / unit, predictors / unit
    center, counts = known.mean(0), labels.bincount(minlength=len(shares))
    images = len(values) if offset is None else len(known)
    offset, shared = torch.zeros(len(known)) if offset is None else offset, 0.0
    if len(values) == len(known):  # nothing to carry over
        return stratified_mean(values + offset, labels, shares)
    shares = shares * (counts > 0) / shares[counts > 0].sum()
    of_classes = bool((counts[counts > 0] > 1).all())
    intercepts = one_hot(labels, len(shares)) if of_classes else torch.ones(len(values), 1)
    design = torch.cat((intercepts, predictors - center), dim=1).double()
    weights, predicted = (shares / counts)[labels].double(), offset.double()
    # The few images of a large class count for more: as much as so many that count alike (Kish 1965).
    freedom = round(1 / float(weights.square().sum())) - int(torch.linalg.matrix_rank(design))
    if freedom < FEWEST_REGRESSED:
        result, at_few = stratified_mean(values, labels, shares), offset[: len(values)]
        if len(values) - int((counts > 0).sum()) >= FEWEST_OF_CLASS:  # else these variances are not within classes
            parts = [stratified_mean(part, labels, shares) for part in (values + at_few, values, at_few)]
            both, *alone = (part["standard_error"] ** 2 for part in parts)
            # Twice the covariance of the two means: the few are among the many.
            many = known_labels.bincount(minlength=len(shares)).clamp(min=1)
            per_image = [float((shares.square() / images.clamp(min=1)).sum()) for images in (many, counts)]
            shared = (both - sum(alone)) * per_image[0] / per_image[1]
    else:
        inverse = torch.linalg.pinv(design.T @ (weights[:, None] * design), rtol=1e-9, hermitian=True)
        slopes = inverse @ (design.T @ (weights * values.double()))
        means = [stratified_mean(column, known_labels, shares)["mean"] for column in (known - center).T]
        at = torch.cat((shares.double() if of_classes else torch.ones(1), torch.tensor(means, dtype=torch.float64)))
        of_values = weights * (design @ (inverse @ at))  # (n,): the estimate is the sum of these shares of the values
        leverages = weights * (design @ inverse * design).sum(1)
        residuals = (values - design @ slopes).square() / (1 - leverages).clamp(min=1e-9)
        error, images = float((of_values.square() * residuals).sum().sqrt()), len(known)
        # The prediction is part of the error over the many images, but its mean is in the estimate already.
        result = {"mean": float(of_values @ values.double()), "standard_error": error, "freedom": freedom}
        predicted = predicted + (known - center).double() @ slopes[-known.shape[1] :]
    if result["standard_error"] is not None:
        both = result, stratified_mean(predicted, known_labels, shares)
        result |= _combined([part["standard_error"] ** 2 for part in both], [part["freedom"] for part in both])
        result["standard_error"] = math.sqrt(max(result["standard_error"] ** 2 + shared, 0.0))  # of NaN, NaN
    return {**result, "mean": result["mean"] + stratified_mean(offset, known_labels, shares)["mean"], "images": images}


def half_width(standard_error, freedom):
    """Half the width of the 95% t interval; NaN where there is no standard error."""
    return math.nan if standard_error is None else float(t.ppf(0.975, freedom) * standard_error)


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
    share, count = float(correct.cpu().double().mean()), len(correct)
    return {"accuracy": share, "interval_95": wilson_interval(share, count), "images": count}


def count_interval(count, images, *, seed, resamples=200):
    """The 95% interval, two whole numbers, of count(rows): percentiles of bootstrap resamples of so many images."""
    options = {"n_resamples": resamples, "vectorized": False, "method": "percentile", "rng": seed}
    interval = bootstrap((np.arange(images),), lambda rows: float(count(rows)), **options).confidence_interval
    return math.floor(interval.low), math.ceil(interval.high)
