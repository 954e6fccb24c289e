"""The quality of the models' samples, measured with the supervised classifier's features and predictions.

A sample is the mean of p(x|z) at z ~ N(0, I), without the noise of p(x|z), which would look the same for all models.
"""

from collections import namedtuple

import torch

from evaluation.statistics import plain_score, score
from vae_utils import mean_and_error, random_generator

EXAMPLES = 12  # images of every kind, in the figure
BASELINE = "pixel_gaussian"  # the kind to whose distance that of the others is compared
# What a classifier finds: (N, F), float64; (N,), the most probable class; (N,), its probability.
Classified = namedtuple("Classified", ("features", "label", "confidence"))
Moments = namedtuple("Moments", ("mean", "covariance"))  # of features, (F,) and (F, F), float64


@torch.no_grad()
def classify(classifier, images, *, batch_size=100):
    """The Classified of images (N, C, H, W), on the CPU; the classifier must be in evaluation mode."""
    features = torch.cat([classifier.features(x) for x in images.split(batch_size)])
    confidence, label = classifier.logits(features).softmax(-1).max(-1)
    return Classified(features.cpu().double(), label.cpu(), confidence.cpu())


def moments(features):
    """The Moments of features (N, F)."""
    features = features.double()
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
    return (mean + (noise * values.clamp(min=0).sqrt()) @ vectors.T).reshape(count, *images.shape[1:]).to(images)


def frechet_distances(features, reference, *, seed, resamples):
    """{name: (distance, (resamples,) of bootstrap resamples of all sets)}, Fréchet distances from the reference.

    features: {name: (N, F)}; reference: (M, F). Units differ from one classifier to another: compare ratios, whose two
    distances share each resample of the reference. The bootstrap leaves out the bias, see `finite_sample_floor`:
    compare only distances of equally many images.
    """
    target, targets = moments(reference), list(_resampled(reference, len(reference), seed, "reference", resamples))
    distances = {}
    for name, values in features.items():
        pairs = zip(_resampled(values, len(values), seed, name, resamples), targets, strict=True)
        drawn = torch.tensor([frechet_distance(*pair) for pair in pairs], dtype=torch.float64)
        distances[name] = frechet_distance(moments(values), target), drawn
    return distances


def finite_sample_floor(reference, count, *, seed, resamples):
    """Fréchet distances (resamples,) of `count` images from M others of the same distribution, all above 0.

    reference: (M, F). The bootstrap's estimate (Efron 1979): both samples are drawn from the reference. A resample's
    distance from the reference itself would be too small, by what the M images of the reference add to the distance.
    """
    drawn = _resampled(reference, count, seed, "floor, sample", resamples)
    others = _resampled(reference, len(reference), seed, "floor, reference", resamples)
    return torch.tensor([frechet_distance(*pair) for pair in zip(drawn, others, strict=True)], dtype=torch.float64)


def _resampled(features, size, seed, name, resamples):
    """The Moments of bootstrap resamples, `size` rows of features (N, F) each."""
    rows = torch.randint(len(features), (resamples, size), generator=random_generator(seed, "bootstrap", name))
    return (moments(features[part]) for part in rows)


def distance_scores(distances, floor, images, epoch):
    """Scores "frechet_distance" and "frechet_ratio", to the distance of BASELINE, of every kind; and of the floor.

    distances: of `frechet_distances`; floor: of `finite_sample_floor`. An error is the standard deviation over
    resamples; the floor's distance is their mean, its "frechet_deviation" their standard deviation.
    """
    rows, (unit, unit_drawn) = [], distances[BASELINE]
    for name, (distance, drawn) in distances.items():
        values = {"frechet_distance": (distance, drawn), "frechet_ratio": (distance / unit, drawn / unit_drawn)}
        for quantity, (value, resampled) in values.items():
            entry = plain_score(quantity, value, images, method=name, epoch=epoch)
            rows.append(entry._replace(standard_error=float(resampled.std())))
    for quantity, value in {"frechet_distance": floor.mean(), "frechet_deviation": floor.std()}.items():
        rows.append(plain_score(quantity, value, images, method="finite_sample_floor", epoch=epoch))
    return rows


def class_scores(classified, classes, **labels):
    """Yields Scores of a Classified: the mean "confidence", and "class_share" of every class."""
    yield score("confidence", mean_and_error(classified.confidence), **labels)
    for number, name in enumerate(classes):
        yield score("class_share", mean_and_error(classified.label == number), group=name, **labels)


@torch.no_grad()
def assess(methods, data, classifier, config, *, epoch, keep, resamples=20):
    """The Scores of samples, and {kind: example images}.

    classifier: trained on data.train, in evaluation mode; config: an EvalConfig; keep: as `Tasks.keep`. Kinds,
    config.classified_samples of each: "real_images", training images that are not in data.train, if there are enough:
    the best to be expected; every method's name, at the same z; "pixel_gaussian", what two moments alone reach. "test"
    describes the test images; "finite_sample_floor" is the mean distance that samples like them would have.
    """
    seed, count, device = config.seed, config.classified_samples, data.device

    # Samples of every kind.
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
    kinds[BASELINE] = sample_pixel_gaussian(data.train.images, count, generator=generator)

    # What the classifier takes them for, and their distances.
    classified = {name: classify(classifier, images) for name, images in {**kinds, "test": data.test.images}.items()}
    features, options = {name: classified[name].features for name in kinds}, {"seed": seed, "resamples": resamples}
    reference = classified["test"].features
    distances = keep("frechet", lambda: frechet_distances(features, reference, **options))
    floor = keep("frechet_floor", lambda: finite_sample_floor(reference, count, **options))
    scores = distance_scores(distances, floor, count, epoch)
    for name, values in classified.items():
        scores += class_scores(values, data.test.classes, method=name, epoch=epoch)
    right = mean_and_error(classified["test"].label == data.test.labels.cpu())
    scores.append(score("classifier_accuracy", right, method="baseline", epoch=epoch))
    return scores, {name: images[:EXAMPLES].cpu() for name, images in kinds.items()}
