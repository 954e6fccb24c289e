"""Files appear whole or not at all and run no code; one run per directory; a run continues its own state."""

import csv
import errno
import multiprocessing
import os
import pickle

import numpy as np
import pytest
import torch

from runtime import checkpoint
from runtime.checkpoint import (
    InputError,
    RunError,
    atomic_write,
    directory_lock,
    exclusive_lock,
    find_run,
    finish_run,
    load_checkpoint,
    load_json,
    new_directory,
    restore,
    save_array,
    save_checkpoint,
    save_csv,
    save_json,
    save_state,
    state_path,
)

PREFIXES = ("first", "second")
posix = pytest.mark.skipif(checkpoint.fcntl is None, reason="needs POSIX locks")


class DiskFull:
    """Raises the error of a full disk when it is pickled."""

    def __reduce__(self):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class Poison:
    """Makes the directory `trace` when it is unpickled."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return os.mkdir, (str(self.trace),)


def test_a_file_appears_only_when_it_is_whole(tmp_path):
    path = tmp_path / "file"
    with atomic_write(path) as partial:
        partial.write_text("whole")
        assert os.listdir(tmp_path) == [".file.vae-partial"]
    assert os.listdir(tmp_path) == ["file"]
    assert path.read_text() == "whole"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_write_that_fails_leaves_the_old_file(tmp_path, error):
    path = tmp_path / "file"
    path.write_text("old")

    def fail():
        with atomic_write(path) as partial:
            partial.write_text("half")
            raise error

    with pytest.raises(error):
        fail()
    assert os.listdir(tmp_path) == ["file"]
    assert path.read_text() == "old"


def test_a_full_disk_leaves_the_old_checkpoint(tmp_path):
    path = tmp_path / "state.pt"
    save_checkpoint(path, {"number": 1})
    with pytest.raises(RunError, match=r"state.pt: cannot be written \(No space left on device\)"):
        save_checkpoint(path, {"number": DiskFull()})
    assert load_checkpoint(path) == {"number": 1}
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_the_first_error_of_a_checkpoint_is_reported(tmp_path):
    (tmp_path / ".state.pt.vae-partial").symlink_to("/dev/full")
    with pytest.raises(RunError, match="No space left on device"):
        save_checkpoint(tmp_path / "state.pt", {"values": torch.zeros(100_000)})


def test_a_directory_that_vanished(tmp_path):
    with pytest.raises(RunError, match="cannot be written \\(No such file or directory\\)"):
        save_json(tmp_path / "none/file.json", {})


def test_equal_checkpoints_have_equal_bytes_under_any_name(tmp_path):
    content = {"values": torch.arange(5.0), "epoch": 3}
    for name in ("one.pt", "another.pt"):
        save_checkpoint(tmp_path / name, content)
    assert (tmp_path / "one.pt").read_bytes() == (tmp_path / "another.pt").read_bytes()
    torch.testing.assert_close(load_checkpoint(tmp_path / "one.pt"), content, rtol=0, atol=0)


def test_unusable_checkpoints_are_refused(tmp_path):
    path = tmp_path / "state.pt"
    with pytest.raises(InputError, match=r"state.pt: no such checkpoint"):
        load_checkpoint(path)
    with pytest.raises(InputError, match=r"Is a directory|Permission denied"):
        load_checkpoint(tmp_path)
    save_checkpoint(path, {"values": torch.arange(1000)})
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(InputError, match="not a checkpoint, or damaged"):
        load_checkpoint(path)
    torch.save([1, 2], path)
    with pytest.raises(InputError, match="not a checkpoint of this program"):
        load_checkpoint(path)
    path.write_bytes(np.random.default_rng(0).bytes(5000))
    with pytest.raises(InputError, match=r"refused|damaged"):
        load_checkpoint(path)


def test_a_checkpoint_that_would_run_code_is_refused(tmp_path):
    trace = tmp_path / "trace"
    torch.save({"weights": Poison(trace)}, tmp_path / "poison.pt")
    (tmp_path / "bare.pt").write_bytes(pickle.dumps(Poison(trace), protocol=2))
    for name in ("poison.pt", "bare.pt"):
        with pytest.raises(InputError, match="refused"):
            load_checkpoint(tmp_path / name)
    assert not trace.exists()
    torch.load(tmp_path / "poison.pt", weights_only=False)
    assert trace.is_dir()


def test_arrays_and_tables_keep_all_digits(tmp_path):
    values = np.random.default_rng(0).standard_normal(4)
    save_array(tmp_path / "values.npy", values)
    assert np.array_equal(np.load(tmp_path / "values.npy", allow_pickle=False), values)
    save_csv(tmp_path / "values.csv", [{"value": float(value)} for value in values])
    with open(tmp_path / "values.csv", newline="") as file:
        assert [float(row["value"]) for row in csv.DictReader(file)] == values.tolist()
    with pytest.raises(ValueError, match="allow_pickle"):
        save_array(tmp_path / "objects.npy", np.array([Poison(tmp_path)], dtype=object))
    assert not (tmp_path / "objects.npy").exists()


def test_json_is_read_as_it_was_written(tmp_path):
    path = tmp_path / "summary.json"
    save_json(path, {"b": 1.5, "a": [True, None]})
    assert list(load_json(path).items()) == [("b", 1.5), ("a", [True, None])]
    for text in ("[1]", "{", "\ud800".encode("utf-8", "surrogatepass")):
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        with pytest.raises(InputError, match="not a file of this program, or damaged"):
            load_json(path)
    path.unlink()
    with pytest.raises(InputError, match="No such file"):
        load_json(path)


def test_new_directories_vanish_after_an_error(tmp_path):
    (tmp_path / "old").mkdir()

    def fail():
        with new_directory(tmp_path / "old/new/newer"):
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert (tmp_path / "old").is_dir()
    assert not (tmp_path / "old/new").exists()


def in_another_process(function, *arguments):
    """What the function returned in a process of its own."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=lambda: sender.send(function(*arguments)))
    process.start()
    process.join()
    return receiver.recv() if receiver.poll() else None


