"""Training steps as CUDA graphs: what a graph needs of the methods, and the same losses as step by step."""

import pytest
import torch
from conftest import toy_config, toy_data, train

from amortized_vae import AmortizedVAE
from latent_optimization import LatentOptimization
from latent_table import LatentTable
from vae_utils import elbo, random_generator

on_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
BOTH = pytest.mark.parametrize("method_class", [AmortizedVAE, LatentOptimization], ids=lambda each: each.name)


def test_a_step_of_the_table_reads_no_value():
    """On the device "meta" there are none, so that whoever asks for one gets an error: nothing waits for the device."""
    method = LatentOptimization(toy_config(), toy_data())
    method.images = method.images.to("meta")
    method.model.to("meta")
    method.table = LatentTable(size=150, latent_dim=5, max_steps=9, device="meta")
    method.optimizers = [torch.optim.SGD(method.model.parameters(), lr=0.1), method.table]
    for count in (20, 20, 10):
        rows = torch.empty(count, dtype=torch.int64, device="meta")
        sums = method.train_step(rows, torch.empty(count, 5, device="meta"))
        assert sums.shape == (3,)
    with pytest.raises(RuntimeError, match="meta"):
        sums.tolist()


def test_a_step_that_was_interrupted_leaves_no_trace():
    """The gradients that it has left behind do not count."""
    rows, noise, results = torch.arange(9), torch.randn(9, 5, generator=random_generator(0)), []
    for interrupted in (False, True):
        method = LatentOptimization(toy_config(), toy_data())
        if interrupted:
            x = method.images[rows]
            elbo(method.model, x, method.posterior(x, rows), noise).elbo.sum().backward()
            method.posterior(x, rows)
        method.train_step(rows, noise)
        results.append([*method.model.parameters(), *method.table.current()])
    assert all(map(torch.equal, *results))


@on_cuda
@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 1e-5), ("bfloat16", 1e-3)])
@BOTH
def test_training_with_and_without_a_graph_agrees(method_class, precision, tolerance, monkeypatch, tmp_path):
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    config, histories = toy_config(epochs=3, precision=precision), []
    for eager in (True, False):
        method = method_class(config, toy_data(device="cuda"))
        histories.append(train(method, tmp_path, eager=eager))
    for eager, graph in zip(*histories, strict=True):
        for name in ("train_elbo", "train_log_likelihood", "train_kl", "validation_elbo"):
            assert graph[name] == pytest.approx(eager[name], rel=tolerance, abs=1e-3)


@on_cuda
@BOTH
def test_the_first_losses_on_cuda_are_the_cpus(method_class, monkeypatch):
    """From the same weights, on the same batch, with the same noise, in float32."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    rows, noise, sums = torch.arange(32), torch.randn(32, 5, generator=random_generator(0)), []
    for device in ("cpu", "cuda"):
        method = method_class(toy_config(), toy_data(device=device))
        steps = [method.train_step(rows.to(device), noise.to(device)).cpu() for _ in range(5)]
        sums.append(torch.stack(steps))
    torch.testing.assert_close(*sums, rtol=1e-3, atol=0.1)
