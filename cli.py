"""What the two scripts share at the command line: ranges, one-line errors, the device, the exit status."""

import argparse
import contextlib
import os
import re
import signal
import sys
import threading
from pathlib import Path

import torch

from data import at_rows, load_mnist, remaining, stratified_subset
from files import InputError, RunError
from progress import Interrupted
from training import choose_precision

INTERRUPTS = (signal.SIGINT, signal.SIGTERM)
# In the words of CUDA and MPS, of the CPU, of CUDA's libraries, and of oneDNN.
OUT_OF_MEMORY = re.compile("out of memory|can't allocate memory|ALLOC_FAILED|could not create a (primitive$|memory)")


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that shows every default and whose errors are one line on stderr, exit status 2."""

    def __init__(self, **keywords):
        super().__init__(
            formatter_class=lambda prog: argparse.ArgumentDefaultsHelpFormatter(prog, max_help_position=34),
            allow_abbrev=False,
            **keywords,
        )

    def error(self, message):
        self.exit(2, f"{self.prog}: error: {one_line(message)}\n")


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


def directory(text):
    """An argparse type: the name of a directory."""
    if not text:
        raise argparse.ArgumentTypeError("the name of a directory is empty")
    return text


def add_experiment_flags(parser, *, epochs, train_size, batch_size, smallest_batch=1):
    """The flags that say what is learned, with their defaults. Returns their group."""
    group = parser.add_argument_group("experiment")
    for flag, (low, high), default, meaning in (
        ("--epochs", (1, 100_000), epochs, "passes over the training images"),
        ("--train-size", (10, 60_000), train_size, "training images, stratified"),
        ("--batch-size", (smallest_batch, 60_000), batch_size, "images per step"),
        ("--seed", (0, 2**32 - 1), 0, "seed of everything that is random"),
    ):
        group.add_argument(flag, metavar="N", type=number(int, low, high), default=default, help=meaning)
    return group


def add_run_flags(parser):
    """The flags that say where and how it runs. Returns their group."""
    group = parser.add_argument_group("run")
    group.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, mps; auto takes CUDA, then MPS, then CPU")
    group.add_argument(
        "--precision",
        choices=("auto", "float32", "bfloat16"),
        default="auto",
        help="number format of networks in training; auto takes bfloat16 where the processor has it",
    )
    for flag, default, meaning in (
        ("--data-dir", "data", "holds MNIST/raw"),
        ("--checkpoint-dir", "checkpoints", "where checkpoints go"),
        ("--results-dir", "results", "where figures and tables go"),
    ):
        group.add_argument(flag, metavar="DIR", type=directory, default=default, help=meaning)
    group.add_argument("--resume", action="store_true", help="continue the interrupted run in the checkpoint directory")
    return group


def one_line(text):
    """The text without its line breaks, which names of files may hold."""
    return " ".join(str(text).splitlines())


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
    """Raises InputError if it can be seen that nothing can be written at `path`; makes and changes nothing."""
    path = Path(path)
    try:
        there = next(parent for parent in (path, *path.absolute().parents) if parent.exists())
        if not there.is_dir():
            reason = f"{there} is not a directory"
        else:
            reason = None if os.access(there, os.W_OK | os.X_OK) else f"no right to write to {there}"
    except OSError as error:
        reason = error.strerror
    if reason:
        raise InputError(f"{flag} {path}: cannot be written to ({reason})")


def prepare(arguments, *, train_index=None):
    """What both scripts read and refuse before any work. Returns (train, test, flags).

    train_index: (N,), the training images' rows in MNIST; None for the stratified subset that the flags say.
    train, test: Splits on the chosen device; flags: {flag: value} of all that decides a result, which is not where
    files lie, and "auto" by what it has come to.
    """
    device = choose_device(arguments.device)
    precision = choose_precision(arguments.precision, device)
    if device.type == "cuda":
        torch.backends.cudnn.allow_tf32 = False  # float32 is float32, as on the CPU
        torch.backends.cudnn.deterministic = True  # a resumed run ends like one left alone
    for flag in ("checkpoint_dir", "results_dir"):
        writable_directory(getattr(arguments, flag), f"--{flag.replace('_', '-')}")
    mnist_train, test = load_mnist(data_dir=arguments.data_dir, device=device)
    if train_index is None:
        train = stratified_subset(mnist_train, size=arguments.train_size, seed=arguments.seed)
    else:
        if int(train_index.max()) >= len(mnist_train.labels):
            raise InputError(
                f"--data-dir {arguments.data_dir}: has only {len(mnist_train.labels):,} training images, "
                "the checkpoints were trained on others"
            )
        train = at_rows(mnist_train, train_index)
    flags = {**vars(arguments), "device": str(device), "precision": precision}
    for elsewhere in ("data_dir", "checkpoint_dir", "results_dir", "resume", "evaluate_only"):
        flags.pop(elsewhere, None)
    return train, remaining(mnist_train, train), test, flags


@contextlib.contextmanager
def memory_for(flags):
    """Turns the many errors of a device without enough memory into a RunError that names the `flags` to lower."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not isinstance(error, MemoryError) and not OUT_OF_MEMORY.search(str(error)):
            raise
        raise RunError(f"out of memory; lower {flags}") from None


def run(main):
    """Runs a script's main function and turns what can go wrong into one line and an exit status.

    0: done; 1: a fault befell the run; 2: refused before any work; 130 and 143: stopped by SIGINT, by SIGTERM.
    """
    name = Path(sys.argv[0]).name

    def interrupt(number, frame):
        raise Interrupted(number)

    def unraisable(what):
        if not isinstance(what.exc_value, Interrupted):
            sys.__unraisablehook__(what)
            return
        # It came within a destructor or the like, whose exceptions Python drops: the signal is sent once more.
        threading.Timer(0.05, os.kill, (os.getpid(), what.exc_value.number)).start()

    sys.unraisablehook = unraisable
    for number in INTERRUPTS:
        signal.signal(number, interrupt)
    try:
        with memory_for("--batch-size or --train-size"):
            main()
    except InputError as error:
        print(f"{name}: error: {one_line(error)}", file=sys.stderr)
        sys.exit(1 if isinstance(error, RunError) else 2)
    except Interrupted as stop:
        print(f"{name}: {stop}", file=sys.stderr)
        sys.exit(128 + stop.number)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
