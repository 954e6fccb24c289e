"""The command line: flags made from the fields of a config, one-line errors, exit statuses."""

import difflib
import errno
import glob
import os
import re
import sys
import threading
import traceback
from argparse import SUPPRESS, ArgumentParser, HelpFormatter
from contextlib import contextmanager, suppress
from dataclasses import fields, replace
from functools import partial
from pathlib import Path

from joblib import cpu_count

from runtime.config import InputError, RunError, choose_device, choose_precision, flag, use_exact_kernels
from runtime.distributed import finish, first_to_stop, rank, size, start
from runtime.progress import Interrupted, signals_handled
from runtime.tasks import THREAD

# Errors of a lack of memory, in the words of CUDA and MPS, of the CPU, of CUDA's libraries, and of oneDNN.
MEMORY = re.compile("out of memory|can't allocate memory|ALLOC_FAILED|could not create a (primitive$|memory)|bad_alloc")


class Parser(ArgumentParser):
    """An ArgumentParser without abbreviations, whose errors are one line on stderr and exit status 2."""

    def __init__(self, **keywords):
        super().__init__(formatter_class=partial(HelpFormatter, max_help_position=34), allow_abbrev=False, **keywords)
        self._negative_number_matcher = re.compile(r"-(\d+\.?\d*|\.\d+)(e[+-]?\d+)?$|-inf$", re.IGNORECASE)  # 1e-3, too

    def parse_args(self, args=None, namespace=None):
        """Parses like its base class; its error for unknown flags names the most similar ones."""
        parsed, unknown = self.parse_known_args(args, namespace)
        if unknown:
            names = [text.split("=")[0].lower() for text in unknown if text.startswith("-")]
            known = self._option_string_actions
            near = [match for name in names for match in difflib.get_close_matches(name, known, n=1, cutoff=0.7)]
            hint = f" (did you mean {', '.join(dict.fromkeys(near))}?)" if near else ""
            self.error(f"unrecognized arguments: {' '.join(unknown)}{hint}")
        return parsed

    def error(self, message):
        self.exit(2, None if rank() else f"{self.prog}: error: {one_line(message)}\n")


def add_flags(parser, config_class, title, *, skip=()):
    """Adds a flag for each field of a dataclass of config.py, unless `skip` names it or the parser has it already.

    title: of the group of flags. The parsed namespace holds only the flags that the user gave.
    """
    known = {action.dest for action in parser._actions}
    entries = [entry for entry in fields(config_class) if entry.name not in known and entry.name not in skip]
    scaled = any(entry.metadata["least"] is not None for entry in entries)
    group = parser.add_argument_group(title, "(*) smaller in proportion after a shorter training" if scaled else None)
    for entry in entries:
        if entry.type is bool:
            keywords = {"action": "store_true"}
        elif entry.metadata["choices"]:
            keywords = {"choices": entry.metadata["choices"]}
        else:
            metavar = {int: "N", float: "X", str: "DIR" if entry.name.endswith("_dir") else "NAME"}[entry.type]
            keywords = {"type": entry.type, "metavar": metavar}
        text = entry.metadata["help"].replace("%", "%%") + ("" if entry.metadata["least"] is None else " (*)")
        text += "" if entry.type is bool else f" (default: {entry.default})"
        group.add_argument(flag(entry.name), help=text, default=SUPPRESS, **keywords)


def make_config(config_class, namespace):
    """Returns the config with the given flags and defaults for the rest. Raises InputError for impossible values."""
    return config_class(**{e.name: getattr(namespace, e.name) for e in fields(config_class) if e.name in namespace})


