"""The Fréchet distance against closed forms and scipy, and the assessment of samples whose worth is known."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import toy_data
from scipy import linalg, stats

from data import Data, stratified_subset
from evaluation import samples
from evaluation.samples import Classified, Moments, frechet_distance, frechet_distances, moments
from model import Classifier, ConvModel
from runtime.config import EvalConfig
from vae_utils import random_generator


def random_moments(width, seed, rank=None):
    factor = torch.randn(width, rank or width, generator=random_generator(seed), dtype=torch.float64)
    return Moments(torch.randn(width, generator=random_generator(seed, 1), dtype=torch.float64), factor @ factor.T)


def toy_methods(latent_dims, image_shape, seed=0):
    """Methods whose models have learned nothing."""
    return [
        SimpleNamespace(
            name=f"method_{number}",
            label=f"Method {number}",
            color="#0072B2",
            shared_inference=number > 0,
            model=ConvModel(latent_dim, image_shape=image_shape, seed=seed),
        )
        for number, latent_dim in enumerate(latent_dims)
    ]


def test_the_distance_of_diagonal_gaussians():
    """|m1 - m2|^2 + sum (s1 - s2)^2."""
    mean = torch.tensor([[1.0, 2, 3], [0, 2, 5]], dtype=torch.float64)
    deviation = torch.tensor([[1.0, 0.5, 2], [3, 0.5, 0]], dtype=torch.float64)
    one, two = (Moments(m, s.square().diag()) for m, s in zip(mean, deviation, strict=True))
    assert frechet_distance(one, two) == pytest.approx(1 + 4 + 4 + 4)


@pytest.mark.parametrize(("width", "rank"), [(1, 1), (5, 5), (20, 20), (20, 3)])
def test_the_distance_is_that_of_scipys_matrix_root(width, rank):
    one, two = random_moments(width, 0), random_moments(width, 5, rank)
    product = one.covariance.numpy() @ two.covariance.numpy()
    root = np.trace(linalg.sqrtm(product + 1e-12 * np.eye(width))).real
    between = float((one.mean - two.mean).square().sum())
    expected = between + float(one.covariance.trace() + two.covariance.trace()) - 2 * root
    assert frechet_distance(one, two) == pytest.approx(expected, rel=1e-4)
    assert frechet_distance(two, one) == pytest.approx(expected, rel=1e-4)


def test_the_distance_is_zero_between_equal_sets_alone():
    features = torch.randn(300, 12, generator=random_generator(0))
    features[:, 3] = 0  # a feature that is never on
    assert frechet_distance(moments(features), moments(features.flip(0))) == pytest.approx(0, abs=1e-6)
    assert frechet_distance(moments(features), moments(features + 0.1)) == pytest.approx(12 * 0.01, rel=1e-4)


def test_moments_are_numpys_also_of_resamples():
    features = torch.randn(40, 6, generator=random_generator(0)) + 3
    counts = torch.randint(4, (40,), generator=random_generator(1)).double()
    for taken, values in ((None, features), (counts, features.repeat_interleave(counts.long(), 0))):
        found = moments(features, taken)
        assert found.mean.numpy() == pytest.approx(values.numpy().mean(0), rel=1e-5)
        assert found.covariance.numpy() == pytest.approx(np.cov(values.numpy().T), rel=1e-5)
    assert moments(features[:, :1]).covariance.shape == (1, 1)


def test_distances_are_those_of_the_distributions_and_their_errors_are_meant():
    """Two Gaussians of known distance; the bootstrap's error against the deviation over sets drawn anew."""

    def drawn(seed, shift, count=2000):
        return shift + torch.randn(count, 4, generator=random_generator(seed, "drawn"))

    def found(features, seed, resamples):
        return frechet_distances(features, drawn(seed, 0), seed=0, resamples=resamples, baseline="a")

    values = torch.tensor([found({"a": drawn(n, 1)}, -n, 2)["a"]["value"] for n in range(1, 101)])
    assert float(values.mean()) == pytest.approx(4, abs=0.05)
    both = found({"a": drawn(1, 1), "b": drawn(2, 0)}, -1, 200)
    assert 0.8 < both["a"]["standard_error"] / float(values.std()) < 1.25
    assert 0 < both["b"]["value"] < 0.02
    assert both["a"]["images"] == 2000
    assert found({"a": drawn(1, 1)}, -1, 200)["a"] == both["a"]  # whoever else is there


