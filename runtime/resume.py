"""One run of a script, however often it is interrupted: whose directories these are, and the states to continue from.

After every epoch, each rank writes its own rows of what is sharded and rank 0 all else, side by side; then rank 0
replaces `{prefix}_state.json`, which names the epoch that counts. The files are those of torch.save, not of
torch.distributed.checkpoint, which unpickles whatever a file holds (also in PyTorch 2.14): no file may run code.
"""

from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import NamedTuple

import torch

from runtime.checkpoint import (
    InputError,
    directory_lock,
    invalid_contents,
    load_checkpoint,
    load_json,
    save_checkpoint,
    save_json,
)
from runtime.config import differences
from runtime.distributed import barrier, broadcast, own_rows, rank, restarted, size

BEGIN_ANEW = "--overwrite removes its files and begins anew, other --checkpoint-dir and --results-dir keep them"


class Owned(NamedTuple):
    """What a script writes: it tells whose the files in a directory are, and which --overwrite removes."""

    prefixes: tuple  # of the state files, in the order in which they are first written
    checkpoints: tuple  # patterns, in the checkpoint directory
    results: tuple  # patterns, in the results directory
    summary: str  # the file in the results directory that a run writes last, with its settings
    extendable: bool = True  # whether a run can be continued for more epochs: none of its schedules depends on them

    def files(self, run_config):
        """The files that are there, states first: without them there is nothing to continue."""
        states = [f"{prefix}_state*" for prefix in self.prefixes]
        parts = (run_config.checkpoint_dir, (*states, *self.checkpoints)), (run_config.results_dir, self.results)
        found = (path for folder, names in parts for name in names for path in sorted(Path(folder).glob(name)))
        return [path for path in found if path.is_file()]


class Run(NamedTuple):
    """A run to begin or to continue."""

    settings: dict  # flat, of plain values: everything that decides the training
    checkpoint_dir: str
    states: dict  # {prefix: the contents of `{prefix}_state.json`}; empty for a new run
    lengthened: bool = False  # whether the run was shorter when it began


@contextmanager
def lock(run_config, *, check_only=False):
    """Locks the directories of the RunConfig, for all ranks of one run."""
    options = {"check_only": check_only}
    with directory_lock(run_config.checkpoint_dir, run_config.results_dir, **options) if rank() == 0 else nullcontext():
        barrier()
        yield


@contextmanager
def locked_run(run_config, *, settings, owned, scoring=None, check_only=False):
    """Yields the Run of `find_run`, or None if it is finished, with its directories locked."""
    with lock(run_config, check_only=check_only):
        options = {"owned": owned, "scoring": scoring or {}, "check_only": check_only}
        yield broadcast(find_run(run_config, settings, **options) if rank() == 0 else None)


def find_run(run_config, settings, *, owned, scoring, check_only=False):
    """The Run to begin or, with --resume, to continue; None if it is finished.

    settings: of the training; scoring: of the evaluation. A run that differs in its epochs alone is lengthened. Raises
    InputError if the directories hold anything else, unless --overwrite is given: then it is removed.
    """
    directory, summary = run_config.checkpoint_dir, Path(run_config.results_dir) / owned.summary
    new, files = Run(settings, directory, states={}), owned.files(run_config)
    if run_config.overwrite and run_config.resume:
        raise InputError("--overwrite: not together with --resume, it would remove the run that is to continue")
    if run_config.overwrite and not restarted():
        for path in () if check_only else files:
            path.unlink(missing_ok=True)
        return new
    paths = {prefix: Path(directory) / f"{prefix}_state.json" for prefix in owned.prefixes}
    states = {prefix: _load_state(path, prefix) for prefix, path in paths.items() if path.exists()}
    finished = load_json(summary) if summary.exists() else None
    partial = [path for path in files if path.name.startswith(tuple(f"{prefix}_state_" for prefix in owned.prefixes))]
    if partial == files:  # nothing, or what a run has left that was killed while it wrote its first state
        for path in () if check_only else partial:
            path.unlink(missing_ok=True)
        if run_config.resume:
            print("nothing to resume: the run begins", flush=True)
        return new
    there = [(paths[prefix], state["settings"]) for prefix, state in states.items()]
    if finished is not None:  # perhaps of an evaluation on another device
        there.append((summary, {**finished.get("settings", {}), "device": settings.get("device")}))
    if not there:
        raise InputError(f"{files[0]}: of another run, which cannot be continued; {BEGIN_ANEW}")
    for path, others in there:
        if absent := [name for name in settings if name not in others]:
            raise InputError(f"{path}: of a run without the settings {', '.join(absent)}; {BEGIN_ANEW}")
        but_for_epochs = {**others, "epochs": settings["epochs"]} if owned.extendable else others
        if text := differences(but_for_epochs, settings):
            raise InputError(f"{path}: of another run ({text}); {BEGIN_ANEW}")
    epochs = [others["epochs"] for _, others in there]
    if max(epochs) > settings["epochs"]:
        raise InputError(f"{there[0][0]}: of a longer run, of {max(epochs)} epochs; {BEGIN_ANEW}")
    if not states:
        raise InputError(f"{summary}: of a run whose checkpoints are not in {directory}; {BEGIN_ANEW}")
    trained = all(prefix in states and states[prefix]["epoch"] == settings["epochs"] for prefix in owned.prefixes)
    if finished is not None and finished["settings"]["epochs"] == settings["epochs"] and trained:
        if text := differences(finished.get("eval_config", {}), scoring):
            raise InputError(f"{summary}: this run is finished ({text}); --evaluate-only scores it with other counts")
        print(f"{summary}: this run is finished, there is nothing to do", flush=True)
        return None
    if not (run_config.resume or (restarted() and min(epochs) == settings["epochs"])):
        kind = f"a run of {min(epochs)} epochs, which --resume lengthens" if min(epochs) < settings["epochs"] else None
        kind = kind or "an interrupted run of the same settings, which --resume continues"
        raise InputError(f"{there[0][0]}: of {kind}; {BEGIN_ANEW}")
    for prefix, state in states.items():  # of an epoch that was not finished
        for path in () if check_only else Path(directory).glob(f"{prefix}_state_*.pt"):
            if not path.name.startswith((f"{prefix}_state_{state['epoch']}.", f"{prefix}_state_{state['epoch']}_")):
                path.unlink(missing_ok=True)
    return Run(settings, directory, states, lengthened=min(epochs) < settings["epochs"])


