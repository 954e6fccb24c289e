"""Candidates that take turns, each in its own process: whatever else the machine does slows all of them alike.

A candidate is a function without arguments. Its process calls it once, to prepare, and it returns the function that is
one turn; the time of a turn is measured. The other processes wait meanwhile, so only one computes at a time. Candidates
reach their processes by pickle: functools.partial of a module's function will do.
"""

import multiprocessing
import signal
import statistics
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from typing import NamedTuple

REPEATS = 5
PAUSE = 0.3  # seconds between turns, in which OpenMP's threads, which wait awake for more work, fall asleep


class Turn(NamedTuple):
    """What is known of one turn."""

    seconds: float
    result: object  # what the turn's function returned
    peak_bytes: int  # the largest memory that its process has held so far


def take_turns(candidates, *, repeats=REPEATS, warm_up=True, keep_processes=True):
    """Lets every candidate take `repeats` turns, in rounds. Returns {name: its Turns in the order of the rounds}.

    candidates: {name: function}. With warm_up, every process first takes a turn that does not count. With
    keep_processes, a process lives through all rounds; else every turn has its own, for candidates that do not fit into
    memory together. Raises RuntimeError if a candidate fails.
    """
    turns, pools = {name: [] for name in candidates}, {}
    with ExitStack() as stack:
        for repeat in range(1, repeats + 1):
            # Every other round in the opposite order, so that none always follows the same one.
            for name in list(candidates)[:: 1 if repeat % 2 else -1]:
                try:
                    if name not in pools:
                        # A fresh process: threads and allocators are its own.
                        pools[name] = stack.enter_context(ProcessPoolExecutor(1, multiprocessing.get_context("spawn")))
                        pools[name].submit(_prepare, candidates[name]).result()
                        if warm_up:
                            pools[name].submit(_turn).result()
                    turns[name].append(pools[name].submit(_turn).result())
                except Exception as error:
                    raise RuntimeError(f"{name}: {error}") from error
                if not keep_processes:
                    pools.pop(name).shutdown()
            print(f"round {repeat} of {repeats} is over", file=sys.stderr, flush=True)
    return turns


def _prepare(candidate):
    global turn
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that started this one
    turn = candidate()


def _turn():
    time.sleep(PAUSE)
    started = time.perf_counter()
    result = turn()
    return Turn(time.perf_counter() - started, result, peak_memory())


def peak_memory():
    """The largest resident memory that this process has had, in bytes."""
    import resource  # not on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def ratios(numerators, denominators):
    """Two candidates' values, divided round by round."""
    return [one / other for one, other in zip(numerators, denominators, strict=True)]


def median_and_range(values, form=".2f"):
    """ "median (smallest to largest)" in the format `form`."""
    return f"{statistics.median(values):{form}} ({min(values):{form}} to {max(values):{form}})"


def plus_minus(score, form=".2f"):
    """ "mean ± standard error" of what vae_utils.mean_and_error returns; of one image the mean alone."""
    error = score["standard_error"]
    return f"{score['mean']:{form}}" + ("" if error is None else f" ± {error:{form}}")


def print_table(header, rows):
    """Prints a Markdown table, its columns aligned. header and every row: a list of strings of the same length."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    for row in (header, ["-" * width for width in widths], *rows):
        print("| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |")
