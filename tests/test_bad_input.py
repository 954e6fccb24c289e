"""What a user can get wrong on the command line: one line, exit status 2, and no file is written or changed."""

import os
import re
import shlex
import shutil
from argparse import Namespace
from functools import partial

import numpy as np
import pytest
from conftest import image_folder, toy_config, toy_data
from PIL import Image
from processes import CLASSIFIER, MAIN, arguments, contents

import main_vae
import sup_classification
from benchmarks import stress
from data import rows_per_class
from evaluation.settings import choose_counts
from runtime.checkpoint import exclusive_lock
from runtime.cli import run_script
from runtime.config import InputError, image_differences
from runtime.run import open_run
from training import train_epoch, validate

MAINS = {MAIN: main_vae.main, CLASSIFIER: sup_classification.main}
OUT_OF_RANGE = """--epochs 0; --train-size 0; --batch-size 0; --latent-dim 0; --latent-dim 10001; --hidden 1
--sigma-p 0.0; --beta -1.0; --seed -1; --seed 4294967296; --images-per-digit 0; --chains 1; --temperatures -1
--log-weight-std 0.0; --fit-steps 0; --fitted-images 19; --num-samples 0"""
SCORE = "--evaluate-only --checkpoint-dir done/checkpoints --results-dir done/results"
CASES = [
    *((MAIN, flags, f"{flags}: not from") for flags in re.split("[;\n] ?", OUT_OF_RANGE)),
    (MAIN, "--train-size 9", "--train-size 9: a stratified subset of 9 images is impossible: 10 to 600"),
    (MAIN, "--train-size 20 --images-per-digit 10", "10 images of each class were asked for"),
    (MAIN, "--train-size 600 --images-per-digit 16", "16 images of each class were asked for"),  # of the test images
    (MAIN, "--latent-dim 3 --latent-rank 4", "--latent-rank 4: more than --latent-dim 3"),
    (MAIN, "--methods amortized foo", "argument --methods: invalid choice: 'foo'"),
    (MAIN, "--methods amortized amortized", "--methods: amortized is repeated"),
    (MAIN, "--device gpu", "--device gpu: not a device"),
    (MAIN, "--device meta", "--device meta: this machine or this PyTorch has 0 of this kind"),
    (MAIN, "--checkpoint-dir=", "--checkpoint-dir: the name is empty"),
    (MAIN, "--checkpoint-dir file", "--checkpoint-dir file: cannot be written to (file is not a directory)"),
    (MAIN, "--checkpoint-dir new/one --results-dir /proc/none", "none: cannot be written to"),
    (MAIN, "--results-dir 'two\nlines/file'", "--results-dir two lines/file: cannot be written to"),
    (MAIN, "--data-dir damaged", "damaged/MNIST/raw: MNIST cannot be read"),
    (MAIN, "--dataset mnst", "--dataset mnst: not one of mnist, fashion-mnist, kmnist, folder:PATH"),
    (MAIN, "--dataset folder:none", "--dataset folder:none: No such file or directory"),
    (MAIN, "--dataset folder:bare", "--dataset folder:bare: Couldn't find any class folder"),
    (MAIN, "--dataset folder:images/one", "--dataset folder:images/one: has one class, a; it needs"),
    (MAIN, "--dataset folder:images/few", "class b has 9 images; every class needs 10 or more"),
    (MAIN, "--dataset folder:images/large --resize --results-dir images/large/c", "inside of --dataset folder:images"),
    (MAIN, "--dataset folder:images/large", "000.png: is 30 x 30 pixels, not 28 x 28; resize=True, or the flag"),
    (MAIN, "--resize", "--resize: for the images of --dataset folder:PATH, not for mnist"),
    (MAIN, "--gap-images-per-digit 2", "--gap-images-per-digit 2: more than --images-per-digit 1"),
    (CLASSIFIER, "--batch-size 1", "--batch-size 1: not from"),
    (CLASSIFIER, "--checkpoint-dir mine", "mine/classifier.pt: not a checkpoint, or damaged; another --checkpoint-dir"),
    (MAIN, "--seeds 0 1 --seed 0 --evaluate-only", "--seed: not together with --seeds"),
    (MAIN, "--seeds 0 5 0", "--seeds: 0 is repeated"),
    (MAIN, "--seeds 0 -1", "--seed -1: not from 0 to 4,294,967,295"),
    (MAIN, "--seeds 2 8 --evaluate-only", "seed_8: the checkpoints are of another training: --seed 2 there, 8 here"),
    (MAIN, "--seeds 0 2 --resume --beta 0.5", "seed_2/vae_state.json: of another run (--beta 1.0 there, 0.5 here)"),
    (MAIN, "--seeds 0 6", "--results-dir results/seed_6: cannot be written to"),
    (MAIN, "--seeds 0 2 --results-dir used", "used/seed_2: in use by another run"),
    (MAIN, "--seeds 0 4 --results-dir used/seed_2", "used/seed_2: in use by another run"),
    (MAIN, f"{SCORE} --epochs 30", "--epochs 3 there, 30 here"),  # the default, but given
    (MAIN, f"{SCORE} --train-size 61 --batch-size 9", "100 there, 61 here; --batch-size 33 there, 9 here"),
    (MAIN, f"{SCORE} --resume", "--resume: not together with --evaluate-only"),
    (MAIN, f"{SCORE} --evaluation quick", "its scores are of a full evaluation; another --results-dir keeps them"),
    (
        MAIN,
        f"{SCORE} --checkpoint-dir checkpoints",
        "latent_opt_epoch_N.pt; --seeds N takes those in seed_N",
    ),
    (MAIN, f"{SCORE} --checkpoint-dir none", "none: no checkpoints vae_epoch_N.pt or latent_opt_epoch_N.pt"),
    (MAIN, f"{SCORE} --checkpoint-dir done/checkpoints/vae_epoch_3.pt", "vae_epoch_3.pt: Not a directory"),
    (MAIN, f"{SCORE} --images-per-digit 20", "20 images of each class were asked for"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, whole_run):
    """A folder to start the scripts from, with a small MNIST beside it, and in it "done", a finished run of seed 2."""
    above = tmp_path_factory.mktemp("input")
    stress.small_mnist(above / "data")
    folder = above / "run"
    stress.small_mnist(folder / "damaged")
    os.truncate(folder / "damaged/MNIST/raw/train-labels-idx1-ubyte", 100)
    for name in ("checkpoints", "results", "two\nlines", "bare"):
        (folder / name).mkdir()
        (folder / name / "kept").write_text("of an earlier run")
    (folder / "file").write_text("a file")
    (folder / "mine").mkdir()
    (folder / "mine/classifier.pt").write_text("of a user")
    for name, counts in (("one", {"a": 12}), ("few", {"a": 10, "b": 9})):
        image_folder(folder / "images" / name, counts)
    image_folder(folder / "images/large", {"a": 10, "b": 10}, size=(30, 30))
    for file in ("two\nlines/file", "results/seed_6"):
        (folder / file).write_text("a file")
    shutil.copytree(whole_run / "run", folder / "done")
    for seed in (2, 8):
        shutil.copytree(whole_run / "run/checkpoints", folder / f"checkpoints/seed_{seed}")
    (folder / "used/seed_2").mkdir(parents=True)
    with exclusive_lock(folder / "used/seed_2"):
        yield folder


def state_of(folder):
    files = [path for path in sorted(folder.parent.rglob("*")) if path.is_file() and path.name not in ("out", "err")]
    return contents(folder.parent), [path.stat().st_mtime_ns for path in files]


@pytest.mark.parametrize(("script", "flags", "message"), CASES, ids=[f"{row[0]} {row[1][:60]!r}" for row in CASES])
def test_bad_input_is_refused_before_any_work(folder, monkeypatch, capsys, script, flags, message):
    monkeypatch.chdir(folder)
    settings = stress.SCRIPTS[script].replace("--seed 2 ", "" if "--seeds" in flags else "--seed 2 ")
    monkeypatch.setattr("sys.argv", [script, *arguments(script, *shlex.split(flags), settings=settings)])
    before = state_of(folder)
    with pytest.raises(SystemExit) as exit_status:
        run_script(MAINS[script])
    out, errors = capsys.readouterr()
    assert (exit_status.value.code, out, errors.count("\n")) == (2, "", 1)
    assert errors.startswith(f"{script}: error: ")
    assert message in errors
    assert state_of(folder) == before


SUPERVISED = f"{CLASSIFIER} --dataset folder:d --epochs 1 --checkpoint-dir supervised"
ON_FOLDER = Namespace(dataset="folder:d", epochs=2, latent_dim=3, batch_size=30, precision="float32", device="cpu")
PREPARE, PREPARE_AGAIN = (partial(f, owned=main_vae.owned()) for f in (main_vae.prepare, main_vae.prepare_again))


@pytest.fixture(scope="module")
def trained_on_folder(tmp_path_factory):
    """Both scripts' checkpoints and states, and the folder of images "d" that they were trained on."""
    above = tmp_path_factory.mktemp("trained")
    image_folder(above / "d", {"a": 25, "b": 25, "c": 25})
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(above)
        patch.setattr("sys.argv", SUPERVISED.split())
        sup_classification.main()
        experiment = PREPARE(ON_FOLDER)
        with open_run(experiment.run_config, experiment.settings, owned=main_vae.owned()) as train:
            for method_class in main_vae.METHODS:
                method = method_class(experiment.config, experiment.data)
                for epoch in train.epochs(method):
                    train.record(train_epoch(method, epoch), validate(method, epoch))
    return above, experiment.data


CHANGES = {  # the files that are renamed, and what is said of it
    "order": ({"a/000.png": "a/last.png"}, ""),
    "count": ({"c/024.png": "elsewhere.png"}, ""),
    "labels": ({"a/024.png": "b/aaa.png", "b/000.png": "a/zzz.png"}, ""),
    "name": ({"c": "d"}, "class d"),
    "test image": ({}, "other test images"),
}


@pytest.fixture
def again(trained_on_folder, tmp_path, monkeypatch):
    """In a copy of that folder: a function of a --dataset, what lengthens the run and what scores it again."""
    shutil.copytree(trained_on_folder[0], tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", SUPERVISED.split())
    flags = {**vars(ON_FOLDER), "images_per_digit": 1}

    def again(dataset="folder:d"):
        longer = Namespace(**{**flags, "dataset": dataset, "epochs": 3, "resume": True})
        return partial(PREPARE, longer), partial(PREPARE_AGAIN, Namespace(**{**flags, "dataset": dataset}))

    return again


def test_the_same_images_are_taken_under_any_path(trained_on_folder, tmp_path, again):
    digest = trained_on_folder[1].digest
    for path in ("d", "d/", tmp_path / "d"):
        longer, score = again(f"folder:{path}")
        assert longer().data.digest == score().checkpoints.images == digest
    (tmp_path / "d").rename(tmp_path / "moved")
    given = Namespace(**{name: value for name, value in vars(ON_FOLDER).items() if name != "dataset"})
    with pytest.raises(InputError, match=r"^d: the checkpoints' images are not there; --dataset folder:PATH"):
        PREPARE_AGAIN(given)
    assert again("folder:moved")[1]().data.digest == digest
    assert image_differences(None, digest) == ""  # of an older version
    assert image_differences(digest | {"validation": digest["test"]}, digest) == "no validation images of their own now"


@pytest.mark.parametrize(("renamed", "said"), CHANGES.values(), ids=CHANGES.keys())
def test_images_that_changed_since_the_training_are_refused(trained_on_folder, tmp_path, again, renamed, said):
    for old, new in renamed.items():
        (tmp_path / "d" / old).rename(tmp_path / "d" / new)
    if not renamed:
        path = tmp_path / f"d/a/{int(trained_on_folder[1].test.index[0]):03}.png"
        Image.fromarray(255 - np.asarray(Image.open(path))).save(path)
    before = contents(tmp_path)
    for started in (*again(), sup_classification.main):
        with pytest.raises(InputError, match=rf"folder:d: .*(not the images of|trained on others).*{said}"):
            started()
    assert contents(tmp_path) == before


def test_figures_need_two_test_images_of_each_class():
    data = toy_data()
    one = data._replace(test=data.test.at(rows_per_class(data.test, 1).flatten()))
    with pytest.raises(InputError, match=r"--dataset mnist: too few test images of class .* \(1\), .* needs 2 or more"):
        choose_counts(toy_config(), Namespace(), one, precision="float32")
