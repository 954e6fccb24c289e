"""What a user can get wrong on the command line: one line, exit status 2, and no file is written or changed."""

import os
import re
import shlex
import shutil
from argparse import Namespace
from functools import partial

import numpy as np
import pytest
from conftest import image_folder
from PIL import Image
from processes import CLASSIFIER, MAIN, arguments, contents, refused

import main_vae
import sup_classification
from benchmarks import stress
from runtime.cli import run_script
from runtime.config import InputError, image_differences
from runtime.run import open_run
from training import train_epoch, validate

MAINS = {MAIN: main_vae.main, CLASSIFIER: sup_classification.main}
OUT_OF_RANGE = """--epochs 0; --train-size 0; --batch-size 0; --latent-dim 0; --latent-dim 10001; --hidden 1
--sigma-p 0.0; --beta -1.0; --seed -1; --seed 4294967296; --images-per-digit 0; --chains 1; --temperatures -1
--log-weight-std 0.0; --fit-steps 0; --fitted-images 19; --num-samples 0"""
CASES = [
    *((MAIN, flags, f"{flags}: not from") for flags in re.split("[;\n] ?", OUT_OF_RANGE)),
    (MAIN, "--train-size 9", "a stratified subset of 9 images is impossible: 10 to 600"),
    (MAIN, "--train-size 601", "--train-size 601: a stratified subset of 601 images is impossible: 10 to 600"),
    (MAIN, "--train-size 20 --images-per-digit 10", "10 images of each class were asked for"),
    (MAIN, "--latent-dim 3 --latent-rank 4", "--latent-rank 4: more than --latent-dim 3"),
    (MAIN, "--methods amortized foo", "argument --methods: invalid choice: 'foo'"),
    (MAIN, "--methods amortized amortized", "--methods: amortized is repeated"),
    (MAIN, "--train-size 600 --images-per-digit 16", "16 images of each class were asked for"),  # of the test images
    (MAIN, "--likelihood laplace", "--likelihood: invalid choice: 'laplace'"),
    (MAIN, "--learning-rate x", "--learning-rate: invalid float value: 'x'"),
    (MAIN, "--device gpu", "--device gpu: not a device"),
    (MAIN, "--device cuda:99", "--device cuda:99"),
    (MAIN, "--device cpu:1", "--device cpu:1"),
    (MAIN, "--device meta", "--device meta: this machine or this PyTorch has 0 of this kind"),
    (MAIN, "--precision float16", "--precision: invalid choice: 'float16'"),
    (MAIN, "--checkpoint-dir=", "--checkpoint-dir: the name is empty"),
    (MAIN, "--checkpoint-dir file", "--checkpoint-dir file: cannot be written to (file is not a directory)"),
    (MAIN, "--checkpoint-dir new/one --results-dir /proc/none", "none: cannot be written to"),
    (MAIN, "--results-dir 'two\nlines/file'", "--results-dir two lines/file: cannot be written to"),
    (MAIN, "--data-dir file", "file/MNIST/raw: MNIST cannot be read"),
    (MAIN, "--data-dir damaged", "damaged/MNIST/raw: MNIST cannot be read"),
    (MAIN, "--epoch 2", "unrecognized arguments: --epoch 2 (did you mean --epochs?)"),  # no abbreviations
    (MAIN, "--dataset mnst", "--dataset mnst: not one of mnist, fashion-mnist, kmnist, folder:PATH"),
    (MAIN, "--dataset folder:", "--dataset folder:: not one of"),
    (MAIN, "--dataset folder:none", "--dataset folder:none: No such file or directory"),
    (MAIN, "--dataset folder:file", "--dataset folder:file: Not a directory"),
    (MAIN, "--dataset folder:bare", "--dataset folder:bare: Couldn't find any class folder"),
    (MAIN, "--dataset folder:images/one", "--dataset folder:images/one: has one class, a; it needs"),
    (MAIN, "--dataset folder:images/few", "class b has 9 images; every class needs 10 or more"),
    (MAIN, "--dataset folder:images/empty", "Found no valid file for the classes b"),
    (MAIN, "--dataset folder:images/damaged", "images/damaged/b/000.png: not an image"),
    (MAIN, "--dataset folder:images/large --resize --results-dir images/large/c", "inside of --dataset folder:images"),
    (MAIN, "--dataset folder:images/large --resize", "a stratified subset of 100 images is impossible: 2 to 16"),
    (MAIN, "--dataset folder:images/large --resize --train-size 16 --images-per-digit 3", "one class has only 2"),
    (MAIN, "--resize", "--resize: for the images of --dataset folder:PATH, not for mnist"),
    (MAIN, "--gap-images-per-digit 2", "--gap-images-per-digit 2: more than --images-per-digit 1"),
    (CLASSIFIER, "--epochs 0", "--epochs 0: not from"),
    (CLASSIFIER, "--batch-size 1", "--batch-size 1: not from"),
    (CLASSIFIER, "--checkpoint-dir mine", "mine/classifier.pt: not a checkpoint, or damaged; another --checkpoint-dir"),
    (CLASSIFIER, "--train-size 601", "a stratified subset of 601 images is impossible"),
    (CLASSIFIER, "--latent-dim 3", "unrecognized arguments"),
    (CLASSIFIER, "--results-dir file", "--results-dir file: cannot be written to"),
]
IN_PROCESSES = [CASES[0], *(case for case in CASES if case[1] == "--train-size 601")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder to start the scripts from, with a small MNIST beside it."""
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
    for name, counts in (("one", {"a": 12}), ("few", {"a": 10, "b": 9}), ("empty", {"a": 10, "b": 0})):
        image_folder(folder / "images" / name, counts)
    image_folder(folder / "images/large", {"a": 10, "b": 10}, size=(30, 30))
    (image_folder(folder / "images/damaged", {"a": 10, "b": 10}) / "b/000.png").write_text("no image")
    (folder / "two\nlines/file").write_text("a file")
    return folder


def state_of(folder):
    files = [path for path in sorted(folder.parent.rglob("*")) if path.is_file() and path.name not in ("out", "err")]
    return contents(folder.parent), [path.stat().st_mtime_ns for path in files]


@pytest.mark.parametrize(("script", "flags", "message"), CASES, ids=[f"{row[0]} {row[1][:60]!r}" for row in CASES])
def test_bad_input_is_refused_before_any_work(folder, monkeypatch, capsys, script, flags, message):
    monkeypatch.chdir(folder)
    monkeypatch.setattr("sys.argv", [script, *arguments(script, *shlex.split(flags))])
    monkeypatch.setattr("runtime.cli.install_signal_handlers", lambda: None)
    before = state_of(folder)
    with pytest.raises(SystemExit) as exit_status:
        run_script(MAINS[script])
    out, errors = capsys.readouterr()
    assert exit_status.value.code == 2
    assert out == ""
    assert errors.count("\n") == 1
    assert errors.startswith(f"{script}: error: ")
    assert message in errors
    assert state_of(folder) == before


@pytest.mark.parametrize(("script", "flags", "message"), IN_PROCESSES)
def test_bad_input_is_refused_by_a_real_process(folder, script, flags, message):
    before = state_of(folder)
    refused(script, folder, *shlex.split(flags), said=message)
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


@pytest.mark.parametrize("change", ["order", "count", "labels", "name", "test image"])
def test_images_that_changed_since_the_training_are_refused(trained_on_folder, tmp_path, monkeypatch, change):
    above, data = trained_on_folder
    shutil.copytree(above, tmp_path, dirs_exist_ok=True)
    folder = tmp_path / "d"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", SUPERVISED.split())
    again = Namespace(**vars(ON_FOLDER), images_per_digit=1)
    longer = Namespace(**{**vars(again), "epochs": 3, "resume": True})
    PREPARE(longer)
    assert PREPARE_AGAIN(again).checkpoints.images == data.digest
    PREPARE_AGAIN(Namespace(**{**vars(again), "dataset": f"folder:{folder}"}))  # called otherwise, the same images
    for path in ("d/", folder):
        PREPARE(Namespace(**{**vars(longer), "dataset": f"folder:{path}"}))
    assert image_differences(None, data.digest) == ""  # of an older version
    validated = {**data.digest, "validation": data.digest["test"]}
    assert image_differences(validated, data.digest) == "no validation images of their own now"

    test = int(data.test.index[0])
    for old, new in {
        "order": [("a/000.png", "a/last.png")],
        "count": [("c/024.png", "elsewhere.png")],
        "labels": [("a/024.png", "b/aaa.png"), ("b/000.png", "a/zzz.png")],
        "name": [("c", "d")],
        "test image": [(f"a/{test:03}.png", "a/changed")],
    }[change]:
        (folder / old).rename(folder / new)
    if change == "test image":
        Image.fromarray(255 - np.asarray(Image.open(folder / "a/changed"))).save(folder / f"a/{test:03}.png")
        (folder / "a/changed").unlink()
    before = contents(tmp_path)
    for started in (partial(PREPARE, longer), partial(PREPARE_AGAIN, again), sup_classification.main):
        with pytest.raises(InputError, match=r"folder:d, .*(not the images of|trained on others)") as error:
            started()
        assert {"name": "class d", "test image": "other test images"}.get(change, "") in str(error.value)
    assert contents(tmp_path) == before
