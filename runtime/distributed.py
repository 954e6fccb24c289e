"""The processes of a run, as torchrun starts them: rank 0 to N - 1. Without torchrun there is one, rank 0 of 1.

`Shard` is the part of the training images that a rank holds: training knows ranks by it alone. Functions that send
something (barrier, broadcast, gather) are called by all ranks; with one rank they give back what they got.
"""

import os
from contextlib import contextmanager
from datetime import timedelta
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from runtime.config import RunError

LONGEST_WAIT = timedelta(days=1)  # for another rank's work; a rank that has died is noticed by its closed connection
_store = None  # shared by all ranks; it belongs to torchrun, and outlives them


def rank():
    return int(os.environ["RANK"]) if dist.is_torchelastic_launched() else 0


def size():
    return int(os.environ["WORLD_SIZE"]) if dist.is_torchelastic_launched() else 1


def launch():
    """What names this call of torchrun, also when it has started its processes again (--max-restarts); else None."""
    return f"{os.environ['TORCHELASTIC_RUN_ID']}, {os.getppid()}" if dist.is_torchelastic_launched() else None


def start(device=None):
    """Finds torchrun's store, for `first_to_stop`; connects the ranks for work on a device. Does each once."""
    global _store
    if size() > 1 and _store is None:
        store, _, _ = next(rendezvous("env://"))
        # torchrun's store outlives its processes: those that it starts again must not read what the killed ones wrote.
        _store = dist.PrefixStore(f"attempt {os.environ['TORCHELASTIC_RESTART_COUNT']}", store)
    if size() > 1 and device and not dist.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=_store, rank=rank(), world_size=size(), timeout=LONGEST_WAIT)


def finish():
    """Waits for all ranks, and disconnects them."""
    if dist.is_initialized():
        barrier()
        dist.destroy_process_group()


def first_to_stop():
    """Whether this rank is the first that stops: that one says why, the others are silent."""
    if _store is None:
        return rank() == 0
    try:
        return _store.add("stopped", 1) == 1
    except RuntimeError:  # torchrun has ended
        return True


@contextmanager
def _rank_lost():
    """Turns what a collective raises into a RunError."""
    try:
        yield
    except RuntimeError as error:
        reason, *_ = str(error).splitlines() or [""]
        advice = "--resume continues a run, the same command an evaluation"
        raise RunError(f"another process of this run has ended; {advice} ({reason})") from None


def barrier():
    gather(None)


def broadcast(value):
    """Rank 0's value, on every rank."""
    if size() == 1:
        return value
    values = [value]
    with _rank_lost():
        dist.broadcast_object_list(values, src=0)
    return values[0]


def gather(value):
    """[the value of rank 0, of rank 1, ...], on every rank."""
    if size() == 1:
        return [value]
    values = [None] * size()
    with _rank_lost():
        dist.all_gather_object(values, value)
    return values


class Shard(NamedTuple):
    """The part of the training images that one of `size` ranks holds: row r belongs to rank r mod `size`.

    WHOLE holds all of them, whatever the number of ranks; then nothing is sent.
    """

    rank: int = 0
    size: int = 1

    def rows(self, count, *, device="cpu"):
        """The rows, of `count`, that are here."""
        return torch.arange(self.rank, count, self.size, device=device)

    def local(self, rows, noise):
        """The rows (B,) and the noise (..., B, D) of a batch that this rank holds, the rows by their number here."""
        if self.size == 1:
            return rows, noise
        here = rows % self.size == self.rank
        return rows[here] // self.size, noise[..., here, :]

    def add(self, tensor):
        """The sum over the ranks, in place."""
        if self.size > 1:
            with _rank_lost():
                dist.all_reduce(tensor)
        return tensor

    def add_gradients(self, parameters):
        """Sums the gradients of the parameters over the ranks, by one message; None counts as 0."""
        if self.size == 1:
            return
        parameters = list(parameters)
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        flat = self.add(torch.cat([parameter.grad.flatten() for parameter in parameters]))
        for parameter, part in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
            parameter.grad.copy_(part.view_as(parameter))  # in its own layout, as fused Adam expects

    def gather(self, values, count):
        """All `count` rows (count, ...) on rank 0, of which every rank holds its own; None on the other ranks."""
        if self.size == 1:
            return values
        with _rank_lost():
            if self.rank:
                dist.send(values.contiguous(), dst=0)
                return None
            whole = values.new_empty(count, *values.shape[1:])
            whole[:: self.size] = values
            for other in range(1, self.size):
                part = torch.empty_like(whole[other :: self.size])
                dist.recv(part, src=other)
                whole[other :: self.size] = part
            return whole

    def broadcast(self, value):
        """Rank 0's value, on every rank."""
        return value if self.size == 1 else broadcast(value)


WHOLE = Shard()


def own_shard():
    return Shard(rank(), size())
