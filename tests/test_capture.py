"""The training step as a CUDA graph: the same losses as step by step, and the way back where it is impossible."""

import math
import types

import pytest
import torch

from amortized_vae import AmortizedVAE
from captured import Captured, captured
from data import stratified_subset
from latent_optimization import LatentOptimization
from latent_table import LatentTable
from model import Decoder
from training import take_step, train_epoch
from vae_utils import diagonal_normal, elbo, random_generator

on_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
EPOCHS, BATCH_SIZE, SIZE = 3, 32, 240  # an epoch is seven full batches and a short one
REGIMES = ("amortized", "latent_optimization")


def to(device, split):
    return type(split)(*(column.to(device) for column in split))


def regime_of(name, *, train, test):
    if name == "amortized":
        return AmortizedVAE(test_images=test.images, latent_dim=5)
    steps = EPOCHS * math.ceil(len(train.images) / BATCH_SIZE)
    return LatentOptimization(train_size=len(train.images), test=test, max_steps=steps, latent_dim=5)


def losses(name, mnist, *, device="cpu", precision="float32", wrap=lambda step: step):
    """Bound, log-likelihood and KL of every step, (steps, 3), and the held-out images' bound after every epoch."""
    train, test = (to(device, stratified_subset(split, size=SIZE)) for split in mnist)
    regime, sums, held_out = regime_of(name, train=train, test=test), [], []
    step = wrap(take_step)
    for epoch in range(1, EPOCHS + 1):
        scene = {"regime": regime, "images": train.images, "batch_size": BATCH_SIZE, "precision": precision}
        sums.append(train_epoch(epoch=epoch, seed=0, step=step, **scene))
        held_out.append(regime.held_out(epoch).elbo.mean())  # evaluation in between
    return torch.cat(sums).cpu(), torch.stack(held_out).cpu()


@pytest.mark.parametrize("name", REGIMES)
def test_an_epoch_is_its_steps(mnist, name):
    """The loop, written out."""
    sums, held_out = losses(name, mnist)
    train, test = (stratified_subset(split, size=SIZE) for split in mnist)
    regime, expected = regime_of(name, train=train, test=test), []
    for epoch in range(1, EPOCHS + 1):
        order = torch.randperm(SIZE, generator=random_generator(0, epoch, "order"))
        generator = random_generator(0, epoch, "noise")
        for index in order.split(BATCH_SIZE):
            x = train.images[index]
            q = regime.posterior(x, index)
            bound = elbo(q=q, x=x, decode=regime.decoder, noise=torch.randn(len(index), 5, generator=generator))
            (-bound.elbo.sum()).backward()
            for optimizer in regime.optimizers:
                optimizer.step()
                optimizer.zero_grad()
            expected.append([part.sum().item() for part in bound])
        assert regime.held_out(epoch).elbo.mean() == held_out[epoch - 1]
    assert sums.tolist() == expected


def test_only_cuda_captures():
    for device in ("cpu", "mps", "meta"):
        assert captured(take_step, device=torch.device(device), name="a regime") is take_step
    assert isinstance(captured(take_step, device=torch.device("cuda"), name="a regime", say=str), Captured)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine on which capture is impossible")
@pytest.mark.parametrize("name", REGIMES)
def test_without_a_graph_it_runs_step_by_step_and_says_so_once(mnist, name):
    said = []

    def wrap(step):
        return captured(step, device=torch.device("cuda"), name="a regime", say=said.append)

    results = losses(name, mnist), losses(name, mnist, wrap=wrap)
    assert all(map(torch.equal, *results))
    assert len(said) == 1
    assert said[0].startswith("a regime runs step by step: CUDA graphs not possible here (")
    assert "\n" not in said[0]