def test_ratios_do_not_depend_on_the_units_and_their_errors_are_meant():
    """Distances 4 and 9; the ratio's error against the deviation over sets drawn anew, which share the reference."""

    def drawn(seed, shift, count=500):
        return shift + torch.randn(count, 4, generator=random_generator(seed, "drawn"))

    def found(number, resamples, unit=1):
        features = {"a": unit * drawn(3 * number, 1), "b": unit * drawn(3 * number + 1, 1.5)}
        reference = unit * drawn(3 * number + 2, 0)
        return frechet_distances(features, reference, seed=0, resamples=resamples, baseline="b")

    values = torch.tensor([found(number, 2)["a"]["over_b"]["value"] for number in range(100)])
    assert float(values.mean()) == pytest.approx(4 / 9, abs=0.01)
    once = found(0, 200)
    assert 0.8 < once["a"]["over_b"]["standard_error"] / float(values.std()) < 1.25
    assert once["b"]["over_b"] == {"value": 1, "standard_error": 0}
    other = found(0, 200, unit=7)
    assert other["a"]["value"] == pytest.approx(49 * once["a"]["value"], rel=1e-4)
    assert other["a"]["over_b"] == pytest.approx(once["a"]["over_b"], rel=1e-3)


@pytest.mark.parametrize(("count", "others"), [(3000, 900), (600, 2000), (1200, 1200)])
def test_the_floor_is_the_mean_distance_of_two_samples_of_one_gaussian(count, others):
    """(1/N + 1/M) (F + F (F + 1) / 4) to the first order: the second term is that of Wishart's covariances.

    |m1 - m2|^2 has the mean F (1/N + 1/M), and near C1 = C2 = I the rest is |C1 - C2|^2 / 4.
    """
    reference = torch.randn(others, 6, generator=random_generator(5), dtype=torch.float64)
    values = [samples.finite_sample_floor(reference, count, seed=seed, resamples=40) for seed in range(5)]
    mean = np.mean([floor["value"] for floor in values])
    assert mean == pytest.approx((1 / count + 1 / others) * (6 + 6 * 7 / 4), rel=0.1)
    assert (values[0]["images"], values[0]["reference_images"]) == (count, others)
    drawn = [
        frechet_distance(*(moments(torch.randn(n, 6, generator=generator)) for n in (count, others)))
        for generator in map(random_generator, range(200))
    ]
    assert mean == pytest.approx(np.mean(drawn), rel=0.1)
    assert np.mean([floor["standard_deviation"] for floor in values]) == pytest.approx(np.std(drawn), rel=0.25)


def test_the_pixel_gaussian_has_the_pixels_mean_and_covariance(mnist):
    images = mnist[0].images[:3000, :, 8:16, 10:17] * torch.linspace(0, 1, 7)  # the first column never changes
    drawn = samples.sample_pixel_gaussian(images, 40_000, generator=random_generator(0))
    assert drawn.shape == (40_000, 1, 8, 7)
    expected, found = moments(images.flatten(1)), moments(drawn.flatten(1))
    assert float((expected.mean - found.mean).abs().max()) < 0.02
    assert float((expected.covariance - found.covariance).abs().max()) < 0.02
    assert drawn[..., 0].std() < 1e-6
    assert frechet_distance(expected, found) < 0.01 * float(expected.covariance.trace())


