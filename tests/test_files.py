"""A file that is replaced again and again: whole every time, written over the one before the last, none left over."""

import errno
import os

import pytest
import torch

from files import RunError, hold_directories, load_checkpoint, save_checkpoint


class Unwritable:
    """The disk is full when it is pickled."""

    def __reduce__(self):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_file_that_is_written_often_goes_over_the_one_before_the_last(tmp_path):
    path, numbers = tmp_path / "held/state.pt", []
    with hold_directories(path.parent):
        for size in (3000, 5000, 1000, 4000):
            state = {"values": torch.full((size,), float(size))}
            save_checkpoint(path, state, often=True)
            numbers.append(path.stat().st_ino)
            save_checkpoint(tmp_path / f"{size}.pt", state, often=True)
            assert path.read_bytes() == (tmp_path / f"{size}.pt").read_bytes()
            torch.testing.assert_close(load_checkpoint(path), state, rtol=0, atol=0)
    assert numbers[:2] == numbers[2:]
    assert os.listdir(path.parent) == [path.name]


def test_a_file_with_a_second_name_is_not_written_over(tmp_path):
    # As it is when a run is killed between its making the spare and the renaming.
    path, other = tmp_path / "state.pt", tmp_path / "other.pt"
    save_checkpoint(path, {"number": 0}, often=True)
    os.link(path, other)
    for number in range(1, 4):
        save_checkpoint(path, {"number": number}, often=True)
        assert load_checkpoint(path) == {"number": number}
        assert load_checkpoint(other) == {"number": 0}


def test_a_file_that_is_written_often_survives_a_write_that_fails(tmp_path):
    path = tmp_path / "state.pt"
    for number in range(3):
        save_checkpoint(path, {"number": number}, often=True)
    with pytest.raises(RunError, match="cannot be written"):
        save_checkpoint(path, {"number": Unwritable()}, often=True)
    assert load_checkpoint(path) == {"number": 2}
    assert os.listdir(tmp_path) == [path.name]