def test_a_step_of_the_table_reads_no_value():
    """On the device "meta" there are none, so that whoever asks for one gets an error: nothing waits for the device."""
    images = torch.empty(50, 1, 28, 28, device="meta")
    decoder = Decoder(5).to("meta")
    table = LatentTable(size=50, latent_dim=5, max_steps=9, device="meta")
    descent = torch.optim.SGD(decoder.parameters(), lr=0.1)
    regime = types.SimpleNamespace(decoder=decoder, posterior=table.posterior, optimizers=[descent, table])
    for count in (20, 20, 10):
        index = torch.empty(count, dtype=torch.int64, device="meta")
        sums = take_step(index, torch.empty(count, 5, device="meta"), regime=regime, images=images)
        assert sums.shape == (3,)
    with pytest.raises(RuntimeError, match="meta"):
        sums.tolist()


def test_a_step_that_was_broken_off_leaves_no_trace(mnist):
    """As when it cannot be recorded: the gradients that it has left behind do not count."""
    train, test = (stratified_subset(split, size=SIZE) for split in mnist)
    index, noise, results = torch.arange(9), torch.randn(9, 5, generator=random_generator(0)), []
    for broken in (False, True):
        regime = regime_of("latent_optimization", train=train, test=test)
        if broken:
            q = diagonal_normal(*(torch.ones(2, 9, 5)))
            elbo(q=q, x=train.images[index], decode=regime.decoder, noise=noise).elbo.sum().backward()
            regime.posterior(None, index)
        take_step(index, noise, regime=regime, images=train.images)
        results.append([*regime.decoder.state_dict().values(), *regime.table.parameters()])
    assert all(map(torch.equal, *results))


@on_cuda
@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 1e-5), ("bfloat16", 1e-3)])
@pytest.mark.parametrize("name", REGIMES)
def test_captured_and_eager_losses_agree(mnist, name, precision, tolerance, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    said, made = [], []

    def wrap(step):
        made.append(captured(step, device=torch.device("cuda"), name=name, say=said.append))
        return made[-1]

    eager = losses(name, mnist, device="cuda", precision=precision)
    graph = losses(name, mnist, device="cuda", precision=precision, wrap=wrap)
    assert said == []
    assert made[0].graph is not None
    for one, other in zip(eager, graph, strict=True):
        assert torch.allclose(one, other, rtol=tolerance, atol=1e-2)


@on_cuda
@pytest.mark.parametrize("name", REGIMES)
def test_the_first_losses_on_cuda_are_the_cpus(mnist, name, monkeypatch):
    """From the same weights, on the same batch, with the same noise, in float32."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    train, test = (stratified_subset(split, size=SIZE) for split in mnist)
    index, noise, sums = torch.arange(BATCH_SIZE), torch.randn(BATCH_SIZE, 5, generator=random_generator(0)), []
    for device in ("cpu", "cuda"):
        regime = regime_of(name, train=to(device, train), test=to(device, test))
        inputs, images = (index.to(device), noise.to(device)), train.images.to(device)
        sums.append(torch.stack([take_step(*inputs, regime=regime, images=images).cpu() for _ in range(5)]))
    assert torch.allclose(*sums, rtol=1e-3, atol=0.1)


@on_cuda
def test_a_recording_that_fails_changes_nothing():
    """Reading a value breaks the recording off; the call is then made as if nothing had happened."""
    total, said = torch.zeros((), device="cuda"), []

    def add(values):
        total.add_(values.sum())
        if total.item() < 0:
            raise AssertionError
        return total.clone()

    function = captured(add, device=torch.device("cuda"), name="a sum", say=said.append)
    sums = [function(torch.full((4,), float(call), device="cuda")).item() for call in range(8)]
    assert sums == [4.0 * sum(range(call + 1)) for call in range(8)]
    assert len(said) == 1
    assert said[0].startswith("a sum runs step by step")
    assert torch.cuda.current_stream() == torch.cuda.default_stream()


@on_cuda
def test_other_shapes_run_between_repetitions():
    total = torch.zeros((), device="cuda")

    def add(values):
        total.add_(values.sum())
        return total.clone()

    function = captured(add, device=torch.device("cuda"), name="a sum")
    sizes = [4, 4, 4, 4, 2, 4, 3, 4, 4]
    sums = [function(torch.ones(size, device="cuda")) for size in sizes]
    assert [value.item() for value in sums] == torch.tensor(sizes).cumsum(0).tolist()
    assert function.graph is not None
