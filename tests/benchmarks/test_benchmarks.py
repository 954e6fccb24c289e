"""What the benchmarks measure is what they say, the other side included; what the stress test compares."""

import csv
import json

import numpy as np
import pytest
import torch
from conftest import ROOT
from torch import optim

from benchmarks import density, latents, stress, textbook
from benchmarks import training as training_benchmark
from data import stratified_subset
from evaluation.ais import annealed_importance_sampling
from model import ConvModel, ConvVAE
from runtime.config import TrainConfig
from training import train_epoch
from vae_utils import elbo, importance_sampling


def test_the_textbooks_loss_is_the_negative_elbo_without_its_constant():
    model, x = textbook.in_default_layout(ConvVAE(6, seed=0)), torch.rand(5, 1, 28, 28)
    with torch.no_grad():
        q = model.encode(x)
    torch.manual_seed(1)
    loss = textbook.bound_loss(q, x, model.decode)
    torch.manual_seed(1)
    bound = elbo(model, x, q, torch.randn(5, 6))
    assert loss.item() == pytest.approx(-bound.elbo.mean().item() - textbook.CONSTANT, rel=1e-5)


def test_the_textbooks_loops_learn(mnist):
    train = stratified_subset(mnist[0], size=100)
    torch.manual_seed(0)
    loader = textbook.mnist_loader(data_dir=ROOT / "data", rows=train.index, batch_size=32)
    (x, labels), rows = next(iter(loader))
    assert torch.allclose(x, train.images[rows], atol=1e-6)
    assert torch.equal(labels, train.labels[rows])

    model = ConvVAE(8, seed=0)

    def encode(x, rows):
        return model.encode(x)

    optimizer = optim.Adam(model.parameters(), lr=0.001)
    first, second = (textbook.train_epoch(encode, model.decode, loader, optimizer) for _ in range(2))
    assert second < first
    validation = textbook.mnist_loader(data_dir=ROOT / "data", rows=torch.arange(50), batch_size=20, shuffle=False)
    assert -2000 < textbook.validate(encode, model.decode, validation) < 0

    decoder, table = ConvModel(8, seed=0), textbook.Latents(size=100, initial_log_var=-2.0, latent_dim=8)
    optimizer = optim.Adam([*decoder.parameters(), *table.parameters()], lr=0.002)
    first, second = (
        textbook.train_epoch(lambda x, rows: table(rows), decoder.decode, loader, optimizer) for _ in range(2)
    )
    assert second < first
    assert (table.mean != 0).any(dim=1).all()


def test_the_tables_differ_in_what_they_are_said_to(mnist):
    images = stratified_subset(mnist[0], size=100).images
    means = {}
    for name in latents.TABLES:
        method = latents.TableMethod(images, name)
        for epoch in (1, 2, 3):
            train_epoch(method, epoch)
            with torch.no_grad():
                latents.fill_memory(method.table)
        with torch.no_grad():
            means[name] = method.posterior(None, torch.arange(100)).mean
    ours, dense, sparse = (means[name] for name in ("LatentTable", "dense Adam", "SparseAdam"))
    assert torch.allclose(ours, dense, atol=1e-3)
    assert (sparse - dense).abs().max() > 1e-2


def test_steps_go_round_a_table():
    for name in latents.TABLES:
        second, before = latents.stepping(name, size=200, steps=4)()
        assert second > 0
        assert before > 1e8


def test_the_operations_of_a_step_are_counted_and_its_time_is_told_apart_by_kind():
    config = TrainConfig(train_size=128, precision="float32")
    learner = training_benchmark.make_learner("amortized", config)
    step = training_benchmark.stepping(learner)
    counted = training_benchmark.operations(step)
    weights = sum(layer.weight.numel() for layer in learner.model.modules() if isinstance(layer, torch.nn.Linear))
    # Of the linear layers: one product forward and two backward, all of whose inputs need gradients.
    assert counted["products of the linear layers"] == 2 * 3 * weights * learner.config.batch_size
    assert counted["convolutions, backward"] > counted["convolutions, forward"] > 0
    times = training_benchmark.seconds_by_kind(step, steps=2)
    assert list(times) == [*training_benchmark.KINDS, training_benchmark.OTHER]
    assert all(second > 0 for second in times.values())


