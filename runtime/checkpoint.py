"""Files that appear whole or not at all and cannot run code; directories locked by one run."""

import csv
import errno
import json
import os
import pickle
import sys
import textwrap
import time
import zipfile
import zlib
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock, Timeout

from runtime.config import InputError, RunError, about, check_device
from runtime.distributed import barrier, rank

PARTIAL = ".vae-partial"  # ends the name of a file that is being written or removed; only this program uses it
LOCK = ".vae-lock"  # in a directory that a run uses
NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP}  # of a file system, such as some of clusters


def rename(path, new):
    """Renames a file, onto another one if that is there; Windows refuses it for as long as a scanner reads the file."""
    for seconds in (0.05, 0.1, 0.2, 0.4, 0.8):
        try:
            return os.replace(path, new)
        except PermissionError as error:
            if not getattr(error, "winerror", None):
                raise
            time.sleep(seconds)
    return os.replace(path, new)


@contextmanager
def atomic_write(path):
    """Yields `tmp_path`, a hidden file in the same directory, and renames it to `path` at the end.

    After an exception it is removed, and `path` is unchanged. Raises RunError if the file cannot be written.
    """
    path = Path(path)
    tmp_path = path.with_name(f".{path.name}{PARTIAL}")
    try:
        yield tmp_path
        with open(tmp_path, "r+b") as file:
            os.fsync(file.fileno())
        rename(tmp_path, path)
    except OSError as error:
        raise RunError(f"{path}: cannot be written ({error.strerror or error})") from None
    finally:
        with suppress(OSError):  # renamed, it is not there
            tmp_path.unlink()


def remove(paths):
    """Removes those of these files that are there; if one cannot be removed, none. It raises RunError then."""
    hidden = {}
    for path in filter(Path.is_file, paths):
        try:
            rename(path, hidden_path := path.with_name(f".{path.name}{PARTIAL}"))
            hidden[hidden_path] = path
        except OSError as error:  # of another user in a shared directory, or open on Windows
            for moved, before in hidden.items():
                with suppress(OSError):
                    rename(moved, before)
            raise RunError(f"{path}: cannot be removed ({error.strerror or error})") from None
    for new in hidden:
        with suppress(OSError):  # the next run removes it
            new.unlink()


def save_checkpoint(path, checkpoint):
    """Writes a dict of tensors and plain values with torch.save. Raises RunError if it cannot be written."""
    # torch.save gets an open file, not a path: a path's name would become part of the contents.
    with atomic_write(path) as tmp_path, open(tmp_path, "wb") as file:
        try:
            torch.save(checkpoint, file)
        except RuntimeError as error:
            # torch.save closes its archive even after the file has failed, and that error hides the first one.
            raise (error.__context__ or error) from None


def load_checkpoint(path, *, device="cpu"):
    """Reads a dict that `save_checkpoint` wrote: only tensors and plain values, so that no file runs code.

    Raises InputError if the file is missing, damaged or foreign, or if this machine does not have the device.
    """
    check_device(device)
    with about(path):
        try:
            with open(os.path.expanduser(path), "rb") as file, zipfile.ZipFile(file) as archive:
                # A web page or a Git LFS pointer is no archive. torch.load compares no checksums, and takes a part with
                # attributes for a directory.
                if archive.testzip() or any(part.external_attr for part in archive.infolist()):
                    raise ValueError
                file.seek(0)
                checkpoint = torch.load(file, map_location=device, weights_only=True)
        except FileNotFoundError:
            raise InputError("no such checkpoint") from None
        except pickle.UnpicklingError:
            raise InputError("refused, it holds more than tensors and plain values") from None
        except Exception as error:  # no list says what a damaged file makes torch.load raise; EINVAL by a seek
            of_machine = isinstance(error, MemoryError | OSError | torch.OutOfMemoryError)
            if of_machine and getattr(error, "errno", None) != errno.EINVAL:
                raise
            raise InputError("not a checkpoint, or damaged") from None
        if not isinstance(checkpoint, dict):
            raise InputError("not a checkpoint of this program")
    return checkpoint


def checksum_of(path):
    """The CRC-32 of a file's contents. Raises InputError if it cannot be read."""
    checksum = 0
    with about(path), open(path, "rb") as file:
        while part := file.read(2**24):
            checksum = zlib.crc32(part, checksum)
    return checksum


def load_json(path):
    """Reads a dict that `save_file` wrote. Raises InputError if the file is missing, damaged or foreign."""
    with about(path):
        try:
            value = json.loads(Path(path).read_text(encoding="utf-8"))
        except ValueError:
            value = None
        if not isinstance(value, dict):
            raise InputError("not a file of this program, or damaged")
    return value


