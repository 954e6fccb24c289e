"""The quality of the models' samples, measured with the supervised classifier's features and predictions.

A sample is the mean of p(x|z) at z ~ N(0, I), without the noise of p(x|z), which would look the same for all models.
"""

from pathlib import Path
from typing import NamedTuple

import torch

from evaluation import figures
from evaluation.stats import bootstrap_counts, wilson_interval
from runtime.checkpoint import save_figure
from runtime.tasks import compute
from vae_utils import mean_and_error, random_generator

EXAMPLES = 12  # of every kind, in the figure


class Moments(NamedTuple):
    """Mean and covariance of features, float64."""

    mean: torch.Tensor  # (F,)
    covariance: torch.Tensor  # (F, F)


class Classified(NamedTuple):
    """What a classifier finds in images, on the CPU."""

    features: torch.Tensor  # (N, F), float64
    label: torch.Tensor  # (N,), the most probable class
    confidence: torch.Tensor  # (N,), its probability


@torch.no_grad()
def classify(classifier, images, *, batch_size=100):
    """The Classified of images (N, C, H, W); the classifier must be in evaluation mode."""
    features = torch.cat([classifier.features(x) for x in images.split(batch_size)])
    confidence, label = classifier.logits(features).softmax(-1).max(-1)
    return Classified(features.cpu().double(), label.cpu(), confidence.cpu())


def moments(features, counts=None):
    """The Moments of features (N, F), every row taken as often as `counts` (N,) says, or once."""
    features = features.double()
    if counts is not None:
        features = features.repeat_interleave(counts.long(), dim=0)
    return Moments(features.mean(0), torch.cov(features.T).reshape(features.shape[1], -1))


def frechet_distance(one, two):
    """The squared Fréchet distance of the Gaussians with these Moments (Heusel et al. 2017, Eq. 6).

    |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)), in squared units of the features.
    """
    # The root's trace: the sum of the roots of the eigenvalues of C1 C2, which only rounding can make negative.
    cross = torch.linalg.eigvals(one.covariance @ two.covariance).real.clamp(min=0).sqrt().sum()
    between = (one.mean - two.mean).square().sum()
    return max(0.0, float(between + one.covariance.trace() + two.covariance.trace() - 2 * cross))


def sample_pixel_gaussian(images, count, *, generator):
    """Draws (count, *image) of the Gaussian with the mean and covariance of images (N, *image), by a CPU generator."""
    mean, covariance = moments(images.flatten(1).cpu())
    values, vectors = torch.linalg.eigh(covariance)
    noise = torch.randn(count, len(values), generator=generator, dtype=torch.float64)
    # Not Cholesky's decomposition, which fails for pixels that never change. Not clamped: the moments would change.
    drawn = mean + (noise * values.clamp(min=0).sqrt()) @ vectors.T
    return drawn.reshape(count, *images.shape[1:]).to(images)


def describe(classified, num_classes):
    """Class histogram and confidence of a Classified: shares with Wilson's intervals, a mean with its error."""
    count = len(classified.label)
    found = torch.bincount(classified.label, minlength=num_classes).tolist()
    return {
        "classes": [{"share": correct / count, "interval_95": wilson_interval(correct, count)} for correct in found],
        "confidence": mean_and_error(classified.confidence),
    }


def frechet_distances(features, reference, *, seed, resamples, baseline):
    """{name: {"value", "standard_error", "images", "over_BASELINE"}} of the Fréchet distance from the reference.

    features: {name: (N, F)}; reference: (M, F). Distances are in units of the classifier, which differ from training to
    training; "over_BASELINE", a value with its error, is their ratio to the distance of features[baseline]. An error is
    the standard deviation over bootstrap resamples of all sets; a ratio has the same resample of the reference in both
    its parts. It leaves out the bias, see `finite_sample_floor`: compare only distances of equally many images.
    """
    target, targets = moments(reference), list(_resampled(reference, len(reference), seed, "reference", resamples))
    values, drawn = {}, {}
    for name, of_name in features.items():
        values[name] = frechet_distance(moments(of_name), target)
        pairs = zip(_resampled(of_name, len(of_name), seed, name, resamples), targets, strict=True)
        drawn[name] = torch.tensor([frechet_distance(*pair) for pair in pairs], dtype=torch.float64)
    found = {}
    for name, value in values.items():
        ratio = {"value": value / values[baseline], "standard_error": float((drawn[name] / drawn[baseline]).std())}
        score = {"value": value, "standard_error": float(drawn[name].std()), "images": len(features[name])}
        found[name] = {**score, f"over_{baseline}": ratio}
    return found


