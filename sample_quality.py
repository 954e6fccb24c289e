"""What the decoders' samples are worth, with the supervised baseline as the judge.

A sample is the mean of p(x|z) at z ~ N(0, I), without the noise of p(x|z), which would look the same on all of them.
"""

from pathlib import Path
from typing import NamedTuple

import torch

import analysis_figures
from data import DIGITS
from files import save_figure
from intervals import bootstrap_counts, wilson_interval
from vae_utils import mean_and_error, random_generator

SAMPLES = 10_000
RESAMPLES = 20
EXAMPLES = 12  # of every contestant, in the figure


class Moments(NamedTuple):
    """Mean and covariance of features, float64."""

    mean: torch.Tensor  # (F,)
    covariance: torch.Tensor  # (F, F)


class Verdict(NamedTuple):
    """What the judge sees in images."""

    features: torch.Tensor  # (N, F), float64 on the CPU
    digit: torch.Tensor  # (N,), the most probable one
    confidence: torch.Tensor  # (N,), its probability


def moments(features, counts=None):
    """The Moments of features (N, F), every row taken as often as `counts` (N,) says, or once."""
    features = features.double()
    counts = torch.ones(len(features), dtype=torch.float64, device=features.device) if counts is None else counts
    mean = counts @ features / counts.sum()
    centred = features - mean
    return Moments(mean, (counts[:, None] * centred).T @ centred / (counts.sum() - 1))


def frechet_distance(one, two):
    """The squared Frechet distance of the Gaussians with these Moments (Heusel et al. 2017, Eq. 6).

    |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)), in squared units of the features. The trace of the root is that of
    the root of C1^(1/2) C2 C1^(1/2), which has the same eigenvalues and is symmetric.
    """
    values, vectors = torch.linalg.eigh(one.covariance)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    cross = torch.linalg.eigvalsh(root @ two.covariance @ root).clamp(min=0).sqrt().sum()
    between = (one.mean - two.mean).square().sum()
    return max(0.0, float(between + one.covariance.trace() + two.covariance.trace() - 2 * cross))


def sample_pixel_gaussian(*, images, count, generator):
    """Draws of a Gaussian with the mean and the full covariance of the pixels of images (N, *image): (count, *image).

    They are not clamped. In float64 on the CPU, where the generator is to be; returned like the images.
    """
    fitted = moments(images.flatten(1).cpu())
    values, vectors = torch.linalg.eigh(fitted.covariance)
    noise = torch.randn(count, len(values), generator=generator, dtype=torch.float64)
    # Not by Cholesky's decomposition, which the pixels that never change forbid.
    drawn = fitted.mean + (noise * values.clamp(min=0).sqrt()) @ vectors.T
    return drawn.reshape(count, *images.shape[1:]).to(images)


@torch.no_grad()
def sample_prior(*, decode, z, batch_size=1000):
    """The mean of p(x|z) for z (N, D), (N, 1, 28, 28)."""
    return torch.cat([decode(part) for part in z.split(batch_size)])


@torch.no_grad()
def judged(*, judge, images, batch_size=100):
    """The Verdict of the judge, a Classifier as it is when it does not train, on images (N, 1, 28, 28)."""
    parts = []
    for x in images.split(batch_size):
        features = judge.features(x)
        confidence, digit = judge.logits(features).softmax(-1).max(-1)
        parts.append((features.double().cpu(), digit.cpu(), confidence.cpu()))
    return Verdict(*(torch.cat(part) for part in zip(*parts, strict=True)))


def describe(verdict):
    """The class histogram and the confidence of a Verdict: shares with Wilson's intervals, a mean with its error."""
    count = len(verdict.digit)
    found = torch.bincount(verdict.digit, minlength=DIGITS).tolist()
    return {
        "classes": [{"share": of / count, "interval_95": wilson_interval(of, count)} for of in found],
        "confidence": mean_and_error(verdict.confidence),
    }


def distances(*, features, reference, seed, resamples=RESAMPLES):
    """The Frechet distance of every contestant's features from the reference's.

    features: {name: (N, F)}; reference: (M, F). Returns {name: {"value", "standard_error", "images"}}. The error is the
    standard deviation over bootstrap resamples of both sets, those of the reference the same for all contestants. It
    does not hold the bias: finite sets of the same kind are never at distance 0, and the fewer they are the
    farther; only distances of equally many images compare.
    """

    def resampled(values, *purpose):
        generator = random_generator(seed, "bootstrap", *purpose)
        counts = bootstrap_counts(len(values), resamples=resamples, generator=generator)
        return (moments(values, row) for row in counts)

    target, targets = moments(reference), list(resampled(reference, "reference"))
    found = {}
    for name, values in features.items():
        pairs = zip(resampled(values, name), targets, strict=True)
        spread = torch.tensor([frechet_distance(*pair) for pair in pairs], dtype=torch.float64)
        found[name] = {
            "value": frechet_distance(moments(values), target),
            "standard_error": float(spread.std()),
            "images": len(values),
        }
    return found


def assess(*, decoders, judge, train, mnist_rest, test, results_dir, seed=0, samples=SAMPLES, resamples=RESAMPLES):
    """Writes sample_quality.png to `results_dir`; returns the summary's numbers, one dict per contestant.

    decoders: {regime: Decoder}; judge: a Classifier that was trained on `train`; train, test: Splits; mnist_rest: the
    Split of training images that are not in `train`. Contestants are `samples` draws of each decoder, at the same z;
    as many of mnist_rest, which say how near to the test images one can come, left out where there are not that many;
    and of a Gaussian fitted to the pixels of `train`, which say how near one comes by two moments alone. These are not
    clamped to [-1, 1]: that would change the moments, and take them farther away. "test" describes the test images.
    """
    device, contestants = test.images.device, {}
    if len(mnist_rest.images) >= samples:
        order = torch.randperm(len(mnist_rest.images), generator=random_generator(seed, "held-out images"))
        contestants["held_out"] = mnist_rest.images[order[:samples].to(device)]
    for name, decoder in decoders.items():
        # The same generator for each: where the decoders have the same number of dimensions, the same z.
        generator = random_generator(seed, "judged samples", device=device)
        z = torch.randn(samples, decoder.latent_dim, generator=generator, device=device)
        contestants[name] = sample_prior(decode=decoder, z=z)
    contestants["pixel_gaussian"] = sample_pixel_gaussian(
        images=train.images, count=samples, generator=random_generator(seed, "pixel Gaussian")
    )
    verdicts = {name: judged(judge=judge, images=images) for name, images in contestants.items()}
    reference = judged(judge=judge, images=test.images)
    features = {name: verdict.features for name, verdict in verdicts.items()}
    measured = distances(features=features, reference=reference.features, seed=seed, resamples=resamples)
    scores = {name: {"frechet_distance": measured[name], **describe(verdict)} for name, verdict in verdicts.items()}
    scores["test"] = describe(reference)
    examples = {name: images[:EXAMPLES].cpu() for name, images in contestants.items()}
    save_figure(
        Path(results_dir) / "sample_quality.png", analysis_figures.sample_quality(scores=scores, examples=examples)
    )
    return scores
