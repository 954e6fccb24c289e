"""A run that can be interrupted and continued: which one a directory holds, and the state files that continue it."""

import contextlib
import sys
import uuid
from pathlib import Path
from typing import NamedTuple

from files import InputError, load_checkpoint, load_json, save_checkpoint


class Run(NamedTuple):
    """One run of a script, however many times it is interrupted and continued."""

    identity: str  # drawn when it begins; tells its state files from those of an earlier run in the same directory
    flags: dict  # everything that decides its result
    states: dict  # {prefix: what `save_state` wrote last}, empty if it begins


def find_run(*, resume, flags, prefixes, checkpoint_dir, summary):
    """The Run that a script is to begin or, with `resume`, to continue; None if that one is finished.

    prefixes: of the state files `{prefix}_state.pt`, in the order in which they are first written; summary: the path
    of the file that is written last, and after which the state files go. The first state file says which run is in
    the directory; a later one that belongs to another is left over, and is ignored. A run that begins leaves an
    earlier one's state alone until its own first epoch replaces it. Raises InputError if other flags are to be
    continued, or if a state cannot be read.
    """
    paths = {prefix: state_path(checkpoint_dir, prefix) for prefix in prefixes}
    first = paths[prefixes[0]]
    begun = Run(identity=uuid.uuid4().hex, flags=flags, states={})
    if not resume:
        if first.exists():
            print(
                f"{first}: of an interrupted run, which --resume would continue; this new run will replace it",
                flush=True,
            )
        with contextlib.suppress(InputError):  # nothing there, or nothing that can be read
            if others := other_flags(load_json(summary).get("config", {}), flags):
                print(f"{summary}: of another run ({others}), whose files stay until replaced", flush=True)
        return begun
    if first.exists():
        states = {prefix: _load_state(path) for prefix, path in paths.items() if path.exists()}
        identity = states[prefixes[0]]["run"]
        _refuse_other_flags(first, states[prefixes[0]]["flags"], flags)
        states = {prefix: state for prefix, state in states.items() if state["run"] == identity}
        return Run(identity=identity, flags=flags, states=states)
    if not Path(summary).exists():
        print("nothing to resume: the run begins", flush=True)
        return begun
    _refuse_other_flags(summary, load_json(summary).get("config", {}), flags)
    finish_run(prefixes=prefixes, checkpoint_dir=checkpoint_dir)
    print(f"{summary}: this run is finished, nothing to resume")
    return None


def finish_run(*, prefixes, checkpoint_dir):
    """Removes the state files, the first one first: without it there is nothing to continue."""
    for prefix in prefixes:
        state_path(checkpoint_dir, prefix).unlink(missing_ok=True)


def state_path(checkpoint_dir, prefix):
    """Where the state of a regime lies."""
    return Path(checkpoint_dir) / f"{prefix}_state.pt"


def save_state(*, run, prefix, checkpoint_dir, history, state):
    """Writes what continues `run` after the last epoch of `history`, in place of what the epoch before left."""
    content = {"run": run.identity, "flags": run.flags, "prefix": prefix, "history": history, "state": state}
    save_checkpoint(state_path(checkpoint_dir, prefix), content, often=True)


def restore(*, run, prefix, load_state_dict):
    """Hands the saved state to `load_state_dict`; returns the history so far, [] for a run that begins there."""
    saved = run.states.pop(prefix, None)
    if saved is None:
        return []
    try:
        load_state_dict(saved["state"])
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError):
        raise InputError(f"{prefix}_state.pt: its contents do not fit this program") from None
    print(f"{prefix}: resumed after epoch {len(saved['history'])}", flush=True)
    # A string that stands in several places is pickled once. So these must be the program's own strings again, or a
    # checkpoint with the same contents would have other bytes.
    return [{_own(name): _own(value) for name, value in row.items()} for row in saved["history"]]


def _own(value):
    return sys.intern(value) if isinstance(value, str) else value


def _load_state(path):
    saved = load_checkpoint(path)
    if not {"run", "flags", "history", "state"} <= set(saved) or f"{saved.get('prefix')}_state.pt" != path.name:
        raise InputError(f"{path}: not the state of this run")
    return saved


def _refuse_other_flags(path, there, here):
    """Raises InputError unless the flags `here` are those that `path` was written under."""
    if others := other_flags(there, here):
        raise InputError(f"{path}: cannot be resumed under other flags: {others}")


def other_flags(there, mine, *, here="here"):
    """In words, the flags that differ and both values; empty if none does. here: where `mine` stand."""
    return "; ".join(
        f"--{name.replace('_', '-')} {there.get(name)} there, {value} {here}"
        for name, value in mine.items()
        if there.get(name) != value
    )
