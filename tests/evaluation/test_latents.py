"""What the latents hold, on latents made up so that the answer is known."""

from dataclasses import replace
from itertools import product
from statistics import NormalDist

import numpy as np
import pytest
import torch
from conftest import gaussian, seeded, toy_data
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.utils import resample
from test_samples import compute, toy_methods

from data import Split, stratified_subset
from evaluation import latents
from evaluation.statistics import find, select_scores
from model import Classifier
from runtime.config import EvalConfig
from vae_utils import GaussianPosterior, random_generator


def blobs(*, images, width, deviation, seed, shuffled=False):
    """Features that say the class, or with shuffled labels nothing, and the Split that they are of."""
    generator = random_generator(seed, "blobs")
    labels = torch.arange(images) % 7
    centers = 3 * torch.randn(7, width, generator=random_generator("centers"))
    features = centers[labels] + deviation * torch.randn(images, width, generator=generator)
    if shuffled:
        labels = labels[torch.randperm(images, generator=generator)]
    return features, Split(torch.zeros(images, 1, 8, 8), labels, torch.arange(images) + 1000, tuple("abcdefg"))


def usage(q):
    """{quantity: mean} of the usage of q."""
    return {entry.quantity: entry.mean for entry in latents.usage_scores(q, seed=0, method="m", split="test", epoch=1)}


def test_active_units_are_those_whose_means_vary_as_the_table_says():
    variances = torch.tensor([0.0, 0.0099, 0.0101, 1.0, 0.005])
    mean = torch.tensor([1.0, -1.0]).repeat(200)[:, None] * (variances * 399 / 400).sqrt()
    for shift in (0, 100):  # what q's own standard deviations are, and where the means lie, does not matter
        q = GaussianPosterior.from_log_var(mean + shift, torch.randn(400, 5, generator=random_generator(0)))
        assert usage(q)["active_units"] == 2
        rows, nats = latents.usage_table(q), q.kl_per_dimension().numpy()
        assert [row["dimension"] for row in rows] == [*range(5)]
        assert [row["kl"] for row in rows] == pytest.approx(nats.mean(0), rel=1e-5)
        assert [row["kl_standard_error"] for row in rows] == pytest.approx(nats.std(0, ddof=1) / 20, rel=1e-4)
        assert [row["variance_of_mean"] for row in rows] == pytest.approx(variances.numpy(), rel=1e-3, abs=1e-6)


def test_used_dimensions_are_those_whose_kl_is_above_the_threshold():
    q = gaussian((2 * torch.tensor([0.0, 0.099, 2.0, 0.101, 0.3])).sqrt().expand(12, -1), 1.0)
    assert latents.used_dimensions(q).tolist() == [False, False, True, True, True]
    counts = usage(q)
    assert [counts[f"used_dimensions{end}"] for end in ("", "_lower", "_upper")] == [3, 3, 3]
    assert counts["share_of_kl"] == pytest.approx(2.401 / 2.5, rel=1e-5)
    assert counts["active_units"] == 0  # the means are the same in all images
    assert usage(gaussian(torch.zeros(12, 1), 1.0))["share_of_kl"] == 0  # of no KL at all


def test_the_intervals_of_the_counts_are_those_of_resampled_images():
    deviation = torch.linspace(0.05, 0.15, 60)
    mean = 0.35 + torch.randn(12, 60, generator=random_generator(1)) * deviation
    q = GaussianPosterior.from_log_var(mean, 0.3 * torch.randn(12, 60, generator=random_generator(3)))
    kl = 0.5 * (q.mean.square() + q.scale.square() - 1 - 2 * q.scale.log())
    rows = torch.randint(12, (5000, 12), generator=random_generator(4))
    counts = usage(q)
    active = [int((mean.double()[part].var(0) > 0.01).sum()) for part in rows]
    used = [int((kl.double()[part].mean(0) > 0.1).sum()) for part in rows]
    for name, numbers in {"active_units": active, "used_dimensions": used}.items():
        ends = [counts[f"{name}_lower"], counts[f"{name}_upper"]]
        assert ends[0] < ends[1]
        assert ends == pytest.approx(np.quantile(numbers, [0.025, 0.975]), abs=2)  # which has only 200 resamples


