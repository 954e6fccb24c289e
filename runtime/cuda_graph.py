"""A training step as one CUDA graph: Python launches it as a whole, not kernel by kernel."""

import warnings

import torch

from runtime.config import RunError

WARM_UP = 3  # calls before the recording, in which libraries and optimizers allocate their buffers


class CUDAGraphStep:
    """Records one call of `function(*inputs)` as a graph, and replays it with the inputs of later calls.

    The inputs are tensors; the function returns one tensor, may change tensors in place, has no other state, draws no
    random numbers and reads no value of a tensor. If the inputs do not have the shapes of the first call, the function
    itself is called. Raises RunError if the recording fails.
    """

    def __init__(self, function, *, device):
        self.function, self.stream = function, torch.cuda.Stream(device)
        self.shapes, self.calls = None, 0  # of the inputs that are recorded; with these shapes, before the recording
        self.graph = self.inputs = self.output = None  # the recording, the tensors that it reads and writes
        # Optimizers with capturable=True warn when they are called outside of a recording, as in the warm-up.
        warnings.filterwarnings("ignore", message="This instance was constructed with capturable=True")

    def __call__(self, *inputs):
        shapes = [values.shape for values in inputs]
        self.shapes = self.shapes or shapes
        if shapes != self.shapes:
            return self.function(*inputs)
        if self.calls < WARM_UP:  # on the stream that is recorded later: libraries keep one workspace per stream
            self.calls += 1
            current = torch.cuda.current_stream(self.stream.device)
            self.stream.wait_stream(current)
            with torch.cuda.stream(self.stream):
                output = self.function(*inputs)
            current.wait_stream(self.stream)
            return output
        if self.graph is None:
            self._record(*inputs)
        for recorded, values in zip(self.inputs, inputs, strict=True):
            recorded.copy_(values)
        self.graph.replay()
        return self.output.clone()

    def _record(self, *inputs):
        """Records a call without executing it."""
        graph, self.inputs = torch.cuda.CUDAGraph(), [values.clone() for values in inputs]
        try:
            # The outer context leaves the stream, too, where the recording fails at its end.
            with torch.cuda.stream(self.stream), torch.cuda.graph(graph, stream=self.stream):
                self.output = self.function(*self.inputs)
        except RuntimeError as error:
            reason, *_ = str(error.__context__ or error).splitlines()  # the context says why the recording failed
            raise RunError(f"the training step cannot be recorded ({reason}); run with --eager") from None
        self.graph = graph


def record_step(learner):
    """Makes the learner's `step` a CUDA graph of its train_step."""
    for optimizer in learner.optimizers:
        for group in getattr(optimizer, "param_groups", ()):
            group["capturable"] = True
    learner.step = CUDAGraphStep(learner.train_step, device=learner.images.device)
