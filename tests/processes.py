"""The scripts as real processes in folders of their own, shared by the tests of runs that are stopped or fail."""

import csv
import os
import sys
import time
from functools import partial

from rough import make_rough

from benchmarks import stress

MAIN, CLASSIFIER = stress.SCRIPTS
start = partial(stress.start, before=make_rough)
TRAINING, COUNTS = stress.SCRIPTS[MAIN].split("--num-samples ")
EVALUATE_ONLY = f"--evaluate-only --precision float32 --num-samples {COUNTS}"


class Poison:
    """Makes the directory `trace` when it is unpickled."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return os.mkdir, (str(self.trace),)


def arguments(script, *flags, settings=None):
    """The command line of a small run, or with other settings, a text."""
    return [*(settings or stress.SCRIPTS[script]).split(), "--data-dir", "../data", *flags]


def run(script, folder, *flags, settings=None, **options):
    """Runs a script to its end. Returns (exit status, stdout, lines of stderr). options: of stress.start."""
    process = start(script, arguments(script, *flags, settings=settings), folder, **options)
    process.join()
    return process.exitcode, (folder / "out").read_text(), (folder / "err").read_text().splitlines()


def wait_for(event, process, folder):
    """Waits until the process has said the text `event`, or written the file of that name."""
    while process.is_alive() and not (folder / event).exists():
        if (folder / "out").exists() and event in (folder / "out").read_text():
            break
        time.sleep(0.002)
    assert process.is_alive(), (folder / "err").read_text()


def stop(script, folder, *flags, after, number, settings=None):
    """Runs a script that gets the signal `number` once it has said the text `after`, or written the file of that name.

    Returns (exit status, stderr).
    """
    command = arguments(script, *flags, settings=settings)
    process = stress.start(script, command, folder, before=partial(_stop_itself, after, number))
    while process.is_alive():
        if (folder / after).exists():
            os.kill(process.pid, number)
            break
        time.sleep(0.002)
    process.join()
    assert process.exitcode, f"it was not stopped: {after}"
    return process.exitcode, (folder / "err").read_text()


def _stop_itself(after, number):
    """Makes this process send itself the signal as it says the text: another process may be too late for that."""
    make_rough()
    write = sys.stdout.write

    def write_and_stop(text):
        write(text)
        if after in text:
            sys.stdout.write = write  # one signal
            sys.stdout.flush()
            os.kill(os.getpid(), number)

    sys.stdout.write = write_and_stop


def refused(script, folder, *flags, said, settings=None):
    """Runs a script that ends with one line that holds the text `said` and changes nothing. Returns the line."""
    before = contents(folder)
    status, out, errors = run(script, folder, *flags, settings=settings)
    assert (status, out, len(errors)) == (2, "", 1)
    assert errors[0].startswith(f"{script}: error: ")
    assert said in errors[0]
    assert contents(folder) == before
    return errors[0]


def read_csv(path):
    """The rows of a table, {column: text}."""
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def contents(folder):
    """{name: bytes, None for a directory} of everything in the folder but what the run has said."""
    return {
        path.relative_to(folder): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
        if path.name not in ("out", "err")
    }
