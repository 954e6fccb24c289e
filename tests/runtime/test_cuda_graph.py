"""A function as a CUDA graph gives the same results as call by call. These tests need a GPU."""

import pytest
import torch

from runtime.checkpoint import RunError
from runtime.cuda_graph import CUDAGraphStep

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
CUDA = torch.device("cuda")


def running_sum():
    """A function that adds its input to a total, which it returns."""
    total = torch.zeros((), device=CUDA)

    def add(values):
        total.add_(values.sum())
        return total.clone()

    return add


def test_a_recording_that_fails_is_one_line():
    """Reading a value makes the recording fail."""
    add = running_sum()

    def read(values):
        total = add(values)
        assert total.item() >= 0
        return total

    function = CUDAGraphStep(read, device=CUDA)
    for _ in range(3):
        function(torch.ones(4, device=CUDA))
    with pytest.raises(RunError, match="the training step cannot be recorded") as error:
        function(torch.ones(4, device=CUDA))
    assert "\n" not in str(error.value)


def test_other_shapes_run_between_repetitions():
    function = CUDAGraphStep(running_sum(), device=CUDA)
    sizes = [4, 4, 4, 4, 2, 4, 3, 4, 4]
    sums = [function(torch.ones(size, device=CUDA)) for size in sizes]
    assert [value.item() for value in sums] == torch.tensor(sizes).cumsum(0).tolist()
    assert function.graph is not None
