"""The object for a run: yields its epochs, saves its state between them, and keeps the results of its evaluation.

After an epoch each rank writes its rows of what is sharded, rank 0 all else and then `{prefix}_state.json`, which says
the epoch that counts. No torch.distributed.checkpoint: it unpickles whatever a file holds (also in PyTorch 2.14).
"""

import shutil
import time
from contextlib import contextmanager, suppress
from pathlib import Path

from runtime.checkpoint import checksum_of, directory_lock, remove, save_checkpoint, save_file, write_files
from runtime.config import RunError
from runtime.cuda_graph import record_step
from runtime.distributed import barrier, broadcast, launch, rank, size
from runtime.learners import lengthen, load_state, our_files, save_learner, state_paths
from runtime.plan import Plan, continuation, plan_evaluation, plan_run
from runtime.progress import Interrupted, ProgressBar, check_interrupt
from runtime.tasks import IDENTITY, TASKS, Tasks


def remove_files(paths):
    """Removes files of a run, all or none, and with an IDENTITY the results that its evaluation has kept."""
    remove(paths)
    for path in paths:
        if path.name == IDENTITY:
            shutil.rmtree(path.parent, ignore_errors=True)


@contextmanager
def open_run(run_config, settings, *, owned, scoring=None):
    """Locks the directories, and yields the Run that begins or continues there.

    Arguments and errors are those of `plan_run`. Whatever stops the run says in one line how it continues.
    """
    with directory_lock(run_config.checkpoint_dir, run_config.results_dir):
        plan = broadcast(plan_run(run_config, settings, owned=owned, scoring=scoring) if rank() == 0 else None)
        run = Run(run_config, settings, plan)
        if rank() == 0:
            remove_files(plan.remove)
        if plan.finished:
            done = f"{run.results / owned.summary}: this run is finished, there is nothing to do"
            page = run.results / owned.page  # which a quick evaluation does not write
            print(f"{done}; open {page}" if page.exists() else done)
        elif run_config.resume and not plan.states:
            print("nothing to resume: the run begins", flush=True)
        if plan.moved:
            same = "but for rounding and a device's random numbers, the run goes on as it would have there"
            print(f"{plan.moved}: {same}", flush=True)
        if plan.lengthened and rank() == 0:
            lengthen(owned, run_config, settings["epochs"])
            gone = "tables, figures, page and last checkpoints of its shorter end are removed"
            print(f"the run is lengthened: {gone}", flush=True)
        with stop_hint(run, advice=continuation(run_config)):
            yield run


@contextmanager
def open_evaluation(run_config, config, *, device, **options):
    """Locks the results, and yields the Run that scores checkpoints again, which it only reads.

    options: of `plan_evaluation`, whose errors are these.
    """
    with directory_lock(run_config.results_dir):
        training_seconds, others = plan_evaluation(run_config, config, **options)
        barrier()
        if rank() == 0:
            remove(others)
        run = Run(run_config, {"device": device})
        run.directory = run.results
        run.stage = run.evaluation_stage = "in the evaluation"
        run.earlier_training = training_seconds
        run.started -= sum(training_seconds.values())
        with stop_hint(run, advice="give the same command again"):
            yield run


@contextmanager
def stop_hint(run, *, advice):
    """Adds to an Interrupted where `run` is and how it continues; turns a loss that is not finite into a RunError."""
    try:
        yield
    except Interrupted as interrupted:
        if run.stage and not interrupted.where:
            interrupted.where, interrupted.advice = run.stage, advice
        raise
    except FloatingPointError as error:
        raise RunError(str(error)) from None


