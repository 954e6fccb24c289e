"""Flags come from the fields of a config; what a user gets wrong is one line and exit status 2."""

import os
import signal
import sys
from dataclasses import dataclass, replace

import pytest
import torch

from runtime import cli, progress
from runtime.checkpoint import InputError, RunError
from runtime.cli import Parser, add_flags, make_config, out_of_memory_hint, run_script, writable_directory
from runtime.config import EvalConfig, RunConfig, TrainConfig, setting
from runtime.progress import Interrupted


@dataclass(frozen=True)
class Config:
    steps: int = setting(30, "100% of the steps", low=1, high=100_000)
    step_size: float = setting(0.5, "the size", low=1e-3, high=1e3, least=0.1)
    kind: str = setting("one", "the kind", choices=("one", "two"))
    data_dir: str = setting("data", "the data")
    quiet: bool = setting(False, "says nothing")

    def __post_init__(self):
        if self.steps * self.step_size > 1000:
            raise InputError(f"--step-size {self.step_size}: too large for the steps")


@dataclass(frozen=True)
class Other:
    steps: int = setting(7, "other steps", low=1, high=9)
    name: str = setting("", "any text")


def parser_of(*config_classes, **keywords):
    parser = Parser(prog="script.py")
    for config_class in config_classes:
        add_flags(parser, config_class, config_class.__name__, **keywords)
    return parser


def parse(text, *config_classes, **keywords):
    return vars(parser_of(*config_classes or (Config,), **keywords).parse_args(text.split()))


def test_the_namespace_holds_only_what_was_given():
    assert parse("") == {}
    assert parse("--steps 3 --quiet --step-size 1e-3") == {"steps": 3, "quiet": True, "step_size": 0.001}


def test_a_config_is_made_of_what_was_given_and_defaults():
    namespace = parser_of(Config, Other).parse_args(["--step-size", "2", "--name", "x"])
    assert make_config(Config, namespace) == Config(step_size=2.0)
    assert make_config(Other, namespace) == Other(name="x")


def test_a_flag_of_two_configs_is_added_once():
    assert parse("--steps 10 --name a", Config, Other) == {"steps": 10, "name": "a"}
    assert parser_of(TrainConfig, EvalConfig, RunConfig).parse_args(["--seed", "4"]).seed == 4


def test_skipped_fields_have_no_flag(capsys):
    with pytest.raises(SystemExit):
        parse("--quiet", skip=["quiet"])
    assert "unrecognized arguments: --quiet" in capsys.readouterr().err


def test_help_shows_meaning_default_and_what_is_scaled():
    words = " ".join(parser_of(Config, Other).format_help().split())
    assert "--steps N 100% of the steps (default: 30)" in words
    assert "--step-size X the size (*) (default: 0.5)" in words
    assert "Config: (*) smaller in proportion after a shorter training" in words
    assert words.count("smaller in proportion") == 1
    assert "--quiet says nothing" in words


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("--steps 0", "argument --steps: '0' is not a whole number from 1 to 100,000"),
        ("--steps 1.5", "argument --steps: '1.5' is not a whole number"),
        ("--steps 1e2", "argument --steps: '1e2' is not a whole number"),
        ("--steps 100001", "argument --steps: '100001' is not a whole number"),
        ("--steps=", "argument --steps: '' is not a whole number"),
        ("--steps", "argument --steps: expected one argument"),
        ("--step-size nan", "argument --step-size: 'nan' is not a number from 0.001 to 1,000"),
        ("--step-size inf", "argument --step-size: 'inf' is not a number"),
        ("--step-size 0,4", "argument --step-size: '0,4' is not a number"),
        ("--kind three", "argument --kind: invalid choice: 'three'"),
        ("--data-dir=", "argument --data-dir: the name is empty"),
        ("--step 3", "unrecognized arguments: --step 3 (did you mean --steps?)"),
        ("--step-sise=3 --quite", "(did you mean --step-size, --quiet?)"),
        ("--step 3 --stepsize 2 --step 4", "(did you mean --steps, --step-size?)"),
        ("--step size 3 --DATA_DIR=x", "(did you mean --step-size, --data-dir?)"),
        ("--data dir -quiet", "(did you mean --data-dir, --quiet?)"),
        ("--lines", "unrecognized arguments: --lines\n"),
        ("train", "unrecognized arguments: train\n"),
        ("--quiet yes", "unrecognized arguments: yes\n"),
    ],
)
def test_wrong_flags_are_one_line(capsys, text, said):
    with pytest.raises(SystemExit) as stop:
        parse(text)
    assert stop.value.code == 2
    out, errors = capsys.readouterr()
    assert out == ""
    assert errors.startswith("script.py: error: ")
    assert said in errors
    assert len(errors.splitlines()) == 1


