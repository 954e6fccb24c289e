"""Candidates for the tests of benchmarks/harness.py, in a module that imports nothing which takes long."""

import os
import time


def writing(path, name):
    """A turn writes its name and process to a file when it begins and when it ends; it returns how many there were."""
    count = 0

    def turn():
        nonlocal count
        count += 1
        for moment in ("begins", "ends"):
            with open(path, "a", encoding="utf-8") as file:
                file.write(f"{name} {os.getpid()} {moment}\n")
            time.sleep(0.01)
        return count

    return turn


def failing():
    """A turn that raises."""

    def turn():
        raise ValueError("no such luck")

    return turn


def dying():
    """A turn in which the process ends."""
    return lambda: os._exit(3)
