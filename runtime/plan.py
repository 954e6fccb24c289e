"""Decides whether a run begins, resumes or is refused, by the files in its directories; `run.Run` then restores it."""

from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

from runtime.checkpoint import LOCK, checksum_of, exclusive_lock, invalid_contents, load_json, readable_json
from runtime.config import PORTABLE, InputError, TrainConfig, differences, image_differences, portable_settings, source
from runtime.distributed import launch, rank
from runtime.learners import LENGTHENED, our_files, read_checkpoint, saved_epochs, state_paths
from runtime.tasks import IDENTITY, TASKS

BEGIN_ANEW = "other --checkpoint-dir and --results-dir keep its files, --overwrite removes them and begins anew"


class Owned(NamedTuple):
    """The files that a script writes: they tell what a directory holds, and --overwrite removes them."""

    learners: tuple  # what can be trained, classes, in their order; they name states and checkpoints
    results: tuple  # patterns, in the results directory
    summary: str  # the file in the results directory that a run writes last, with its settings
    page: str = ""  # the file in the results directory to open first
    checkpoint: str = "{prefix}_epoch_{epoch}.pt"  # of each learner, at the end
    evaluates: bool = True  # whether checkpoints of epochs are kept and scored by tasks; then a run can be lengthened

    def trained(self, settings):
        """The learners of a run with these settings: those that `methods` names, or all."""
        names = settings.get("methods", "").split() or [learner.name for learner in self.learners]
        return [learner for learner in self.learners if learner.name in names]

    def files(self, run_config):
        """The files that are there, states first. Raises InputError for a directory in a file's place or vice versa."""
        kinds = ("state[_.]*", "epoch_*.pt") if self.evaluates else ("state[_.]*",)
        checkpoints = [f"{learner.prefix}_{kind}" for kind in kinds for learner in self.learners]
        paths = [*our_files(run_config.checkpoint_dir, *checkpoints), *self.results_in(run_config)]
        if directories := [path for path in paths if path.is_dir()]:
            raise InputError(f"{directories[0]}: a directory, where a run has a file")
        if self.evaluates:
            paths.append(Path(run_config.results_dir) / TASKS / IDENTITY)
            if paths[-1].parent.is_file():
                raise InputError(f"{paths[-1].parent}: a file, where a run has a directory")
        return [path for path in paths if path.is_file()]

    def overwritten(self, run_config):
        """The files that --overwrite removes: none after a restart by torchrun of a run that has begun there."""
        states = our_files(run_config.checkpoint_dir, *(f"{learner.prefix}_state.json" for learner in self.learners))
        begun = launch() and any((readable_json(path) or {}).get("launch") == launch() for path in states)
        return [] if begun else self.files(run_config)

    def results_in(self, run_config):
        """What is there of `results`, without the user's own files."""
        return our_files(run_config.results_dir, *self.results)