def readable_json(path):
    """The dict that `load_json` reads; None if it is missing or damaged. InputError without the right to read it."""
    if Path(path).exists() and not os.access(path, os.R_OK):
        raise InputError(f"{path}: no right to read it")
    with suppress(InputError):
        return load_json(path)


def save_file(path, contents):
    """Writes a list of dicts as .csv, a dict as .json, a text as .html, an array as .npy, a Figure as .png.

    Floats keep all digits. Raises RunError if it cannot be written.
    """
    kind = Path(path).suffix
    with atomic_write(path) as tmp_path:
        if kind == ".png":
            contents.savefig(tmp_path, format="png")
        elif kind == ".npy":
            with open(tmp_path, "wb") as file:  # np.save would add ".npy" to a name
                np.save(file, contents, allow_pickle=False)
        elif kind == ".csv":
            with open(tmp_path, "w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, fieldnames=list(contents[0]))
                writer.writeheader()
                writer.writerows(contents)
        else:
            text = json.dumps(contents, indent=2) + "\n" if kind == ".json" else contents
            tmp_path.write_text(text, encoding="utf-8")


def write_files(directory, files):
    """Saves the pairs (name, contents) that an iterable yields into a directory; rank 0 alone goes through it."""
    for name, contents in files if rank() == 0 else ():
        save_file(Path(directory) / name, contents)


@contextmanager
def new_directory(path):
    """Makes the directory `path` and its parents; after an exception, removes those that it made and that are empty."""
    path = Path(path)
    missing = [directory for directory in (path, *path.parents) if not directory.exists()]
    try:
        path.mkdir(parents=True, exist_ok=True)
        yield path
    except BaseException:
        for directory in missing:
            with suppress(OSError):
                directory.rmdir()
        raise


@contextmanager
def exclusive_lock(directory, *, wait=False):
    """Locks an existing directory for this process; the operating system frees it when the process ends in any way.

    wait: until no other process has it, and not at all where nobody can write; else raises InputError if one has it.
    """
    if wait and not os.access(directory, os.W_OK):
        yield
        return
    # A soft lock would be another machine's for good, once its run was killed.
    lock = FileLock(Path(directory) / LOCK, fallback_to_soft=False)
    try:
        lock.acquire(timeout=-1 if wait else 0)
    except Timeout:
        raise InputError(f"{directory}: in use by another run") from None
    except (NotImplementedError, OSError) as error:  # the first from older versions of filelock
        if getattr(error, "errno", errno.ENOSYS) not in NO_LOCKS:
            raise
        if not wait:
            print(f"{directory}: its file system has no locks; let no other run use it", file=sys.stderr)
    try:
        yield
    finally:
        with suppress(OSError):  # first: whoever gets it next makes a new file; Windows removes no open one
            os.unlink(lock.lock_file)
        lock.release()


@contextmanager
def directory_lock(*directories):
    """Makes and locks the directories for all ranks, and removes half-written files of killed runs from them.

    Raises InputError if another run has locked one of them, or if one cannot be written to; then it makes nothing.
    """
    with ExitStack() as stack:
        here = directories if rank() == 0 else ()  # one rank locks for all
        for directory in {os.path.realpath(directory): Path(directory) for directory in here}.values():
            try:
                stack.enter_context(new_directory(directory))
                stack.enter_context(exclusive_lock(directory))
            except OSError as error:
                place = error.filename or directory  # such as a lock that another user has left
                raise InputError(f"{place}: cannot be written to ({error.strerror or error})") from None
            for partial in directory.glob(f".*{PARTIAL}"):
                with suppress(OSError):
                    partial.unlink()
        barrier()
        yield


@contextmanager
def invalid_contents(path):
    """Turns what a missing file, or damaged or foreign contents raise into an InputError, which says what is wrong."""
    with about(path):
        try:
            yield
        except torch.OutOfMemoryError:
            raise
        except (AttributeError, KeyError, RuntimeError, TypeError, ValueError, csv.Error) as error:
            # Of load_state_dict the first tensor of another shape, with both shapes; else the first line.
            lines = [line.strip() for line in str(error).splitlines() if not line.startswith("Error(s) in loading")]
            first = next((line for line in lines if "size mismatch" in line), "".join(lines[:1]))
            reason = f"no {error}" if isinstance(error, KeyError) else textwrap.shorten(first, 300)
            raise InputError("its contents do not fit this program" + (f" ({reason})" if reason else "")) from None
