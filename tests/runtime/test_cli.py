"""Flags come from the fields of a config; what a user gets wrong is one line and exit status 2."""

import errno
import io
import os
import signal
import subprocess
import sys
import threading
from dataclasses import dataclass, replace
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from conftest import ROOT

from benchmarks.stress import SCRIPTS
from runtime import cli, config
from runtime.cli import Parser, add_flags, make_config, out_of_memory_hint, run_script
from runtime.config import InputError, RunConfig, RunError, TrainConfig, setting
from runtime.process import prepare_process
from runtime.progress import Interrupted
from runtime.tasks import THREAD


@dataclass(frozen=True)
class Config(config.Config):
    steps: int = setting(30, "100% of the steps", low=1, high=100_000)
    step_size: float = setting(0.5, "the size", low=1e-3, high=1e3, least=0.1)
    kind: str = setting("one", "the kind", choices=("one", "two"))
    data_dir: str = setting("data", "the data")
    quiet: bool = setting(False, "says nothing")


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
    with pytest.raises(InputError, match=r"^--steps 100001: not from 1 to 100,000"):
        make_config(Config, parser.parse_args(["--steps", "100001"]))
    for text in ("nan", "inf", "-1e-3", "-.5", "-inf", "-2"):
        with pytest.raises(InputError, match=r"^--step-size .*: not from 0.001 to 1,000"):
            make_config(Config, parser.parse_args(["--step-size", text]))


WRONG_TYPES = [("steps", "3"), ("steps", True), ("steps", 2.5), ("step_size", "0.4"), ("quiet", 1), ("kind", None)]


@pytest.mark.parametrize(("name", "value"), WRONG_TYPES)
def test_a_value_of_another_type_is_refused(name, value):
    with pytest.raises(InputError, match=f"^--{name.replace('_', '-')} .*: not of the type"):
        Config(**{name: value})
    assert type(Config(steps=np.int64(3)).steps) is int


def test_directories_may_be_paths_and_begin_with_the_home_directory(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    config = RunConfig(data_dir=Path("data"), results_dir="~/results")
    assert (config.data_dir, config.results_dir, config.checkpoint_dir) == ("data", "/home/me/results", "checkpoints")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("--steps 1e2", "argument --steps: invalid int value: '1e2'"),
        ("--step 3 --DATA_DIR=x --step 4", "--step 4 (did you mean --steps, --data-dir?)"),
        ("--data dir -kind", "(did you mean --data-dir, --kind?)"),
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


def test_out_of_memory_names_the_flags_to_lower():
    for said in ("CUDA out of memory.", "could not create a primitive", "std::bad_alloc"):
        with pytest.raises(RunError, match=r"^out of memory; lower --steps$"), out_of_memory_hint("--steps"):
            raise RuntimeError(said)
    with pytest.raises(RuntimeError, match="shapes differ"), out_of_memory_hint("--steps"):
        raise RuntimeError("shapes differ")


def test_flags_that_take_memory_are_named_if_they_are_above_their_defaults():
    config = TrainConfig(latent_rank=8, epochs=900, seed=9, latent_dim=100)
    assert cli.large_flags(config, ["batch_size"]) == "--batch-size (64) or --latent-rank (8)"


def test_a_run_is_prepared(monkeypatch, tmp_path):
    for name in ("deterministic", "allow_tf32"):
        monkeypatch.setattr(torch.backends.cudnn, name, name == "allow_tf32")
    config = RunConfig(device="cpu", checkpoint_dir=str(tmp_path), results_dir=str(tmp_path / "new"))
    device, chosen = cli.prepare_run(config, TrainConfig(epochs=3))
    assert (device.type, chosen.epochs, torch.backends.cudnn.deterministic) == ("cpu", 3, False)
    assert chosen.precision in ("float32", "bfloat16")
    for folder in (tmp_path, tmp_path / "new"):
        with pytest.raises(InputError, match=f"--results-dir .*new: inside of --dataset folder:{folder}, whose"):
            cli.prepare_run(config, TrainConfig(), written=("results_dir",), dataset=f"folder:{folder}")
    (tmp_path / "new").mkdir()
    (tmp_path / "linked/b").mkdir(parents=True)
    (tmp_path / "linked/b/new").symlink_to(tmp_path / "new")  # as a class of a split
    with pytest.raises(InputError, match=r"--results-dir .*new: inside of --dataset folder:.*linked, whose"):
        cli.prepare_run(config, TrainConfig(dataset=f"folder:{tmp_path / 'linked'}"))
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(InputError, match=r"^--checkpoint-dir .*loop/new: .*loop is not a directory"):
        cli.prepare_run(replace(config, checkpoint_dir=str(tmp_path / "loop/new")), TrainConfig())
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


def test_a_lack_of_memory_is_one_line_and_a_bug_is_not_hidden(handlers, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["somewhere/script.py"])
    with pytest.raises(SystemExit) as stop:
        run_script(Mock(side_effect=MemoryError))
    assert stop.value.code == 1
    assert capsys.readouterr().err == "script.py: error: out of memory; lower --batch-size or --train-size\n"
    with pytest.raises(ValueError, match="a bug"):
        run_script(Mock(side_effect=ValueError("a bug")))


def test_a_full_disk_behind_the_output_is_named(handlers, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["script.py"])
    with open(os.devnull, "w") as output:
        monkeypatch.setattr(sys, "stdout", output)
        with pytest.raises(SystemExit) as stop:
            run_script(Mock(side_effect=OSError(errno.ENOSPC, "No space left on device")))
    assert stop.value.code == 1
    assert capsys.readouterr().err == "script.py: error: output: No space left on device\n"


def test_a_stream_that_was_closed_before_the_start_is_no_error(handlers, monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)
    run_script(lambda: sys.stderr.write("a bar"))
    sys.stderr.close()


def test_a_console_that_lacks_characters_replaces_them(handlers, monkeypatch):
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="ascii") for _ in range(2))
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    run_script(lambda: (print("猫: 3 nats"), print("猫", file=sys.stderr)))
    out.flush()
    assert out.buffer.getvalue().split() == [b"?:", b"3", b"nats"]


def test_a_script_within_a_notebooks_process_leaves_its_settings(monkeypatch):
    monkeypatch.setitem(sys.modules, "IPython", None)
    monkeypatch.setenv("MPLBACKEND", "inline")
    before = dict(os.environ), signal.getsignal(signal.SIGINT)
    prepare_process("evaluation/figures.mplstyle")
    run_script(lambda: None)
    end, kernel = threading.Event(), Mock()
    monkeypatch.setattr(os, "_exit", kernel)  # would end the notebook's process
    threading.Thread(target=end.wait, name=THREAD).start()  # an evaluation at work
    with pytest.raises(SystemExit):
        run_script(Mock(side_effect=Interrupted(signal.SIGINT)))
    end.set()
    assert not kernel.called
    assert (dict(os.environ), signal.getsignal(signal.SIGINT)) == before


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_starts_whatever_backend_and_matplotlibrc_there_are(tmp_path, script):
    (tmp_path / "matplotlibrc").write_bytes(b"font.family: caf\xe9\n")
    unwritable = {"MPLCONFIGDIR": "/dev/null/none"}  # as the home of a container's user
    environment = {**os.environ, "MPLBACKEND": "no_such_backend", "MATPLOTLIBRC": str(tmp_path), **unwritable}
    command = [sys.executable, str(ROOT / script), "--help"]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")
