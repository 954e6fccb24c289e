"""Whose the files in a directory are, and states that any number of ranks continue."""

import os

import pytest
import torch

from runtime import resume
from runtime.checkpoint import InputError, save_checkpoint, save_json
from runtime.config import RunConfig
from runtime.resume import Owned, find_run, restore, save_state
from runtime.tasks import Tasks

OWNED = Owned(("first", "second"), ("first_epoch_*.pt",), ("picture.png", "summary.json"), summary="summary.json")
SETTINGS = {"seed": 0, "batch_size": 64, "epochs": 3}


@pytest.fixture
def find(tmp_path):
    """find_run in a directory of its own, with settings that a test may change."""

    def find(*, resume=False, overwrite=False, owned=OWNED, scoring=None, check_only=False, **changed):
        config = RunConfig(checkpoint_dir=str(tmp_path), results_dir=str(tmp_path), resume=resume, overwrite=overwrite)
        return find_run(config, SETTINGS | changed, owned=owned, scoring=scoring or {}, check_only=check_only)

    return find


def history(epochs):
    return [{"epoch": epoch + 1, "elbo": -100.0 + 0.1 * epoch, "name": "a method"} for epoch in range(epochs)]


def save(run, prefix, epochs, rows=None):
    save_state({"step": torch.tensor(epochs)}, rows or {}, history=history(epochs), run=run, prefix=prefix)


def load(run, prefix, count=0):
    """(history, state, rows) of what `restore` gives."""
    found = []
    rows = restore(run=run, prefix=prefix, count=count, load_state_dict=lambda *state: found.extend(state))
    return rows, *found


@pytest.fixture
def as_rank(monkeypatch):
    """Makes the functions of resume.py believe that they run on rank `rank` of `size`."""

    def become(rank, size):
        monkeypatch.setattr(resume, "rank", lambda: rank)
        monkeypatch.setattr(resume, "size", lambda: size)
        monkeypatch.setattr(resume, "own_rows", lambda count: torch.arange(rank, count, size))

    return become


def test_a_run_continues_after_its_last_epoch(find, tmp_path):
    run = find()
    for epoch in (1, 2):
        save(run, "first", epoch)
    save(run, "second", 1)
    assert sorted(os.listdir(tmp_path)) == [
        "first_state.json",
        "first_state_2.pt",
        "second_state.json",
        "second_state_1.pt",
    ]
    again = find(resume=True)
    assert again.settings == run.settings
    for prefix, epochs in (("first", 2), ("second", 1)):
        assert load(again, prefix) == (history(epochs), {"step": torch.tensor(epochs)}, {})
    assert load(again._replace(states={}), "first") == ([],)


@pytest.mark.parametrize(("before", "after"), [(1, 1), (1, 3), (3, 1), (2, 3), (3, 2), (4, 2)])
def test_another_number_of_ranks_continues_with_the_same_rows(find, as_rank, before, after):
    """11 rows: ranks have unequally many."""
    run, whole = find(), {"rows": torch.randn(11, 2, 3), "last_visit": torch.arange(11)}
    for rank in reversed(range(before)):  # rank 0 says last that the state is there
        as_rank(rank, before)
        save(run, "first", 1, {name: values[rank::before] for name, values in whole.items()})
    again = find(resume=True)
    for rank in range(after):
        as_rank(rank, after)
        _, _, rows = load(again, "first", count=11)
        assert rows.keys() == whole.keys()
        for name, values in whole.items():
            assert torch.equal(rows[name], values[rank::after])


