"""Files appear whole or not at all and run no code; one run per directory."""

import csv
import errno
import multiprocessing
import os
import pickle

import numpy as np
import pytest
import torch

from runtime.checkpoint import (
    InputError,
    RunError,
    atomic_write,
    directory_lock,
    exclusive_lock,
    load_checkpoint,
    load_json,
    new_directory,
    save_array,
    save_checkpoint,
    save_csv,
    save_json,
)


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


def test_two_runs_cannot_have_the_same_directory(tmp_path):
    ours, free = tmp_path / "ours", tmp_path / "free"
    with directory_lock(ours, ours):
        said = in_another_process(try_to_lock, free, tmp_path / "free/../ours")
        assert said == f"{ours}: in use by another run"
        assert not free.exists()
    assert in_another_process(try_to_lock, free, ours) == "locked"
    assert not list(tmp_path.glob("*/.*"))


def test_a_killed_run_frees_its_directory(tmp_path):
    def lock_and_die():
        with directory_lock(tmp_path):
            os._exit(0)

    in_another_process(lock_and_die)
    assert try_to_lock(tmp_path) == "locked"
    assert not os.listdir(tmp_path)


def test_a_waiting_lock_leaves_nothing_behind(tmp_path):
    for _ in range(2):
        with exclusive_lock(tmp_path, wait=True):
            pass
    assert not os.listdir(tmp_path)


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