def test_features_keep_the_proportions_of_their_dimensions():
    features = torch.randn(300, 5, generator=random_generator(0)) * torch.tensor([0.01, 1, 2, 0, 5]) + 7
    others = features[:40] + 1
    one, two = latents.rescale(features, others)
    assert float(one.var(0).mean()) == pytest.approx(1, rel=1e-5)
    scale = one[:, 1].std() / features[:, 1].std()
    for found, values in ((one, features), (two, others)):
        torch.testing.assert_close(found, scale * (values - features.mean(0)), rtol=1e-3, atol=1e-5)
    assert all((part == 0).all() for part in latents.rescale(torch.full((9, 2), 0.5), torch.full((4, 2), 0.5)))


def test_a_probe_reads_what_is_there_and_nothing_else(monkeypatch):
    monkeypatch.setattr(latents, "PROBE_LABELS", (50, 500, 20_000))
    known, train = blobs(images=500, width=8, deviation=0.1, seed=1)
    asked, sample = blobs(images=200, width=8, deviation=0.1, seed=2)
    noise = torch.randn(700, 8, generator=random_generator(3)).split([500, 200])
    features = {"blobs": (known, asked), "noise": noise}
    predictions = latents.probe_predictions(features, train=train, sample=sample, seed=6)
    shares = torch.tensor([0.8] + [0.2 / int(sample.labels.max())] * int(sample.labels.max()))
    scores = latents.probe_scores(predictions, sample.labels, shares, epoch=1)
    draws = select_scores(scores, quantity="probe_draws", method="blobs")
    # There are no other labels.
    assert [(entry.group, entry.mean) for entry in draws] == [("50", latents.PROBE_DRAWS), ("500", 1)]
    for group in ("50", "500"):
        assert find(scores, "probe_accuracy", "blobs", group=group).mean > 0.99
        assert find(scores, "probe_converged", "blobs", group=group).mean == 1
        noise = find(scores, "probe_accuracy", "noise", group=group)
        assert 0.06 < predictions["noise"][int(group)]["correct"].double().mean() < 0.24
        assert noise.images == 200
        correct = predictions["noise"][int(group)]["correct"].double().mean(0)
        of_classes = [float(share * correct[sample.labels == label].mean()) for label, share in enumerate(shares)]
        assert noise.mean == pytest.approx(sum(of_classes))


def test_the_deviation_of_a_probe_is_that_of_its_accuracy_over_draws_of_labels():
    correct = torch.tensor([[True, True, False, True], [True, False, False, False], [True, True, True, True]])
    predictions = {"a": {9: {"correct": correct, "converged": [True, False, True]}}}
    scores = latents.probe_scores(predictions, torch.tensor([0, 0, 1, 1]), torch.tensor([0.5, 0.5]), epoch=1)
    assert find(scores, "probe_accuracy", "a", group="9").mean == pytest.approx(2 / 3)
    assert find(scores, "probe_deviation", "a", group="9").mean == pytest.approx(np.std([0.75, 0.25, 1], ddof=1))
    assert find(scores, "probe_converged", "a", group="9").mean == pytest.approx(2 / 3)


def test_a_probe_needs_a_label_of_the_rarest_class(monkeypatch):
    monkeypatch.setattr(latents, "PROBE_LABELS", (10, 30, 20_000))
    features, split = blobs(images=200, width=8, deviation=0.1, seed=1)
    rare = split.at(torch.cat(((split.labels == 0).nonzero().flatten(), (split.labels == 1).nonzero().flatten()[:2])))
    features = features[rare.index - 1000]
    results = latents.probe_predictions({"blobs": (features, features)}, train=rare, sample=rare, seed=2)
    assert list(results["blobs"]) == [30, 31]  # two of 31 are less than one of ten
    assert latents.choose_penalty(features, rare.labels, seed=0) == 1  # fewer labels than folds: nothing to go by


@pytest.mark.parametrize("enough", [300, 150])
def test_the_penalty_of_a_probe_is_that_of_scikit_learns_cross_validation(monkeypatch, enough):
    """Of many labels it has a stratified sample; the probe itself has all. Too few iterations are said."""
    monkeypatch.setattr(latents, "ENOUGH_LABELS", enough)
    monkeypatch.setattr(latents, "PROBE_C", (1e-4, 3e-3, 0.05, 2.0))
    chosen = set()
    for deviation, shuffled in ((2, False), (10, False), (3, True)):
        features, train = blobs(images=210, width=20, deviation=deviation, seed=1, shuffled=shuffled)
        x, y = features.numpy(), train.labels.numpy()
        part = np.arange(210)
        if enough == 150:
            part = resample(part, replace=False, n_samples=150, stratify=y, random_state=4)
            assert set(np.bincount(y[part])) == {21, 22}
        folds = StratifiedKFold(3, shuffle=True, random_state=4)
        search = GridSearchCV(LogisticRegression(max_iter=1000), {"C": latents.PROBE_C}, cv=folds)
        best = latents.choose_penalty(features, train.labels, seed=4)
        assert search.fit(x[part], y[part]).best_params_ == {"C": best}
        model, converged = latents.probe(features, train.labels, best)
        assert converged
        chosen.add(best)
        assert model.coef_ == pytest.approx(LogisticRegression(C=best, max_iter=1000).fit(x, y).coef_, abs=0.01)
    assert len(chosen) > 1
    monkeypatch.setitem(latents.PROBE_OPTIONS, "max_iter", 3)
    assert not latents.probe(features, train.labels, 1.0)[1]