def _load_state(path, prefix):
    state = load_json(path)
    with invalid_contents(path):
        known = state["prefix"] == prefix and len(state["history"]) == state["epoch"] <= state["settings"]["epochs"]
        if not known or state["ranks"] < 1 or not isinstance(state["rows"], list):
            raise ValueError
    return state


def _path(run, prefix, epoch, part=""):
    return Path(run.checkpoint_dir) / f"{prefix}_state_{epoch}{part}.pt"


def save_state(state, rows, *, history, run, prefix):
    """Writes what continues the run after its last epoch; replaces the state of the epoch before.

    state: a dict that is the same on all ranks; rows: {name: this rank's `own_rows` of a tensor}, may be empty.
    """
    epoch = len(history)
    if rank() == 0:
        save_checkpoint(_path(run, prefix, epoch), state)
    if rows:
        save_checkpoint(_path(run, prefix, epoch, f"_rows_{rank()}_of_{size()}"), rows)
    barrier()
    if rank() == 0:
        known = {"prefix": prefix, "epoch": epoch, "ranks": size(), "rows": sorted(rows)}
        known |= {"settings": run.settings, "history": history}
        save_json(Path(run.checkpoint_dir) / f"{prefix}_state.json", known)
        for path in Path(run.checkpoint_dir).glob(f"{prefix}_state_{epoch - 1}[._]*"):
            path.unlink(missing_ok=True)


def restore(*, run, prefix, count, load_state_dict):
    """Passes the saved state and this rank's rows, of `count`, to `load_state_dict`, and returns the history so far.

    Any number of ranks may have written them. Returns [] if there is no saved state. Raises InputError if it is
    unreadable, or if `load_state_dict` cannot use it.
    """
    if (saved := run.states.get(prefix)) is None:
        return []
    epoch, ranks = saved["epoch"], saved["ranks"]
    path = _path(run, prefix, epoch)
    state, rows = load_checkpoint(path), {}
    for other in range(ranks) if saved["rows"] else ():
        if ranks != size() or other == rank():
            part = load_checkpoint(_path(run, prefix, epoch, f"_rows_{other}_of_{ranks}"))
            with invalid_contents(path):
                _take_rows(part, rows, range(other, count, ranks), count)
    with invalid_contents(path):
        load_state_dict(state, rows)
    print(f"{prefix}: resumed after epoch {epoch}", flush=True)
    return saved["history"]


def _take_rows(part, rows, there, count):
    """Copies what this rank needs of a file's tensors, which hold the rows `there` (a range) of `count`, to `rows`."""
    there, own = torch.tensor(there, dtype=torch.int64), own_rows(count)
    mine = there % size() == rank()
    for name, values in part.items():
        rows.setdefault(name, values.new_zeros(len(own), *values.shape[1:]))
        rows[name][there[mine] // size()] = values[mine]