def try_to_lock(*directories):
    try:
        with directory_lock(*directories):
            return "locked"
    except InputError as error:
        return str(error)


@posix
def test_two_runs_cannot_have_the_same_directory(tmp_path):
    ours, free = tmp_path / "ours", tmp_path / "free"
    with directory_lock(ours, ours):
        said = in_another_process(try_to_lock, free, tmp_path / "free/../ours")
        assert said == f"{ours}: in use by another run"
        assert not free.exists()
    assert in_another_process(try_to_lock, free, ours) == "locked"
    assert not list(tmp_path.glob("*/.*"))


@posix
def test_a_killed_run_frees_its_directory(tmp_path):
    def lock_and_die():
        with directory_lock(tmp_path):
            os._exit(0)

    in_another_process(lock_and_die)
    assert try_to_lock(tmp_path) == "locked"
    assert not os.listdir(tmp_path)


@posix
def test_a_waiting_lock_leaves_nothing_behind(tmp_path):
    with exclusive_lock(tmp_path, wait=True):
        assert not os.listdir(tmp_path)
    with exclusive_lock(tmp_path, wait=True):
        pass


def test_only_half_written_files_of_this_program_are_removed(tmp_path):
    kept = [".hidden", ".other.partial", "notes.vae-partial", ".state.pt.spare"]
    for name in [".state.pt.vae-partial", *kept]:
        (tmp_path / name).write_text("text")
    with directory_lock(tmp_path):
        assert not (tmp_path / ".state.pt.vae-partial").exists()
    assert sorted(os.listdir(tmp_path)) == sorted(kept)


@pytest.mark.parametrize("name", ["file", "file/below", "circle", "long" * 100])
def test_a_directory_that_cannot_be_made(tmp_path, name):
    (tmp_path / "file").write_text("a file")
    (tmp_path / "circle").symlink_to("circle")
    with pytest.raises(InputError, match="cannot be written to"), directory_lock(tmp_path / "new", tmp_path / name):
        pass
    assert sorted(os.listdir(tmp_path)) == ["circle", "file"]


@pytest.fixture
def find(tmp_path):
    """find_run in a directory of its own, with settings that a test may change."""

    def find(*, resume, **changed):
        return find_run(
            resume=resume,
            settings={"seed": 0, "batch_size": 64, "precision": "float32"} | changed,
            prefixes=PREFIXES,
            checkpoint_dir=tmp_path,
            summary=tmp_path / "summary.json",
        )

    return find


