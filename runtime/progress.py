"""Progress of long work, and the signals that stop it."""

import contextlib
import os
import signal
import sys
import time

import torch.distributed as dist
from tqdm import tqdm

from runtime.distributed import rank

SILENCE = 30  # seconds, after which a line says how far the work is
SIGNALS = (signal.SIGINT, signal.SIGTERM)
_received = None  # the number of the first signal
_parent = None  # the process id of torchrun, if it has started this process


class Interrupted(BaseException):
    """SIGINT or SIGTERM arrived. Its text is one line: where the run stopped, and how to continue it."""

    where = None  # such as "after epoch 2 of 3", None if nothing was saved
    advice = "give the same command again"  # how to continue

    def __init__(self, number):
        super().__init__(number)
        self.number = number  # of the signal

    def __str__(self):
        name, where = signal.Signals(self.number).name, self.where or "before an epoch of its own was over"
        return f"stopped by {name} {where}; {self.advice}"


@contextlib.contextmanager
def signals_handled():
    """Here the first SIGINT or SIGTERM sets a flag for `check_interrupt`; a second one raises Interrupted at once."""
    global _received, _parent
    _received = None
    _parent = os.getppid() if dist.is_torchelastic_launched() else None
    # What whoever started the script has it ignore, as a shell SIGINT for what runs in the background, it ignores.
    numbers = [number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, _receive) for number in numbers}
    try:
        yield
    finally:
        _received = _parent = None
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)


def _receive(number, frame):
    global _received
    if _received is not None:
        raise Interrupted(number)
    _received = number
    if sys.stderr.isatty() and rank() == 0:
        text = "\nthe run stops at the next step; a second signal stops it at once\n"
        os.write(sys.stderr.fileno(), text.encode())  # print fails if the signal arrives within another print


def check_interrupt():
    """Raises Interrupted if a signal has arrived, or if torchrun has ended: this process must not outlive it."""
    if _parent is not None and os.getppid() != _parent:
        raise Interrupted(signal.SIGTERM)
    if _received is not None:
        raise Interrupted(_received)


def bar_width():
    """tqdm's options for its size; where a terminal says that it has no columns, tqdm would print empty lines."""
    with contextlib.suppress(AttributeError, OSError, TypeError, ValueError):  # no terminal
        if not os.get_terminal_size(sys.stderr.fileno()).columns:
            return {"ncols": 80, "nrows": 24}
    return {"dynamic_ncols": True}


class ProgressBar(tqdm):
    """On a terminal a bar of `total` units of work, of which `done` are done already, with rate and remaining time.

    Elsewhere it prints a line every half minute, and those given to `line`.
    """

    def __init__(self, name, *, total, unit, done=0):
        self.name, self.terminal = name, sys.stderr.isatty() and rank() == 0
        self.done, self.said = done, time.monotonic()
        options = {"desc": name, "unit": unit, "unit_scale": True, "mininterval": 0.5, **bar_width()}
        options["bar_format"] = "{desc} |{bar:10}| {percentage:3.0f}%, {remaining} left, {rate_fmt}{postfix}"
        super().__init__(total=total, initial=done, disable=not self.terminal, **options)
        self.unit = unit  # one that is disabled does not know it

    def advance(self, units=1):
        """Counts `units` as done. Raises Interrupted if a signal has arrived."""
        self.update(units)
        self.done += units
        if not self.terminal and time.monotonic() > self.said + SILENCE:
            self.line(f"{self.done:,} of {self.total:,} {self.unit}", short="")
        check_interrupt()

    def line(self, text, *, short):
        """Shows `short` in the bar on a terminal; elsewhere prints a line with the name and `text`."""
        self.said = time.monotonic()
        if self.terminal:
            self.set_postfix_str(short, refresh=False)
        else:
            print(f"{self.name}: {text}", flush=True)
