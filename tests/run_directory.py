"""Learners of a few numbers, and the directory of their run, shared by the tests of plan.py and run.py."""

import pytest
import torch
from torch import nn

from runtime.checkpoint import save_file
from runtime.config import InputError, RunConfig, TrainConfig
from runtime.distributed import WHOLE
from runtime.learners import save_learner
from runtime.plan import Owned, plan_run
from runtime.run import Run, open_run
from training import Learner

ROWS = 11  # of the table: ranks have unequally many


class First(Learner):
    """A learner whose epochs count in a buffer and in the rows of a table, of which each rank has its own."""

    name = prefix = "first"
    sharded = ("table",)
    count, train_index = ROWS, torch.arange(ROWS)

    def __init__(self, shard=WHOLE):
        nn.Module.__init__(self)
        self.config, self.shard, self.optimizers, self.also_saved = (
            TrainConfig(epochs=3, train_size=ROWS),
            shard,
            [],
            [],
        )
        self.images = torch.zeros(1, 1, 2, 2)
        self.register_buffer("epochs_done", torch.zeros((), dtype=torch.int64))
        self.register_buffer("table", torch.arange(float(ROWS))[shard.rank :: shard.size].clone())

    def learn(self):
        """An epoch: its columns of the history."""
        self.epochs_done += 1
        self.table *= 2
        return {"train_elbo": float(self.epochs_done), "training_seconds": 0.0}, {"validation_images": 5}

    def weights(self):
        """A checkpoint's."""
        return {"epochs_done": self.epochs_done.clone()}

    def checkpoint_name(self, epoch):
        return f"{self.prefix}_epoch_{epoch}.pt"

    def describe(self, row):
        return f"ELBO {row['train_elbo']}"


class Second(First):
    prefix = "second"


OWNED = Owned((First, Second), ("picture.png", "summary.json"), summary="summary.json")


class Directory:
    """The directory of a run: what is planned, saved and restored there."""

    def __init__(self, path):
        self.path, self.settings = path, {"seed": 0, "batch_size": 64, "epochs": 3}

    def config(self, **fields):
        return RunConfig(checkpoint_dir=str(self.path), results_dir=str(self.path), **fields)

    def run(self, **fields):
        return Run(self.config(), self.settings, **fields)

    def open(self, *, scoring=None, **fields):
        return open_run(self.config(**fields), self.settings, owned=OWNED, scoring=scoring)

    def plan(self, *, resume=False, overwrite=False, owned=OWNED, scoring=None, **changed):
        """plan_run, with settings that a test may change."""
        config = self.config(resume=resume, overwrite=overwrite)
        return plan_run(config, self.settings | changed, owned=owned, scoring=scoring or {})

    def save(self, learner, epochs):
        """What a run leaves that has finished so many epochs of the learner. Returns the history."""
        run = self.run()
        history = [{"epoch": epoch + 1, "elbo": 0.1 * epoch, "seconds": 1.0} for epoch in range(epochs)]
        for epoch in range(1, epochs + 1):
            learner.learn()
            run._save(learner, history[:epoch])
            if learner.shard == WHOLE:
                save_learner(learner, self.path, history[epoch - 1])
            else:
                (self.path / f"{learner.prefix}_epoch_{epoch}.pt").touch()
        return history

    def restored(self, learner):
        """The history that a run which continues finds, and the learner after that."""
        return self.run(plan=self.plan(resume=True))._restore(learner), learner

    def finish(self, **scoring):
        """Saves a finished run."""
        for learner in (First(), Second()):
            self.save(learner, 3)
        save_file(self.path / "summary.json", {"settings": self.settings, "eval_config": scoring})

    def keep(self, **identity):
        """Leaves the file that says whose the results of an interrupted evaluation are. Returns its path."""
        path = self.path / ".evaluation/identity.json"
        path.parent.mkdir(exist_ok=True)
        save_file(path, identity)
        return path

    def refuses(self, message, **options):
        with pytest.raises(InputError, match=message):
            self.plan(**options)
