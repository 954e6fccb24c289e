"""Contestants that take turns, each in a process of its own: whatever else the machine does slows all of them alike.

A contestant is a function without arguments. Its process calls it once, to prepare, and it returns the function that
is one turn; that one's time is taken. The process of a contestant whose turn it is not waits at a pipe, so only one
computes at a time. Contestants go to fresh processes by pickle: functools.partial of a module's function will do.
"""

import multiprocessing
import signal
import statistics
import sys
import time
import traceback
from typing import NamedTuple

REPEATS = 5
PAUSE = 0.3  # seconds between turns, in which OpenMP's threads, which wait for more work awake, fall asleep

# Each process begins from nothing: threads and allocators are its own.
processes = multiprocessing.get_context("spawn")


class Turn(NamedTuple):
    """What is known of one turn."""

    seconds: float
    result: object  # what the turn's function returned
    peak_bytes: int | None  # the largest memory that its process has held so far; None on Windows


def contest(*, contestants, repeats=REPEATS, warm_up=True, stay=True):
    """Lets every contestant take `repeats` turns, in rounds. Returns {name: its Turns in the order of the rounds}.

    contestants: {name: function}. With warm_up, every process first takes a turn that does not count. With stay, a
    process lives through all rounds; else every turn has its own, for contestants that do not fit into memory
    together. Raises RuntimeError if a contestant fails.
    """
    turns, workers = {name: [] for name in contestants}, {}
    try:
        for repeat in range(1, repeats + 1):
            # Back and forth, so that none always follows the same one.
            for name in list(contestants)[:: 1 if repeat % 2 else -1]:
                if name not in workers:
                    workers[name] = Worker(name, contestants[name])
                    if warm_up:
                        workers[name].turn()
                turns[name].append(workers[name].turn())
                if not stay:
                    workers.pop(name).end()
            print(f"round {repeat} of {repeats} is over", file=sys.stderr, flush=True)
    finally:
        for worker in workers.values():
            worker.end()
    return turns


class Worker:
    """A contestant's process."""

    def __init__(self, name, contestant):
        """Starts it; returns when it is prepared."""
        self.name = name
        self.pipe, theirs = processes.Pipe()
        self.process = processes.Process(target=_work, args=(theirs, contestant), daemon=True)
        self.process.start()
        theirs.close()
        self._receive()

    def turn(self):
        """Lets it take one turn, a Turn."""
        time.sleep(PAUSE)
        self.pipe.send("turn")
        return self._receive()

    def end(self):
        """Ends it."""
        self.pipe.close()
        self.process.join()

    def _receive(self):
        try:
            answer = self.pipe.recv()
        except EOFError:
            self.process.join()
            raise RuntimeError(f"{self.name}: its process ended with {self.process.exitcode}") from None
        if isinstance(answer, str):
            raise RuntimeError(f"{self.name}:\n{answer}")
        return answer


def _work(pipe, contestant):
    """A process's life: prepare, then a turn for every message, until the pipe is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that started this one
    try:
        turn = contestant()
        pipe.send(None)
        while True:
            try:
                pipe.recv()
            except EOFError:
                return
            started = time.perf_counter()
            result = turn()
            seconds = time.perf_counter() - started
            pipe.send(Turn(seconds, result, peak_memory()))
    except Exception:
        pipe.send(traceback.format_exc())


def peak_memory():
    """The largest resident memory that this process has had, in bytes; None where that is not known."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def seconds(turns):
    """The turns' times."""
    return [turn.seconds for turn in turns]


def ratios(numerators, denominators):
    """Two contestants' values, divided round by round."""
    return [one / other for one, other in zip(numerators, denominators, strict=True)]


def spread(values, form=".2f"):
    """ "median (least to largest)" in the format `form`."""
    return f"{statistics.median(values):{form}} ({min(values):{form}} to {max(values):{form}})"


def print_table(header, rows):
    """Prints a Markdown table, its columns aligned. header and every row: a list of strings of the same length."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    for row in (header, ["-" * width for width in widths], *rows):
        print("| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |")
