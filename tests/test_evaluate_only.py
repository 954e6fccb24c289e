"""--evaluate-only: checkpoints that are there are scored again, and nothing is trained or changed."""

import os
import signal
from functools import partial

import processes
import pytest
import torch
from conftest import toy_config, toy_data, train
from processes import EVALUATE_ONLY, MAIN, TRAINING, contents

from amortized_vae import AmortizedVAE
from benchmarks.pretrained import METHODS
from evaluation.statistics import find
from evaluation.tables import read_scores
from runtime.checkpoint import load_checkpoint, load_json, save_checkpoint, save_file
from runtime.learners import Checkpoints, find_checkpoints

functions = processes.run, processes.stop, processes.refused
run, stop, refused = (partial(function, MAIN, settings=EVALUATE_ONLY) for function in functions)


def test_other_seeds_and_counts_give_other_numbers_elsewhere(copy):
    """The seconds of the training are then not known."""
    folder = copy()
    before = contents(folder)
    status, said, _ = run(folder, "--evaluation", "quick", "--fitted-images", "30", "--results-dir", "other")
    assert status == 0
    assert "not known" in said
    assert max(map(len, said.splitlines())) <= 100
    names = "other", "results"
    values, whole = (find(read_scores(folder / name / "scores.csv"), "elbo", "amortized") for name in names)
    assert (values.images, whole.images) == (30, 20)
    assert values.mean != whole.mean
    summary = load_json(folder / "other/summary.json")
    assert [summary[name]["seed"] for name in ("train_config", "eval_config")] == [2, 0]
    assert summary["seconds"]["training"] == {}
    assert not {path.name for path in (folder / "other").iterdir()} & {"history.csv", "training_curves.png"}
    assert before.items() <= contents(folder).items()
    status, said, _ = run(folder, "--evaluation", "none", "--results-dir", "other")
    assert status == 0
    assert "other/scores.csv: of an earlier evaluation, as all that this one does not write" in said


def test_the_number_of_threads_changes_no_bit(copy, monkeypatch):
    """Of q*full and log p(x) too: the tasks share the models, and forward differentiation has one level for all."""
    folder = copy()
    for threads in ("1", "3"):
        monkeypatch.setenv("LOKY_MAX_CPU_COUNT", threads)
        assert run(folder, "--results-dir", threads, "--precision", "bfloat16")[0] == 0
    one, three = ((folder / threads / "log_probabilities.csv").read_bytes() for threads in ("1", "3"))
    assert one == three


def test_methods_are_loaded_in_evaluation_mode_and_float32(tmp_path):
    data, config = toy_data(), toy_config(epochs=1, precision="bfloat16")
    train(AmortizedVAE(config, data), tmp_path)
    known = Checkpoints((AmortizedVAE,), tmp_path, config, [1], data.train.index)
    (loaded,) = known.load(1, data)
    assert (loaded.model.training, loaded.model.precision) == (False, "float32")


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("vae", lambda old: {"method": "classifier"}, "vae_epoch_3.pt: not a checkpoint of amortized"),
        ("vae", None, "damaged"),
        ("vae", lambda old: {"epoch": 2}, "vae_epoch_3.pt: of epoch 2"),
        ("latent_opt", lambda old: {"config": {"latent_dims": 4}}, "'latent_dims'"),
        ("latent_opt", lambda old: {"config": old["config"] | {"seed": 3}}, "--seed 3 there, 2 in vae_epoch_3.pt"),
        ("latent_opt", lambda old: {"train_index": old["train_index"].flip(0)}, "its training images are others"),
        ("latent_opt", lambda old: {"weights": {}}, "do not fit this program"),
        ("latent_opt", lambda old: {"weights": {"mean": torch.tensor([0, torch.nan])}}, "that are not finite"),
    ],
)
def test_checkpoints_that_do_not_belong_together_are_refused(copy, name, change, message):
    folder = copy()
    path = folder / f"checkpoints/{name}_epoch_3.pt"
    if change:
        save_checkpoint(path, (old := load_checkpoint(path)) | change(old))
    else:
        os.truncate(path, 1000)
    refused(folder, said=message)


def test_the_last_epoch_of_both_is_scored(copy):
    """An epoch of one method alone does not count; an earlier one of both has to be of the same training."""
    folder = copy()
    for prefix, epochs in (("vae", (3, 5, 9)), ("latent_opt", (3, 5))):
        path = folder / f"checkpoints/{prefix}_epoch_1.pt"
        for epoch in epochs:
            save_checkpoint(path.with_stem(f"{prefix}_epoch_{epoch}"), {**load_checkpoint(path), "epoch": epoch})
    assert find_checkpoints(METHODS[:2], folder / "checkpoints").epochs == [1, 3, 5]
    path = folder / "checkpoints/vae_epoch_3.pt"
    checkpoint = load_checkpoint(path)
    save_checkpoint(path, {**checkpoint, "config": {**checkpoint["config"], "epochs": 4}})
    others = "of another training than vae_epoch_5.pt: --epochs 4 there, 3 in vae_epoch_5.pt"
    refused(folder, said=f"vae_epoch_3.pt: {others}")


def test_flags_that_agree_with_the_checkpoints_are_taken_and_unknown_images_are_said(copy):
    folder = copy()
    for path in (folder / "checkpoints").glob("*_epoch_*.pt"):
        save_checkpoint(path, {**load_checkpoint(path), "images": None})
    ended = stop(folder, *TRAINING.split(), after="evaluation with seed 2", number=signal.SIGINT)
    assert ended == (130, f"{MAIN}: stopped by SIGINT in the evaluation; give the same command again\n")
    assert [path.name for path in folder.rglob(".*")] in ([], [".evaluation"])
    said = "checkpoints of an older version: that they were trained on these images could not be checked"
    assert said in (folder / "out").read_text()


def test_an_evaluation_that_is_killed_as_it_writes_its_files_is_no_finished_one(copy):
    """Its files are in part those of an earlier one: nothing says that they belong together, until all are written."""
    folder = copy()
    seconds = load_json(folder / "results/summary.json")["seconds"]["training"]
    assert stop(folder, "--seed", "5", after="figures and tables", number=signal.SIGKILL)[0] == -signal.SIGKILL
    assert not (folder / "results/summary.json").exists()
    status, out, errors = processes.run(MAIN, folder, settings=TRAINING)
    assert (status, out) == (2, "")
    assert "of a trained run of the same settings, which --evaluate-only scores" in errors[0]
    assert run(folder, "--seed", "5")[0] == 0
    assert load_json(folder / "results/summary.json")["seconds"]["training"] == seconds


def test_results_of_other_images_are_not_mixed_with_these(copy):
    folder = copy()
    path = folder / "results/summary.json"
    known = load_json(path)
    known["settings"]["images"]["test"]["sha256"] = "0"
    save_file(path, known)
    refused(folder, said=f"{path.relative_to(folder)}: of another run (other test images, or in another order)")


def test_what_an_interrupted_evaluation_kept_belongs_to_its_seed(copy):
    folder = copy()
    kept = folder / "new/.evaluation/identity.json"
    stop(folder, "--results-dir", "new", "--seed", "5", after=str(kept), number=signal.SIGKILL)
    identity = load_json(kept)
    assert (identity["eval_config"]["seed"], identity["settings"]["seed"]) == (5, 2)
    assert identity["files"].keys() == {f"{name}_epoch_{n}.pt" for name in ("vae", "latent_opt") for n in (1, 3)}
