"""Flags come from the fields of a config; what a user gets wrong is one line and exit status 2."""

import signal
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from runtime import cli, config, progress
from runtime.cli import Parser, add_flags, make_config, out_of_memory_hint, run_script
from runtime.config import EvalConfig, InputError, RunConfig, RunError, TrainConfig, setting
from runtime.progress import Interrupted


@dataclass(frozen=True)
class Config(config.Config):
    steps: int = setting(30, "100% of the steps", low=1, high=100_000)
    step_size: float = setting(0.5, "the size", low=1e-3, high=1e3, least=0.1)
    kind: str = setting("one", "the kind", choices=("one", "two"))
    data_dir: str = setting("data", "the data")
    quiet: bool = setting(False, "says nothing")

    def __post_init__(self):
        super().__post_init__()
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


def test_a_config_is_made_of_the_flags_that_were_given_and_defaults():
    parser = parser_of(Config, Other)
    assert vars(parser.parse_args([])) == {}
    given = parser.parse_args(["--steps", "10", "--quiet", "--step-size", "1e-3", "--name", "x"])
    assert vars(given) == {"steps": 10, "quiet": True, "step_size": 0.001, "name": "x"}  # a flag of both is added once
    assert make_config(Config, given) == Config(steps=10, quiet=True, step_size=0.001)
    assert make_config(Other, parser.parse_args(["--name", "y"])) == Other(name="y")
    assert parser_of(TrainConfig, EvalConfig, RunConfig).parse_args(["--seed", "4"]).seed == 4
    for wrong in (
        {"epochs": "3"}, {"epochs": True}, {"latent_dim": 2.5}, {"sigma_p": "0.4"}, {"binarize": 1}, {"dataset": None}
    ):  # fmt: skip
        (name,) = wrong
        with pytest.raises(InputError, match=f"^--{name.replace('_', '-')} .*: not of the type"):
            TrainConfig(**wrong)
    for flags, message in (
        (["--steps", "0"], "--steps 0: not from 1 to 100,000"),
        (["--steps", "100001"], "--steps 100001: not from"),
        (["--step-size", "nan"], "--step-size nan: not from 0.001 to 1,000"),
        (["--step-size", "inf"], "--step-size inf: not from"),
        *((["--step-size", text], "--step-size -.*: not from") for text in ("-1e-3", "-.5", "-inf", "-2")),
        (["--data-dir="], "--data-dir: the name is empty"),
    ):
        with pytest.raises(InputError, match=f"^{message}"):
            make_config(Config, parser.parse_args(flags))
    with pytest.raises(InputError, match=r"^--step-size 0.5: too large for the steps$"):
        make_config(Config, parser.parse_args(["--steps", "9999"]))


def test_directories_may_be_paths_and_begin_with_the_home_directory(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    config = RunConfig(data_dir=Path("data"), results_dir="~/results")
    assert (config.data_dir, config.results_dir, config.checkpoint_dir) == ("data", "/home/me/results", "checkpoints")


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
        ("--steps 1e2", "argument --steps: invalid int value: '1e2'"),
        ("--step 3", "unrecognized arguments: --step 3 (did you mean --steps?)"),
        ("--step-sise=3 --kint", "(did you mean --step-size, --kind?)"),
        ("--step 3 --stepsize 2 --step 4", "(did you mean --steps, --step-size?)"),
        ("--step size 3 --DATA_DIR=x", "(did you mean --steps, --data-dir?)"),
        ("--data dir -kind", "(did you mean --data-dir, --kind?)"),
        ("--lines", "unrecognized arguments: --lines\n"),
        ("--lines a\nb", "unrecognized arguments: --lines a b\n"),
        ("--quiet", "unrecognized arguments: --quiet\n"),  # it is skipped
    ],
)
def test_wrong_flags_are_one_line(capsys, text, said):
    with pytest.raises(SystemExit) as stop:
        parser_of(Config, skip=["quiet"]).parse_args(text.split(" "))
    out, errors = capsys.readouterr()
    assert (stop.value.code, out, len(errors.splitlines())) == (2, "", 1)
    assert errors.startswith("script.py: error: ")
    assert said in errors


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (MemoryError(), RunError, "out of memory; lower --steps"),
        (RuntimeError("CUDA out of memory."), RunError, "out of memory; lower --steps"),
        (RuntimeError("could not create a primitive"), RunError, "out of memory; lower --steps"),
        (RuntimeError("std::bad_alloc"), RunError, "out of memory; lower --steps"),
        (RuntimeError("shapes differ"), RuntimeError, "shapes differ"),
    ],
)
def test_out_of_memory_names_the_flags_to_lower(error, kind, message):
    with pytest.raises(kind, match=f"^{message}$"), out_of_memory_hint("--steps"):
        raise error


