"""Files appear whole or not at all and run no code; one run per directory."""

import os
import pickle
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from processes import Poison

from runtime import checkpoint
from runtime.checkpoint import atomic_write, directory_lock, load_checkpoint, save_checkpoint
from runtime.config import InputError, RunError


@pytest.mark.parametrize("error", [None, ValueError, KeyboardInterrupt])
def test_a_file_appears_when_it_is_whole_and_else_the_old_one_stays(tmp_path, error):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(error) if error else nullcontext(), atomic_write(path) as partial:
        partial.write_text("new")
        assert sorted(os.listdir(tmp_path)) == [".file.vae-partial", "file"]
        assert path.read_text() == "old"
        if error:
            raise error
    assert os.listdir(tmp_path) == ["file"]
    assert path.read_text() == ("old" if error else "new")


@pytest.mark.parametrize("busy", [2, 100])
def test_a_file_that_a_scanner_reads_on_windows_is_replaced_a_little_later(tmp_path, monkeypatch, busy):
    error, replace, times = PermissionError(13, "Access is denied"), os.replace, []
    error.winerror = 5
    path = tmp_path / "file"
    path.write_text("old")
    monkeypatch.setattr(checkpoint.time, "sleep", times.append)

    def replace_later(*paths):
        if len(times) < busy:
            raise error
        replace(*paths)

    monkeypatch.setattr(os, "replace", replace_later)
    refused = pytest.raises(RunError, match=r"cannot be written \(Access is denied")
    with refused if busy == 100 else nullcontext(), atomic_write(path) as partial:
        partial.write_text("new")
    assert (path.read_text(), len(times)) == (("old", 5) if busy == 100 else ("new", 2))
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs Linux's full device")
def test_a_write_that_fails_says_why_and_leaves_the_old_checkpoint(tmp_path):
    path = tmp_path / "state.pt"
    save_checkpoint(path, {"number": 1})
    (tmp_path / ".state.pt.vae-partial").symlink_to("/dev/full")
    with pytest.raises(RunError, match=r"state.pt: cannot be written \(No space left on device\)"):
        save_checkpoint(path, {"values": torch.zeros(100_000)})
    assert load_checkpoint(path) == {"number": 1}
    assert os.listdir(tmp_path) == [path.name]
    with pytest.raises(RunError, match=r"cannot be written \(No such file or directory\)"):
        checkpoint.save_file(tmp_path / "none/file.json", {})


def test_equal_checkpoints_have_equal_bytes_under_any_name(tmp_path):
    content = {"values": torch.arange(5.0), "epoch": 3}
    for name in ("one.pt", "another.pt"):
        save_checkpoint(tmp_path / name, content)
    assert (tmp_path / "one.pt").read_bytes() == (tmp_path / "another.pt").read_bytes()
    torch.testing.assert_close(load_checkpoint(tmp_path / "one.pt"), content, rtol=0, atol=0)


@pytest.mark.parametrize("bit", [1, 16, 128])
def test_whatever_bit_of_a_checkpoint_changes_it_is_refused_or_reads_the_same(tmp_path, bit):
    path, values = tmp_path / "state.pt", torch.arange(300)
    save_checkpoint(path, {"values": values})
    whole, said = path.read_bytes(), []
    for place in range(len(whole)):
        changed = bytearray(whole)
        changed[place] ^= bit
        path.write_bytes(changed)
        try:
            assert torch.equal(load_checkpoint(path)["values"], values)
        except InputError as error:
            said.append(str(error))
    assert {*said} == {f"{path}: not a checkpoint, or damaged"}
    assert len(said) > values.nbytes