def finite_sample_floor(reference, count, *, seed, resamples):
    """The mean Fréchet distance of `count` images from M others of the same distribution, which is above 0.

    reference: (M, F). The bootstrap's estimate (Efron 1979): both samples are drawn from the reference. A resample's
    distance from the reference itself would be too small, by what the M images of the reference add to the distance.
    """
    one, two = (
        _resampled(reference, size, seed, f"floor, {name}", resamples)
        for name, size in (("sample", count), ("reference", len(reference)))
    )
    drawn = torch.tensor([frechet_distance(*pair) for pair in zip(one, two, strict=True)], dtype=torch.float64)
    score = {"value": float(drawn.mean()), "standard_deviation": float(drawn.std())}
    return {**score, "images": count, "reference_images": len(reference)}


def _resampled(features, size, seed, name, resamples):
    """The Moments of bootstrap resamples, `size` rows of features (N, F) each."""
    generator = random_generator(seed, "bootstrap", name)
    counts = bootstrap_counts(len(features), resamples=resamples, generator=generator, size=size)
    return (moments(features, row) for row in counts)


@torch.no_grad()
def assess(methods, data, classifier, config, *, results_dir, keep=compute, resamples=20):
    """Writes sample_quality.png to `results_dir`; returns the summary's numbers, one dict per kind of samples.

    classifier: trained on data.train, in evaluation mode; config: an EvalConfig; keep: as `Tasks.keep`. Kinds,
    config.classified_samples of each: "real_images", training images that are not in data.train, if there are enough:
    the best to be expected; every method's name, at the same z; "pixel_gaussian", what two moments alone reach. "test"
    describes the test images; "finite_sample_floor" is what the distance would be, on average, if the samples were test
    images.
    """
    seed, count, device, num_classes = config.seed, config.classified_samples, data.device, data.test.num_classes
    kinds = {}
    if len(data.rest.images) >= count:
        order = torch.randperm(len(data.rest.images), generator=random_generator(seed, "real images"))
        kinds["real_images"] = data.rest.images[order[:count].to(device)]
    for method in methods:
        # The same generator for each: where the models have the same number of dimensions, the same z.
        generator = random_generator(seed, "classified samples", device=device)
        z = torch.randn(count, method.model.latent_dim, generator=generator, device=device)
        kinds[method.name] = torch.cat([method.model.mean(part) for part in z.split(1000)])
    generator = random_generator(seed, "pixel Gaussian")
    kinds["pixel_gaussian"] = sample_pixel_gaussian(data.train.images, count, generator=generator)
    classified = {name: classify(classifier, images) for name, images in kinds.items()}
    reference = classify(classifier, data.test.images)
    features = {name: each.features for name, each in classified.items()}
    scores, again = {}, {"seed": seed, "resamples": resamples}
    options = {"baseline": "pixel_gaussian", **again}
    distances = keep("frechet", lambda: frechet_distances(features, reference.features, **options))
    for name, distance in distances.items():
        scores[name] = {"frechet_distance": distance, **describe(classified[name], num_classes)}
    scores["test"] = describe(reference, num_classes)
    examples = {name: images[:EXAMPLES] for name, images in kinds.items()}
    floor = keep("frechet_floor", lambda: finite_sample_floor(reference.features, count, **again))
    classes, likelihood = data.test.classes, methods[0].model.likelihood.label
    figure = figures.sample_quality(
        scores=scores, floor=floor, examples=examples, methods=methods, classes=classes, likelihood=likelihood
    )
    save_figure(Path(results_dir) / "sample_quality.png", figure)
    return {**scores, "finite_sample_floor": floor}
