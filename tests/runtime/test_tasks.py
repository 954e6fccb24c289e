"""tasks.py: work in worker processes, whose number changes no bit; one that ends, and results that are kept."""

import multiprocessing
import os
import signal
import time
from functools import partial

import pytest
import torch

from runtime.config import RunError
from runtime.progress import Interrupted
from runtime.tasks import Tasks


def random_sum(seed):
    values = torch.randn(100_000, generator=torch.Generator().manual_seed(seed))
    blocked = signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, [])
    return {"process": os.getpid(), "threads": torch.get_num_threads(), "sum": values.sum(), "blocked": blocked}


def test_the_number_of_worker_processes_changes_no_bit(tmp_path, monkeypatch):
    functions, results = {str(seed): partial(random_sum, seed) for seed in range(5)}, {}
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    for workers in "12":
        monkeypatch.setenv("LOKY_MAX_CPU_COUNT", workers)
        results[workers] = Tasks(tmp_path / workers, {}, 0.0).map("work", functions)
    assert torch.get_num_threads() == 2
    torch.set_num_threads(threads)
    alone, shared = results.values()
    assert list(shared) == list(functions)
    assert {result["process"] for result in alone.values()} == {os.getpid()}
    assert os.getpid() not in {result["process"] for result in shared.values()}
    for name in functions:
        assert (alone[name]["blocked"], shared[name]["blocked"]) == (False, True)  # Ctrl-C is the parent's alone
        assert torch.equal(alone[name]["sum"], shared[name]["sum"])
        assert not shared[name]["sum"].is_shared()  # or it would keep a file open
        assert alone[name]["threads"] == shared[name]["threads"] == 1


def end_all():
    """What a signal to all processes of a run does: the main one notes it, a worker ends."""
    os.kill(os.getppid(), signal.SIGTERM)
    os._exit(3)


@pytest.mark.parametrize(
    ("end", "error", "said"),
    [(partial(os._exit, 3), RunError, "a worker process has ended"), (end_all, Interrupted, "stopped by SIGTERM")],
)
def test_a_worker_that_ends_leaves_no_other(tmp_path, monkeypatch, handlers, end, error, said):
    monkeypatch.setenv("LOKY_MAX_CPU_COUNT", "2")
    with pytest.raises(error, match=said):
        Tasks(tmp_path / "kept", {}, 0.0).map("work", {"sleeps": partial(time.sleep, 30), "ends": end})
    assert not multiprocessing.active_children()


def test_finished_tasks_are_not_repeated(tmp_path):
    done = []

    def work(name):
        done.append(name)
        if name == "c":
            raise KeyboardInterrupt
        return {"name": name, "values": torch.arange(3.0), "pair": (1.5, None)}

    functions = {name: lambda name=name: work(name) for name in "abcd"}
    with pytest.raises(KeyboardInterrupt):
        Tasks(tmp_path / "kept", {"seed": 0}, 0.0).map("work", functions)
    functions["c"] = lambda: "c, at last"
    results = Tasks(tmp_path / "kept", {"seed": 0}, 0.0).map("work", functions)
    assert done == ["a", "b", "c", "d"]
    assert list(results) == list("abcd")
    assert results["a"]["pair"] == (1.5, None)
    assert torch.equal(results["b"]["values"], torch.arange(3.0))
    tasks = Tasks(tmp_path / "kept", {"seed": 1}, 0.0)  # of other settings
    tasks.map("work", {"a": functions["a"]})
    assert done == ["a", "b", "c", "d", "a"]
    tasks.remove()
    assert os.listdir(tmp_path) == []
