"""Independent pieces of work: dealt to ranks and threads, each result kept on disk until all are finished."""

import shutil
import time
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import ExitStack, closing, suppress
from pathlib import Path

import torch
from joblib import cpu_count

from runtime.checkpoint import load_checkpoint, readable_json, save_checkpoint, save_file
from runtime.config import InputError, RunError
from runtime.distributed import barrier, gather, rank, size
from runtime.progress import ProgressBar

TASKS, IDENTITY = ".evaluation", "identity.json"  # of an evaluation that goes on: a directory, the file that says whose
MOST_THREADS = 4  # more would wait for Python's lock
THREAD = "evaluation"  # the beginning of the names of threads


class Tasks:
    """Results by their names, in a directory: an interrupted run takes up those that are there."""

    def __init__(self, directory, identity, started):
        """identity: a dict of plain values, everything that decides the results; results of another are deleted.

        started: when this work began, of time.perf_counter(); the attribute counts the time of earlier processes, too.
        """
        self.directory, self.started = Path(directory), started
        if rank() == 0:
            path = self.directory / IDENTITY
            if readable_json(path) != identity:
                self.remove()
                try:
                    self.directory.mkdir()
                except OSError as error:
                    raise RunError(f"{self.directory}: cannot be written ({error.strerror or error})") from None
                save_file(path, identity)
            with suppress(TypeError):  # of another file than ours
                self.started -= (readable_json(self.directory / "seconds.json") or {}).get("seconds", 0)
        barrier()

    def keep(self, name, function):
        """What `function()` returns, tensors and plain values, or what an interrupted run has kept of it."""
        path, kept = self.directory / f"{name}.pt", {}
        with suppress(InputError):
            kept = load_checkpoint(path)
        if kept.get("name") == name:
            result = kept["result"]
        else:
            result = function()
            save_checkpoint(path, {"name": name, "result": result})
        if rank() == 0:
            save_file(self.directory / "seconds.json", {"seconds": time.perf_counter() - self.started})
        return result

    def map(self, title, functions, *, device="cpu"):
        """{name: what the function returns}, on every rank; functions: {name: a pure function without arguments}.

        Results that are kept are loaded. The other functions are dealt to the ranks in turn; one rank on a CPU deals
        them to as many threads as cores, at most MOST_THREADS. On a CPU each function computes in one thread: their
        number changes no bit. title: of the bar.
        """
        own, started = dict(list(functions.items())[rank() :: size()]), time.perf_counter()
        todo = {name: function for name, function in own.items() if not (self.directory / f"{name}.pt").exists()}
        with ProgressBar(title, total=len(own), unit="tasks", done=len(own) - len(todo)) as bar, ExitStack() as stack:
            if on_cpu := torch.device(device).type == "cpu":
                stack.callback(torch.set_num_threads, torch.get_num_threads())
                torch.set_num_threads(1)
            results = {name: self.keep(name, function) for name, function in own.items() if name not in todo}
            threads = min(cpu_count(only_physical_cores=True), MOST_THREADS) if on_cpu and size() == 1 else 1
            if threads > 1 and len(todo) > 1:
                new_results = _in_threads(todo, threads, bar.advance)
            else:
                new_results = ((name, function()) for name, function in todo.items())
            for name, result in stack.enter_context(closing(new_results)):
                results[name] = self.keep(name, lambda result=result: result)
                bar.advance()
            seconds = f"{time.perf_counter() - started:.0f} s"
            bar.line(f"{len(own)} tasks, {seconds}", short=seconds)
        results = {name: result for part in gather(results) for name, result in part.items()}
        return {name: results[name] for name in functions}

    def remove(self):
        """Removes the directory, when all results are in their final files."""
        shutil.rmtree(self.directory, ignore_errors=True)


def _in_threads(functions, threads, advance):
    """(name, what its function returns), as threads finish them; advance: called with 0 meanwhile.

    PyTorch lets other threads run while it computes, and a thread, unlike a process, has nothing to import.
    """
    # Each thread says that it computes alone: oneDNN and MKL ask the thread, not PyTorch.
    pool = ThreadPoolExecutor(threads, thread_name_prefix=THREAD, initializer=torch.set_num_threads, initargs=(1,))
    try:
        names = {pool.submit(function): name for name, function in functions.items()}
        while names:
            for future in wait(names, timeout=0.5, return_when=FIRST_COMPLETED).done:
                yield names.pop(future), future.result()
            advance(0)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
