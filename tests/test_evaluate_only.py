"""--evaluate-only: checkpoints that are there are scored again, and nothing is trained or changed."""

import json
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
from processes import MAIN, contents, wait_for

from benchmarks import stress
from main_vae import METHODS
from runtime.checkpoint import load_checkpoint, load_json, save_checkpoint
from runtime.learners import find_checkpoints

COUNTS = ("--num-samples " + stress.SCRIPTS[MAIN].partition("--num-samples ")[2]).split()
TRAINING = stress.SCRIPTS[MAIN].partition("--num-samples ")[0].split()
AGAIN = ["--evaluate-only", *COUNTS, "--precision", "float32"]


def start(folder, *flags):
    return stress.start(MAIN, [*flags, "--data-dir", "../data"], folder)


def run(folder, *flags):
    """Runs main_vae.py to its end. Returns (exit status, stdout, lines of stderr)."""
    process = start(folder, *flags)
    process.join()
    return process.exitcode, (folder / "out").read_text(), (folder / "err").read_text().splitlines()


@pytest.fixture(scope="module")
def folder_of_runs(tmp_path_factory, whole_run):
    """A folder with a small MNIST and a finished run, seed 2."""
    folder = tmp_path_factory.mktemp("evaluation")
    shutil.copytree(whole_run / "data", folder / "data")
    shutil.copytree(whole_run / "run", folder / "whole")
    return folder


@pytest.fixture
def whole(folder_of_runs):
    """A copy of that run."""
    folder = shutil.copytree(folder_of_runs / "whole", folder_of_runs / "copy")
    yield folder
    shutil.rmtree(folder)


def log_prob(folder):
    return np.load(folder / "results/log_probabilities.npy", allow_pickle=False)


def summary(folder):
    return json.loads((folder / "results/summary.json").read_text())


def test_the_same_seed_and_counts_give_what_the_training_run_gave(folder_of_runs, whole):
    status, said, errors = run(whole, *AGAIN, "--seed", "2")
    assert (status, errors) == (0, [])
    assert "epoch 1/3" not in said
    assert "epoch 3 of 3, 100 training images, seed 2" in said
    before, after = summary(folder_of_runs / "whole"), summary(whole)
    assert after["seconds"]["training"] == before["seconds"]["training"]
    assert stress.differences(folder_of_runs / "whole", whole) == []


def test_other_seeds_and_counts_give_other_numbers_from_the_same_checkpoints(folder_of_runs, whole):
    status, _, _ = run(whole, *AGAIN, "--num-samples", "20", "--images-per-digit", "2")
    assert status == 0
    values, before = log_prob(whole), log_prob(folder_of_runs / "whole")
    assert values.shape == (2, 2, 10, 1)
    assert (values != before).all()
    configs = [summary(whole)[name] for name in ("train_config", "eval_config")]
    assert [config["seed"] for config in configs] == [2, 0]
    assert configs[0]["train_size"] == 100
    for path in (folder_of_runs / "whole/checkpoints").iterdir():
        assert (whole / "checkpoints" / path.name).read_bytes() == path.read_bytes()
    assert len(list((whole / "checkpoints").iterdir())) == 10


def test_results_may_go_elsewhere_and_the_seconds_are_then_not_known(folder_of_runs, whole):
    before = contents(whole / "checkpoints"), contents(whole / "results")
    status, said, _ = run(whole, *AGAIN, "--results-dir", "other")
    assert status == 0
    assert "not known" in said
    assert max(map(len, said.splitlines())) <= 100
    assert json.loads((whole / "other/summary.json").read_text())["seconds"]["training"] == {}
    names = {path.name for path in (whole / "other").iterdir()}
    assert "summary.json" in names
    assert not names & {"history.csv", "training_curves.png"}
    assert (contents(whole / "checkpoints"), contents(whole / "results")) == before


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--latent-dim", "20"], "--latent-dim 11 there, 20 here"),
        (["--sigma-p", "0.5"], "--sigma-p 0.3 there, 0.5 here"),
        (["--epochs", "30"], "--epochs 3 there, 30 here"),  # the default, but given
        (["--train-size", "61", "--batch-size", "9"], "--train-size 100 there, 61 here; --batch-size 33 there, 9 here"),
        (["--resume"], "--resume: not together with --evaluate-only"),
        (["--checkpoint-dir", "none"], "none: no checkpoints vae_epoch_N.pt and latent_opt_epoch_N.pt of the same"),
        (["--images-per-digit", "20"], "20 images of each class were asked for"),
        (["--device", "gpu"], "--device gpu: not a device"),
    ],
)
def test_what_contradicts_the_checkpoints_is_refused(whole, flags, message):
    before = contents(whole)
    status, out, errors = run(whole, *AGAIN, *flags)
    assert (status, out, len(errors)) == (2, "", 1)
    assert message in errors[0]
    assert contents(whole) == before