def continuation(run_config):
    """How an interrupted run is continued."""
    flags = "--resume in place of --overwrite" if run_config.overwrite else "--resume"
    return f"the same command with {flags} continues"


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
    directory, results_dir = Path(run_config.checkpoint_dir), Path(run_config.results_dir)
    summary, identity = results_dir / owned.summary, results_dir / TASKS / IDENTITY
    if run_config.overwrite and run_config.resume:
        raise InputError("--overwrite: not together with --resume, it would remove the run that is to continue")
    files, first_states = owned.files(run_config), tuple(f"{learner.prefix}_state_" for learner in owned.learners)
    # The run begins, too, where a first state was never finished.
    removed = owned.overwritten(run_config) if run_config.overwrite else []
    if removed or all(path.name.startswith(first_states) for path in files):
        return Plan({}, files)

    # Whose the files are
    states, known = {}, []
    for learner in owned.learners:
        if (path := directory / f"{learner.prefix}_state.json").exists():
            if (state := readable_json(path)) is None:
                raise InputError(f"{path}: not a file of this program, or damaged; {BEGIN_ANEW}")
            states[learner.prefix] = state
            with invalid_contents(path):
                known.append((path, state["settings"]))
                fits = len(state["history"]) == state["epoch"] <= state["settings"]["epochs"]
                if not fits or state["prefix"] != learner.prefix or state["ranks"] < 1:
                    raise ValueError
    try:
        finished = load_json(summary) if summary.exists() else None
    except InputError as error:
        raise InputError(f"{error}; move it, and --resume writes it again; {BEGIN_ANEW}") from None
    interrupted = readable_json(identity) if owned.evaluates else None
    path, results = (summary, finished) if finished else (identity, interrupted)
    if results:
        with invalid_contents(path):
            known.append((path, dict(results.get("settings", {}))))
    if not known:
        raise InputError(f"{files[0]}: of another run, which cannot be continued; {BEGIN_ANEW}")
    path, shortest = _check_settings(known, settings, owned, run_config.data_dir)
    if not states:
        raise InputError(f"{summary}: of a run whose checkpoints are not in {directory}; {BEGIN_ANEW}")

    # Whether it is finished: trained, and the summary is of its end and of all methods
    epochs_of, end = {prefix: state["epoch"] for prefix, state in states.items()}, settings["epochs"]
    trained = all(epochs_of.get(learner.prefix) == end for learner in owned.trained(settings))
    names = (owned.checkpoint.format(prefix=learner.prefix, epoch=end) for learner in owned.trained(settings))
    saved = all((directory / name).exists() for name in names)
    scored = finished and LENGTHENED not in finished and finished.get("scored_epoch", end) == end
    same = ("epochs", "methods")
    complete = trained and scored and all(finished["settings"].get(name) == settings.get(name) for name in same)
    if complete and (text := differences(finished.get("eval_config", {}), scoring or {}, but=PORTABLE)):
        again = "these flags with --evaluate-only, and --overwrite for a quick one, score it again"
        raise InputError(f"{summary}: this run is finished ({text}); {again}")
    if complete and saved:
        names = [name for name in interrupted or () if name not in ("files", "seconds")]
        killed_at_its_end = interrupted and all(finished.get(name) == interrupted[name] for name in names)
        # Without an identity, what is left of results that a killed run was about to remove.
        gone = killed_at_its_end or (owned.evaluates and not identity.exists())
        return Plan(states, [identity] if gone else [], finished=True)
    restarted = launch() and any(state.get("launch") == launch() for state in states.values())
    if not (run_config.resume or restarted):
        fewer = [place for place, others in known if others.get("methods") != settings.get("methods")]
        if shortest < end:
            kind = f"a run of {shortest} epoch{'s' * (shortest > 1)}, which --resume lengthens"
        elif fewer:
            path = fewer[0]
            kind = f"a run of --methods {dict(known)[path]['methods']}, to which --resume adds the others"
        elif complete:
            kind = "a finished run without its last checkpoint, which --resume writes again"
        elif not trained:
            kind = "an interrupted run of the same settings, which --resume continues"
        else:
            scores = "--evaluate-only scores, and --resume scores and" if owned.evaluates else "--resume"
            kind = f"a trained run of the same settings, which {scores} finishes"
        raise InputError(f"{path}: of {kind}; {BEGIN_ANEW}")

    # Whether all files are there with which it continues, and are of this run
    there, unfinished = [*states.values()][-1]["settings"], []
    portable = portable_settings(there.get("images"), settings.get("images"))
    for learner in owned.learners:
        if (state := states.get(learner.prefix)) is None:
            continue
        needed = state_paths(directory, learner, state["epoch"], state["ranks"])
        unfinished += set(our_files(directory, f"{learner.prefix}_state_*.pt")) - set(needed)
        # The checkpoint of the last epoch is written again.
        epochs = [epoch for epoch in saved_epochs(end) if owned.evaluates and epoch < state["epoch"]]
        early = [directory / f"{learner.prefix}_epoch_{epoch}.pt" for epoch in epochs]
        if absent := [path for path in (*needed, *early) if not path.exists()]:
            raise InputError(f"{absent[0]}: no such checkpoint, so that the run cannot be continued; {BEGIN_ANEW}")
        for path, checksum in zip(needed, state.get("crc32", ()), strict=False):  # not of older versions
            if checksum_of(path) != checksum:
                raise InputError(f"{path}: not the file of this run, or damaged; {BEGIN_ANEW}")
        for path in early:
            config = asdict(read_checkpoint(path, learner.name)["config"])
            if text := differences(config, settings, but=("epochs", *portable)):
                raise InputError(f"{path}: of another training ({text}); {BEGIN_ANEW}")
    moved = differences({name: there[name] for name in portable if name in there}, settings)
    lengthened = shortest < end or any(LENGTHENED in state for state in states.values())
    return Plan(states, unfinished, lengthened=lengthened, moved=moved)


