"""plan.py, run.py and tasks.py: where a run continues, under any number of ranks, and what it says when it stops."""

import os
import signal

import pytest
import torch
from torch import nn

from runtime import distributed
from runtime import run as running
from runtime.checkpoint import InputError, RunError, save_checkpoint, save_json
from runtime.config import RunConfig, TrainConfig
from runtime.distributed import WHOLE, Shard
from runtime.plan import Owned, plan_evaluation, plan_run
from runtime.progress import Interrupted
from runtime.run import Run, open_run, stop_hint
from runtime.tasks import Tasks
from training import Learner

SETTINGS = {"seed": 0, "batch_size": 64, "epochs": 3}
ROWS = 11  # of the table: ranks have unequally many


class First(Learner):
    """A learner whose epochs count in a buffer and in the rows of a table, of which each rank has its own."""

    name = prefix = "first"
    sharded = ("table",)
    count = ROWS

    def __init__(self, shard=WHOLE):
        nn.Module.__init__(self)
        self.config, self.shard, self.optimizers, self.also_saved = TrainConfig(epochs=3), shard, [], []
        self.images = torch.zeros(1, 1, 2, 2)
        self.register_buffer("epochs_done", torch.zeros((), dtype=torch.int64))
        self.register_buffer("table", torch.arange(float(ROWS))[shard.rank :: shard.size].clone())

    def learn(self):
        """An epoch: its columns of the history."""
        self.epochs_done += 1
        self.table *= 2
        return {"train_elbo": float(self.epochs_done), "training_seconds": 0.0}, {"validation_images": 5}

    def checkpoint_name(self, epoch):
        return None

    def describe(self, row):
        return f"ELBO {row['train_elbo']}"


class Second(First):
    name = prefix = "second"


OWNED = Owned((First, Second), ("first_epoch_*.pt",), ("picture.png", "summary.json"), summary="summary.json")


@pytest.fixture
def config(tmp_path):
    """A RunConfig in a directory of its own, with fields that a test may change."""

    def config(**fields):
        return RunConfig(checkpoint_dir=str(tmp_path), results_dir=str(tmp_path), **fields)

    return config


@pytest.fixture
def plan(config):
    """plan_run in that directory, with settings that a test may change."""

    def plan(*, resume=False, overwrite=False, owned=OWNED, scoring=None, **changed):
        return plan_run(
            config(resume=resume, overwrite=overwrite), SETTINGS | changed, owned=owned, scoring=scoring or {}
        )

    return plan


@pytest.fixture
def as_rank(monkeypatch):
    """Makes the run believe that it is on rank `rank` of `size`."""

    def become(rank, size):
        for module in (running, distributed):
            monkeypatch.setattr(module, "rank", lambda: rank)
            monkeypatch.setattr(module, "size", lambda: size)
        for name in ("barrier", "broadcast"):
            monkeypatch.setattr(running, name, lambda value=None: value)

    return become


def save(config, learner, epochs, **settings):
    """What a run leaves that has finished so many epochs of the learner."""
    run = Run(config(), SETTINGS | settings)
    history = [{"epoch": epoch + 1, "elbo": 0.1 * epoch, "seconds": 1.0} for epoch in range(epochs)]
    for epoch in range(1, epochs + 1):
        learner.learn()
        run._save(learner, history[:epoch])
    return history


def restored(config, plan, learner):
    """The history that a run which continues finds, and the learner after that."""
    return Run(config(), SETTINGS, plan(resume=True))._restore(learner), learner


def test_a_run_continues_after_its_last_epoch(config, plan, tmp_path):
    history = save(config, First(), 2)
    save(config, Second(), 1)
    names = ["first_state.json", "first_state_2.pt", "first_state_2_rows_0_of_1.pt"]
    assert sorted(os.listdir(tmp_path))[:3] == names
    again = Run(config(), SETTINGS, plan(resume=True))
    learner, epochs = First(), []
    for epoch in again.epochs(learner):
        epochs.append(epoch)
        again.record(*learner.learn())
    assert epochs == [3]
    assert again.history[:2] == history
    assert int(learner.epochs_done) == 3
    assert torch.equal(learner.table, 8 * torch.arange(11.0))
    assert sorted(os.listdir(tmp_path))[1] == "first_state_3.pt"
    assert again.seconds() > 3  # those of earlier processes count


