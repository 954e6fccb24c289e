"""Decides whether a run begins, resumes or is refused, by the files in its directories; `run.Run` then restores it."""

import re
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

from runtime.checkpoint import IDENTITY, LOCK, TASKS, exclusive_lock, invalid_contents, load_json
from runtime.config import PORTABLE, InputError, differences, image_differences, portable_settings
from runtime.distributed import rank, restarted
from runtime.learners import LENGTHENED, saved_epochs

WITHOUT_SUMMARY = ("history.csv", "training_curves.png")  # results that are there before an evaluation begins
BEGIN_ANEW = "other --checkpoint-dir and --results-dir keep its files, --overwrite removes them and begins anew"

NUMBERED = re.compile("_(epoch|state)[_.]")  # names that end as OURS do; others are the user's own
OURS = re.compile(r"_(epoch_\d+\.(pt|png)|state(_\d+(_rows_\d+_of_\d+)?\.pt|\.json))$")


class Owned(NamedTuple):
    """The files that a script writes: they tell what a directory holds, and --overwrite removes them."""

    learners: tuple  # what can be trained, classes, in their order; they name states and checkpoints
    results: tuple  # patterns, in the results directory
    summary: str  # the file in the results directory that a run writes last, with its settings
    page: str = ""  # the file in the results directory to open first
    checkpoints: tuple = ("state*", "epoch_*.pt")  # patterns, in the checkpoint directory, after a learner's prefix
    evaluates: bool = True  # whether an evaluation keeps results of tasks beside `results`
    extendable: bool = True  # whether a run can be continued for more epochs: none of its schedules depends on them

    def trained(self, settings):
        """The learners of a run with these settings: those that `methods` names, or all."""
        names = settings.get("methods", "").split() or [learner.name for learner in self.learners]
        return [learner for learner in self.learners if learner.name in names]

    def files(self, run_config):
        """The files that are there, states first: without them there is nothing to continue.

        Raises InputError if one of them is a directory, or a file in the place of one.
        """
        checkpoints = [f"{learner.prefix}_{kind}" for kind in self.checkpoints for learner in self.learners]
        paths = [*_ours(run_config.checkpoint_dir, checkpoints), *self.results_in(run_config)]
        if directories := [path for path in paths if path.is_dir()]:
            raise InputError(f"{directories[0]}: a directory, where a run has a file")
        if self.evaluates:
            paths.append(Path(run_config.results_dir) / TASKS / IDENTITY)
            if paths[-1].parent.is_file():
                raise InputError(f"{paths[-1].parent}: a file, where a run has a directory")
        return [path for path in paths if path.is_file()]

    def results_in(self, run_config):
        """What is there of `results`, without the user's own files."""
        return _ours(run_config.results_dir, self.results)


def _ours(directory, patterns):
    paths = [path for name in patterns for path in sorted(Path(directory).glob(name))]
    return [path for path in paths if not NUMBERED.search(path.name) or OURS.search(path.name)]


def state_files(directory, prefix, epoch="[0-9]+"):
    """The files of tensors of a learner's states, after an epoch or all; files of the user's own are not among them."""
    name = re.compile(rf"{re.escape(prefix)}_state_{epoch}(_rows_[0-9]+_of_[0-9]+)?\.pt")
    return [path for path in Path(directory).glob(f"{prefix}_state_*.pt") if name.fullmatch(path.name)]


class Plan(NamedTuple):
    """How a run goes on in its directories."""

    states: dict  # {prefix: the contents of `{prefix}_state.json`}; empty for a new run
    remove: list  # files of another run, or of an epoch that was not finished
    lengthened: bool = False  # the run was shorter when it began
    finished: bool = False  # nothing is left to do
    moved: str = ""  # in words, the settings of the machine that have changed


def refuse_used(run_config):
    """Raises InputError if another run has locked a directory of the RunConfig; needs no right to write there."""
    for directory in (run_config.checkpoint_dir, run_config.results_dir) if rank() == 0 else ():
        with suppress(OSError):
            if (Path(directory) / LOCK).exists():
                with exclusive_lock(directory):
                    pass


