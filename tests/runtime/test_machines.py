"""What differs between machines: devices, precision, locks, terminals, the right to write."""

import errno
import os
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import toy_config, toy_data, train
from run_directory import OWNED, First

import amortized_vae
from amortized_vae import AmortizedVAE
from data import load_data
from evaluation.settings import prepare_again
from runtime import checkpoint, config, tasks
from runtime.checkpoint import directory_lock, exclusive_lock, readable_json, save_file
from runtime.cli import prepare_run
from runtime.config import ClassifierConfig, InputError, RunConfig, TrainConfig, choose_device
from runtime.plan import plan_evaluation, refuse_used
from runtime.progress import ProgressBar
from runtime.run import Run, open_evaluation
from sup_classification import ClassifierTraining, find_classifier

THERE, HERE = {"device": "cuda", "precision": "bfloat16"}, {"device": "cpu", "precision": "float32"}


def test_a_run_goes_on_on_another_machine_and_says_what_has_changed(directory, capsys):
    directory.settings |= THERE
    directory.save(First(), 2)
    directory.settings |= HERE
    with directory.open(resume=True) as run:
        assert [epoch for epoch in run.epochs(First()) if run.record(*First().learn()) is None] == [3]
    assert "--device cuda there, cpu here; --precision bfloat16 there, float32 here" in capsys.readouterr().out
    with directory.open(resume=True) as run:
        assert list(run.states) == ["first"]
    assert "there" not in capsys.readouterr().out  # the state is now of this machine


def test_a_run_does_not_go_on_with_other_images_of_another_folder(directory):
    images = {"training": {"counts": {"a": 3, "b": 4}, "sha256": "of all"}}
    directory.settings |= {"dataset": "folder:a", "images": images}
    directory.save(First(), 2)
    for others, said in ((None, ""), ({"training": {**images["training"], "sha256": "of others"}}, "; other training")):
        here = {"dataset": "folder:b", "images": others}
        directory.refuses(f"--dataset folder:a there, folder:b here{said}", resume=True, **here)


def test_a_finished_run_is_finished_on_another_machine(directory, tmp_path):
    directory.settings |= THERE
    directory.finish(num_samples=5, precision="bfloat16")
    assert directory.plan(scoring={"num_samples": 5, "precision": "float32"}, **HERE).finished
    trained = {"train_config": {"precision": "bfloat16"}, "seconds": {"training": {"first": 2.0}}}
    save_file(tmp_path / "summary.json", trained)
    known = plan_evaluation(directory.config(), TrainConfig(precision="float32"), owned=OWNED, epoch=3, methods=[])
    assert known == ({"first": 2.0}, [])


def test_adam_of_a_recorded_step_goes_on_without_a_graph(directory):
    """Its state says `capturable`, which an Adam that is not fused refuses on a CPU."""
    learner = First()
    weight = torch.nn.Parameter(torch.ones(2))
    learner.optimizers = [adam] = [torch.optim.Adam([weight])]
    adam.param_groups[0]["capturable"] = True
    directory.save(learner, 1)
    directory.restored(learner)
    weight.sum().backward()
    adam.step()
    assert (weight < 1).all()


def test_seconds_count_those_of_all_processes(directory, tmp_path, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(tasks.time, "perf_counter", lambda: clock[0])
    run = directory.run()
    clock[0] = 70.0  # of which no epoch knows, such as loading
    run._save(First(), [{"epoch": 1, "seconds": 1.0}])
    run.keep_results({"settings": directory.settings}, 70.0)
    run.tasks.keep("a", lambda: clock.__setitem__(0, 100.0))
    clock[0] = 1000.0  # another process
    again = directory.run(plan=directory.plan(resume=True))
    assert again.seconds() == 70
    assert clock[0] - again.keep_results({"settings": directory.settings}, 1000.0) == 30
    assert again.seconds() == 100
    assert tasks.Tasks(tmp_path / ".evaluation", {"seed": 1}, 1000.0).started == 1000  # other work


def test_evaluations_read_checkpoints_side_by_side_and_write_nothing_there(tmp_path, monkeypatch):
    there, data = tmp_path / "checkpoints", toy_data()
    there.mkdir()
    one, other = (RunConfig(checkpoint_dir=str(there), results_dir=str(tmp_path / name)) for name in ("one", "other"))
    may_write = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: path != there and may_write(path, mode))
    for run_config in (one, other):
        prepare_run(run_config, toy_config(), written=("results_dir",))
    settings = ClassifierConfig(epochs=1, train_size=150, batch_size=50, precision="float32")
    with open_evaluation(one, toy_config(), device="cpu", owned=OWNED, epoch=1, methods=[]) as run:
        refuse_used(other)
        with open_evaluation(other, toy_config(), device="cpu", owned=OWNED, epoch=1, methods=[]):
            find_classifier(data, settings, run)
    assert not os.listdir(there)
    assert os.listdir(tmp_path / "one") == ["classifier.pt"]
    run = Run(RunConfig(checkpoint_dir=str(tmp_path / "one")), {})
    find_classifier(data, replace(settings, precision="bfloat16"), run)  # another machine's is as good
    with directory_lock(there), pytest.raises(InputError, match="in use by another run"):
        refuse_used(one)


