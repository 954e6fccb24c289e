"""--evaluate-only: checkpoints that are there are scored again, and nothing is trained or changed."""

import json
import os
import shutil
import signal

import pytest
import torch
from processes import MAIN, contents, wait_for

from benchmarks import soak
from fairness import fingerprint
from files import load_array, load_checkpoint, save_checkpoint
from model import ConvVAE, Decoder
from trained import find_trained

TRAINING = ["--epochs", "1", "--train-size", "60", "--latent-dim", "4", "--seed", "2"]
SMALL = "--chains 2 --temperatures 3 --fit-steps 5 --fitted-images 20 --simulated-images 2 --judged-samples 200"
COUNTS = ["--num-samples", "10", "--images-per-digit", "1", "--gap-images-per-digit", "1", *SMALL.split()]
AGAIN = ["--evaluate-only", *COUNTS]


def start(folder, *flags):
    return soak.start(MAIN, [*flags, "--data-dir", "../data"], folder)


def run(folder, *flags):
    """Runs main_vae.py to its end. Returns (exit status, stdout, lines of stderr)."""
    process = start(folder, *flags)
    process.join()
    return process.exitcode, (folder / "out").read_text(), (folder / "err").read_text().splitlines()


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a small MNIST and a finished run of one epoch, seed 2."""
    folder = tmp_path_factory.mktemp("evaluation")
    soak.small_mnist(folder / "data")
    status, _, errors = run(folder / "whole", *TRAINING, *COUNTS)
    assert (status, errors) == (0, [])
    return folder


@pytest.fixture
def whole(place):
    """A copy of that run."""
    folder = shutil.copytree(place / "whole", place / "copy")
    yield folder
    shutil.rmtree(folder)


def log_prob(folder):
    return load_array(folder / "results/log_probabilities.npy")


def summary(folder):
    return json.loads((folder / "results/summary.json").read_text())


def test_the_same_seed_and_counts_give_what_the_training_run_gave(place, whole):
    status, said, errors = run(whole, *AGAIN, "--seed", "2")
    assert (status, errors) == (0, [])
    assert "epoch 1/1" not in said
    assert "epoch 1 of 1, 60 training images, seed 2" in said
    before, after = summary(place / "whole"), summary(whole)
    assert after["config"].pop("evaluate_only") is True
    assert before["config"].pop("evaluate_only") is False
    assert after["seconds"]["amortized_training"] == before["seconds"]["amortized_training"]
    differing = soak.differences(place / "whole", whole)
    assert differing == ["results/summary.json: not alike"]
    for part in set(before) - {"fairness", "seconds"}:
        assert before[part] == after[part]


def test_other_seeds_and_counts_give_other_numbers_from_the_same_checkpoints(place, whole):
    status, _, _ = run(whole, *AGAIN, "--num-samples", "20", "--images-per-digit", "2")
    assert status == 0
    values, before = log_prob(whole), log_prob(place / "whole")
    assert values.shape == (2, 2, 10, 2)
    assert (values[..., :1] != before).all()
    config = summary(whole)["config"]
    assert (config["seed"], config["evaluation_seed"], config["train_size"]) == (2, 0, 60)
    for path in (place / "whole/checkpoints").iterdir():
        assert (whole / "checkpoints" / path.name).read_bytes() == path.read_bytes()
    assert len(list((whole / "checkpoints").iterdir())) == 3


def test_results_may_go_elsewhere_and_the_seconds_are_then_not_known(place, whole):
    before = contents(whole / "checkpoints"), contents(whole / "results")
    status, said, _ = run(whole, *AGAIN, "--results-dir", "other")
    assert status == 0
    assert "not known" in said
    assert max(map(len, said.splitlines())) <= 100
    assert set(summary(whole)["seconds"]) == {"amortized_training", "latent_training", "evaluation", "total"}
    names = {path.name for path in (whole / "other").iterdir()}
    assert "summary.json" in names
    assert not names & {"history.csv", "training_curves.png"}
    assert (contents(whole / "checkpoints"), contents(whole / "results")) == before


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--latent-dim", "20"], "--latent-dim 20, but the checkpoints say 4"),
        (["--sigma-p", "0.5"], "--sigma-p 0.5, but the checkpoints say 0.4"),
        (["--epochs", "30"], "--epochs 30, but the checkpoints say 1"),  # the default, but given
        (["--train-size", "61", "--batch-size", "9"], "--batch-size 9, but the checkpoints say 64; --train-size 61"),
        (["--resume"], "--resume: not together with --evaluate-only"),
        (["--checkpoint-dir", "none"], "none: no checkpoints vae_epoch_N.pt and latent_opt_epoch_N.pt of the same"),
        (["--images-per-digit", "20"], "20 images of each digit were asked for"),
        (["--device", "gpu"], "--device gpu: not a device"),
    ],
)
def test_what_contradicts_the_checkpoints_is_refused(whole, flags, said):
    before = contents(whole)
    status, out, errors = run(whole, *AGAIN, *flags)
    assert (status, out, len(errors)) == (2, "", 1)
    assert said in errors[0]
    assert contents(whole) == before


def test_what_agrees_with_the_checkpoints_is_not_refused(whole):
    process = start(whole, *AGAIN, *TRAINING)
    wait_for("evaluation with seed 2", process, whole)
    os.kill(process.pid, signal.SIGINT)
    process.join()
    assert process.exitcode == 130
    assert (whole / "err").read_text() == f"{MAIN}: stopped by SIGINT in the evaluation; give the same command again\n"
    assert not list(whole.rglob(".*"))


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("vae", lambda old: {**old, "regime": "classifier"}, "vae_epoch_1.pt: not a checkpoint of main_vae.py"),
        ("vae", lambda old: {**old, "epoch": 2}, "not of this regime and epoch"),
        ("latent_opt", lambda old: {**old, "config": {"latent_dim": 4}}, "not a checkpoint of main_vae.py"),
        (
            "latent_opt",
            lambda old: {**old, "config": {**old["config"], "seed": 3}},
            "latent_opt_epoch_1.pt: of another training than vae_epoch_1.pt: --seed 3 there, 2 in vae_epoch_1.pt",
        ),
        ("latent_opt", lambda old: {**old, "train_index": old["train_index"].flip(0)}, "training images are others"),
        ("latent_opt", lambda old: {**old, "weights": {}}, "do not fit this program"),
        ("vae", None, "damaged"),
    ],
)
def test_checkpoints_that_do_not_belong_together_are_refused(whole, name, change, said):
    path = whole / f"checkpoints/{name}_epoch_1.pt"
    if change:
        save_checkpoint(path, change(load_checkpoint(path)))
    else:
        os.truncate(path, 1000)
    before = contents(whole)
    status, out, errors = run(whole, *AGAIN)
    assert (status, out, len(errors)) == (2, "", 1)
    assert said in errors[0]
    assert contents(whole) == before


def test_the_last_epoch_of_both_is_scored(whole):
    """An epoch of one regime alone does not count; an earlier one of both has to be of the same training."""
    for prefix, epochs in (("vae", (3, 5, 9)), ("latent_opt", (3, 5))):
        path = whole / f"checkpoints/{prefix}_epoch_1.pt"
        for epoch in epochs:
            save_checkpoint(path.with_stem(f"{prefix}_epoch_{epoch}"), {**load_checkpoint(path), "epoch": epoch})
    assert find_trained(whole / "checkpoints").epochs == [1, 3, 5]
    path = whole / "checkpoints/vae_epoch_3.pt"
    checkpoint = load_checkpoint(path)
    save_checkpoint(path, {**checkpoint, "config": {**checkpoint["config"], "epochs": 3}})
    status, _, errors = run(whole, *AGAIN)
    assert status == 2
    assert "vae_epoch_3.pt: of another training than vae_epoch_5.pt: --epochs 3 there, 1 in vae_epoch_5.pt" in errors[0]


def test_other_data_are_refused(place, whole):
    soak.small_mnist(place / "few/data", train=100)
    folder = shutil.copytree(whole, place / "few/run")
    status, _, errors = run(folder, *AGAIN)
    assert status == 2
    assert "has only 100 training images, the checkpoints were trained on others" in errors[0]


def test_the_fairness_table_says_what_was_spent(place):
    rows = summary(place / "whole")["fairness"]
    start = fingerprint(ConvVAE(4, seed=2).decoder)
    for row in rows.values():
        assert row["decoder_start"] == start
        assert row["decoder_updates"] == 1
        assert row["training"]["gradients"] == 60
        assert row["training"]["seconds"] > 0
    assert rows["amortized"]["training"]["gradients_that_shape_one_q"] == 60
    assert rows["latent_optimization"]["training"]["gradients_that_shape_one_q"] == 1
    assert rows["amortized"]["unseen_image"]["gradients"] == 0
    assert rows["latent_optimization"]["unseen_image"]["gradients"] in (5, 10)  # one or two cycles
    assert 0 < rows["amortized"]["unseen_image"]["seconds"] < rows["latent_optimization"]["unseen_image"]["seconds"]


def test_fingerprints_tell_weights_apart():
    decoder = Decoder(3)
    before = fingerprint(decoder)
    assert fingerprint(decoder) == before
    with torch.no_grad():
        decoder.layers[0].bias[0] += 1e-6
    assert fingerprint(decoder) != before
