"""Candidates take turns, alone, and their ratios are of the same round."""

import os
import time
from functools import partial

import pytest

from benchmarks.harness import median_and_range, print_table, ratios, take_turns


def writing(path, name):
    """A turn writes its name and process to a file when it begins and when it ends; it returns how many there were."""
    count = 0

    def turn():
        nonlocal count
        count += 1
        for moment in ("begins", "ends"):
            with open(path, "a", encoding="utf-8") as file:
                file.write(f"{name} {os.getpid()} {moment}\n")
            time.sleep(0.01)
        return count

    return turn


@pytest.mark.parametrize(
    ("keep_processes", "order", "results"), [(True, "aabbbaab", [2, 3, 4]), (False, "aabbbbaa", [2, 2])]
)
def test_candidates_take_turns_in_a_process_each(tmp_path, keep_processes, order, results):
    """The first turn of a process does not count."""
    path, started = tmp_path / "log", time.perf_counter()
    candidates = {name: partial(writing, path, name) for name in "ab"}
    turns = take_turns(candidates, repeats=len(results), keep_processes=keep_processes)
    lines = [line.split() for line in path.read_text().splitlines()]
    # Nobody begins before the one before has ended.
    assert [moment for _, _, moment in lines] == ["begins", "ends"] * (len(lines) // 2)
    assert "".join(name for name, *_ in lines[::2]) == "".join(name for name, *_ in lines[1::2]) == order
    assert len({process for _, process, _ in lines}) == (2 if keep_processes else 4)
    for name in "ab":
        assert [turn.result for turn in turns[name]] == results
        assert all(turn.seconds >= 0.02 and turn.peak_bytes > 1e6 for turn in turns[name])
    # A turn's time is its own, without the pause before it.
    assert sum(turn.seconds for name in "ab" for turn in turns[name]) < time.perf_counter() - started


@pytest.mark.parametrize(
    ("turn", "said"), [(partial(int, "no such luck"), "no such luck"), (partial(os._exit, 3), "terminated")]
)
def test_a_candidate_whose_turn_fails_is_named(turn, said):
    with pytest.raises(RuntimeError, match=f"unlucky: .*{said}"):
        take_turns({"unlucky": partial(partial, turn)}, repeats=1)


def test_ratios_are_of_the_same_round(capsys):
    # Rounds differ fourfold, the two within a round do not.
    slow = ratios([2.0, 4.0, 8.4], [1.0, 2.0, 4.0])
    assert slow == pytest.approx([2, 2, 2.1])
    assert median_and_range(slow) == "2.00 (2.00 to 2.10)"
    assert median_and_range([0.5, 0.25, 1], ".0%") == "50% (25% to 100%)"
    print_table(["name", "s"], [["ours", "1"], ["theirs", "20"]])
    rows = ("name   | s ", "------ | --", "ours   | 1 ", "theirs | 20")
    assert capsys.readouterr().out.splitlines() == [f"| {row} |" for row in rows]
