"""What a script prints on any console, in any environment: names with replacement, at the end where its files are."""

import io
import os
import subprocess
import sys

import pytest
import torch
from conftest import ROOT, toy_data

from benchmarks.stress import SCRIPTS
from model import Classifier
from runtime.cli import run_script
from runtime.config import RunConfig
from runtime.run import Run
from sup_classification import report


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_a_console_that_lacks_characters_replaces_them(monkeypatch, encoding):
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding=encoding) for _ in range(2))
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    monkeypatch.setattr("runtime.cli.install_signal_handlers", lambda: None)
    run_script(lambda: (print("猫: 3 nats"), print("猫", file=sys.stderr)))
    out.flush()
    assert out.buffer.getvalue().split() == [b"?:", b"3", b"nats"]


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_starts_whatever_backend_and_matplotlibrc_there_are(tmp_path, script):
    (tmp_path / "matplotlibrc").write_bytes(b"font.family: caf\xe9\n")
    environment = {**os.environ, "MPLBACKEND": "no_such_backend", "MATPLOTLIBRC": str(tmp_path)}
    command = [sys.executable, str(ROOT / script), "--help"]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")


def test_the_last_lines_say_which_file_to_open(whole_run, tmp_path, capsys):
    *_, where, said = (whole_run / "run/out").read_text().splitlines()
    assert where == "checkpoints: checkpoints"
    assert said.startswith(f"{os.path.join('results', 'report.html')}: open it")
    run = Run(RunConfig(checkpoint_dir=str(tmp_path / "there"), results_dir=str(tmp_path)), {})
    row = {"train_images": 9, "train_error": 0.2, "validation_images": 9, "validation_error": 0.1}
    run.history = [row | {"epoch": 1, "validation_error_standard_error": 0.01}]
    with torch.no_grad():
        run.write(report(Classifier(5, image_shape=(2, 12, 16), seed=1), toy_data().test, run, {}))
    said = capsys.readouterr().out.splitlines()[-1]
    assert said.startswith(f"{tmp_path / 'classification.png'}: open it")
    assert said.endswith(str(tmp_path / "there/classifier.pt"))
