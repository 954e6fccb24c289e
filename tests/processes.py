"""The scripts as real processes in folders of their own, shared by the tests of what befalls a run."""

import os
import time

from benchmarks import soak

MAIN, CLASSIFIER = soak.SCRIPTS


def arguments(script, *more):
    return [*soak.SCRIPTS[script].split(), "--data-dir", "../data", *more]


def run(script, folder, *more, **limits):
    """Runs a script to its end. Returns (exit status, stdout, lines of stderr). limits: of soak.start."""
    process = soak.start(script, arguments(script, *more), folder, **limits)
    process.join()
    return process.exitcode, (folder / "out").read_text(), (folder / "err").read_text().splitlines()


def wait_for(event, process, folder):
    """Waits until the process has said the text `event`, or written the file of that name."""
    while process.is_alive() and not (folder / event).exists():
        if (folder / "out").exists() and event in (folder / "out").read_text():
            break
        time.sleep(0.002)
    assert process.is_alive(), (folder / "err").read_text()


def stop(script, folder, *, after, number, more=()):
    """Runs a script and sends the signal `number` once `after` has happened. Returns (exit status, stderr)."""
    process = soak.start(script, arguments(script, *more), folder)
    wait_for(after, process, folder)
    os.kill(process.pid, number)
    process.join()
    return process.exitcode, (folder / "err").read_text()


def contents(folder):
    """{name: bytes, None for a directory} of everything in the folder but what the run has said."""
    return {
        path.relative_to(folder): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
        if path.name not in ("out", "err")
    }
