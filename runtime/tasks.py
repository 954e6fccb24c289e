"""Independent pieces of work: dealt to ranks and worker processes, each result kept on disk until all are finished."""

import contextlib
import io
import multiprocessing
import os
import shutil
import signal
import threading
import time
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import resource_tracker
from pathlib import Path

import torch
from joblib import cpu_count

from runtime.checkpoint import IDENTITY, load_checkpoint, load_json, save_checkpoint, save_file
from runtime.config import InputError, RunError, about
from runtime.distributed import barrier, gather, rank, size
from runtime.progress import ProgressBar, check_interrupt

MOST_WORKERS = 4  # processes of about 0.5 GB


class Tasks:
    """Results by their names, in a directory: an interrupted run takes up those that are there."""

    def __init__(self, directory, identity, started):
        """identity: a dict of plain values, everything that decides the results; results of another are deleted.

        started: when this work began, of time.perf_counter(); the attribute counts the time of earlier processes, too.
        """
        self.directory, self.started, path = Path(directory), started, Path(directory) / IDENTITY
        if rank() == 0:
            known = None
            with contextlib.suppress(InputError):  # none, or none that can be read
                known = load_json(path)
            if known != identity:
                self.remove()
                with about(self.directory):
                    self.directory.mkdir()
                save_file(path, identity)
            with contextlib.suppress(InputError, KeyError):
                self.started -= load_json(self.directory / "seconds.json")["seconds"]
        barrier()

    def keep(self, name, function):
        """What `function()` returns, tensors and plain values, or what an interrupted run has kept of it."""
        path = self.directory / f"{name}.pt"
        try:
            return load_checkpoint(path)["result"]
        except InputError:
            result = function()
            save_checkpoint(path, {"result": result})
            if rank() == 0:
                save_file(self.directory / "seconds.json", {"seconds": time.perf_counter() - self.started})
            return result

    def map(self, title, functions, *, device="cpu"):
        """{name: what the function returns}, on every rank; functions: {name: a pure function without arguments}.

        Results that are kept are loaded. The other functions are dealt to the ranks in turn; with one rank on a CPU, to
        worker processes, so they must be picklable. On a CPU all compute in one thread: the number of processes changes
        no bit. title: of the bar.
        """
        own, started = dict(list(functions.items())[rank() :: size()]), time.perf_counter()
        todo = {name: function for name, function in own.items() if not (self.directory / f"{name}.pt").exists()}
        done = len(own) - len(todo)
        with ProgressBar(title, total=len(own), unit="tasks", done=done) as bar, _one_thread(device):
            results = {name: self.keep(name, function) for name, function in own.items() if name not in todo}
            workers = min(cpu_count(only_physical_cores=True), MOST_WORKERS, len(todo)) if size() == 1 else 1
            if workers < 2 or torch.device(device).type != "cpu":
                new_results = ((name, function()) for name, function in todo.items())
            else:
                new_results = _in_workers(todo, workers, bar.advance)
            for name, result in new_results:
                results[name] = self.keep(name, lambda result=result: result)
                bar.advance()
            seconds = f"{time.perf_counter() - started:.0f} s"
            bar.line(f"{len(own)} tasks, {seconds}", short=seconds)
        results = {name: result for part in gather(results) for name, result in part.items()}
        return {name: results[name] for name in functions}

    def remove(self):
        """Removes the directory, when all results are in their final files."""
        shutil.rmtree(self.directory, ignore_errors=True)


@contextmanager
def _one_thread(device):
    threads = torch.get_num_threads()
    if torch.device(device).type == "cpu":
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _in_workers(functions, workers, advance):
    """(name, what its function returns), as worker processes finish them; advance: called with 0 meanwhile."""
    names = {}
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=_start_worker) as pool:
        try:
            with _interrupts_later():
                for name, function in functions.items():
                    names[pool.submit(_saved, function)] = name
                pool.submit(int)  # or the pool would not notice the end of the worker that was started last
            while names:
                for future in wait(names, timeout=0.5, return_when=FIRST_COMPLETED).done:
                    yield names.pop(future), torch.load(io.BytesIO(future.result()), weights_only=True)
                advance(0)
        except BrokenProcessPool:
            check_interrupt()  # a signal to the whole group of processes ends the workers, too
            raise RunError("a worker process has ended; if memory was short, close other programs") from None
        finally:
            for worker in multiprocessing.active_children() if names else ():
                worker.terminate()


def _saved(function):
    """What it returns, as bytes: a tensor would come in shared memory, with an open file until all tasks are done."""
    buffer = io.BytesIO()
    torch.save(function(), buffer)
    return buffer.getvalue()


@contextmanager
def _interrupts_later():
    """Holds Ctrl-C back; processes that begin meanwhile inherit this, and never see it."""
    if not hasattr(signal, "pthread_sigmask"):  # on Windows
        yield
        return
    resource_tracker.ensure_running()  # its start would let Ctrl-C through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_worker():
    """A worker has one thread, and does not outlive the process that has started it, which sees to Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent():
    multiprocessing.parent_process().join()
    os._exit(1)
