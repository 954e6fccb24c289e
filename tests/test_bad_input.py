"""What a user can get wrong on the command line: one line, exit status 2, and not a byte is written or changed."""

import os

import pytest
from processes import CLASSIFIER, MAIN, contents, run

from benchmarks import soak

CASES = [
    (MAIN, "--epochs 0", "--epochs: '0' is not a whole number from 1"),
    (MAIN, "--epochs -1", "--epochs: '-1'"),
    (MAIN, "--epochs 1.5", "--epochs: '1.5'"),
    (MAIN, "--epochs 1e2", "--epochs: '1e2'"),
    (MAIN, "--epochs nan", "--epochs: 'nan'"),
    (MAIN, "--epochs inf", "--epochs: 'inf'"),
    (MAIN, "--epochs many", "--epochs: 'many'"),
    (MAIN, "--epochs 99999999999999999999", "--epochs"),
    (MAIN, "--epochs", "--epochs: expected one argument"),
    (MAIN, "--epochs=", "--epochs: ''"),
    (MAIN, "--train-size 0", "--train-size: '0'"),
    (MAIN, "--train-size 9", "--train-size: '9' is not a whole number from 10 to 60,000"),
    (MAIN, "--train-size 60001", "--train-size: '60001'"),
    (MAIN, "--train-size 601", "a stratified subset of 601 images is impossible: 10 to 600"),
    (MAIN, "--train-size 20 --images-per-digit 10", "10 images of each digit were asked for"),
    (MAIN, "--images-per-digit 0", "--images-per-digit: '0'"),
    (MAIN, "--images-per-digit -3", "--images-per-digit: '-3'"),
    (MAIN, "--images-per-digit 893", "--images-per-digit: '893'"),
    (MAIN, "--images-per-digit 8 --annealed-per-digit 9", "--annealed-per-digit 9: more than --images-per-digit 8"),
    (MAIN, "--chains 1", "--chains: '1'"),
    (MAIN, "--temperatures 0", "--temperatures: '0'"),
    (MAIN, "--fit-steps 0", "--fit-steps: '0'"),
    (MAIN, "--fitted-images 10001", "--fitted-images: '10001'"),
    (MAIN, "--evaluate-only --resume", "--resume: not together with --evaluate-only"),
    (MAIN, "--train-size 500 --images-per-digit 100", "100 images of each digit were asked for"),
    (MAIN, "--train-size 600 --images-per-digit 14", "14 images of each digit were asked for"),  # of the test images
    (MAIN, "--batch-size 0", "--batch-size: '0'"),
    (MAIN, "--batch-size -64", "--batch-size: '-64'"),
    (MAIN, "--batch-size 64.0", "--batch-size: '64.0'"),
    (MAIN, "--batch-size 1000000", "--batch-size: '1000000'"),
    (MAIN, "--latent-dim 0", "--latent-dim: '0'"),
    (MAIN, "--latent-dim -2", "--latent-dim: '-2'"),
    (MAIN, "--latent-dim 10001", "--latent-dim: '10001'"),
    (MAIN, "--sigma-p 0", "--sigma-p: '0'"),
    (MAIN, "--sigma-p -0.4", "--sigma-p: '-0.4'"),
    (MAIN, "--sigma-p nan", "--sigma-p: 'nan'"),
    (MAIN, "--sigma-p inf", "--sigma-p: 'inf'"),
    (MAIN, "--sigma-p 1e-30", "--sigma-p: '1e-30'"),
    (MAIN, "--sigma-p 0,4", "--sigma-p: '0,4' is not a number"),
    (MAIN, "--seed -1", "--seed: '-1'"),
    (MAIN, "--seed 4294967296", "--seed: '4294967296'"),
    (MAIN, "--seed 0x10", "--seed: '0x10'"),
    (MAIN, "--num-samples 0", "--num-samples: '0'"),
    (MAIN, "--num-samples 1e3", "--num-samples: '1e3'"),
    (MAIN, "--device gpu", "--device gpu: not a device"),
    (MAIN, "--device cuda:99", "--device cuda:99"),
    (MAIN, "--device cpu:1", "--device cpu:1"),
    (MAIN, "--device meta", "--device meta: this machine or this PyTorch has no such device"),
    (MAIN, "--device=", "--device"),
    (MAIN, "--precision float16", "--precision: invalid choice: 'float16'"),
    (MAIN, "--precision 32", "--precision: invalid choice: '32'"),
    (MAIN, "--checkpoint-dir=", "--checkpoint-dir: the name of a directory is empty"),
    (MAIN, "--results-dir=", "--results-dir: the name of a directory is empty"),
    (MAIN, "--data-dir=", "--data-dir: the name of a directory is empty"),
    (MAIN, "--checkpoint-dir file", "--checkpoint-dir file: cannot be written to (file is not a directory)"),
    (MAIN, "--results-dir file/below", "--results-dir file/below: cannot be written to"),
    (MAIN, "--checkpoint-dir new/one --results-dir /proc/none", "none: cannot be written to"),
    (MAIN, "--results-dir new/two --checkpoint-dir circle", "circle: cannot be written to"),
    (MAIN, f"--checkpoint-dir {'long' * 100}", "cannot be written to (File name too long)"),
    (MAIN, "--results-dir two\nlines/file", "--results-dir two lines/file: cannot be written to"),
    (MAIN, "--data-dir file", "file/MNIST/raw: MNIST cannot be read"),
    (MAIN, "--data-dir damaged", "damaged/MNIST/raw: MNIST cannot be read"),
    (MAIN, "--epoch 2", "unrecognized arguments: --epoch 2"),  # no abbreviations
    (MAIN, "--learning-rate 1", "unrecognized arguments"),
    (MAIN, "train", "unrecognized arguments: train"),
    (MAIN, "--resume yes", "unrecognized arguments: yes"),
    (MAIN, "--lines a\nb", "unrecognized arguments"),
    (CLASSIFIER, "--epochs 0", "--epochs: '0'"),
    (CLASSIFIER, "--batch-size 1", "--batch-size: '1'"),
    (CLASSIFIER, "--train-size 601", "a stratified subset of 601 images is impossible"),
    (CLASSIFIER, "--latent-dim 3", "unrecognized arguments"),
    (CLASSIFIER, "--device cuda:99", "--device cuda:99"),
    (CLASSIFIER, "--results-dir file", "--results-dir file: cannot be written to"),
]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a small MNIST, and in it one from which the scripts are started."""
    place = tmp_path_factory.mktemp("input")
    soak.small_mnist(place / "data")
    folder = place / "run"
    soak.small_mnist(folder / "damaged")
    os.truncate(folder / "damaged/MNIST/raw/train-labels-idx1-ubyte", 100)
    for name in ("checkpoints", "results", "two\nlines"):
        (folder / name).mkdir()
        (folder / name / "kept").write_text("of an earlier run")
    (folder / "file").write_text("a file")
    (folder / "two\nlines/file").write_text("a file")
    (folder / "circle").symlink_to("circle")
    return place


@pytest.mark.parametrize(("script", "flags", "said"), CASES, ids=[f"{case[0]} {case[1][:60]!r}" for case in CASES])
def test_bad_input_is_refused_before_any_work(place, script, flags, said):
    before = contents(place), [path.stat().st_mtime_ns for path in sorted(place.rglob("*")) if path.is_file()]
    status, out, errors = run(script, place / "run", *flags.split(" "))
    assert status == 2
    assert len(errors) == 1, errors
    assert errors[0].startswith(f"{script}: error: ")
    assert said in errors[0]
    assert out == ""
    (place / "run/out").unlink()
    (place / "run/err").unlink()
    after = contents(place), [path.stat().st_mtime_ns for path in sorted(place.rglob("*")) if path.is_file()]
    assert after == before


def test_there_are_at_least_forty():
    assert len(set(CASES)) >= 40