def test_flags_that_take_memory_are_named_if_they_are_above_their_defaults():
    config = TrainConfig(latent_rank=8, epochs=900, seed=9, latent_dim=100)
    assert cli.large_flags(config, ["batch_size"]) == "--batch-size (64) or --latent-rank (8)"


def test_a_run_is_prepared(monkeypatch, tmp_path):
    for name in ("deterministic", "allow_tf32"):
        monkeypatch.setattr(torch.backends.cudnn, name, name == "allow_tf32")
    config = RunConfig(device="cpu", checkpoint_dir=str(tmp_path), results_dir=str(tmp_path / "new"))
    device, chosen = cli.prepare_run(config, TrainConfig(epochs=3))
    assert (device.type, chosen.epochs) == ("cpu", 3)
    assert chosen.precision in ("float32", "bfloat16")
    assert not torch.backends.cudnn.deterministic
    for folder in (tmp_path, tmp_path / "new"):
        with pytest.raises(InputError, match=f"--results-dir .*new: inside of --dataset folder:{folder}, whose"):
            cli.prepare_run(config, TrainConfig(), written=("results_dir",), dataset=f"folder:{folder}")
    (tmp_path / "new").mkdir()
    (tmp_path / "linked/b").mkdir(parents=True)
    (tmp_path / "linked/b/new").symlink_to(tmp_path / "new")  # as a class of a split
    with pytest.raises(InputError, match=r"--results-dir .*new: inside of --dataset folder:.*linked, whose"):
        cli.prepare_run(config, TrainConfig(dataset=f"folder:{tmp_path / 'linked'}"))
    (tmp_path / "loop").symlink_to("loop")
    cli.prepare_run(config, TrainConfig(dataset=f"folder:{tmp_path / 'loop'}"))
    cli.prepare_run(config, TrainConfig(dataset="folder:~nobody of that name/x"))
    monkeypatch.setenv("LOKY_MAX_CPU_COUNT", "many")
    with pytest.raises(InputError, match="LOKY_MAX_CPU_COUNT 'many': not a whole number"):
        cli.prepare_run(config, TrainConfig())
    monkeypatch.delenv("LOKY_MAX_CPU_COUNT")
    in_use = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: in_use.append(device.index))
    for name in ("cuda", "cuda:1"):
        cli.prepare_run(replace(config, device=name), TrainConfig(precision="float32"))
    assert in_use == [0, 1]  # set_device refuses a device without an index
    assert (torch.backends.cudnn.deterministic, torch.backends.cudnn.allow_tf32) == (True, False)


def raising(error):
    def main():
        raise error

    return main


def signalled():
    signal.raise_signal(signal.SIGTERM)
    progress.check_interrupt()


@pytest.mark.parametrize(
    ("main", "status", "said"),
    [
        (raising(InputError("two\nlines")), 2, "script.py: error: two lines\n"),
        (raising(RunError("disk full")), 1, "script.py: error: disk full\n"),
        (raising(MemoryError()), 1, "script.py: error: out of memory; lower --batch-size or --train-size\n"),
        (raising(Interrupted(signal.SIGINT)), 130, "script.py: stopped by SIGINT before an epoch of its own was over"),
        (signalled, 143, "script.py: stopped by SIGTERM before an epoch of its own was over"),
    ],
)
def test_exit_statuses(handlers, monkeypatch, capsys, main, status, said):
    monkeypatch.setattr(sys, "argv", ["somewhere/script.py"])
    with pytest.raises(SystemExit) as stop:
        run_script(main)
    errors = capsys.readouterr().err
    assert (stop.value.code, len(errors.splitlines())) == (status, 1)
    assert errors.startswith(said)


def test_a_bug_is_not_hidden(handlers):
    with pytest.raises(ValueError, match="a bug"):
        run_script(raising(ValueError("a bug")))
    run_script(lambda: None)


def test_a_stream_that_was_closed_before_the_start_is_no_error(handlers, monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)
    run_script(lambda: sys.stderr.write("a bar"))
    sys.stderr.close()