def plan_run(run_config, settings, *, owned, scoring=None):
    """The Plan of a run with these settings; reads the directories and changes nothing.

    settings: a dict of plain values, all that decides the training, with Data.digest as "images"; scoring: the
    EvalConfig as a dict. Raises InputError if the directories hold anything else that --overwrite is not to remove.
    """
    directory, summary = Path(run_config.checkpoint_dir), Path(run_config.results_dir) / owned.summary
    if run_config.overwrite and run_config.resume:
        raise InputError("--overwrite: not together with --resume, it would remove the run that is to continue")
    files, first_states = owned.files(run_config), tuple(f"{learner.prefix}_state_" for learner in owned.learners)
    # The run begins, too, where a first state was never finished.
    if (run_config.overwrite and not restarted()) or all(path.name.startswith(first_states) for path in files):
        return Plan({}, files)

    paths = {learner.prefix: directory / f"{learner.prefix}_state.json" for learner in owned.learners}
    states = {prefix: _load_state(path, prefix) for prefix, path in paths.items() if path.exists()}
    known = [(paths[prefix], state["settings"]) for prefix, state in states.items()]
    finished = load_json(summary) if summary.exists() else None
    identity, interrupted = _interrupted_evaluation(run_config, owned)
    path, results = (summary, finished) if finished else (identity, interrupted)
    if results:
        with invalid_contents(path):
            known.append((path, dict(results.get("settings", {}))))
    if not known:
        raise InputError(f"{files[0]}: of another run, which cannot be continued; {BEGIN_ANEW}")
    shortest = _check_settings(known, settings, owned, run_config.data_dir)

    if not states:
        raise InputError(f"{summary}: of a run whose checkpoints are not in {directory}; {BEGIN_ANEW}")
    epochs_of = {prefix: state["epoch"] for prefix, state in states.items()}
    trained = all(epochs_of.get(learner.prefix) == settings["epochs"] for learner in owned.trained(settings))
    if trained and finished and _scores_the_end(finished, settings):
        if text := differences(finished.get("eval_config", {}), scoring or {}, but=PORTABLE):
            raise InputError(
                f"{summary}: this run is finished ({text}); these flags with --evaluate-only score it again"
            )
        killed_at_its_end = all(finished.get(name) == value for name, value in interrupted.items() if name != "files")
        return Plan(states, [identity] if interrupted and killed_at_its_end else [], finished=True)
    if not (run_config.resume or (restarted() and shortest == settings["epochs"])):
        kind = "an interrupted run of the same settings, which --resume continues"
        if trained:
            scores = (
                "--evaluate-only scores, and --resume scores and finishes" if owned.extendable else "--resume finishes"
            )
            kind = f"a trained run of the same settings, which {scores}"
        if shortest < settings["epochs"]:
            kind = f"a run of {shortest} epochs, which --resume lengthens"
        elif fewer := [others["methods"] for _, others in known if others.get("methods") != settings.get("methods")]:
            kind = f"a run of --methods {fewer[0]}, to which --resume adds the others"
        raise InputError(f"{known[0][0]}: of {kind}; {BEGIN_ANEW}")
    unfinished, sharded = [], {learner.prefix for learner in owned.learners if learner.sharded}
    for prefix, epoch in epochs_of.items():
        ranks = states[prefix]["ranks"] if prefix in sharded else 0
        parts = [f"state_{epoch}", *(f"state_{epoch}_rows_{number}_of_{ranks}" for number in range(ranks))]
        if "epoch_*.pt" in owned.checkpoints:  # that of the last epoch is written again
            parts += [f"epoch_{early}" for early in saved_epochs(settings["epochs"]) if early < epoch]
        for part in parts:
            if not (path := directory / f"{prefix}_{part}.pt").exists():
                raise InputError(f"{path}: no such checkpoint, so that the run cannot be continued; {BEGIN_ANEW}")
        unfinished += set(state_files(directory, prefix)) - set(state_files(directory, prefix, epoch))
    there = [*states.values()][-1]["settings"]
    there = {
        name: there[name] for name in portable_settings(there.get("images"), settings.get("images")) if name in there
    }
    lengthened = shortest < settings["epochs"] or any(LENGTHENED in state for state in states.values())
    return Plan(states, unfinished, lengthened=lengthened, moved=differences(there, settings))


