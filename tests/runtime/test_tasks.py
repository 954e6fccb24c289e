"""tasks.py: work in threads, whose number changes no bit; failures and interruptions; results that are kept."""

import json
import os
import runpy
import shutil
import subprocess
import sys
import threading
from functools import partial

import pytest
import torch
from conftest import ROOT

from runtime.tasks import Tasks


def random_sum(seed):
    values = torch.randn(100_000, generator=torch.Generator().manual_seed(seed))
    return {"thread": threading.get_ident(), "threads": torch.get_num_threads(), "sum": values.sum()}


def test_the_number_of_threads_changes_no_bit(tmp_path, monkeypatch):
    functions, results = {str(seed): partial(random_sum, seed) for seed in range(5)}, {}
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    for count in "12":
        monkeypatch.setenv("LOKY_MAX_CPU_COUNT", count)
        results[count] = Tasks(tmp_path / count, {}, 0.0).map("work", functions)
    assert torch.get_num_threads() == 2
    torch.set_num_threads(threads)
    alone, shared = results.values()
    assert list(shared) == list(functions)
    assert {result["thread"] for result in alone.values()} == {threading.get_ident()}
    assert threading.get_ident() not in {result["thread"] for result in shared.values()}
    for name in functions:
        assert torch.equal(alone[name]["sum"], shared[name]["sum"])
        assert alone[name]["threads"] == shared[name]["threads"] == 1


def test_kept_results_that_were_exchanged_or_damaged_are_made_again(tmp_path):
    tasks = Tasks(tmp_path / "kept", {}, 0.0)
    assert [tasks.keep(name, lambda name=name: f"of {name}") for name in "ab"] == ["of a", "of b"]
    os.replace(tmp_path / "kept/a.pt", tmp_path / "kept/b.pt")
    (tmp_path / "kept/seconds.json").write_text('{"seconds": null}')
    again = Tasks(tmp_path / "kept", {}, 0.0)
    assert [again.keep(name, lambda: "new") for name in "ab"] == ["new", "new"]
    assert again.keep("b", lambda: "newer") == "new"


ALONE = """
import json, sys
from threadpoolctl import threadpool_info
from runtime.tasks import Tasks

def openmp():
    return [library["num_threads"] for library in threadpool_info() if library["user_api"] == "openmp"]

print(json.dumps(Tasks(sys.argv[1], {}, 0.0).map("work", {"a": openmp, "b": openmp})))
"""


def test_the_libraries_below_pytorch_compute_in_one_thread_too(tmp_path):
    """They ask the thread in which they are called, not PyTorch."""
    environment = os.environ | {"LOKY_MAX_CPU_COUNT": "2", "OMP_NUM_THREADS": "3", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", ALONE, str(tmp_path / "kept")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    *_, found = done.stdout.splitlines()
    assert {count for counts in json.loads(found).values() for count in counts} == {1}, done


STOPPED = """
import os, signal, sys, time
from pathlib import Path
from runtime.cli import run_script
from runtime.tasks import Tasks

def waits():
    time.sleep(20)
    Path(sys.argv[1], "waited").touch()

def stops():
    {stop}

def main():
    Tasks(Path(sys.argv[1], "kept"), {{}}, 0.0).map("work", {{"waits": waits, "stops": stops, "later": waits}})

run_script(main)
"""


@pytest.mark.parametrize(
    ("stop", "status", "said"),
    [
        ("os.kill(os.getpid(), signal.SIGTERM)", 143, "stopped by SIGTERM"),
        ("raise MemoryError", 1, "out of memory"),
        ("raise ValueError('a mistake')", 1, "a mistake"),
    ],
)
def test_the_end_of_a_run_waits_for_no_thread(tmp_path, stop, status, said):
    environment = os.environ | {"LOKY_MAX_CPU_COUNT": "2", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", STOPPED.format(stop=stop), str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    *before, line = done.stderr.splitlines()
    assert (done.returncode, bool(before)) == (status, "mistake" in said), done.stderr
    assert said in line
    assert not (tmp_path / "waited").exists()


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


def test_results_that_another_program_has_kept_are_not_known_as_of_this_one(tmp_path):
    """Somebody interrupts an evaluation, and changes an estimator before the next one."""
    for folder in ("runtime", "evaluation/page"):
        (tmp_path / folder).mkdir(parents=True)
    source = shutil.copy(ROOT / "runtime/config.py", tmp_path / "runtime")
    (tmp_path / ".#mine.py").symlink_to("nowhere")  # as some editors lock a file
    programs = [runpy.run_path(source)["versions"]()["program"]]
    for path in ("mine.py", "evaluation/page/mine.py", "runtime/mine.py"):
        (tmp_path / path).write_text("ESTIMATOR = 2")
        programs.append(runpy.run_path(source)["versions"]()["program"])
    assert len(set(programs)) == 4