def test_traversals_and_lines_go_where_they_say():
    start, end = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([3.0, 2.0, -1.0])
    directions = torch.tensor([[0.0, 1.0, 0.0], [0.6, 0.0, 0.8]])
    values = torch.tensor([-3.0, 0.0, 3.0])
    z = latents.traversal(start, directions, values)
    torch.testing.assert_close(z[0], torch.tensor([[1.0, -3, 3], [1, 0, 3], [1, 3, 3]]))
    torch.testing.assert_close(z[1] @ directions[1], values)
    torch.testing.assert_close(z[1] @ torch.tensor([0.8, 0, -0.6]), (0.8 - 1.8) * torch.ones(3))
    torch.testing.assert_close(latents.line(start, end, steps=5)[2], (start + end) / 2)


def test_principal_directions_are_those_of_the_covariance():
    mean = torch.randn(100, 5, generator=random_generator(0)) * torch.tensor([1.0, 4, 2, 0.1, 3]) + 2
    directions, variances = latents.principal_directions(mean, 3)
    values, vectors = np.linalg.eigh(np.cov(mean.numpy().T))
    assert variances.numpy() == pytest.approx(values[:-4:-1], rel=1e-4)
    assert np.abs((directions.numpy() * vectors.T[:-4:-1]).sum(1)) == pytest.approx(np.ones(3), rel=1e-4)
    assert (directions.gather(1, directions.abs().argmax(1, keepdim=True)) > 0).all()
    assert [part.shape for part in latents.principal_directions(mean[:, :1], 3)] == [(1, 1), (1,)]


@pytest.mark.parametrize("width", [1, 2, 6])
def test_the_map_is_the_same_on_every_call(width):
    features, split = blobs(images=56, width=width, deviation=0.1, seed=1)
    one, two = (latents.map_2d(features, seed=0) for _ in range(2))
    assert one.shape == (56, 2)
    assert torch.equal(one, two)
    if width <= 2:  # z itself; images of one dimension are kept apart by a second
        assert torch.equal(one[:, :width], features)
        assert (one[:, width:].abs() <= 0.5).all()
        assert len(one.unique(dim=0)) == 56
    if width == 6:
        assert latents.nearest_agree(one, split.labels).all()
        for unused in (0.0, 1e-20):  # as under a decoder that uses no dimension
            assert not latents.map_2d(unused * features.float(), seed=0).any()


def test_a_decoder_of_one_or_two_dimensions_is_drawn_at_quantiles_of_the_prior(monkeypatch):
    monkeypatch.setattr(latents, "GRID", 5)
    methods = toy_methods((2, 5, 1), (2, 8, 12))
    drawn = latents.manifold(methods)
    assert {name: len(images) for name, images in drawn.items()} == {"method_0": 25, "method_2": 5}
    quantiles = [NormalDist().inv_cdf(share) for share in (0.1, 0.3, 0.5, 0.7, 0.9)]
    for row, column in ((0, 0), (1, 4), (4, 3)):  # from the top left
        z = torch.tensor([quantiles[column], quantiles[4 - row]])
        for method, at, point in ((methods[0], 5 * row + column, z), (methods[2], column, z[:1])):
            with torch.no_grad():
                torch.testing.assert_close(drawn[method.name][at], method.model.mean(point))


def random_q(methods, count):
    """{name: q} whose first dimension is the prior's."""
    posteriors = {}
    for method in methods:
        noise = torch.randn(2, count, method.model.latent_dim, generator=random_generator(method.name, count))
        noise[:, :, 0] *= 0.001
        posteriors[method.name] = GaussianPosterior.from_log_var(*noise)
    return posteriors


