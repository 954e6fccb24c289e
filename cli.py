"""What the two scripts share at the command line: ranges, one-line errors, the device, the exit status."""

import argparse
import os
import sys
import tempfile
from pathlib import Path

import torch

from files import InputError


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that shows every default and whose errors are one line on stderr, exit status 2."""

    def __init__(self, **keywords):
        super().__init__(
            formatter_class=argparse.ArgumentDefaultsHelpFormatter,
            allow_abbrev=False,
            **keywords,
        )

    def error(self, message):
        self.exit(2, f"{self.prog}: error: {message}\n")


def number(kind, low, high):
    """An argparse type: an int or float between low and high, both included."""

    def parse(text):
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not low <= value <= high:  # a NaN fails here, too
            name = "a whole number" if kind is int else "a number"
            raise argparse.ArgumentTypeError(f"{text!r} is not {name} from {low:,} to {high:,}")
        return value

    return parse


def choose_device(name):
    """The torch.device of --device; "auto" takes CUDA, then MPS, then the CPU. Raises InputError if it is not there."""
    available = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if name == "auto":
        name = next(kind for kind, there in available.items() if there)
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(f"--device {name}: not a device; say auto, cpu, cuda, cuda:1, mps, ...") from None
    if not available.get(device.type, False):
        raise InputError(f"--device {name}: this machine or this PyTorch has no such device")
    count = torch.cuda.device_count() if device.type == "cuda" else 1
    if device.index is not None and device.index >= count:
        raise InputError(f"--device {name}: there are only {count} of this kind")
    return device


def writable_directory(path, flag):
    """Makes the directory if need be. Raises InputError if nothing can be written there."""
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise InputError(f"{flag} {path}: cannot be written to ({error.strerror})") from None
    return path


def run(main):
    """Runs a script's main function and turns what can go wrong into one line and an exit status."""
    try:
        main()
    except InputError as error:
        sys.exit(f"{Path(sys.argv[0]).name}: error: {error}")
    except KeyboardInterrupt:
        print(f"\n{Path(sys.argv[0]).name}: interrupted", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