def test_a_state_that_was_not_finished_is_not_taken(find, tmp_path, monkeypatch):
    run = find()
    save(run, "first", 1)
    monkeypatch.setattr(resume, "barrier", lambda: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        save(run, "first", 2, {"rows": torch.zeros(3)})
    assert (tmp_path / "first_state_2_rows_0_of_1.pt").exists()
    assert load(find(resume=True), "first")[0] == history(1)
    assert sorted(os.listdir(tmp_path)) == ["first_state.json", "first_state_1.pt"]


def test_resuming_nothing_begins(find, capsys):
    assert find(resume=True).states == {}
    assert "nothing to resume: the run begins" in capsys.readouterr().out


@pytest.mark.parametrize("resumed", [False, True])
def test_a_run_among_the_files_of_another_stops(find, tmp_path, resumed):
    save(find(), "first", 1)
    with pytest.raises(InputError, match=r"first_state.json: of another run \(--seed 0 there, 5 here; --batch-size 64"):
        find(resume=resumed, seed=5, batch_size=8)
    with pytest.raises(InputError, match="without the settings beta; --overwrite removes"):
        find(resume=resumed, beta=1.0)
    with pytest.raises(InputError, match="of a longer run, of 3 epochs"):
        find(resume=resumed, epochs=2)
    (tmp_path / "first_state.json").rename(tmp_path / "first_epoch_1.pt")
    with pytest.raises(InputError, match=r"of another run, which cannot be continued"):
        find(resume=resumed)


def test_an_interrupted_run_is_continued_only_when_asked(find):
    save(find(), "first", 1)
    with pytest.raises(InputError, match="of an interrupted run of the same settings, which --resume continues"):
        find()
    with pytest.raises(InputError, match="of a run of 3 epochs, which --resume lengthens"):
        find(epochs=5)
    assert not find(resume=True).lengthened
    with pytest.raises(InputError, match="--overwrite: not together with --resume"):
        find(resume=True, overwrite=True)


def test_a_run_that_was_killed_while_it_wrote_its_first_state_begins_again(find, tmp_path):
    (tmp_path / "first_state_1.pt").write_text("of a killed run")
    assert find(resume=True, check_only=True).states == {}
    assert find(resume=True).states == {}
    assert os.listdir(tmp_path) == []


def test_an_evaluation_of_half_a_run_does_not_finish_it(find, tmp_path):
    save(find(), "first", 3)
    save(find(resume=True), "second", 1)
    save_json(tmp_path / "summary.json", {"settings": SETTINGS, "eval_config": {}})
    assert list(find(resume=True).states) == ["first", "second"]


def test_processes_that_torchrun_starts_again_continue(find, monkeypatch):
    save(find(), "first", 1)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    for overwrite in (False, True):
        assert list(find(overwrite=overwrite).states) == ["first"]


def test_overwriting_removes_that_runs_files_alone(find, tmp_path):
    save(find(), "first", 1)
    for name in ("first_epoch_1.pt", "picture.png", "summary.json", "mine.png", "second_epoch_1.pt"):
        (tmp_path / name).write_text("{}")
    before = sorted(os.listdir(tmp_path))
    assert find(overwrite=True, check_only=True, seed=1).states == {}
    assert sorted(os.listdir(tmp_path)) == before
    assert find(overwrite=True, seed=1).states == {}
    assert sorted(os.listdir(tmp_path)) == ["mine.png", "second_epoch_1.pt"]


def finished(find, tmp_path, **changed):
    run = find()
    save(run, "first", 3)
    save(run, "second", 3)
    save_json(tmp_path / "summary.json", {"settings": run.settings, "eval_config": changed})


def test_a_finished_run_says_so(find, tmp_path, capsys):
    finished(find, tmp_path, num_samples=5)
    for resumed in (False, True):
        assert find(resume=resumed, scoring={"num_samples": 5}) is None
        assert "this run is finished" in capsys.readouterr().out
        with pytest.raises(InputError, match=r"--num-samples 5 there, 6 here\); --evaluate-only scores it with other"):
            find(resume=resumed, scoring={"num_samples": 6})
        with pytest.raises(InputError, match="--seed 0 there, 1 here"):
            find(resume=resumed, seed=1)
    for path in tmp_path.glob("*_state*"):
        path.unlink()
    with pytest.raises(InputError, match=r"of a run whose checkpoints are not in"):
        find()


def test_a_finished_run_can_be_lengthened_where_no_schedule_forbids_it(find, tmp_path):
    finished(find, tmp_path)
    run = find(resume=True, epochs=5)
    assert (run.lengthened, run.settings["epochs"], list(run.states)) == (True, 5, ["first", "second"])
    with pytest.raises(InputError, match="--epochs 3 there, 5 here"):
        find(resume=True, epochs=5, owned=OWNED._replace(extendable=False))


def test_foreign_states_are_refused(find, tmp_path):
    path = tmp_path / "first_state.json"
    for contents in ({"prefix": "first"}, {"prefix": "second", "epoch": 0, "history": [], "settings": SETTINGS}):
        save_json(path, contents)
        with pytest.raises(InputError, match=r"first_state.json: its contents do not fit this program"):
            find(resume=True)
    path.write_text("no JSON")
    with pytest.raises(InputError, match=r"first_state.json: not a file of this program, or damaged"):
        find(resume=True)


def test_a_state_that_does_not_fit_is_refused(find, tmp_path):
    save(find(), "first", 1)
    path, module = tmp_path / "first_state_1.pt", torch.nn.Linear(3, 2)
    save_checkpoint(path, torch.nn.Linear(4, 2).state_dict())
    options = {"prefix": "first", "count": 0, "load_state_dict": lambda state, rows: module.load_state_dict(state)}
    with pytest.raises(InputError, match=r"first_state_1.pt: its contents do not fit this program"):
        restore(run=find(resume=True), **options)
    path.unlink()
    with pytest.raises(InputError, match=r"first_state_1.pt: no such checkpoint"):
        restore(run=find(resume=True), **options)


def test_finished_tasks_are_not_repeated(tmp_path):
    done = []

    def work(name):
        done.append(name)
        if name == "c":
            raise KeyboardInterrupt
        return {"name": name, "values": torch.arange(3.0), "pair": (1.5, None)}

    functions = {name: lambda name=name: work(name) for name in "abcd"}
    with pytest.raises(KeyboardInterrupt):
        Tasks(tmp_path / "kept", {"seed": 0}).run("work", functions)
    functions["c"] = lambda: "c, at last"
    found = Tasks(tmp_path / "kept", {"seed": 0}).run("work", functions)
    assert done == ["a", "b", "c", "d"]
    assert list(found) == list("abcd")
    assert found["a"]["pair"] == (1.5, None)
    assert torch.equal(found["b"]["values"], torch.arange(3.0))
    Tasks(tmp_path / "kept", {"seed": 1}).run("work", {"a": functions["a"]})  # other work
    assert done == ["a", "b", "c", "d", "a"]
    tasks = Tasks(tmp_path / "kept", {"seed": 1})
    tasks.remove()
    assert os.listdir(tmp_path) == []


def test_missing_rows_are_noticed(find, as_rank, tmp_path):
    run = find()
    for rank in (1, 0):
        as_rank(rank, 2)
        save(run, "first", 1, {"rows": torch.zeros(4)})
    (tmp_path / "first_state_1_rows_1_of_2.pt").unlink()
    as_rank(0, 1)
    with pytest.raises(InputError, match=r"first_state_1_rows_1_of_2.pt: no such checkpoint"):
        load(find(resume=True), "first", count=8)