def test_a_path_may_begin_with_the_home_directory(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    save_checkpoint(tmp_path / "state.pt", {"values": torch.arange(3)})
    assert load_checkpoint("~/state.pt")["values"].tolist() == [0, 1, 2]


def test_unusable_checkpoints_are_refused_and_run_no_code(tmp_path):
    path, trace = tmp_path / "state.pt", tmp_path / "trace"
    save_checkpoint(path, {"values": torch.arange(1000)})
    whole = path.read_bytes()
    for write, message in (
        (path.unlink, "state.pt: no such checkpoint"),
        (path.mkdir, "Is a directory|Permission denied"),
        (path.rmdir, "no such checkpoint"),
        (lambda: path.write_bytes(whole[: len(whole) // 2]), "not a checkpoint, or damaged"),
        (lambda: path.write_text("version https://git-lfs.github.com/spec/v1"), "not a checkpoint, or damaged"),
        (lambda: torch.save([1, 2], path), "not a checkpoint of this program"),
        (lambda: path.write_bytes(pickle.dumps(Poison(trace), protocol=2)), "not a checkpoint, or damaged"),
        (lambda: torch.save({"weights": Poison(trace)}, path), "refused"),
    ):
        write()
        with pytest.raises(InputError, match=message):
            load_checkpoint(path)
    assert not trace.exists()
    torch.load(path, weights_only=False)
    assert trace.is_dir()  # the poison is poisonous


def test_files_are_removed_all_or_none(tmp_path, monkeypatch):
    paths, replace = [tmp_path / name for name in ("one", "two", "not there", "three")], os.replace

    def refusing(path, target):
        if Path(path).name == "three":
            raise PermissionError(1, "Operation not permitted")
        return replace(path, target)

    for path in paths[:2] + paths[3:]:
        path.write_text(path.name)
    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", refusing)
        with pytest.raises(RunError, match=r"three: cannot be removed \(Operation not permitted\)"):
            checkpoint.remove(paths)
    there = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert there == {name: name for name in ("one", "two", "three")}
    checkpoint.remove(iter(paths))
    assert not os.listdir(tmp_path)


def test_json_is_read_as_it_was_written_and_refused_otherwise(tmp_path):
    path = tmp_path / "summary.json"
    checkpoint.save_file(path, {"b": 1.5, "a": [True, None]})
    assert list(checkpoint.load_json(path).items()) == [("b", 1.5), ("a", [True, None])]
    for text in (b"[1]", b"{", "\ud800".encode("utf-8", "surrogatepass")):
        path.write_bytes(text)
        with pytest.raises(InputError, match="not a file of this program, or damaged"):
            checkpoint.load_json(path)
    path.unlink()
    with pytest.raises(InputError, match="No such file"):
        checkpoint.load_json(path)


def test_two_runs_cannot_have_the_same_directory(tmp_path, monkeypatch):
    ours, free = tmp_path / "ours", tmp_path / "free"
    with directory_lock(ours, ours):
        for again in (directory_lock(free, tmp_path / "free/../ours"), checkpoint.exclusive_lock(ours)):
            with pytest.raises(InputError, match=r"/ours: in use by another run$"), again:
                pass
        assert not free.exists()
    with directory_lock(free, ours):
        pass
    with checkpoint.exclusive_lock(ours, wait=True):
        pass
    assert not list(tmp_path.glob("*/.*"))
    # The lock's file goes before the lock: removed after it, it may be another's.
    there = []
    monkeypatch.setattr(checkpoint.FileLock, "release", lambda lock: there.append([*ours.glob(".*")]))
    with checkpoint.exclusive_lock(ours):
        pass
    assert there == [[]]


def test_only_half_written_files_of_this_program_are_removed(tmp_path):
    kept = [".hidden", ".other.partial", "notes.vae-partial", ".state.pt.spare"]
    for name in [".state.pt.vae-partial", *kept]:
        (tmp_path / name).write_text("text")
    with directory_lock(tmp_path):
        assert not (tmp_path / ".state.pt.vae-partial").exists()
    assert sorted(os.listdir(tmp_path)) == sorted(kept)


@pytest.mark.parametrize("name", ["file", "file/below", "circle", "long" * 100])
def test_a_directory_that_cannot_be_made(tmp_path, name):
    """The directories that were made before it vanish again, those that were there stay."""
    (tmp_path / "old").mkdir()
    (tmp_path / "file").write_text("a file")
    (tmp_path / "circle").symlink_to("circle")
    directories = tmp_path / "old/new/newer", tmp_path / name
    with pytest.raises(InputError, match="cannot be written to"), directory_lock(*directories):
        pass
    assert sorted(os.listdir(tmp_path)) == ["circle", "file", "old"]
    assert not os.listdir(tmp_path / "old")