@pytest.mark.parametrize(("before", "after"), [(1, 1), (1, 3), (3, 1), (2, 3), (3, 2), (4, 2)])
def test_another_number_of_ranks_continues_with_the_same_rows(config, plan, as_rank, before, after):
    for rank in reversed(range(before)):  # rank 0 says last that the state is there
        as_rank(rank, before)
        save(config, First(Shard(rank, before)), 1)
    for rank in range(after):
        as_rank(rank, after)
        _, learner = restored(config, plan, First(Shard(rank, after)))
        assert torch.equal(learner.table, 2 * torch.arange(11.0)[rank::after])


def test_a_state_that_was_not_finished_is_not_taken(config, plan, tmp_path, monkeypatch):
    learner = First()
    history = save(config, learner, 1)
    monkeypatch.setattr(running, "barrier", lambda: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        Run(config(), SETTINGS)._save(learner, [*history, {"epoch": 2, "seconds": 1.0}])
    monkeypatch.undo()
    assert (tmp_path / "first_state_2_rows_0_of_1.pt").exists()
    with open_run(config(resume=True), SETTINGS, owned=OWNED) as run:
        assert run._restore(First()) == history
    assert not list(tmp_path.glob("first_state_2*"))


def test_an_epoch_whose_body_is_left_is_not_saved(config, plan, tmp_path):
    """A state is saved after the epoch is over: after `record` and everything else in the body."""
    learner = First()
    run = Run(config(), SETTINGS)
    for epoch in run.epochs(learner):
        run.record(*learner.learn())
        if epoch == 2:
            break
    history, again = restored(config, plan, First())
    assert len(history) == 1
    assert int(again.epochs_done) == 1


def test_an_epoch_without_a_record_is_refused(config):
    run = Run(config(), SETTINGS)
    with pytest.raises(ValueError, match=r"first: epoch 1 has no record; call run.record"):
        list(run.epochs(First()))


def test_what_stops_a_run_is_said_in_one_line(config):
    run = Run(config(), SETTINGS)
    for stage, text in (
        (None, "stopped by SIGTERM before an epoch of its own was over; give the same command again"),
        ("after epoch 2 of 3, first", "stopped by SIGTERM after epoch 2 of 3, first; the same command with --resume"),
    ):
        run.stage = stage
        with pytest.raises(Interrupted) as raised, stop_hint(run):
            raise Interrupted(signal.SIGTERM)
        assert str(raised.value).startswith(text)
    with pytest.raises(RunError, match="the loss is not finite"), stop_hint(run):
        raise FloatingPointError("the loss is not finite")


def test_resuming_nothing_begins(config, capsys):
    with open_run(config(resume=True), SETTINGS, owned=OWNED) as run:
        assert run.states == {}
    assert "nothing to resume: the run begins" in capsys.readouterr().out


@pytest.mark.parametrize("resumed", [False, True])
def test_a_run_among_the_files_of_another_stops(config, plan, tmp_path, resumed):
    save(config, First(), 1)
    with pytest.raises(InputError, match=r"first_state.json: of another run \(--seed 0 there, 5 here; --batch-size 64"):
        plan(resume=resumed, seed=5, batch_size=8)
    with pytest.raises(InputError, match="without the settings beta; --overwrite removes"):
        plan(resume=resumed, beta=1.0)
    with pytest.raises(InputError, match="of a longer run, of 3 epochs"):
        plan(resume=resumed, epochs=2)
    (tmp_path / "first_state.json").rename(tmp_path / "first_epoch_1.pt")
    with pytest.raises(InputError, match=r"of another run, which cannot be continued"):
        plan(resume=resumed)


def test_an_interrupted_run_is_continued_only_when_asked(config, plan):
    save(config, First(), 1)
    with pytest.raises(InputError, match="of an interrupted run of the same settings, which --resume continues"):
        plan()
    with pytest.raises(InputError, match="of a run of 3 epochs, which --resume lengthens"):
        plan(epochs=5)
    assert not plan(resume=True).lengthened
    with pytest.raises(InputError, match="--overwrite: not together with --resume"):
        plan(resume=True, overwrite=True)


def test_a_run_that_was_killed_while_it_wrote_its_first_state_begins_again(config, plan, tmp_path):
    (tmp_path / "first_state_1.pt").write_text("of a killed run")
    assert plan(resume=True).states == {}
    assert os.listdir(tmp_path) == ["first_state_1.pt"]  # a plan changes nothing
    with open_run(config(resume=True), SETTINGS, owned=OWNED):
        assert not (tmp_path / "first_state_1.pt").exists()


def test_an_evaluation_of_half_a_run_does_not_finish_it(config, plan, tmp_path):
    save(config, First(), 3)
    save(config, Second(), 1)
    save_json(tmp_path / "summary.json", {"settings": SETTINGS, "eval_config": {}})
    assert list(plan(resume=True).states) == ["first", "second"]
    assert not plan(resume=True).finished


def test_processes_that_torchrun_starts_again_continue(config, plan, monkeypatch):
    save(config, First(), 1)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    for overwrite in (False, True):
        assert list(plan(overwrite=overwrite).states) == ["first"]


def test_overwriting_removes_that_runs_files_alone(config, tmp_path):
    save(config, First(), 1)
    for name in ("first_epoch_1.pt", "picture.png", "summary.json", "mine.png", "second_epoch_1.pt"):
        (tmp_path / name).write_text("{}")
    with open_run(config(overwrite=True), SETTINGS, owned=OWNED) as run:
        assert run.states == {}
    assert sorted(os.listdir(tmp_path)) == ["mine.png", "second_epoch_1.pt"]


def finish(config, tmp_path, **scoring):
    """A finished run."""
    for learner in (First(), Second()):
        save(config, learner, 3)
    save_json(tmp_path / "summary.json", {"settings": SETTINGS, "eval_config": scoring})


def test_a_finished_run_says_so(config, plan, tmp_path, capsys):
    finish(config, tmp_path, num_samples=5)
    for resumed in (False, True):
        with open_run(config(resume=resumed), SETTINGS, owned=OWNED, scoring={"num_samples": 5}) as run:
            assert run.finished
        assert "this run is finished" in capsys.readouterr().out
        with pytest.raises(InputError, match=r"--num-samples 5 there, 6 here\); --evaluate-only scores it with other"):
            plan(resume=resumed, scoring={"num_samples": 6})
        with pytest.raises(InputError, match="--seed 0 there, 1 here"):
            plan(resume=resumed, seed=1)
    for path in tmp_path.glob("*_state*"):
        path.unlink()
    with pytest.raises(InputError, match=r"of a run whose checkpoints are not in"):
        plan()


def test_a_finished_run_can_be_lengthened_where_no_schedule_forbids_it(config, plan, tmp_path):
    finish(config, tmp_path)
    found = plan(resume=True, epochs=5)
    assert (found.lengthened, list(found.states)) == (True, ["first", "second"])
    with pytest.raises(InputError, match="--epochs 3 there, 5 here"):
        plan(resume=True, epochs=5, owned=OWNED._replace(extendable=False))


def test_a_run_can_get_further_methods_but_not_lose_one(config, plan, tmp_path):
    save(config, First(), 3, methods="first")
    save_json(tmp_path / "summary.json", {"settings": SETTINGS | {"methods": "first"}, "eval_config": {}})
    assert plan(methods="first").finished
    with pytest.raises(InputError, match="of a run of --methods first, to which --resume adds the others"):
        plan(methods="first second")
    with pytest.raises(InputError, match="--methods first there, first second here"):
        plan(owned=OWNED._replace(extendable=False), resume=True, methods="first second")
    assert not plan(resume=True, methods="first second").finished
    save(config, Second(), 3, methods="first second")
    found = plan(resume=True, methods="first second")  # killed before it was scored
    assert (list(found.states), found.finished) == (["first", "second"], False)
    for methods in ("first", "second"):
        with pytest.raises(InputError, match=f"--methods first.* there, {methods} here"):
            plan(resume=True, methods=methods)


def test_foreign_states_are_refused(plan, tmp_path):
    path = tmp_path / "first_state.json"
    for contents in ({"prefix": "first"}, {"prefix": "second", "epoch": 0, "history": [], "settings": SETTINGS}):
        save_json(path, contents)
        with pytest.raises(InputError, match=r"first_state.json: its contents do not fit this program"):
            plan(resume=True)
    path.write_text("no JSON")
    with pytest.raises(InputError, match=r"first_state.json: not a file of this program, or damaged"):
        plan(resume=True)


def test_a_state_that_does_not_fit_is_refused(config, plan, tmp_path):
    save(config, First(), 1)
    path = tmp_path / "first_state_1.pt"
    save_checkpoint(path, nn.Linear(4, 2).state_dict())
    with pytest.raises(InputError, match=r"first_state_1.pt: its contents do not fit this program"):
        restored(config, plan, First())
    path.unlink()
    with pytest.raises(InputError, match=r"first_state_1.pt: no such checkpoint"):
        restored(config, plan, First())


def test_missing_rows_are_noticed(config, plan, as_rank, tmp_path):
    for rank in (1, 0):
        as_rank(rank, 2)
        save(config, First(Shard(rank, 2)), 1)
    (tmp_path / "first_state_1_rows_1_of_2.pt").unlink()
    as_rank(0, 1)
    with pytest.raises(InputError, match=r"first_state_1_rows_1_of_2.pt: no such checkpoint"):
        restored(config, plan, First())


def test_results_of_another_training_are_not_scored_over(config, tmp_path):
    trained = TrainConfig(epochs=3)
    assert plan_evaluation(config(), trained, owned=OWNED) == ({}, False)
    known = {"train_config": {"epochs": 3}, "seconds": {"training": {"first": 2.0}}}  # as of an older version
    save_json(tmp_path / "summary.json", known)
    assert plan_evaluation(config(), trained, owned=OWNED) == ({"first": 2.0}, False)
    with pytest.raises(InputError, match=r"summary.json: of another run \(--epochs 3 there, 4 here\)"):
        plan_evaluation(config(), TrainConfig(epochs=4), owned=OWNED)
    assert plan_evaluation(config(overwrite=True), TrainConfig(epochs=4), owned=OWNED) == ({}, True)


def test_finished_tasks_are_not_repeated(tmp_path):
    done = []

    def work(name):
        done.append(name)
        if name == "c":
            raise KeyboardInterrupt
        return {"name": name, "values": torch.arange(3.0), "pair": (1.5, None)}

    functions = {name: lambda name=name: work(name) for name in "abcd"}
    with pytest.raises(KeyboardInterrupt):
        Tasks(tmp_path / "kept", {"seed": 0}).map("work", functions)
    functions["c"] = lambda: "c, at last"
    results = Tasks(tmp_path / "kept", {"seed": 0}).map("work", functions)
    assert done == ["a", "b", "c", "d"]
    assert list(results) == list("abcd")
    assert results["a"]["pair"] == (1.5, None)
    assert torch.equal(results["b"]["values"], torch.arange(3.0))
    tasks = Tasks(tmp_path / "kept", {"seed": 1})  # of other settings
    tasks.map("work", {"a": functions["a"]})
    assert done == ["a", "b", "c", "d", "a"]
    tasks.remove()
    assert os.listdir(tmp_path) == []