def test_a_line_break_in_an_argument_is_none_in_the_error(capsys):
    with pytest.raises(SystemExit):
        parser_of(Config).parse_args(["--lines", "a\nb"])
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_an_impossible_config_is_an_input_error_with_names_of_flags():
    namespace = parser_of(Config).parse_args(["--steps", "9999"])
    with pytest.raises(InputError, match=r"^--step-size 0.5: too large for the steps$"):
        make_config(Config, namespace)


def test_a_directory_that_cannot_be_written_to(tmp_path):
    (tmp_path / "file").write_text("a file")
    for name in ("file", "file/below", "long" * 100):
        with pytest.raises(InputError, match=r"^--results-dir .*: cannot be written to \("):
            writable_directory(tmp_path / name, "results_dir")


def test_a_directory_to_be_made_is_not_made(tmp_path):
    writable_directory(tmp_path / "new/below", "results_dir")
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("CUDA out of memory."), RuntimeError("could not create a primitive")]
)
def test_out_of_memory_names_the_flags_to_lower(error):
    with pytest.raises(RunError, match=r"^out of memory; lower --steps$"), out_of_memory_hint("--steps"):
        raise error


def test_other_errors_are_not_out_of_memory():
    with pytest.raises(RuntimeError, match=r"^shapes differ$"), out_of_memory_hint("--steps"):
        raise RuntimeError("shapes differ")


def test_a_run_is_prepared(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", False)
    config = RunConfig(device="cpu", checkpoint_dir=str(tmp_path), results_dir=str(tmp_path / "new"))
    device, chosen = cli.prepare_run(config, TrainConfig(epochs=3))
    assert device.type == "cpu"
    assert chosen.epochs == 3
    assert chosen.precision in ("float32", "bfloat16")
    assert not torch.backends.cudnn.deterministic
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: in_use.append(device.index))
    in_use = []
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    for name in ("cuda", "cuda:1"):
        cli.prepare_run(replace(config, device=name), TrainConfig(precision="float32"))
    assert in_use == [0, 1]  # set_device refuses a device without an index
    assert torch.backends.cudnn.deterministic
    assert not torch.backends.cudnn.allow_tf32
    monkeypatch.undo()
    with pytest.raises(InputError, match="--device gpu: not a device"):
        cli.prepare_run(RunConfig(device="gpu"), TrainConfig())


@pytest.fixture
def script(monkeypatch, capsys):
    """Runs a main function that raises an error; returns exit status and stderr."""
    before = {number: signal.getsignal(number) for number in progress.SIGNALS}
    monkeypatch.setattr(sys, "argv", ["somewhere/script.py"])

    def run(main):
        with pytest.raises(SystemExit) as stop:
            run_script(main)
        return stop.value.code, capsys.readouterr().err

    yield run
    for number, handler in before.items():
        signal.signal(number, handler)
    progress._received = None


def raising(error):
    def main():
        raise error

    return main


def test_exit_statuses(script):
    assert script(raising(InputError("two\nlines"))) == (2, "script.py: error: two lines\n")
    assert script(raising(RunError("disk full"))) == (1, "script.py: error: disk full\n")
    assert script(raising(MemoryError()))[0] == 1
    assert script(raising(Interrupted(signal.SIGINT)))[0] == 130
    assert script(raising(Interrupted(signal.SIGTERM)))[0] == 143


def test_a_signal_ends_a_script_at_its_next_step(script):
    def main():
        signal.raise_signal(signal.SIGTERM)
        progress.check_interrupt()

    status, errors = script(main)
    assert status == 143
    assert errors.startswith("script.py: stopped by SIGTERM before an epoch")
    assert len(errors.splitlines()) == 1


def test_a_bug_is_not_hidden(script):
    with pytest.raises(ValueError, match="a bug"):
        run_script(raising(ValueError("a bug")))
    run_script(lambda: None)
