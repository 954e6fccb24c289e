"""Files that appear whole or not at all, files that cannot run code, directories that belong to one run at a time."""

import contextlib
import csv
import json
import os
import pickle
import socket
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

try:
    import fcntl
except ImportError:  # not on Windows, where runs have to keep apart by themselves
    fcntl = None

PARTIAL = ".partial"  # ends the name of a file that is being written
SPARE = ".spare"  # and of one that the next write goes over
LOCK = ".lock"


class InputError(Exception):
    """Something that the user can put right; its text is the one line that the scripts print."""


class RunError(InputError):
    """The same, but it befell a run that had begun to work."""


@contextmanager
def whole_file(path, *, often=False):
    """Yields the path of a file beside `path` to write to, and renames it onto `path` on success.

    The name beside is always the same, so that what a killed run left half written is overwritten by the
    next one. On an exception the half-written file is removed and whatever stood at `path` stays. Raises RunError
    if the file cannot be written: full disk, read-only or vanished directory.

    often: the file that is replaced stays as a spare, hidden, until `hold_directories` ends, and the next one is
    written over it, for what takes the time is to find a new file room. It is then there when it is yielded, and
    has to be cut to its new length.
    """
    path = Path(path)
    beside, spare = (path.with_name(f".{path.name}{ending}") for ending in (PARTIAL, SPARE))
    try:
        if often:
            _take_spare(spare, beside)
        yield beside
        with open(beside, "rb") as written:
            os.fsync(written.fileno())
        if often:
            with contextlib.suppress(OSError):  # nothing there yet, or no second names on this file system
                os.link(path, spare)
        os.replace(beside, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise RunError(f"{path}: cannot be written ({error.strerror or error})") from None
        raise


def _take_spare(spare, beside):
    """Gives the file `spare` the name `beside`, if there is one and it has no other name to be read under."""
    with contextlib.suppress(OSError):
        if spare.stat().st_nlink == 1:
            os.replace(spare, beside)
        else:
            spare.unlink()


def save_checkpoint(path, checkpoint, *, often=False):
    """Writes a dict of tensors and plain values with torch.save, whole or not at all.

    often: for a file that is replaced again and again. It goes over the file before the last (see `whole_file`) and
    has no checksums, which zip programs miss and torch.load does not look at.
    """
    with whole_file(path, often=often) as beside, _checksums(not often), _opened(beside) as file:
        try:
            torch.save(checkpoint, file)
        except RuntimeError as error:
            # torch.save closes its archive even after the file has failed, and that error hides the first one.
            raise (error.__context__ or error) from None
        file.truncate()


def _opened(path):
    """The file to write to from its beginning, over what is there."""
    return open(path, "r+b" if path.exists() else "wb")


@contextmanager
def _checksums(wanted):
    """Sets whether torch.save computes CRC-32 sums, where this PyTorch leaves the choice."""
    if wanted or not hasattr(torch.serialization, "set_crc32_options"):
        yield
        return
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        yield
    finally:
        torch.serialization.set_crc32_options(before)


def load_checkpoint(path, *, device="cpu"):
    """Reads a dict that `save_checkpoint` wrote. Raises InputError for a file that is missing, damaged or foreign.

    Only tensors and plain values are unpickled (`weights_only=True`): a file that would run code is refused.
    """
    try:
        checkpoint = torch.load(path, map_location=device, weights_only=True)
    except FileNotFoundError:
        raise InputError(f"{path}: no such checkpoint") from None
    except pickle.UnpicklingError:
        raise InputError(f"{path}: refused, it holds more than tensors and plain values") from None
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from None
    except Exception:  # torch.load has no closed list of what a damaged file makes it raise
        raise InputError(f"{path}: not a checkpoint, or damaged") from None
    if not isinstance(checkpoint, dict):
        raise InputError(f"{path}: not a checkpoint of this program")
    return checkpoint


def save_array(path, array):
    """Writes a NumPy array as .npy, without pickle."""
    with whole_file(path) as beside, open(beside, "wb") as file:
        np.save(file, array, allow_pickle=False)


def load_array(path):
    """Reads a .npy file. Raises InputError if it is missing, damaged, or holds objects, which would run code."""
    try:
        return np.load(path, allow_pickle=False)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from None
    except (ValueError, EOFError):
        raise InputError(f"{path}: refused, it is damaged or holds more than numbers") from None


def load_json(path):
    """Reads a dict that `save_json` wrote. Raises InputError for a file that is missing, damaged or foreign."""
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from None
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise InputError(f"{path}: not a file of this program, or damaged")
    return value


def save_json(path, value):
    """Writes JSON, indented, in the order given."""
    with whole_file(path) as beside:
        beside.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def save_csv(path, rows):
    """Writes a non-empty list of dicts with the same keys as CSV; floats keep all their digits."""
    with whole_file(path) as beside, open(beside, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def save_figure(path, figure):
    """Writes a matplotlib Figure as PNG."""
    with whole_file(path) as beside:
        figure.savefig(beside, format="png")


@contextmanager
def new_directory(path):
    """Makes the directory `path`, with its parents; on an exception those that it made vanish again, if empty."""
    path = Path(path)
    missing = [directory for directory in (path, *path.parents) if not directory.exists()]
    try:
        path.mkdir(parents=True, exist_ok=True)
        yield path
    except BaseException:
        for directory in missing:
            with contextlib.suppress(OSError):
                directory.rmdir()
        raise


@contextmanager
def waiting_lock(directory):
    """Keeps other processes that ask for the same existing directory waiting; leaves no file behind."""
    descriptor = os.open(directory, os.O_RDONLY) if fcntl else None
    try:
        if fcntl:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        if fcntl:
            os.close(descriptor)


@contextmanager
def hold_directories(*directories):
    """Makes the directories, holds them for this process alone, and sweeps what a killed run left half written.

    At the end it sweeps again, so that no spare stays. The lock is the operating system's, on a hidden file, and ends
    with the process however that ends. Raises InputError if another run holds one of them, saying which, or if one
    cannot be written to; then nothing is made.
    """
    with contextlib.ExitStack() as stack:
        for directory in dict.fromkeys(Path(os.path.realpath(directory)) for directory in directories):
            try:
                stack.enter_context(new_directory(directory))
                stack.enter_context(_held(directory))
            except OSError as error:
                raise InputError(f"{directory}: cannot be written to ({error.strerror or error})") from None
            _sweep(directory)
            stack.callback(_sweep, directory)
        yield


def _sweep(directory):
    for ending in (PARTIAL, SPARE):
        for left in directory.glob(f".*{ending}"):
            with contextlib.suppress(OSError):
                left.unlink()


@contextmanager
def _held(directory):
    """Holds one directory; the hidden file says who does."""
    if fcntl is None:
        yield
        return
    path = directory / LOCK
    file = _locked(path)
    try:
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield
    finally:
        with contextlib.suppress(OSError):
            path.unlink()
        file.close()


def _locked(path):
    """Opens and locks the file; whoever finds it locked is told what its holder has written into it."""
    while True:
        file = open(path, "a+", encoding="utf-8")  # noqa: SIM115, the lock lasts as long as it is open
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            with file:
                file.seek(0)
                raise InputError(f"{path.parent}: in use by {file.read() or 'another run'}") from None
        # The holder before may have removed the file after it was opened here: then the lock is on nothing.
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
                return file
        file.close()