def test_what_agrees_with_the_checkpoints_is_not_refused(whole):
    process = start(whole, *AGAIN, *TRAINING)
    wait_for("evaluation with seed 2", process, whole)
    os.kill(process.pid, signal.SIGINT)
    process.join()
    assert process.exitcode == 130
    assert (whole / "err").read_text() == f"{MAIN}: stopped by SIGINT in the evaluation; give the same command again\n"
    assert [path.name for path in whole.rglob(".*")] in ([], [".evaluation"])


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("vae", lambda old: {**old, "method": "classifier"}, "vae_epoch_3.pt: not a checkpoint of amortized"),
        ("vae", lambda old: {**old, "epoch": 2}, "vae_epoch_3.pt: of epoch 2"),
        ("latent_opt", lambda old: {**old, "config": {"latent_dims": 4}}, "do not fit this program"),
        (
            "latent_opt",
            lambda old: {**old, "config": {**old["config"], "seed": 3}},
            "latent_opt_epoch_3.pt: of another training than vae_epoch_3.pt: --seed 3 there, 2 in vae_epoch_3.pt",
        ),
        ("latent_opt", lambda old: {**old, "train_index": old["train_index"].flip(0)}, "training images are others"),
        ("latent_opt", lambda old: {**old, "weights": {}}, "do not fit this program"),
        ("vae", None, "damaged"),
    ],
)
def test_checkpoints_that_do_not_belong_together_are_refused(whole, name, change, message):
    path = whole / f"checkpoints/{name}_epoch_3.pt"
    if change:
        save_checkpoint(path, change(load_checkpoint(path)))
    else:
        os.truncate(path, 1000)
    before = contents(whole)
    status, out, errors = run(whole, *AGAIN)
    assert (status, out, len(errors)) == (2, "", 1)
    assert message in errors[0]
    assert contents(whole) == before


def test_the_last_epoch_of_both_is_scored(whole):
    """An epoch of one method alone does not count; an earlier one of both has to be of the same training."""
    for prefix, epochs in (("vae", (3, 5, 9)), ("latent_opt", (3, 5))):
        path = whole / f"checkpoints/{prefix}_epoch_1.pt"
        for epoch in epochs:
            save_checkpoint(path.with_stem(f"{prefix}_epoch_{epoch}"), {**load_checkpoint(path), "epoch": epoch})
    assert find_checkpoints(METHODS[:2], whole / "checkpoints").epochs == [1, 3, 5]
    path = whole / "checkpoints/vae_epoch_3.pt"
    checkpoint = load_checkpoint(path)
    save_checkpoint(path, {**checkpoint, "config": {**checkpoint["config"], "epochs": 4}})
    status, _, errors = run(whole, *AGAIN)
    assert status == 2
    assert "vae_epoch_3.pt: of another training than vae_epoch_5.pt: --epochs 4 there, 3 in vae_epoch_5.pt" in errors[0]


def test_other_data_are_refused(folder_of_runs, whole):
    stress.small_mnist(folder_of_runs / "few/data", train=120)
    folder = shutil.copytree(whole, folder_of_runs / "few/run")
    status, _, errors = run(folder, *AGAIN)
    assert status == 2
    assert "has only 120 training images, the checkpoints were trained on others" in errors[0]


def test_results_of_another_training_are_not_replaced_by_mistake(folder_of_runs, whole):
    path = whole / "results/summary.json"
    there = summary(whole)
    there["train_config"]["beta"] = 0.25
    path.write_text(json.dumps(there))
    before = contents(whole)
    status, _, errors = run(whole, *AGAIN, "--seed", "2")
    assert (status, len(errors)) == (2, 1)
    assert "summary.json: of another run (--beta 0.25 there, 1.0 here); --overwrite removes its files" in errors[0]
    assert contents(whole) == before
    assert run(whole, *AGAIN, "--seed", "2", "--overwrite")[0] == 0
    names = {name for name in contents(whole) if name.parent.name == "results"}
    assert {name for name in before if name.parent.name == "results"} - names == {
        Path("results/history.csv"),
        Path("results/training_curves.png"),
        Path("results/quality_over_seconds.png"),
    }
    assert {name for name in before if name.parent.name == "checkpoints"} <= contents(whole).keys()


def test_what_an_interrupted_evaluation_kept_belongs_to_its_seed(whole):
    process = start(whole, *AGAIN, "--results-dir", "new", "--seed", "5")
    wait_for("new/recon_epoch_1.png", process, whole)
    process.kill()
    process.join()
    identity = load_json(whole / "new/.evaluation/identity.json")
    assert (identity["eval_config"]["seed"], identity["settings"]["seed"]) == (5, 2)
    assert identity["files"].keys() == {f"{name}_epoch_{n}.pt" for name in ("vae", "latent_opt") for n in (1, 3)}
