"""A function as a CUDA graph, and so a training, gives the same results as call by call. These tests need a GPU."""

import pytest
import torch
from conftest import toy_config, toy_data, train

from amortized_vae import AmortizedVAE
from latent_optimization import LatentOptimization
from runtime.config import RunError
from runtime.cuda_graph import CUDAGraphStep
from vae_utils import random_generator

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
BOTH = pytest.mark.parametrize("method_class", [AmortizedVAE, LatentOptimization], ids=lambda each: each.name)


def recorded_sum(*, read=False):
    """A CUDAGraphStep that adds its input to a total, which it returns; one that reads a value cannot be recorded."""
    total = torch.zeros((), device="cuda")

    def add(values):
        total.add_(values.sum())
        assert not read or total.item() >= 0
        return total.clone()

    return CUDAGraphStep(add, device=torch.device("cuda"))


def test_a_recording_that_fails_is_one_line():
    function = recorded_sum(read=True)
    for _ in range(3):
        function(torch.ones(4, device="cuda"))
    with pytest.raises(RunError, match="the training step cannot be recorded") as error:
        function(torch.ones(4, device="cuda"))
    assert "\n" not in str(error.value)


def test_other_shapes_run_between_repetitions():
    function, sizes = recorded_sum(), [4, 4, 4, 4, 2, 4, 3, 4, 4]
    sums = [function(torch.ones(size, device="cuda")).item() for size in sizes]
    assert sums == torch.tensor(sizes).cumsum(0).tolist()
    assert function.graph is not None


@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 1e-5), ("bfloat16", 1e-3)])
@BOTH
def test_training_with_and_without_a_graph_agrees(method_class, precision, tolerance, monkeypatch, tmp_path):
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    config = toy_config(epochs=3, precision=precision)
    histories = [train(method_class(config, toy_data(device="cuda")), tmp_path, eager=eager) for eager in (True, False)]
    for eager, graph in zip(*histories, strict=True):
        for name in ("train_elbo", "train_log_likelihood", "train_kl", "validation_elbo"):
            assert graph[name] == pytest.approx(eager[name], rel=tolerance, abs=1e-3)


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
