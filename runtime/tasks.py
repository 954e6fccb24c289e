"""Independent pieces of work: dealt to ranks and worker processes, each result kept on disk until all are finished."""

import multiprocessing
import os
import shutil
import signal
import threading
import time
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from multiprocessing import resource_tracker
from pathlib import Path

import torch
from joblib import cpu_count

from runtime.checkpoint import load_checkpoint, readable_json, save_checkpoint, save_file
from runtime.config import InputError, RunError, about
from runtime.distributed import barrier, gather, rank, size
from runtime.progress import ProgressBar, check_interrupt

TASKS, IDENTITY = ".evaluation", "identity.json"  # of an evaluation that goes on: a directory, the file that says whose
MOST_WORKERS = 4  # processes of about 0.5 GB


class Tasks:
    """Results by their names, in a directory: an interrupted run takes up those that are there."""

    def __init__(self, directory, identity, started):
        """identity: a dict of plain values, everything that decides the results; results of another are deleted.

        started: when this work began, of time.perf_counter(); the attribute counts the time of earlier processes, too.
        """
        self.directory, self.started = Path(directory), started
        if rank() == 0:
            path = self.directory / IDENTITY
            if not path.exists() or readable_json(path) != identity:
                self.remove()
                with about(self.directory):
                    self.directory.mkdir()
                save_file(path, identity)
            self.started -= (readable_json(self.directory / "seconds.json") or {}).get("seconds", 0)
        barrier()

    def keep(self, name, function):
        """What `function()` returns, tensors and plain values, or what an interrupted run has kept of it."""
        path = self.directory / f"{name}.pt"
        try:
            result = load_checkpoint(path)["result"]
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
        with ProgressBar(title, total=len(own), unit="tasks", done=len(own) - len(todo)) as bar, ExitStack() as stack:
            if on_cpu := torch.device(device).type == "cpu":
                stack.callback(torch.set_num_threads, torch.get_num_threads())
                torch.set_num_threads(1)
            results = {name: self.keep(name, function) for name, function in own.items() if name not in todo}
            workers = min(cpu_count(only_physical_cores=True), MOST_WORKERS, len(todo)) if size() == 1 else 1
            for name in self._in_workers(todo, workers, bar.advance) if on_cpu and workers > 1 else todo:
                results[name] = self.keep(name, todo[name])
                bar.advance()
            seconds = f"{time.perf_counter() - started:.0f} s"
            bar.line(f"{len(own)} tasks, {seconds}", short=seconds)
        results = {name: result for part in gather(results) for name, result in part.items()}
        return {name: results[name] for name in functions}

    def _in_workers(self, functions, workers, advance):
        """The names, as worker processes have saved their functions' results; advance: called with 0 meanwhile."""
        names = {}
        with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=_start_worker) as pool:
            try:
                with ExitStack() as stack:
                    if hasattr(signal, "pthread_sigmask"):  # not on Windows
                        resource_tracker.ensure_running()  # its start would let Ctrl-C through again
                        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # also in workers
                        stack.callback(signal.pthread_sigmask, signal.SIG_SETMASK, before)
                    for name, function in functions.items():
                        names[pool.submit(_save_result, self.directory / f"{name}.pt", function)] = name
                    pool.submit(int)  # or the pool would not notice the end of the worker that was started last
                while names:
                    for future in wait(names, timeout=0.5, return_when=FIRST_COMPLETED).done:
                        future.result()
                        yield names.pop(future)
                    advance(0)
            except BrokenProcessPool:
                check_interrupt()  # a signal to the whole group of processes ends the workers, too
                raise RunError("a worker process has ended; if memory was short, close other programs") from None
            finally:
                for worker in multiprocessing.active_children() if names else ():
                    worker.terminate()

    def remove(self):
        """Removes the directory, when all results are in their final files."""
        shutil.rmtree(self.directory, ignore_errors=True)


def _save_result(path, function):
    save_checkpoint(path, {"result": function()})


def _start_worker():
    """A worker has one thread, and does not outlive the process that has started it, which sees to Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent():
    multiprocessing.parent_process().join()
    os._exit(1)
