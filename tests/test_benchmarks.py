"""The benchmarks' contests, and the other side in them: as honest as the code that is measured."""

from functools import partial

import contestants
import pytest
import torch
from conftest import ROOT
from torch import optim

from amortized_vae import AmortizedVAE
from annealing import annealed_importance_sampling
from benchmarks import latents, memory, step_profile, textbook
from benchmarks import training as training_benchmark
from benchmarks.contest import contest, print_table, ratios, seconds, spread
from data import stratified_subset
from model import seeded_decoder
from training import BATCH_SIZE, train_epoch
from vae_utils import elbo, importance_sampling


@pytest.mark.parametrize("stay", [True, False])
def test_contestants_take_turns_in_a_process_each(tmp_path, stay):
    path = tmp_path / "log"
    turns = contest(
        contestants={name: partial(contestants.writing, path, name) for name in "ab"},
        repeats=3 if stay else 2,
        stay=stay,
    )
    lines = [line.split() for line in path.read_text().splitlines()]
    # Nobody begins before the one before has ended.
    assert [moment for _, _, moment in lines] == ["begins", "ends"] * (len(lines) // 2)
    assert all(begin[:2] == end[:2] for begin, end in zip(lines[::2], lines[1::2], strict=True))
    order = "".join(name for name, _, _ in lines[::2])
    # The first turn of a process does not count.
    assert order == ("aabb" + "ba" + "ab" if stay else "aabb" + "bbaa")
    assert len({process for _, process, _ in lines}) == (2 if stay else 4)
    for name in "ab":
        assert [turn.result for turn in turns[name]] == ([2, 3, 4] if stay else [2, 2])
        assert all(second >= 0.02 for second in seconds(turns[name]))


def test_a_contestant_that_fails_is_named():
    with pytest.raises(RuntimeError, match=r"(?s)unlucky.*no such luck"):
        contest(contestants={"unlucky": contestants.failing}, repeats=1)
    with pytest.raises(RuntimeError, match="gone: its process ended with 3"):
        contest(contestants={"gone": contestants.dying}, repeats=1)


def test_ratios_are_of_the_same_round(capsys):
    # Rounds differ fourfold, the two within a round do not.
    slow = ratios([2.0, 4.0, 8.4], [1.0, 2.0, 4.0])
    assert slow == pytest.approx([2, 2, 2.1])
    assert spread(slow) == "2.00 (2.00 to 2.10)"
    assert spread([0.5, 0.25, 1], ".0%") == "50% (25% to 100%)"
    with pytest.raises(ValueError, match="zip"):
        ratios([1.0], [1.0, 2.0])
    print_table(["name", "s"], [["ours", "1"], ["theirs", "20"]])
    assert capsys.readouterr().out.splitlines() == [
        "| name   | s  |",
        "| ------ | -- |",
        "| ours   | 1  |",
        "| theirs | 20 |",
    ]


def test_the_textbooks_loss_is_the_negative_elbo_without_its_constant():
    torch.manual_seed(0)
    model, x = textbook.ReferenceVAE(latent_dim=6), torch.rand(5, 1, 28, 28)
    assert model.decode(torch.zeros(3, 6)).shape == (3, 1, 28, 28)
    q = model.encode(x)
    torch.manual_seed(1)
    loss = textbook.bound_loss(q=q, x=x, decode=model.decode)
    torch.manual_seed(1)
    bound = elbo(q=q, x=x, decode=model.decode, noise=torch.randn(5, 6))
    assert loss.item() == pytest.approx(-bound.elbo.mean().item() - textbook.CONSTANT, rel=1e-5)


def test_the_textbooks_loops_learn(mnist):
    train = stratified_subset(mnist[0], size=100)
    rows = train.index.tolist()
    torch.manual_seed(0)
    loader = textbook.mnist_loader(data_dir=ROOT / "data", rows=rows, train=True)
    test_loader = textbook.mnist_loader(data_dir=ROOT / "data", rows=range(50), train=False, batch_size=20)
    model = textbook.ReferenceVAE()
    optimizer = optim.Adam(model.parameters(), lr=0.001)
    first, second = (textbook.train_epoch(model=model, loader=loader, optimizer=optimizer) for _ in range(2))
    assert second < first
    assert -2000 < textbook.validate(model=model, loader=test_loader) < 0

    loader = textbook.mnist_loader(data_dir=ROOT / "data", rows=rows, train=True, numbered=True)
    x, index = next(iter(loader))
    assert torch.allclose(x, train.images[index], atol=1e-6)
    decoder, table = seeded_decoder(seed=0), textbook.Latents(size=100, initial_log_var=-2.0)
    optimizer = textbook.latent_optimizer(decoder=decoder, latents=table, decoder_rate=0.001, table_rate=0.01)
    arguments = {"decoder": decoder, "latents": table, "loader": loader, "optimizer": optimizer}
    first, second = (textbook.train_latent_epoch(**arguments) for _ in range(2))
    assert second < first
    assert (table.mean != 0).any(dim=1).all()


def test_the_tables_differ_in_what_they_are_said_to(mnist):
    images = stratified_subset(mnist[0], size=100).images
    means = {}
    for name, make in latents.TABLES.items():
        table = make(100)
        for epoch in (1, 2, 3):
            train_epoch(regime=latents.Regime(table=table), images=images, epoch=epoch, seed=0)
            with torch.no_grad():
                latents.fill_memory(table)
        with torch.no_grad():
            means[name] = table.posterior(None, torch.arange(100)).mean
    ours, dense, sparse = (means[name] for name in ("LatentTable", "dense Adam", "SparseAdam"))
    assert torch.allclose(ours, dense, atol=1e-3)
    assert (sparse - dense).abs().max() > 1e-2


def test_steps_go_round_a_table():
    for name in latents.TABLES:
        turn = latents.stepping(name=name, size=200, images=100, steps=4)
        second, before = turn()
        assert second > 0
        assert before is None or before > 1e8


def test_the_operations_of_an_epoch_are_counted(mnist):
    images = stratified_subset(mnist[0], size=128).images
    regime = AmortizedVAE(test_images=images[:10])
    trained, operations = training_benchmark.epochs(
        regime=regime, images=images, precision="float32", validation=True
    )()
    assert trained > 0
    # Forward, and twice that backward but for the first layer's input: more than four per weight and image.
    weights = sum(weight.numel() for weight in regime.model.parameters())
    assert operations > 4 * weights * len(images)


def test_a_step_is_told_apart_by_kind_of_work():
    step = step_profile.stepping(precision="float32")
    times, whole = step_profile.seconds_by_kind(step, steps=2), step_profile.seconds(step, steps=2)
    assert all(second > 0 for second in times.values())
    assert whole > 0
    assert step_profile.kind_of("aten::convolution_backward") == "convolutions, backward"
    assert step_profile.kind_of("aten::randn") == step_profile.OTHER
    # Of the linear layers: one product forward and two backward, all of whose inputs need gradients.
    network = AmortizedVAE(test_images=torch.zeros(1, 1, 28, 28)).model
    weights = sum(layer.weight.numel() for layer in network.modules() if isinstance(layer, torch.nn.Linear))
    counted = step_profile.operations(step)
    assert counted["products of the linear layers"] == 2 * 3 * weights * BATCH_SIZE
    assert counted["convolutions, backward"] > counted["convolutions, forward"] > 0


@pytest.mark.parametrize(
    ("estimate", "counts"),
    [
        (importance_sampling, {"num_samples": 600}),
        (annealed_importance_sampling, {"chains": 600, "temperatures": 2, "leapfrog_steps": 1}),
    ],
)
def test_the_memory_of_an_estimate_is_taken(estimate, counts):
    before = memory.sampling(estimate=estimate, images=1, **counts)()
    assert before is None or before > 1e8