class Run:
    """Epochs to go through, and results that are kept until the run is finished."""

    def __init__(self, run_config, settings, plan=None):
        """settings, plan: see `plan_run`."""
        plan = plan or Plan({}, [])
        self.config, self.settings, self.states, self.finished = run_config, settings, plan.states, plan.finished
        self.directory, self.results = Path(run_config.checkpoint_dir), Path(run_config.results_dir)
        self.where = settings.get("device", "this device") + (f", {size()} processes" if size() > 1 else "")
        self.history = []  # a row for each epoch of each learner
        self.earlier_training = {}  # {name of a method: seconds}, of a run whose checkpoints are scored again
        self.stage = None  # such as "after epoch 2 of 3, amortized", None as long as nothing is saved
        self.evaluation_stage = "in the evaluation, after all training"
        self.stage_seconds = {}  # {stage of the evaluation: seconds}, see `timed`
        earlier = max((state.get("seconds", 0) for state in self.states.values()), default=0)  # until the last state
        self.started = time.perf_counter() - earlier
        self.tasks = None  # the work of the evaluation, see `keep_results`
        self.progress = None  # counts images of an epoch as done; raises Interrupted if a signal has arrived
        self._row = None

    def seconds(self):
        """Seconds since the run began, those of earlier processes included."""
        return time.perf_counter() - self.started

    def training_seconds(self):
        """{name of a learner: seconds of its epochs}."""
        names = dict.fromkeys(row["method"] for row in self.history)
        seconds = {name: sum(row["seconds"] for row in self.history if row["method"] == name) for name in names}
        return self.earlier_training | seconds

    def epochs(self, learner, *, resumable=True):
        """Yields the epochs that the learner has left; after the body of each, saves its state and its checkpoint.

        The learner is restored first. The body calls `record`. resumable: whether states are saved.
        """
        history = self._restore(learner) if resumable else []
        total, count = learner.config.epochs, learner.count
        if learner.recordable and learner.images.is_cuda and size() == 1 and not self.config.eager:
            record_step(learner)
        with ProgressBar(learner.name, total=total * count, unit="img", done=len(history) * count) as bar:
            self.progress = bar.advance
            for epoch in range(len(history) + 1, total + 1):
                started, self._row = time.perf_counter(), None
                yield epoch
                if self._row is None:
                    raise ValueError(f"{learner.name}: epoch {epoch} has no record; call run.record in the loop")
                row = {"method": learner.name, "epoch": epoch, **self._row}
                row |= {"training_seconds": row.pop("training_seconds"), "seconds": time.perf_counter() - started}
                history.append(row)
                # State first, checkpoint second: a checkpoint that is missing is written again by the next process.
                if resumable:
                    self._save(learner, history)
                    self.stage = f"after epoch {epoch} of {total}, {learner.name}"
                save_learner(learner, self.directory, row)
                short = f"{epoch}/{total}, {learner.describe(row)}"
                bar.line(f"epoch {short} ({row['validation_images']:,} images), {row['seconds']:.1f} s", short=short)
        learner.__dict__.pop("step", None)  # a recording and its memory
        barrier()  # no rank reads a checkpoint that is not there yet
        self.history += history

    def record(self, trained, validated):
        """Notes the columns of an epoch's row of the history: of training and of validation images, two dicts."""
        self._row = {**trained, **validated}

    def keep_results(self, identity, started):
        """Makes `tasks`, which keep their results on disk; those of another identity, a dict, are removed.

        started: when the evaluation began, of time.perf_counter(). Returns it, less the seconds of earlier processes.
        """
        self.tasks, self.stage = Tasks(self.results / TASKS, identity, started), self.evaluation_stage
        if earlier := started - self.tasks.started:
            self.started -= earlier
            self.stage_seconds["before the interruption"] = earlier
        return self.tasks.started

    @contextmanager
    def timed(self, stage):
        """Says what is done, and notes its seconds in `stage_seconds`."""
        started = time.perf_counter()
        print(f"{stage} ...", flush=True)
        check_interrupt()
        yield
        self.stage_seconds[stage] = self.stage_seconds.get(stage, 0.0) + time.perf_counter() - started

    def write(self, files):
        """Writes the pairs (name, contents) that a generator yields into the results, see `save_file`."""
        write_files(self.results, files)

    def _save(self, learner, history):
        """Writes what continues the run after its last epoch; replaces the state of the epoch before."""
        epoch, state = len(history), dict(learner.state_dict())
        path, *row_paths = state_paths(self.directory, learner, epoch, size())
        rows = {name: state.pop(name) for name in learner.sharded}
        if rows:
            save_checkpoint(row_paths[rank()], rows)
        if rank() == 0:
            save_checkpoint(path, state)
        barrier()
        if rank() == 0:
            known = {"prefix": learner.prefix, "epoch": epoch, "ranks": size(), "settings": self.settings}
            known |= {"history": history, "seconds": self.seconds(), "launch": launch()}
            known["crc32"] = [checksum_of(file) for file in (path, *row_paths)]
            save_file(self.directory / f"{learner.prefix}_state.json", known)
            for before in {*our_files(self.directory, f"{learner.prefix}_state_*.pt")} - {path, *row_paths}:
                with suppress(OSError):  # what stays, a resumed run removes
                    before.unlink()

    def _restore(self, learner):
        """Takes the saved state over, and writes its checkpoint if it is not there. Returns the history."""
        if (saved := self.states.get(learner.prefix)) is None:
            return []
        epoch = saved["epoch"]
        load_state(self.directory, learner, saved)
        self.stage = f"after epoch {epoch} of {learner.config.epochs}, {learner.name}"
        print(f"{learner.name}: resumed after epoch {epoch}", flush=True)
        save_learner(learner, self.directory, saved["history"][-1])  # before which the run may have been killed
        return saved["history"]