def _check_settings(known, settings, owned, data_dir):
    """The fewest epochs of runs whose settings are known, [(path, settings)]. Raises InputError for other settings."""
    source = f"--dataset {settings.get('dataset')}, --data-dir {data_dir}"
    settings = dict(settings)
    images = settings.pop("images", None)
    for path, others in known:
        if absent := [name for name in settings if name not in others]:
            raise InputError(f"{path}: of a run without the settings {', '.join(absent)}; {BEGIN_ANEW}")
        same_source = all(others[name] == settings[name] for name in ("dataset", "resize") if name in settings)
        if same_source and (text := image_differences(others.get("images"), images)):
            raise InputError(f"{source}: not the images of the run in {path} ({text}); {BEGIN_ANEW}")
        if owned.extendable:  # for more epochs, and by further methods
            subset = {*owned.trained(others)} <= {*owned.trained(settings)}
            others = {**others, "epochs": settings["epochs"]} | ({"methods": settings.get("methods")} if subset else {})
        if text := differences(others, settings, but=portable_settings(others.get("images"), images)):
            raise InputError(f"{path}: of another run ({text}); its flags and --resume continue it; {BEGIN_ANEW}")
    epochs = [others["epochs"] for _, others in known]
    if max(epochs) > settings["epochs"]:
        longer = f"of a longer run, of {max(epochs)} epochs, which its flags and --resume continue"
        raise InputError(f"{known[0][0]}: {longer}; {BEGIN_ANEW}")
    return min(epochs)


def _load_state(path, prefix):
    state = load_json(path)
    with invalid_contents(path):
        known = state["prefix"] == prefix and len(state["history"]) == state["epoch"] <= state["settings"]["epochs"]
        if not known or state["ranks"] < 1:
            raise ValueError
    return state


def _scores_the_end(summary, settings):
    """Whether the contents of a summary are of the last epoch and of all methods of a run with these settings."""
    epoch, same = summary.get("scored_epoch", settings["epochs"]), ("epochs", "methods")
    if LENGTHENED in summary or epoch != settings["epochs"]:
        return False
    return all(summary["settings"].get(name) == settings.get(name) for name in same)


def _interrupted_evaluation(run_config, owned):
    """The path and the contents of the file that says whose the kept results of tasks are; {} if there is none."""
    path = Path(run_config.results_dir) / TASKS / IDENTITY
    with suppress(InputError):
        return path, load_json(path) if owned.evaluates else {}
    return path, {}


def plan_evaluation(run_config, config, *, owned, epoch, methods):
    """The training seconds that the summary of these checkpoints knows, and the results of others, to be removed.

    config: the TrainConfig of the checkpoints; epoch: the one that is scored; methods: the names of those that are.
    Without a summary, the identity of an interrupted evaluation says whose the results are. Raises InputError if they
    are of another run, of one that is not known, or by the summary of another epoch or of further methods.
    """
    owned.files(run_config)  # refuses directories in the place of files
    path = Path(run_config.results_dir) / owned.summary
    try:
        earlier = load_json(path)
    except InputError:  # no summary, or none that can be read
        known = (owned.summary, *WITHOUT_SUMMARY)
        unknown = [other for other in owned.results_in(run_config) if other.name not in known]
        path, earlier = _interrupted_evaluation(run_config, owned)
        if not earlier and unknown and not run_config.overwrite:
            reason = f"of a run whose {owned.summary} is missing or damaged"
            raise InputError(f"{unknown[0]}: {reason}; {BEGIN_ANEW}") from None
        if not earlier:
            return {}, unknown
    # One of an older version lacks the settings that are new.
    with invalid_contents(path):
        trained = {**asdict(type(config)()), **earlier.get("train_config", {})}
        trained |= {name: getattr(config, name) for name in PORTABLE if name in trained}
        scored = earlier.get("settings", {}).get("methods", "")
        same = earlier.get("scored_epoch", epoch) == epoch and {*scored.split()} <= {*methods}
        if trained == asdict(config) and (same or run_config.overwrite or path.name == IDENTITY):
            return dict(earlier["seconds"]["training"]) if "seconds" in earlier else {}, []
    if trained == asdict(config):
        there = f"its scores are of epoch {earlier.get('scored_epoch', epoch)} and --methods {scored}"
        raise InputError(f"{path}: {there}; another --results-dir keeps them, --overwrite replaces them")
    if not run_config.overwrite:
        others = differences(trained, asdict(config)) or "of another version"
        raise InputError(f"{path}: of another run ({others}); {BEGIN_ANEW}")
    return {}, owned.results_in(run_config)