@pytest.fixture
def save(tmp_path):
    """save_state in the same directory."""

    def save(run, prefix, epochs, state=None):
        history = [{"epoch": epoch + 1, "elbo": -100.0 + epoch, "name": "a method"} for epoch in range(epochs)]
        content = {"history": history, "state": state or {"step": epochs}}
        save_state(content, run=run, prefix=prefix, checkpoint_dir=tmp_path)
        return history

    return save


def test_a_run_continues_after_its_last_epoch(find, save):
    run = find(resume=False)
    histories = {"first": save(run, "first", 3), "second": save(run, "second", 1)}
    again = find(resume=True)
    assert again.settings == run.settings
    for prefix, history in histories.items():
        loaded = []
        assert restore(run=again, prefix=prefix, load_state_dict=loaded.append) == history
        assert loaded == [{"step": len(history)}]


def test_a_new_run_restores_nothing(find):
    assert restore(run=find(resume=False), prefix="first", load_state_dict=None) == []


def test_resuming_nothing_begins(find, capsys):
    assert find(resume=True).states == {}
    assert "nothing to resume: the run begins" in capsys.readouterr().out


def test_other_settings_are_not_resumed(find, save):
    save(find(resume=False), "first", 1)
    with pytest.raises(InputError, match=r"first_state.pt: cannot be resumed .*: --seed 0 there, 5 here; --batch-size"):
        find(resume=True, seed=5, batch_size=8)
    with pytest.raises(InputError, match=r"cannot be resumed, it lacks the settings beta$"):
        find(resume=True, beta=1.0)


def test_states_of_other_settings_are_not_restored(find, save):
    save(find(resume=False, seed=1), "second", 2)
    run = find(resume=False)
    save(run, "first", 1)
    assert list(find(resume=True).states) == ["first"]


def test_a_new_run_leaves_an_interrupted_one_and_says_so(find, save, tmp_path, capsys):
    save(find(resume=False), "first", 1)
    before = state_path(tmp_path, "first").read_bytes()
    assert find(resume=False, seed=1).states == {}
    assert "which --resume would continue; this new run will replace it" in capsys.readouterr().out
    assert state_path(tmp_path, "first").read_bytes() == before


def test_a_new_run_among_the_files_of_another_says_so(find, tmp_path, capsys):
    run = find(resume=False)
    save_json(tmp_path / "summary.json", {"settings": run.settings})
    find(resume=False)
    assert capsys.readouterr().out == ""
    find(resume=False, seed=1)
    said = "summary.json: of another run (--seed 0 there, 1 here), whose files stay until replaced"
    assert said in capsys.readouterr().out


def test_a_finished_run_is_not_resumed(find, save, tmp_path, capsys):
    run = find(resume=False)
    save(run, "first", 1)
    save(run, "second", 1)
    save_json(tmp_path / "summary.json", {"settings": run.settings})
    finish_run(prefixes=PREFIXES, checkpoint_dir=tmp_path)
    assert os.listdir(tmp_path) == ["summary.json"]
    assert find(resume=True) is None
    assert "this run is finished, nothing to resume" in capsys.readouterr().out
    with pytest.raises(InputError, match="--seed 0 there, 1 here"):
        find(resume=True, seed=1)
    save_json(tmp_path / "summary.json", {"of": "another program"})
    with pytest.raises(InputError, match="lacks the settings seed"):
        find(resume=True)


def test_what_was_left_of_a_finished_run_goes(find, save, tmp_path):
    run = find(resume=False)
    save(run, "second", 1)
    save_json(tmp_path / "summary.json", {"settings": run.settings})
    assert find(resume=True) is None
    assert os.listdir(tmp_path) == ["summary.json"]


def test_foreign_states_are_refused(find, save, tmp_path):
    path = state_path(tmp_path, "first")
    save(find(resume=False), "second", 1)
    state_path(tmp_path, "second").rename(path)
    with pytest.raises(InputError, match=r"first_state.pt: not the state of this run"):
        find(resume=True)
    save_checkpoint(path, {"prefix": "first", "weights": {}})
    with pytest.raises(InputError, match=r"first_state.pt: not the state of this run"):
        find(resume=True)


def test_a_state_that_does_not_fit_is_refused(find, save):
    module = torch.nn.Linear(3, 2)
    save(find(resume=False), "first", 1, state=torch.nn.Linear(4, 2).state_dict())
    with pytest.raises(InputError, match=r"first_state.pt: its contents do not fit this program"):
        restore(run=find(resume=True), prefix="first", load_state_dict=module.load_state_dict)