def test_the_analysis_is_of_what_it_says_and_the_same_twice(monkeypatch):
    """Of three methods, five classes and images of two channels."""
    monkeypatch.setattr(latents, "PROBE_DRAWS", 2)
    monkeypatch.setattr(latents, "PROBE_C", (0.01, 1.0))
    data, names = toy_data(), ["method_0", "method_1", "method_2"]
    methods, train = toy_methods((3, 1, 5), data.image_shape), data.train
    sample = replace(data.test, images=torch.randn(35, 2, 12, 16, generator=seeded(1)))  # neighbors of any class
    rare = (sample.labels > 0) | (torch.arange(35) % 3 == 0)  # of the first class the sample has more than its share
    data = data._replace(test=data.test.at(rare.nonzero().flatten()))
    train_q, sample_q = random_q(methods, len(train.labels)), random_q(methods, len(sample.labels))
    classifier = Classifier(5, image_shape=data.image_shape, seed=1).eval()
    options = {"sample": sample, "sample_q": sample_q, "epoch": 1, "keep": compute}

    def analyse(seed):
        return latents.analyse(train_q, data, classifier, EvalConfig(seed=seed), **options)

    scores, table, _ = analyse(4)
    # As many training images as test images, and those of the same draw.
    assert find(scores, "used_dimensions", "method_0", "train")[5:8] == (2, None, 35)
    compared = torch.isin(train.index, stratified_subset(train, size=35, seed=4).index)
    kl = train_q["method_0"].kl_per_dimension()[compared].mean(0)
    assert [row["kl"] for row in table[:3]] == pytest.approx(kl.tolist(), rel=1e-4)
    flat = sample.images.flatten(1)
    nearest = (flat[:, None] - flat).square().sum(-1).topk(2, largest=False).indices[:, 1]
    agree, counts = (sample.labels[nearest] == sample.labels).double(), data.test.labels.bincount()
    share = sum(float(counts[label] / counts.sum() * agree[sample.labels == label].mean()) for label in range(5))
    assert find(scores, "nearest_neighbor_accuracy", "pixels").mean == pytest.approx(share)
    # Of method_1 no dimension is used.
    features = {*names, "method_0_used", "method_2_used", "pixels", "baseline_features"}
    accuracies = select_scores(scores, quantity="probe_accuracy")
    assert {(entry.method, entry.group) for entry in accuracies} == set(product(features, ("100", "150")))
    assert analyse(4)[0] == scores != analyse(5)[0]
    between = latents.interpolations(methods, sample_q, sample, classifier)
    assert list(between) == ["pixels", *names]
    images = between["pixels"][0]
    distances = torch.cdist(images[[0, -1]].flatten(1), flat)
    assert distances.min(1).values.tolist() == pytest.approx([0, 0], abs=1e-2)  # both ends are test images
    assert len(set(distances.argmin(1).tolist())) == 2


@pytest.mark.parametrize(("latent_dim", "directions"), [(1, 1), (2, 2), (3, 3 + 2)])
def test_of_a_plane_no_direction_is_drawn_twice(latent_dim, directions):
    q = gaussian(torch.randn(20, latent_dim, generator=seeded(1)), 0.5)
    vectors, names = latents.strongest_directions(q, 4, 2)
    assert (vectors.shape, len(names)) == ((directions, latent_dim), directions)
    nats, dimension = q.kl_per_dimension().mean(0).max(0)
    assert names[0] == f"z[{dimension}], {nats:.2f} nats"


def test_the_error_of_a_share_is_that_of_its_stratified_mean():
    """Of 20 images, half of them of a class that is a twentieth; in some draws a class is all right."""
    generator, labels, shares = seeded(1), torch.arange(20) % 2, torch.tensor([0.95, 0.05])
    right = torch.rand(4000, 20, generator=generator) < torch.where(labels == 0, 0.6, 0.99)
    found = [latents.stratified_share(each, labels, shares) for each in right]
    means, errors = (np.array([each[name] for each in found]) for name in ("mean", "standard_error"))
    assert np.mean(means) == pytest.approx(0.95 * 0.6 + 0.05 * 0.99, abs=0.01)
    assert np.sqrt(np.mean(errors**2)) == pytest.approx(np.std(means), rel=0.1)
    alike = latents.stratified_share(labels == 0, labels, torch.tensor([0.5, 0.5]))
    assert alike["standard_error"] == pytest.approx(float((labels == 0).double().std()) / 20**0.5)