def test_shares_and_confidence_of_classes_that_are_known():
    classified = Classified(torch.zeros(4, 2), torch.tensor([3, 3, 6, 3]), torch.tensor([0.5, 0.7, 0.9, 0.7]))
    found = samples.describe(classified, 7)
    assert [entry["share"] for entry in found["classes"]] == [0, 0, 0, 0.75, 0, 0, 0.25]
    interval = stats.binomtest(3, 4).proportion_ci(method="wilson")
    assert found["classes"][3]["interval_95"] == pytest.approx((interval.low, interval.high), abs=1e-6)
    assert found["confidence"]["mean"] == pytest.approx(0.7)
    assert found["confidence"]["standard_error"] == pytest.approx(np.std([0.5, 0.7, 0.9, 0.7], ddof=1) / 2)


def test_classify_gives_the_features_and_probabilities_of_the_classifier(mnist):
    classifier, images = Classifier(seed=0).eval(), mnist[1].images[:30]
    found = samples.classify(classifier, images, batch_size=7)
    with torch.no_grad():
        confidence, label = classifier(images).softmax(-1).max(-1)
        torch.testing.assert_close(found.features, classifier.features(images).double(), rtol=1e-3, atol=1e-4)
    assert torch.equal(found.label, label)
    torch.testing.assert_close(found.confidence, confidence, rtol=1e-3, atol=1e-4)


def test_the_assessment_orders_what_is_known_and_says_the_same_twice(mnist, tmp_path, monkeypatch):
    train, test, rest = (stratified_subset(mnist[part], size=300, seed=seed) for part, seed in ((0, 1), (1, 2), (0, 3)))
    methods = toy_methods((3, 3), (1, 28, 28))
    settings = {
        "classifier": Classifier(seed=0).eval(),
        "config": EvalConfig(seed=4, classified_samples=200),
        "results_dir": tmp_path,
        "resamples": 7,
    }
    data = Data(train, rest, rest, test)
    first = samples.assess(methods, data=data, **settings)
    assert [path.name for path in tmp_path.iterdir()] == ["sample_quality.png"]
    kinds = ["real_images", "method_0", "method_1", "pixel_gaussian"]
    assert list(first) == [*kinds, "test", "finite_sample_floor"]
    distance = {name: first[name]["frechet_distance"]["value"] for name in kinds}
    for name in kinds:
        ratio = first[name]["frechet_distance"]["over_pixel_gaussian"]
        assert ratio["value"] == pytest.approx(distance[name] / distance["pixel_gaussian"])
    floor = first["finite_sample_floor"]
    assert (floor["images"], floor["reference_images"]) == (200, 300)
    assert 0 < floor["value"] < distance["pixel_gaussian"]
    assert distance["real_images"] < distance["pixel_gaussian"] < distance["method_0"]  # which has learned nothing
    assert distance["method_0"] == distance["method_1"]  # the same decoder at the same z
    assert first["method_0"]["classes"] == first["method_1"]["classes"]
    for name in (*kinds, "test"):
        assert sum(entry["share"] for entry in first[name]["classes"]) == pytest.approx(1)

    monkeypatch.setattr(samples, "save_figure", lambda path, figure: None)
    assert samples.assess(methods, data=data, **settings) == first
    few = data._replace(rest=rest.at(torch.arange(199)))
    assert "real_images" not in samples.assess(methods, data=few, **settings)


def test_any_number_of_methods_and_classes_can_be_assessed(tmp_path):
    data = toy_data()
    config = EvalConfig(seed=2, classified_samples=200)
    classifier = Classifier(5, image_shape=data.image_shape, seed=1).eval()
    methods = toy_methods((2, 5, 3), data.image_shape)
    found = samples.assess(methods, classifier=classifier, data=data, config=config, results_dir=tmp_path)
    kinds = ["method_0", "method_1", "method_2", "pixel_gaussian", "test"]
    assert list(found) == [*kinds, "finite_sample_floor"]
    assert all(len(found[name]["classes"]) == 5 for name in kinds)
    assert found["method_2"]["frechet_distance"]["images"] == 200