@pytest.mark.parametrize("method", training_benchmark.METHODS)
def test_epochs_of_either_side(method):
    config = TrainConfig(train_size=70, epochs=3, precision="float32")
    turn = training_benchmark.our_epochs(method, config)
    assert turn() > 0
    assert turn() > 0  # the one that counts, after the one that does not
    training_benchmark.textbook_epochs(method, config)()


def test_the_state_is_written_and_its_size_told():
    epoch, write, size = training_benchmark.cost_of_state("amortized", train_size=70, repeats=1)
    assert epoch > 0
    assert write > 0
    weights = sum(weight.numel() for weight in ConvVAE().parameters())
    assert size == pytest.approx(3 * 4 * weights, rel=0.02)  # value and two moments
    assert not list((ROOT / "checkpoints").glob("tmp*"))


def test_an_estimate_and_the_memory_before_it_are_taken():
    of_samples = density.estimating(importance_sampling, images=1, num_samples=600)()
    of_chains = density.estimating(
        annealed_importance_sampling, images=1, chains=600, temperatures=2, leapfrog_steps=1
    )()
    for value, before in (of_samples, of_chains):
        assert -2000 < value < 0
        assert before > 1e8
    density.bare_decoder(shape=[2, 3], passes=2, back=True)()


@pytest.fixture
def two_runs(tmp_path):
    """Two folders whose files hold the same, but for times, in other bytes."""
    for name, seconds in (("one", 1.5), ("two", 2.5)):
        for part in ("checkpoints", "results"):
            (tmp_path / name / part).mkdir(parents=True)
        checkpoint = {"weights": {"a": torch.arange(5.0), "b": torch.tensor(float("nan"))}, "seconds": seconds}
        order = checkpoint if name == "one" else dict(reversed(checkpoint.items()))
        torch.save(order, tmp_path / name / "checkpoints/vae.pt")
        np.save(tmp_path / name / "results/values.npy", np.array([0.5, np.nan]))
        with open(tmp_path / name / "results/history.csv", "w", newline="") as file:
            csv.writer(file).writerows([["epoch", "training_seconds"], [1, seconds]])
        with open(tmp_path / name / "results/scores.csv", "w", newline="") as file:
            csv.writer(file).writerows([["quantity", "mean"], ["elbo", 3], ["training_seconds", seconds]])
        summary = {"cost": [{"unseen_image_seconds": seconds, "gradients": 3, "share": float("nan")}]}
        (tmp_path / name / "results/summary.json").write_text(json.dumps(summary))
        (tmp_path / name / "results/figure.png").write_bytes(b"pixels")
    return tmp_path / "one", tmp_path / "two"


def test_runs_are_compared_by_what_their_files_hold(two_runs):
    assert (
        two_runs[0].joinpath("checkpoints/vae.pt").read_bytes()
        != two_runs[1].joinpath("checkpoints/vae.pt").read_bytes()
    )
    assert stress.differences(*two_runs) == []


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("checkpoints/vae.pt", lambda path: torch.save({"weights": {"a": torch.arange(5.0)}}, path)),
        ("checkpoints/vae.pt", lambda path: torch.save({"weights": {"a": torch.arange(5), "b": None}}, path)),
        ("results/values.npy", lambda path: np.save(path, np.array([0.5, 0.0]))),
        ("results/values.npy", lambda path: np.save(path, np.array([[0.5, np.nan]]))),
        ("results/history.csv", lambda path: path.write_text("epoch,training_seconds\n2,1.5\n")),
        ("results/scores.csv", lambda path: path.write_text("quantity,mean\nelbo,4\ntraining_seconds,1.5\n")),
        ("results/summary.json", lambda path: path.write_text('{"cost": [{"gradients": 4}]}')),
        ("results/figure.png", lambda path: path.write_bytes(b"other pixels")),
    ],
)
def test_a_file_that_holds_something_else_is_found(two_runs, name, write):
    write(two_runs[1] / name)
    assert stress.differences(*two_runs) == [f"{name}: not alike"]
    (two_runs[1] / name).unlink()
    assert stress.differences(*two_runs) == [f"{name}: only in one of the two"]
