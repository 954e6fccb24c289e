"""Candidates take turns, alone, and their ratios are of the same round."""

import time
from functools import partial

import candidates
import pytest

from benchmarks.harness import median_and_range, print_table, ratios, take_turns


@pytest.mark.parametrize("keep_processes", [True, False])
def test_candidates_take_turns_in_a_process_each(tmp_path, keep_processes):
    path, started = tmp_path / "log", time.perf_counter()
    turns = take_turns(
        {name: partial(candidates.writing, path, name) for name in "ab"},
        repeats=3 if keep_processes else 2,
        keep_processes=keep_processes,
    )
    lines = [line.split() for line in path.read_text().splitlines()]
    # Nobody begins before the one before has ended.
    assert [moment for _, _, moment in lines] == ["begins", "ends"] * (len(lines) // 2)
    assert all(begin[:2] == end[:2] for begin, end in zip(lines[::2], lines[1::2], strict=True))
    order = "".join(name for name, _, _ in lines[::2])
    # The first turn of a process does not count.
    assert order == ("aabb" + "ba" + "ab" if keep_processes else "aabb" + "bbaa")
    assert len({process for _, process, _ in lines}) == (2 if keep_processes else 4)
    for name in "ab":
        assert [turn.result for turn in turns[name]] == ([2, 3, 4] if keep_processes else [2, 2])
        assert all(turn.seconds >= 0.02 for turn in turns[name])
        assert all(turn.peak_bytes > 1e6 for turn in turns[name])
    # A turn's time is its own, without the pause before it.
    assert sum(turn.seconds for name in "ab" for turn in turns[name]) < time.perf_counter() - started


def test_a_candidate_that_fails_is_named():
    with pytest.raises(RuntimeError, match="unlucky: no such luck"):
        take_turns({"unlucky": candidates.failing}, repeats=1)
    with pytest.raises(RuntimeError, match=r"gone: .*terminated"):
        take_turns({"gone": candidates.dying}, repeats=1)


def test_ratios_are_of_the_same_round(capsys):
    # Rounds differ fourfold, the two within a round do not.
    slow = ratios([2.0, 4.0, 8.4], [1.0, 2.0, 4.0])
    assert slow == pytest.approx([2, 2, 2.1])
    assert median_and_range(slow) == "2.00 (2.00 to 2.10)"
    assert median_and_range([0.5, 0.25, 1], ".0%") == "50% (25% to 100%)"
    with pytest.raises(ValueError, match="zip"):
        ratios([1.0], [1.0, 2.0])
    print_table(["name", "s"], [["ours", "1"], ["theirs", "20"]])
    assert capsys.readouterr().out.splitlines() == [
        "| name   | s  |",
        "| ------ | -- |",
        "| ours   | 1  |",
        "| theirs | 20 |",
    ]