def test_what_may_not_be_read_is_said(tmp_path, monkeypatch):
    def closed(*arguments):
        raise PermissionError(13, "Permission denied")

    (tmp_path / "summary.json").write_text("{}")
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(InputError, match=r"summary.json: no right to read it"):
        readable_json(tmp_path / "summary.json")
    monkeypatch.setattr(Path, "glob", closed)  # below a folder that may not be entered
    with pytest.raises(InputError, match=r"--checkpoint-dir there: Permission denied"):
        prepare_again(Namespace(checkpoint_dir="there"), owned=OWNED)
    (tmp_path / "MNIST/raw").mkdir(parents=True)
    (tmp_path / "MNIST/raw/train-images-idx3-ubyte.gz").touch()
    with pytest.raises(InputError, match=r"is damaged, .*; without a network, this directory needs"):
        load_data(toy_config(dataset="mnist"), data_dir=tmp_path)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_without_locks_is_said_and_used(directory, tmp_path, monkeypatch, capsys, number):
    fcntl = pytest.importorskip("fcntl")

    def flock(file, operation):
        raise OSError(number, "no locks")

    monkeypatch.setattr(fcntl, "flock", flock)
    with exclusive_lock(tmp_path, wait=True), directory_lock(tmp_path):
        pass
    assert capsys.readouterr().err == f"{tmp_path}: its file system has no locks; let no other run use it\n"
    number = errno.EIO
    with pytest.raises(InputError, match="cannot be written to"), directory_lock(tmp_path):
        pass
    (tmp_path / checkpoint.LOCK).touch()
    refuse_used(directory.config())  # what nobody may lock is not in use


def test_auto_takes_mps_only_if_it_is_named(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert [choose_device(name).type for name in ("auto", "mps")] == ["cpu", "mps"]


def test_what_a_machine_does_not_have_is_not_a_damaged_file(tmp_path):
    train(AmortizedVAE(toy_config(epochs=1), toy_data()), tmp_path)
    path = tmp_path / "vae_epoch_1.pt"
    with pytest.raises(InputError, match=r"^device cuda:99: not on this machine \(.+\)$"):
        amortized_vae.load_model(path, device="cuda:99")
    saved = checkpoint.load_checkpoint(path)
    checkpoint.save_checkpoint(path, saved | {"config": saved["config"] | {"latent_dim": 6}})
    with pytest.raises(InputError, match=r"size mismatch for decoder.layers.0.weight: .*\[512, 5\].*\[512, 6\]"):
        amortized_vae.load_model(path)


@pytest.mark.parametrize(
    ("bfloat16", "amx", "intel", "expected"),
    [(1, 0, 0, "bfloat16"), (1, 1, 1, "bfloat16"), (1, 0, 1, "float32"), (0, 0, 0, "float32")],
)
def test_methods_and_the_classifier_resolve_their_precision(monkeypatch, bfloat16, amx, intel, expected):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: bfloat16)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(config, "_intel", lambda: intel)
    method = AmortizedVAE(toy_config(precision="auto"), toy_data())
    assert (method.config.precision, method.model.precision) == (expected, expected)
    classifier = ClassifierTraining(ClassifierConfig(train_size=150, precision="auto"), toy_data())
    assert classifier.config.precision == expected
    with pytest.raises(ValueError, match="precision 'auto'"):
        method.model.in_precision("auto").mean(torch.zeros(1, 5))


@pytest.mark.skipif(os.name != "posix", reason="the terminal is POSIX's")
def test_a_terminal_without_columns_shows_a_bar(monkeypatch):
    ours, theirs = os.openpty()  # 0 rows of 0 columns
    with os.fdopen(theirs, "w") as terminal:
        monkeypatch.setattr("sys.stderr", terminal)
        with ProgressBar("work", total=4, unit="img", done=1):
            pass
    assert b"25%" in os.read(ours, 1000)
    os.close(ours)
