"""A signal is not lost, wherever in Python it arrives."""

import signal
import subprocess
import sys

import pytest
from conftest import ROOT

# The signal comes while it is in a destructor, whose exceptions Python drops.
SCRIPT = """
import sys, time
sys.path.insert(0, {root!r})
import cli

def busy(seconds):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        pass

class Slow:
    def __del__(self):
        print("ready", flush=True)
        busy(0.5)

def main():
    Slow()
    while True:
        busy(1)

cli.run(main)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_within_a_destructor_is_not_lost(number):
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT.format(root=str(ROOT))],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        _, errors = process.communicate(timeout=120)  # which a lost signal would let pass
    finally:
        process.kill()
    assert process.returncode == 128 + number
    assert len(errors.splitlines()) == 1