def _check_settings(known, settings, owned, data_dir):
    """(path, epochs) of the shortest of runs whose settings are known, [(path, settings)]; InputError for others."""
    settings = dict(settings)
    images = settings.pop("images", None)
    for path, others in known:
        if absent := [name for name in settings if name not in others]:
            raise InputError(f"{path}: of a run without the settings {', '.join(absent)}; {BEGIN_ANEW}")
        same_source = all(others[name] == settings[name] for name in ("dataset", "resize") if name in settings)
        if same_source and (text := image_differences(others.get("images"), images)):
            where = source(settings.get("dataset"), data_dir)
            raise InputError(f"{where}: not the images of the run in {path} ({text}); {BEGIN_ANEW}")
        if owned.evaluates:  # for more epochs, and by further methods
            subset = {*owned.trained(others)} <= {*owned.trained(settings)}
            others = {**others, "epochs": settings["epochs"]} | ({"methods": settings.get("methods")} if subset else {})
        if text := differences(others, settings, but=portable_settings(others.get("images"), images)):
            if all(str(side.get("dataset")).startswith("folder:") for side in (others, settings)):  # perhaps moved
                text = "; ".join(filter(None, (text, image_differences(others.get("images"), images))))
            raise InputError(f"{path}: of another run ({text}); its flags and --resume continue it; {BEGIN_ANEW}")
    epochs = {path: others["epochs"] for path, others in known}
    if epochs[longest := max(epochs, key=epochs.get)] > settings["epochs"]:
        longer = f"of a longer run, of {epochs[longest]} epochs, which its flags and --resume continue"
        raise InputError(f"{longest}: {longer}; {BEGIN_ANEW}")
    return min(epochs.items(), key=lambda item: item[1])


def plan_evaluation(run_config, config, *, owned, epoch, methods, images=None, evaluation=None):
    """The training seconds that the summary of these checkpoints knows, and the results of others, to be removed.

    config: the TrainConfig of the checkpoints; epoch: the one that is scored; methods: the names of those that are;
    images: their Data.digest, if it is known; evaluation: --evaluation.
    Without a summary, the identity of an interrupted evaluation says whose the results are. Raises InputError if they
    are of another run, of one that is not known, or by the summary of another epoch, of further methods, or a full one.
    """
    owned.files(run_config)  # refuses directories in the place of files
    results_dir = Path(run_config.results_dir)
    paths = (results_dir / owned.summary, results_dir / TASKS / IDENTITY)
    if (path := next(filter(readable_json, paths), None)) is None:
        known = (owned.summary, "history.csv", "training_curves.png")  # the others precede an evaluation
        unknown = [other for other in owned.results_in(run_config) if other.name not in known]
        if unknown and not run_config.overwrite:
            raise InputError(f"{unknown[0]}: of a run whose {owned.summary} is missing or damaged; {BEGIN_ANEW}")
        return {}, unknown
    earlier, config = readable_json(path), asdict(config)
    with invalid_contents(path):
        settings, end = earlier.get("settings", {}), earlier.get("scored_epoch", epoch)
        there, scored = settings.get("images"), settings.get("methods", "")
        # One of an older version lacks the settings that are new.
        trained = {**asdict(TrainConfig()), **earlier.get("train_config", {})}
        others = differences(trained, config, but=portable_settings(there, images)) or image_differences(there, images)
        others = others or ("" if trained.keys() == config.keys() else "of another version")
        same = (end == epoch and {*scored.split()} <= {*methods}) or path.name == IDENTITY
        kind = earlier.get("eval_config", {}).get("evaluation")
    if others and run_config.overwrite:
        return {}, owned.results_in(run_config)
    if others:
        raise InputError(f"{path}: of another run ({others}); {BEGIN_ANEW}")
    # Of a full evaluation alone there is a page.
    less = evaluation == "quick" != kind and path.name != IDENTITY and (results_dir / owned.page).exists()
    if (less or not same) and not run_config.overwrite:
        of = "its scores are of a full evaluation" if less else f"its scores are of epoch {end} and --methods {scored}"
        raise InputError(f"{path}: {of}; another --results-dir keeps them, --overwrite replaces them")
    with invalid_contents(path):
        return dict(earlier["seconds"]["training"]) if "seconds" in earlier and end == epoch else {}, []
