"""Signals set a flag that work looks at; a bar shows the work on a terminal and lines elsewhere."""

import io
import os
import signal
import sys

import pytest

from runtime import progress
from runtime.progress import SIGNALS, Interrupted, ProgressBar, check_interrupt, signals_handled


class Terminal(io.StringIO):
    """A text stream that says that it is a terminal, and whose descriptor is that of an open file."""

    def __init__(self, descriptor=None):
        super().__init__()
        self.descriptor = descriptor

    def isatty(self):
        return True

    def fileno(self):
        return self.descriptor


class Deleted:
    """Python drops an exception that leaves a destructor."""

    def __init__(self, number):
        self.number = number

    def __del__(self):
        signal.raise_signal(self.number)


def test_a_signal_that_the_shell_has_a_script_ignore_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    with signals_handled():
        signal.raise_signal(signal.SIGINT)
        check_interrupt()
    assert signal.signal(signal.SIGINT, before) == signal.SIG_IGN


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("arrive", [signal.raise_signal, Deleted])
def test_a_signal_stops_the_work_where_it_looks(handlers, capfd, arrive, number):
    check_interrupt()
    with ProgressBar("work", total=3, unit="img") as bar:
        bar.advance()
        arrive(number)
        with pytest.raises(Interrupted) as raised:
            bar.advance()
    assert raised.value.number == number
    assert capfd.readouterr() == ("", "")
    before = signal.getsignal(number)
    with signals_handled():  # which knows no earlier signal
        check_interrupt()
        signal.raise_signal(number)
    assert signal.getsignal(number) == before
    check_interrupt()  # nor is it known afterwards, as in a notebook


def test_the_first_signal_is_answered_in_one_line_and_a_second_stops_at_once(handlers, monkeypatch, tmp_path):
    with open(tmp_path / "said", "wb") as file:
        monkeypatch.setattr(sys, "stderr", Terminal(file.fileno()))
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(Interrupted) as raised:
            signal.raise_signal(signal.SIGTERM)
    assert raised.value.number == signal.SIGTERM
    said = (tmp_path / "said").read_text()
    assert said.strip() == "the run stops at the next step; a second signal stops it at once"


def test_a_bar_shows_the_short_line_on_a_terminal_and_elsewhere_lines(monkeypatch, capfd):
    terminal = Terminal()
    for stream in (sys.stderr, terminal):
        monkeypatch.setattr(sys, "stderr", stream)
        with ProgressBar("work", total=4, unit="img", done=1) as bar:
            bar.line("epoch 1", short="in short")
            bar.advance()
    assert capfd.readouterr() == (f"work: epoch 1{os.linesep}", "")
    assert "50%" in terminal.getvalue()
    assert "in short" in terminal.getvalue()
    assert "epoch 1" not in terminal.getvalue()


def test_without_a_terminal_a_line_is_said_every_half_minute(capsys, monkeypatch):
    monkeypatch.setattr(progress, "SILENCE", -1)
    with progress.ProgressBar("work", total=3, unit="task") as bar:
        bar.advance()
        monkeypatch.setattr(progress, "SILENCE", 100)
        bar.advance(2)
    assert capsys.readouterr().out == "work: 1 of 3 task\n"
