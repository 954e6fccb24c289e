"""What the latents hold, on latents made up so that the answer is known."""

import csv

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

import latent_analysis
from data import Split, stratified_subset
from intervals import bootstrap_counts
from latent_optimization import LatentModel
from model import Classifier, ConvVAE, seeded_decoder
from vae_utils import diagonal_normal, kl, random_generator


def made_up_q(variances, images=400):
    """A q whose means vary over the images by exactly these variances, one per dimension."""
    signs = torch.tensor([1.0, -1.0]).repeat(images // 2)[:, None]
    mean = 5 + signs * (torch.tensor(variances) * (images - 1) / images).sqrt()
    return diagonal_normal(mean, torch.randn(mean.shape, generator=random_generator(0)))


def blobs(*, images, width, spread, seed, shuffled=False):
    """Features that say the digit, or with shuffled labels nothing, and the Split that they are of."""
    generator = random_generator(seed, "blobs")
    labels = torch.arange(images) % 10
    centres = 3 * torch.randn(10, width, generator=random_generator("centres"))
    features = centres[labels] + spread * torch.randn(images, width, generator=generator)
    if shuffled:
        labels = labels[torch.randperm(images, generator=generator)]
    return features, Split(torch.zeros(images, 1, 28, 28), labels, torch.arange(images))


def test_kl_per_dimension_sums_to_the_kl_of_the_bound():
    q = made_up_q([0.5, 2.0, 0.1])
    parts = latent_analysis.kl_per_dimension(q)
    assert parts.shape == (400, 3)
    torch.testing.assert_close(parts.sum(1), kl(q))
    torch.testing.assert_close(parts, (q.mean**2 + q.stddev**2 - 1) / 2 - q.stddev.log())


def test_active_units_are_those_whose_means_vary():
    q = made_up_q([0.0, 0.0099, 0.0101, 1.0, 0.005])
    assert latent_analysis.active_units(q.mean).tolist() == [False, False, True, True, False]
    # What q's own standard deviations are, and where the means lie, does not matter.
    assert latent_analysis.active_units(q.mean + 100).sum() == 2


def test_the_interval_of_active_units_is_that_of_resampled_images():
    mean = torch.randn(12, 60, generator=random_generator(1)) * torch.linspace(0.05, 0.15, 60) + 7
    counts = bootstrap_counts(12, resamples=200, generator=random_generator(2))
    assert counts.sum(1).tolist() == [12] * 200
    resampled = [mean.double()[torch.arange(12).repeat_interleave(row.long())] for row in counts]
    active = [int((values.var(0) > 0.01).sum()) for values in resampled]
    found = latent_analysis.active_units_interval(mean, generator=random_generator(2))
    assert found == pytest.approx(np.quantile(active, [0.025, 0.975]))
    assert found[0] < found[1]


def test_usage_gives_means_and_errors_over_images():
    q = made_up_q([0.02, 1.0])
    rows, units = latent_analysis.usage(q, generator=random_generator(0))
    values = latent_analysis.kl_per_dimension(q).numpy()
    assert [row["kl"] for row in rows] == pytest.approx(values.mean(0), rel=1e-5)
    assert [row["kl_standard_error"] for row in rows] == pytest.approx(values.std(0, ddof=1) / 20, rel=1e-5)
    assert [row["variance_of_mean"] for row in rows] == pytest.approx([0.02, 1], rel=1e-4)
    assert units["active_units"] == 2
    assert units["images"] == 400


def test_a_probe_reads_what_is_there_and_nothing_else():
    known, train = blobs(images=500, width=8, spread=0.1, seed=1)
    asked, sample = blobs(images=200, width=8, spread=0.1, seed=2)
    noise = torch.randn(700, 8, generator=random_generator(3)).split([500, 200])
    scores = latent_analysis.probe_scores(
        features={"blobs": (known, asked), "noise": noise},
        train=train,
        sample=sample,
        sizes=(50, 500, 20_000),
        seed=0,
    )
    assert [row["labels"] for row in scores["blobs"]] == [50, 500]  # there are no more
    assert [row["draws"] for row in scores["blobs"]] == [latent_analysis.PROBE_DRAWS, 1]
    for row in scores["blobs"]:
        assert row["accuracy"] > 0.99
        assert row["converged"]
    for row in scores["noise"]:
        assert row["interval_95"][0] < row["accuracy"] < row["interval_95"][1]
        assert 0.04 < row["accuracy"] < 0.18
        assert row["images"] == 200


def test_a_probe_that_does_not_converge_says_so(monkeypatch):
    features, train = blobs(images=200, width=8, spread=3, seed=1, shuffled=True)
    assert latent_analysis.probe(features=features, labels=train.labels)[1]
    monkeypatch.setattr(latent_analysis, "PROBE_ITERATIONS", 3)
    assert not latent_analysis.probe(features=features, labels=train.labels)[1]


def test_traversal_and_interpolation_move_as_they_say():
    start, end = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([3.0, 2.0, -1.0])
    directions = torch.tensor([[0.0, 1.0, 0.0], [0.6, 0.0, 0.8]])
    values = torch.tensor([-3.0, 0.0, 3.0])
    z = latent_analysis.traversal(decode=lambda z: z, start=start, directions=directions, values=values)
    assert z.shape == (2, 3, 3)
    torch.testing.assert_close(z[0], torch.tensor([[1.0, -3, 3], [1, 0, 3], [1, 3, 3]]))
    torch.testing.assert_close(z[1] @ directions[1], values)
    torch.testing.assert_close(z[1] @ torch.tensor([0.8, 0, -0.6]), (0.8 - 1.8) * torch.ones(3))
    line = latent_analysis.interpolation(decode=lambda z: z, start=start, end=end, steps=5)
    torch.testing.assert_close(line[[0, 2, 4]], torch.stack((start, (start + end) / 2, end)))


def test_principal_directions_are_those_of_scikit_learn():
    mean = torch.randn(100, 5, generator=random_generator(0)) * torch.tensor([1.0, 4, 2, 0.1, 3]) + 2
    directions, variances = latent_analysis.principal_directions(mean, 3)
    pca = PCA(3).fit(mean.numpy())
    assert variances.numpy() == pytest.approx(pca.explained_variance_, rel=1e-4)
    assert np.abs((directions.numpy() * pca.components_).sum(1)) == pytest.approx(np.ones(3), rel=1e-4)
    assert [part.shape for part in latent_analysis.principal_directions(mean[:, :1], 3)] == [(1, 1), (1,)]


@pytest.mark.parametrize("width", [1, 2, 6])
def test_the_map_is_the_same_on_every_call(width):
    features, split = blobs(images=60, width=width, spread=0.1, seed=1)
    one, two = (latent_analysis.map_2d(features, seed=0) for _ in range(2))
    assert one.shape == (60, 2)
    assert torch.equal(one, two)
    if width == 6:
        assert latent_analysis.nearest_agree(one, split.labels).all()
    assert latent_analysis.nearest_agree(torch.tensor([[0.0], [1], [5]]), torch.tensor([3, 3, 3])).all()
    assert latent_analysis.nearest_agree(torch.tensor([[0.0], [1], [5]]), torch.tensor([3, 4, 4])).tolist() == [0, 0, 1]


def test_the_analysis_writes_its_files_and_says_the_same_twice(mnist, tmp_path, monkeypatch):
    train, test, sample = (stratified_subset(mnist[part], size=size) for part, size in ((0, 200), (1, 100), (1, 60)))
    mean = torch.randn(2, 200, 3, generator=random_generator(0))
    case = {
        "vae": ConvVAE(3, seed=0),
        "latents": LatentModel(seeded_decoder(3, seed=1), *mean),
        "train": train,
        "test": test,
        "sample": sample,
        "sample_q": diagonal_normal(*mean[:, :60]),
        "judge": Classifier(seed=0).eval(),
        "results_dir": tmp_path,
    }
    first = latent_analysis.analyse(**case)
    table = (tmp_path / "latent_usage.csv").read_bytes()
    names = {"latent_usage.csv", "latent_usage.png", "latent_probes.png", "latent_map.png"}
    assert {path.name for path in tmp_path.iterdir()} == names | {"traversals.png", "interpolation.png"}
    with open(tmp_path / "latent_usage.csv", newline="") as file:
        assert len(list(csv.DictReader(file))) == 2 * 2 * 3
    units = first["active_units"]
    images = {regime: [units[regime][split]["images"] for split in ("train", "test")] for regime in units}
    assert images == {"amortized": [200, 100], "latent_optimization": [200, 60]}
    assert units["latent_optimization"]["train"]["active_units"] == 3
    assert [row["labels"] for row in first["probes"]["pixels"]] == [100, 200]

    monkeypatch.setattr(latent_analysis, "save_figure", lambda path, figure: None)  # drawing takes the time
    assert latent_analysis.analyse(**case) == first
    assert (tmp_path / "latent_usage.csv").read_bytes() == table
    assert latent_analysis.analyse(**case, seed=1) != first
