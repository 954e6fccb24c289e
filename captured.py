"""A function of tensors as one CUDA graph: launched as a whole, where Python would launch its kernels one by one."""

import warnings

import torch

WARM_UP = 3  # calls before the recording, in which libraries and optimizers make what they keep


def captured(function, *, device, name, say=print):
    """`function` for many calls on `device`: Captured on CUDA, elsewhere itself."""
    return Captured(function, device=device, name=name, say=say) if device.type == "cuda" else function


class Captured:
    """`function(*inputs, **fixed)`, of which one call is recorded and then repeated on the inputs of every other.

    inputs: tensors; fixed: the same at every call; what comes back: one tensor. The function may change tensors in
    place, which stay where they are, and nothing else that lasts; it draws no random numbers and reads no value of
    a tensor. Calls with inputs of other shapes than the first call's are run and not repeated. So are all calls,
    after `say` was given one line that `name` begins, where recording is impossible: while a call is recorded
    nothing is executed, so that the function can then be called as if nothing had happened.
    """

    def __init__(self, function, *, device, name, say):
        self.function, self.name, self.say = function, name, say
        self.shapes = None  # of the inputs that are recorded
        self.calls = 0  # with these shapes, before the recording
        self.graph = self.inputs = self.output = None  # the recording, and the tensors from and to which it works
        # An optimizer fit for recording warns when it is called outside of one, as it is for the first few calls.
        warnings.filterwarnings("ignore", message="This instance was constructed with capturable=True")
        try:
            self.stream = torch.cuda.Stream(device)
        except Exception as error:  # there is no closed list of what a driver can be unhappy with
            self._give_up(error)

    def __call__(self, *inputs, **fixed):
        shapes = [values.shape for values in inputs]
        self.shapes = self.shapes or shapes
        if self.stream is None or shapes != self.shapes:
            return self.function(*inputs, **fixed)
        if self.calls < WARM_UP:
            self.calls += 1
            return self._beside(*inputs, **fixed)
        if self.graph is None:
            self._record(*inputs, **fixed)
            if self.stream is None:
                return self.function(*inputs, **fixed)
        for there, values in zip(self.inputs, inputs, strict=True):
            there.copy_(values)
        self.graph.replay()
        return self.output.clone()

    def _beside(self, *inputs, **fixed):
        """An ordinary call, on the stream that is recorded later: libraries keep their workspaces by stream."""
        present = torch.cuda.current_stream(self.stream.device)
        self.stream.wait_stream(present)
        with torch.cuda.stream(self.stream):
            output = self.function(*inputs, **fixed)
        present.wait_stream(self.stream)
        return output

    def _record(self, *inputs, **fixed):
        """Records a call, without executing it."""
        try:
            graph = torch.cuda.CUDAGraph()
            self.inputs = [values.clone() for values in inputs]
            # The outer context gives the stream back even where the end of a failed recording fails, too.
            with torch.cuda.stream(self.stream), torch.cuda.graph(graph, stream=self.stream):
                self.output = self.function(*self.inputs, **fixed)
            self.graph = graph
        except Exception as error:
            self._give_up(error.__context__ or error)  # the end of a failed recording hides why it failed

    def _give_up(self, error):
        self.stream = self.inputs = self.output = None
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        self.say(f"{self.name} runs step by step: CUDA graphs not possible here ({reason})")
