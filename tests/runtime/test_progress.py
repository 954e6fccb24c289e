"""Signals set a flag that work looks at; a bar shows the work on a terminal and lines elsewhere."""

import io
import os
import signal
import sys

import pytest

from runtime import progress
from runtime.progress import Interrupted, ProgressBar, check_interrupt, install_signal_handlers


class Terminal(io.StringIO):
    """A text stream that says that it is a terminal, and whose descriptor is that of an open file."""

    def __init__(self, descriptor=None):
        super().__init__()
        self.descriptor = descriptor

    def isatty(self):
        return True

    def fileno(self):
        return self.descriptor


@pytest.fixture
def handlers(monkeypatch):
    """The handlers for the time of a test."""
    before = {number: signal.getsignal(number) for number in progress.SIGNALS}
    monkeypatch.setattr(progress, "_received", None)
    install_signal_handlers()
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", progress.SIGNALS)
def test_a_signal_stops_the_work_where_it_looks(handlers, number):
    check_interrupt()
    signal.raise_signal(number)
    with pytest.raises(Interrupted) as raised:
        check_interrupt()
    assert raised.value.number == number


def test_a_second_signal_stops_at_once(handlers):
    signal.raise_signal(signal.SIGINT)
    with pytest.raises(Interrupted) as raised:
        signal.raise_signal(signal.SIGTERM)
    assert raised.value.number == signal.SIGTERM


def test_a_signal_in_a_destructor_is_not_lost(handlers):
    """Python drops an exception that leaves a destructor."""

    class Deleted:
        def __del__(self):
            signal.raise_signal(signal.SIGTERM)

    Deleted()
    with pytest.raises(Interrupted):
        check_interrupt()


def test_new_handlers_know_no_earlier_signal(handlers):
    signal.raise_signal(signal.SIGINT)
    install_signal_handlers()
    check_interrupt()


def test_on_a_terminal_the_first_signal_is_answered_in_one_line(handlers, monkeypatch, tmp_path):
    with open(tmp_path / "said", "wb") as file:
        monkeypatch.setattr(sys, "stderr", Terminal(file.fileno()))
        signal.raise_signal(signal.SIGINT)
    said = (tmp_path / "said").read_text()
    assert said.strip() == "the run stops at the next step; a second signal stops it at once"


def test_elsewhere_the_first_signal_is_not_answered(handlers, capfd):
    signal.raise_signal(signal.SIGINT)
    assert capfd.readouterr() == ("", "")


def test_a_bar_looks_for_signals(handlers):
    with ProgressBar("work", total=3, unit="img") as bar:
        bar.advance()
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(Interrupted):
            bar.advance()


def test_elsewhere_a_bar_is_its_lines(capfd):
    with ProgressBar("work", total=2, unit="img") as bar:
        bar.advance(2)
        bar.line("epoch 1", short="1")
    assert capfd.readouterr() == (f"work: epoch 1{os.linesep}", "")


def test_on_a_terminal_a_bar_shows_the_short_line(monkeypatch, capsys):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with ProgressBar("work", total=4, unit="img", done=1) as bar:
        bar.line("epoch 1", short="in short")
        bar.advance()
    assert capsys.readouterr().out == ""
    assert "50%" in terminal.getvalue()
    assert "in short" in terminal.getvalue()
    assert "epoch 1" not in terminal.getvalue()
