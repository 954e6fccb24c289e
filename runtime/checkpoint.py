"""Files that appear whole or not at all and cannot run code; directories locked by one run; runs to resume."""

import contextlib
import csv
import json
import os
import pickle
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from runtime.config import InputError, differences

try:
    import fcntl
except ImportError:  # Windows: nothing is locked there
    fcntl = None

PARTIAL = ".vae-partial"  # ends the name of a file that is being written; only this program uses it


class RunError(InputError):
    """An InputError that arises after the work has begun."""


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
        os.replace(tmp_path, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            tmp_path.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise RunError(f"{path}: cannot be written ({error.strerror or error})") from None
        raise


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
    """Reads a dict that `save_checkpoint` wrote. Raises InputError if the file is missing, damaged or foreign.

    It unpickles only tensors and plain values: it refuses a file that would run code.
    """
    try:
        file = open(path, "rb")  # noqa: SIM115, closed below
    except FileNotFoundError:
        raise InputError(f"{path}: no such checkpoint") from None
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from None
    with file:
        try:
            checkpoint = torch.load(file, map_location=device, weights_only=True)
        except pickle.UnpicklingError:
            raise InputError(f"{path}: refused, it holds more than tensors and plain values") from None
        except Exception:  # no list says what a damaged file makes torch.load raise
            raise InputError(f"{path}: not a checkpoint, or damaged") from None
    if not isinstance(checkpoint, dict):
        raise InputError(f"{path}: not a checkpoint of this program")
    return checkpoint


def save_array(path, array):
    """Writes a NumPy array as .npy, without pickle. Raises RunError if it cannot be written."""
    with atomic_write(path) as tmp_path, open(tmp_path, "wb") as file:
        np.save(file, array, allow_pickle=False)


def load_json(path):
    """Reads a dict that `save_json` wrote. Raises InputError if the file is missing, damaged or foreign."""
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
    """Writes indented JSON in the order given. Raises RunError if it cannot be written."""
    with atomic_write(path) as tmp_path:
        tmp_path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def save_csv(path, rows):
    """Writes a non-empty list of dicts with the same keys; floats keep all digits. Raises RunError if it cannot."""
    with atomic_write(path) as tmp_path, open(tmp_path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def save_figure(path, figure):
    """Writes a matplotlib Figure as PNG. Raises RunError if it cannot be written."""
    with atomic_write(path) as tmp_path:
        figure.savefig(tmp_path, format="png")


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
            with contextlib.suppress(OSError):
                directory.rmdir()
        raise


@contextmanager
def exclusive_lock(directory, *, wait=False):
    """Locks an existing directory for this process; the operating system frees it when the process ends in any way.

    wait: until no other process has it; else raises BlockingIOError if one has.
    """
    if fcntl is None:
        yield
        return
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield
    finally:
        os.close(descriptor)


@contextmanager
def directory_lock(*directories, check_only=False):
    """Makes and locks the directories, and removes half-written files of killed runs from them.

    check_only: makes none, and locks those that are there: no other run uses one that is not. Raises InputError if
    another run has locked one of them, or if one cannot be written to; then it makes nothing.
    """
    if check_only:
        directories = [directory for directory in directories if Path(directory).exists()]
    with contextlib.ExitStack() as stack:
        for directory in dict.fromkeys(Path(os.path.realpath(directory)) for directory in directories):
            try:
                stack.enter_context(new_directory(directory))
                stack.enter_context(exclusive_lock(directory))
            except BlockingIOError:
                raise InputError(f"{directory}: in use by another run") from None
            except OSError as error:
                raise InputError(f"{directory}: cannot be written to ({error.strerror or error})") from None
            for partial in directory.glob(f".*{PARTIAL}"):
                with contextlib.suppress(OSError):
                    partial.unlink()
        yield


@contextmanager
def invalid_contents(path):
    """Turns what damaged or foreign contents of a file raise into an InputError."""
    try:
        yield
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError):
        raise InputError(f"{path}: its contents do not fit this program") from None


class Run(NamedTuple):
    """One run of a script, however often it is interrupted and resumed."""

    settings: dict  # flat, of plain values: everything that decides its result
    states: dict  # {prefix: what `save_state` wrote last}; empty for a new run


@contextmanager
def locked_run(run_config, *, settings, prefixes, summary, check_only=False):
    """Yields the Run of `find_run`, with the directories of the RunConfig locked; finishes it if all goes well.

    summary: name of the file in the results directory; check_only: of `directory_lock`, and the run is not finished.
    """
    directory, path = run_config.checkpoint_dir, Path(run_config.results_dir) / summary
    with directory_lock(directory, run_config.results_dir, check_only=check_only):
        known = {"settings": settings, "prefixes": prefixes, "checkpoint_dir": directory, "summary": path}
        yield find_run(resume=run_config.resume, **known)
        if not check_only:
            finish_run(prefixes=prefixes, checkpoint_dir=directory)


def find_run(*, resume, settings, prefixes, checkpoint_dir, summary):
    """The Run to begin or, with `resume`, to continue; None if the latter is already finished.

    prefixes: of the state files `{prefix}_state.pt`, in the order in which they are first written; summary: path of the
    JSON file that a run writes last, with its settings. A new run leaves an earlier run's state alone until its own
    first epoch replaces it. Raises InputError if the settings are not those of the run to be resumed, or if a state
    cannot be read.
    """
    paths = {prefix: state_path(checkpoint_dir, prefix) for prefix in prefixes}
    first, new = paths[prefixes[0]], Run(settings, states={})
    if not resume:
        if first.exists():
            text = "of an interrupted run, which --resume would continue; this new run will replace it"
            print(f"{first}: {text}", flush=True)
        with contextlib.suppress(InputError):  # no summary, or none that can be read
            if others := differences(load_json(summary).get("settings", {}), settings):
                print(f"{summary}: of another run ({others}), whose files stay until replaced", flush=True)
        return new
    if first.exists():
        states = {prefix: _load_state(path) for prefix, path in paths.items() if path.exists()}
        _refuse_other_settings(first, states[prefixes[0]]["settings"], settings)
        # A state is a function of the settings: one of equal settings may be of an earlier run and still be right.
        return Run(settings, {prefix: state for prefix, state in states.items() if state["settings"] == settings})
    if not Path(summary).exists():
        print("nothing to resume: the run begins", flush=True)
        return new
    _refuse_other_settings(summary, load_json(summary).get("settings", {}), settings)
    finish_run(prefixes=prefixes, checkpoint_dir=checkpoint_dir)
    print(f"{summary}: this run is finished, nothing to resume")
    return None


def finish_run(*, prefixes, checkpoint_dir):
    """Removes the state files, the first one first: without it there is nothing to resume."""
    for prefix in prefixes:
        state_path(checkpoint_dir, prefix).unlink(missing_ok=True)


def state_path(checkpoint_dir, prefix):
    """The path of the state file with this prefix."""
    return Path(checkpoint_dir) / f"{prefix}_state.pt"


def save_state(state, *, run, prefix, checkpoint_dir):
    """Writes what continues `run`, {"history", "state"} after its last epoch; replaces that of the epoch before."""
    save_checkpoint(state_path(checkpoint_dir, prefix), {"settings": run.settings, "prefix": prefix, **state})


def restore(*, run, prefix, load_state_dict):
    """Passes the saved state to `load_state_dict` and returns the history so far; [] if there is no saved state.

    Raises InputError if `load_state_dict` cannot use the state.
    """
    if (saved := run.states.pop(prefix, None)) is None:
        return []
    with invalid_contents(f"{prefix}_state.pt"):
        load_state_dict(saved["state"])
    print(f"{prefix}: resumed after epoch {len(saved['history'])}", flush=True)
    return saved["history"]


def _load_state(path):
    saved = load_checkpoint(path)
    if not {"settings", "history", "state"} <= set(saved) or f"{saved.get('prefix')}_state.pt" != path.name:
        raise InputError(f"{path}: not the state of this run")
    return saved


def _refuse_other_settings(path, there, here):
    """Raises InputError unless `there`, which `path` holds, has all settings of `here` with the same values."""
    if absent := [name for name in here if name not in there]:
        raise InputError(f"{path}: cannot be resumed, it lacks the settings {', '.join(absent)}")
    if others := differences(there, here):
        raise InputError(f"{path}: cannot be resumed under other flags: {others}")
