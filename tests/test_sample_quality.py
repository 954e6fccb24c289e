"""The Frechet distance against closed forms and scipy, and the judging of samples whose worth is known."""

import numpy as np
import pytest
import torch
from scipy import linalg, stats

import sample_quality
from data import stratified_subset
from model import Classifier, seeded_decoder
from sample_quality import Moments, Verdict, distances, frechet_distance, moments
from vae_utils import random_generator


def random_moments(width, seed, rank=None):
    factor = torch.randn(width, rank or width, generator=random_generator(seed), dtype=torch.float64)
    return Moments(torch.randn(width, generator=random_generator(seed, 1), dtype=torch.float64), factor @ factor.T)


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


def test_distances_are_those_of_the_distributions_and_their_errors_are_meant():
    """Two Gaussians of known distance; the bootstrap's error against the spread over sets drawn anew."""

    def drawn(seed, shift, count=2000):
        return shift + torch.randn(count, 4, generator=random_generator(seed, "drawn"))

    anew = [
        distances(features={"a": drawn(n, 1)}, reference=drawn(-n, 0), seed=0, resamples=2)["a"] for n in range(1, 101)
    ]
    values = torch.tensor([found["value"] for found in anew])
    assert float(values.mean()) == pytest.approx(4, abs=0.05)
    found = distances(features={"a": drawn(1, 1), "b": drawn(2, 0)}, reference=drawn(-1, 0), seed=0, resamples=200)
    assert 0.8 < found["a"]["standard_error"] / float(values.std()) < 1.25
    assert 0 < found["b"]["value"] < 0.02
    assert found["a"]["images"] == 2000
    again = distances(features={"a": drawn(1, 1)}, reference=drawn(-1, 0), seed=0, resamples=200)
    assert again["a"] == found["a"]  # whoever else is there


def test_the_pixel_gaussian_has_the_pixels_mean_and_covariance(mnist):
    images = mnist[0].images[:3000, :, 8:16, 10:17] * torch.linspace(0, 1, 7)  # the first column never changes
    drawn = sample_quality.sample_pixel_gaussian(images=images, count=40_000, generator=random_generator(0))
    assert drawn.shape == (40_000, 1, 8, 7)
    expected, found = moments(images.flatten(1)), moments(drawn.flatten(1))
    assert float((expected.mean - found.mean).abs().max()) < 0.02
    assert float((expected.covariance - found.covariance).abs().max()) < 0.02
    assert drawn[..., 0].std() < 1e-6
    assert frechet_distance(expected, found) < 0.01 * float(expected.covariance.trace())


def test_the_judgement_of_digits_that_are_known():
    verdict = Verdict(torch.zeros(4, 2), torch.tensor([3, 3, 9, 3]), torch.tensor([0.5, 0.7, 0.9, 0.7]))
    found = sample_quality.describe(verdict)
    assert [entry["share"] for entry in found["classes"]] == [0, 0, 0, 0.75, 0, 0, 0, 0, 0, 0.25]
    interval = stats.binomtest(3, 4).proportion_ci(method="wilson")
    assert found["classes"][3]["interval_95"] == pytest.approx((interval.low, interval.high), abs=1e-6)
    assert found["confidence"]["mean"] == pytest.approx(0.7)
    assert found["confidence"]["standard_error"] == pytest.approx(np.std([0.5, 0.7, 0.9, 0.7], ddof=1) / 2)


def test_the_judge_gives_the_features_and_probabilities_of_the_classifier(mnist):
    judge, images = Classifier(seed=0).eval(), mnist[1].images[:30]
    verdict = sample_quality.judged(judge=judge, images=images, batch_size=7)
    with torch.no_grad():
        confidence, digit = judge(images).softmax(-1).max(-1)
        torch.testing.assert_close(verdict.features, judge.features(images).double(), rtol=1e-3, atol=1e-4)
    assert torch.equal(verdict.digit, digit)
    torch.testing.assert_close(verdict.confidence, confidence, rtol=1e-3, atol=1e-4)


def test_the_assessment_orders_what_is_known_and_says_the_same_twice(mnist, tmp_path, monkeypatch):
    train, test, rest = (stratified_subset(mnist[part], size=300, seed=seed) for part, seed in ((0, 1), (1, 2), (0, 3)))
    decoder = seeded_decoder(3, seed=0)
    case = {"judge": Classifier(seed=0).eval(), "train": train, "test": test, "results_dir": tmp_path, "samples": 200}
    case["decoders"] = {"amortized": decoder, "latent_optimization": decoder}
    first = sample_quality.assess(**case, mnist_rest=rest)
    assert [path.name for path in tmp_path.iterdir()] == ["sample_quality.png"]
    assert list(first) == ["held_out", "amortized", "latent_optimization", "pixel_gaussian", "test"]
    distance = {name: first[name]["frechet_distance"]["value"] for name in first if name != "test"}
    assert distance["held_out"] < distance["pixel_gaussian"] < distance["amortized"]  # which has learned nothing
    assert distance["amortized"] == distance["latent_optimization"]  # the same decoder at the same z
    assert first["amortized"]["classes"] == first["latent_optimization"]["classes"]
    for score in first.values():
        assert sum(entry["share"] for entry in score["classes"]) == pytest.approx(1)

    monkeypatch.setattr(sample_quality, "save_figure", lambda path, figure: None)
    assert sample_quality.assess(**case, mnist_rest=rest) == first
    few = rest._replace(images=rest.images[:199])
    assert "held_out" not in sample_quality.assess(**case, mnist_rest=few)
