"""run.py: states under any number of ranks, and what a run says when it stops."""

import pytest
import torch
from run_directory import Directory, First

from runtime import distributed
from runtime import run as running
from runtime.checkpoint import load_checkpoint, save_checkpoint
from runtime.config import RunError
from runtime.distributed import Shard
from runtime.run import Run, stop_hint


@pytest.mark.parametrize("name", ["first_state_2.pt", "first_state_2_rows_0_of_1.pt"])
def test_a_file_of_the_state_of_another_run_is_refused(directory, tmp_path, name):
    other = Directory(tmp_path / "other")
    other.path.mkdir()
    strange = First()
    strange.epochs_done += 1
    strange.table += 1
    other.save(strange, 2)
    directory.save(First(), 2)
    (tmp_path / name).write_bytes((other.path / name).read_bytes())
    directory.refuses(f"{name}: not the file of this run, or damaged", resume=True)
    directory.save(First(), 2)
    assert directory.plan(resume=True).states
    damaged = bytearray((tmp_path / name).read_bytes())
    damaged[len(damaged) // 2] ^= 1
    (tmp_path / name).write_bytes(damaged)
    directory.refuses(f"{name}: not the file of this run, or damaged", resume=True)


@pytest.mark.parametrize("other", ["weights", "epoch", "config", "train_index", "damaged", "missing", None])
def test_a_last_checkpoint_is_written_again_unless_it_is_that_of_the_state(directory, tmp_path, other):
    """By its bytes an interrupted evaluation knows that the results it has kept are of this training."""
    directory.save(First(), 2)
    path = tmp_path / "first_epoch_2.pt"
    written = load_checkpoint(path)
    changed = {
        "weights": {"epochs_done": torch.tensor(7)}, "epoch": 1, "config": {**written["config"], "seed": 7},
        "train_index": written["train_index"].flip(0), None: {**written["config"], "precision": "bfloat16"},
    }  # fmt: skip
    save_checkpoint(path, written | ({other or "config": changed[other]} if other in changed else {}))
    if other == "damaged":
        path.write_bytes(path.read_bytes()[:100])
    if other == "missing":
        path.unlink()
    before = path.read_bytes() if path.exists() else b""
    directory.restored(First())
    assert (path.read_bytes() == before) == (other is None)
    assert load_checkpoint(path)["weights"] == {"epochs_done": 2}
    assert load_checkpoint(path)["config"]["seed"] == 0


@pytest.mark.parametrize(("before", "after"), [(1, 3), (3, 1), (2, 3), (3, 2), (4, 2)])
def test_another_number_of_ranks_continues_with_the_same_rows(directory, monkeypatch, before, after):
    def on_rank(rank, size):
        for module in (running, distributed):
            monkeypatch.setattr(module, "rank", lambda: rank)
            monkeypatch.setattr(module, "size", lambda: size)
        for name in ("barrier", "broadcast"):
            monkeypatch.setattr(running, name, lambda value=None: value)
        monkeypatch.setattr(Shard, "gather", lambda self, values, count: torch.arange(count))
        return First(Shard(rank, size))

    for rank in reversed(range(before)):  # rank 0 says last that the state is there
        directory.save(on_rank(rank, before), 1)
    for rank in range(after):
        _, learner = directory.restored(on_rank(rank, after))
        assert torch.equal(learner.table, 2 * torch.arange(11.0)[rank::after])


def test_a_state_that_was_not_finished_is_not_taken(directory, tmp_path, monkeypatch):
    learner = First()
    history = directory.save(learner, 1)
    monkeypatch.setattr(running, "barrier", lambda: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        directory.run()._save(learner, [*history, {"epoch": 2, "seconds": 1.0}])
    monkeypatch.undo()
    assert (tmp_path / "first_state_2_rows_0_of_1.pt").exists()
    with directory.open(resume=True) as run:
        assert run._restore(First()) == history
    assert not list(tmp_path.glob("first_state_2*"))


def test_an_epoch_whose_body_is_left_or_has_no_record_is_not_saved(directory):
    """A state is saved after the epoch is over: after `record` and everything else in the body."""
    learner, run = First(), directory.run()
    for epoch in run.epochs(learner):
        run.record(*learner.learn())
        if epoch == 2:
            break
    history, again = directory.restored(First())
    assert (len(history), int(again.epochs_done)) == (1, 1)
    assert torch.equal(again.table, 2 * torch.arange(11.0))
    with pytest.raises(ValueError, match=r"first: epoch 1 has no record; call run.record"):
        list(directory.run().epochs(First()))


def test_a_loss_that_is_not_finite_is_an_error_of_one_line(directory):
    with pytest.raises(RunError, match="the loss is not finite"), stop_hint(directory.run(), advice=""):
        raise FloatingPointError("the loss is not finite")


def test_the_seconds_of_a_run_are_those_of_all_its_processes(directory, monkeypatch):
    monkeypatch.setattr(Run, "seconds", lambda self: 1000.0)
    directory.save(First(), 2)
    monkeypatch.undo()
    with directory.open(resume=True) as run:
        assert 1000 <= run.seconds() < 2000
