"""The Fréchet distance against closed forms and scipy, and the assessment of samples whose worth is known."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import linalg

from data import Data, stratified_subset
from evaluation import samples
from evaluation.samples import Classified, frechet_distance, frechet_distances, moments
from evaluation.statistics import find, select_scores
from model import Classifier, ConvModel
from runtime.config import EvalConfig
from vae_utils import random_generator

SHIFTS = (1, 1.5, 0)


def toy_methods(latent_dims, image_shape):
    """Methods whose models have learned nothing."""
    models = [ConvModel(latent_dim, image_shape=image_shape, seed=0) for latent_dim in latent_dims]
    return [SimpleNamespace(name=f"method_{number}", model=model) for number, model in enumerate(models)]


@pytest.mark.parametrize(("width", "rank"), [(1, 1), (5, 5), (20, 20), (20, 3)])
def test_the_distance_is_that_of_numpys_moments_and_scipys_matrix_root(width, rank):
    generator = random_generator(0)
    one = torch.randn(60, width, generator=generator)
    two = torch.randn(60, rank, generator=generator) @ torch.randn(rank, width, generator=generator) + 3
    sets = one.double().numpy(), two.double().numpy()
    (m1, c1), (m2, c2) = ((x.mean(0), np.cov(x.T).reshape(width, width)) for x in sets)
    root = np.trace(linalg.sqrtm(c1 @ c2 + 1e-12 * np.eye(width))).real
    expected = np.square(m1 - m2).sum() + np.trace(c1 + c2) - 2 * root
    for pair in ((one, two), (two, one)):
        assert frechet_distance(*map(moments, pair)) == pytest.approx(expected, rel=1e-4)


def test_distances_and_ratios_are_those_of_the_distributions_and_their_errors_are_meant():
    """Gaussians of distances 4 and 9; the errors against the deviations over sets drawn anew."""

    def found(number, unit=1):
        """The Scores of the distance and of the ratio, to which both sets and the reference add noise."""
        generators = (random_generator(number, shift) for shift in SHIFTS)
        sets = [unit * (shift + torch.randn(500, 4, generator=g)) for shift, g in zip(SHIFTS, generators, strict=True)]
        features = dict(zip(("a", "pixel_gaussian"), sets, strict=False))
        distances = frechet_distances(features, sets[2], seed=0, resamples=20)
        scores = samples.distance_scores(distances, torch.ones(2), 500, epoch=1)
        unity = find(scores, "frechet_ratio", "pixel_gaussian")
        assert (unity.mean, unity.standard_error) == (1, 0)
        return [find(scores, f"frechet_{name}", "a") for name in ("distance", "ratio")]

    entries = np.array([[entry[5:7] for entry in found(number)] for number in range(100)])
    means, errors = entries.transpose(2, 0, 1)
    assert means.mean(0) == pytest.approx([4, 4 / 9], rel=0.02)
    assert errors.mean(0) == pytest.approx(means.std(0), rel=0.15)
    assert found(0, unit=7)[1][5:7] == pytest.approx(found(0)[1][5:7], rel=1e-3)  # a ratio has no units


@pytest.mark.parametrize(("count", "others"), [(3000, 900), (600, 2000), (1200, 1200)])
def test_the_floor_is_the_mean_distance_of_two_samples_of_one_gaussian(count, others):
    """Of Gaussians drawn anew."""
    reference = torch.randn(others, 6, generator=random_generator(5), dtype=torch.float64)
    values = [samples.finite_sample_floor(reference, count, seed=seed, resamples=40) for seed in range(5)]
    mean = np.mean([float(floor.mean()) for floor in values])
    drawn = [
        frechet_distance(*(moments(torch.randn(n, 6, generator=generator)) for n in (count, others)))
        for generator in map(random_generator, range(200))
    ]
    assert mean == pytest.approx(np.mean(drawn), rel=0.1)
    assert np.mean([float(floor.std()) for floor in values]) == pytest.approx(np.std(drawn), rel=0.25)


def test_the_pixel_gaussian_has_the_pixels_mean_and_covariance(mnist):
    images = mnist[0].images[:3000, :, 8:16, 10:17] * torch.linspace(0, 1, 7)  # the first column never changes
    drawn = samples.sample_pixel_gaussian(images, 40_000, generator=random_generator(0))
    assert drawn.shape == (40_000, 1, 8, 7)
    expected, drawn_moments = moments(images.flatten(1)), moments(drawn.flatten(1))
    assert float((expected.mean - drawn_moments.mean).abs().max()) < 0.02
    assert float((expected.covariance - drawn_moments.covariance).abs().max()) < 0.02
    assert drawn[..., 0].std() < 1e-6


def test_shares_and_confidence_of_classes_that_are_known():
    classified = Classified(torch.zeros(4, 2), torch.tensor([3, 3, 6, 3]), torch.tensor([0.5, 0.7, 0.9, 0.7]))
    confidence, *shares = samples.class_scores(classified, "abcdefg", method="m", epoch=1)
    assert [entry.group for entry in shares] == list("abcdefg")
    assert [entry.mean for entry in shares] == [0, 0, 0, 0.75, 0, 0, 0.25]
    assert confidence.mean == pytest.approx(0.7)
    assert confidence.standard_error == pytest.approx(np.std([0.5, 0.7, 0.9, 0.7], ddof=1) / 2)


def test_classify_gives_the_features_and_probabilities_of_the_classifier(mnist):
    classifier, images = Classifier(seed=0).eval(), mnist[1].images[:30]
    found = samples.classify(classifier, images, batch_size=7)
    with torch.no_grad():
        confidence, label = classifier(images).softmax(-1).max(-1)
        torch.testing.assert_close(found.features, classifier.features(images).double(), rtol=1e-3, atol=1e-4)
    assert torch.equal(found.label, label)
    torch.testing.assert_close(found.confidence, confidence, rtol=1e-3, atol=1e-4)


def compute(name, function):
    return function()


def test_the_assessment_orders_what_is_known_and_says_the_same_twice(mnist):
    train, test, rest = (stratified_subset(mnist[part], size=300, seed=seed) for part, seed in ((0, 1), (1, 2), (0, 3)))
    methods, data = toy_methods((3, 3), (1, 28, 28)), Data(train, rest, rest, test)
    settings = {"classifier": Classifier(seed=0).eval(), "config": EvalConfig(seed=4, classified_samples=200)}
    settings |= {"epoch": 1, "keep": compute, "resamples": 7}
    scores, examples = samples.assess(methods, data=data, **settings)
    kinds = ["real_images", "method_0", "method_1", "pixel_gaussian"]
    assert list(examples) == kinds
    distance = {name: find(scores, "frechet_distance", name).mean for name in (*kinds, "finite_sample_floor")}
    assert 0 < distance["finite_sample_floor"] < distance["pixel_gaussian"]
    assert distance["real_images"] < distance["pixel_gaussian"] < distance["method_0"]  # which has learned nothing
    assert distance["method_0"] == distance["method_1"]  # the same decoder at the same z
    for name in (*kinds, "test"):
        shares = select_scores(scores, quantity="class_share", method=name)
        assert sum(entry.mean for entry in shares) == pytest.approx(1)
    right = samples.classify(settings["classifier"], test.images).label == test.labels
    found = find(scores, "classifier_accuracy", "baseline")
    assert (found.mean, found.images) == (pytest.approx(float(right.double().mean())), 300)
    assert found.standard_error == pytest.approx(float(right.double().std()) / 300**0.5)
    assert samples.assess(methods, data=data, **settings)[0] == scores
    few = data._replace(rest=rest.at(torch.arange(199)))
    assert "real_images" not in samples.assess(methods, data=few, **settings)[1]