def prepare_run(run_config, config, *, written=("checkpoint_dir", "results_dir"), dataset=None):
    """Checks what can be checked before data are read. Returns (the device, `config` with its precision chosen).

    Raises InputError for a device that this machine lacks, and for a directory that cannot be written to or lies in the
    folder of the data set, by default that of the config. On CUDA float32 is then float32, and steps are deterministic.
    """
    device = choose_device(run_config.device)
    try:
        cpu_count()  # which the evaluation asks, after all training
    except ValueError:
        raise InputError(f"LOKY_MAX_CPU_COUNT {os.environ['LOKY_MAX_CPU_COUNT']!r}: not a whole number") from None
    dataset = dataset or config.dataset
    folder = os.path.expanduser(dataset.partition("folder:")[2])
    inside = glob.escape(folder)
    roots = [folder, *glob.glob(f"{inside}/*/"), *glob.glob(f"{inside}/*/*/")] if folder else []  # or links
    for name in written:
        path = Path(getattr(run_config, name))
        try:
            existing = next(parent for parent in (path, *path.absolute().parents) if os.path.lexists(parent))
            if not existing.is_dir():
                raise OSError(f"{existing} is not a directory")
            if not os.access(existing, os.W_OK | os.X_OK):
                raise OSError(f"no right to write to {existing}")
        except OSError as error:
            raise InputError(f"{flag(name)} {path}: cannot be written to ({error.strerror or error})") from None
        if any(Path(os.path.realpath(path)).is_relative_to(os.path.realpath(root)) for root in roots):
            raise InputError(f"{flag(name)} {path}: inside of --dataset {dataset}, whose folders are its classes")
    use_exact_kernels(device)
    start(device)
    return device, replace(config, precision=choose_precision(config.precision, device))


def large_flags(config, names):
    """The flags of the fields `names` of a config, and of its counts above their defaults, with their values."""
    counts = [entry for entry in fields(config) if entry.type is int and entry.name not in ("epochs", "seed")]
    large = [entry for entry in counts if entry.name in names or getattr(config, entry.name) > entry.default]
    return " or ".join(f"{flag(entry.name)} ({getattr(config, entry.name):,})" for entry in large)


@contextmanager
def out_of_memory_hint(flags):
    """Turns the errors of a device without enough memory into a RunError that names the `flags` to lower."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not isinstance(error, MemoryError) and not MEMORY.search(str(error)):
            raise
        raise RunError(f"out of memory; lower {flags}") from None


def one_line(text):
    """The text without line breaks, and without what is not UTF-8; names of files may contain both."""
    return " ".join(str(text).splitlines()).encode(errors="backslashreplace").decode()


def _at_work():
    """Whether a thread of an evaluation is there."""
    return any(thread.name.startswith(THREAD) for thread in threading.enumerate())


@signals_handled()
def run_script(main):
    """Calls the function `main` of a script; expected errors become one line on stderr and an exit status.

    0: done; 1: a RunError, or the output is a closed pipe; 2: an InputError; 130: SIGINT; 143: SIGTERM. Of several
    ranks, rank 0 alone prints, and the first one that stops says why.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None or (name == "stdout" and rank()):  # None: it was closed by who started the script
            stream = open(os.devnull, "w")  # noqa: SIM115, closed with the process
            setattr(sys, name, stream)
        if hasattr(stream, "reconfigure"):  # a console may lack characters of names
            stream.reconfigure(errors="replace")
    message = None
    try:
        with out_of_memory_hint("--batch-size or --train-size"):
            start()
            main()
            finish()
        return
    except InputError as error:
        message, status = f"error: {one_line(error)}", 1 if isinstance(error, RunError) else 2
    except Interrupted as interrupted:
        message, status = interrupted, 128 + interrupted.number
    except Exception as error:
        status, number = 1, getattr(error, "errno", None)
        if number in (errno.EPIPE, errno.ENOSPC) and error.filename is None:  # of what is printed
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python's last flush fails, too
            message = f"error: output: {error.strerror}" if number == errno.ENOSPC else None
        elif size() == 1 and not _at_work():
            raise
        else:
            traceback.print_exc()
    if message and first_to_stop():
        with suppress(OSError):  # a closed pipe
            print(f"{Path(sys.argv[0]).name}: {message}", file=sys.stderr, flush=True)
    # At once: Python would wait for threads, a rank for the others. But by %run this process is the notebook's.
    if (_at_work() and "IPython" not in sys.modules) or size() > 1:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError):
                stream.flush()
        os._exit(status)
    sys.exit(status)
