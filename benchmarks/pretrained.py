"""Makes pretrained/ of a finished run: what the notebook and the README begin with, small enough for the repository.

    python benchmarks/pretrained.py --checkpoint-dir checkpoints --results-dir results

The networks of the last epoch go there in half precision, without the latent table, which is most of a checkpoint of
latent optimization; beside them go summary, scores and numbers per image. The same run gives the same bytes.
"""

import argparse
import sys
from dataclasses import asdict
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from amortized_vae import AmortizedVAE  # noqa: E402
from latent_optimization import LatentOptimization  # noqa: E402
from runtime.checkpoint import atomic_write, load_checkpoint, load_json, save_checkpoint  # noqa: E402
from runtime.cli import run_script  # noqa: E402
from runtime.config import InputError  # noqa: E402
from runtime.learners import find_checkpoints  # noqa: E402

METHODS = (AmortizedVAE, LatentOptimization)
FILES = ("summary.json", "scores.csv", "log_probabilities.csv")  # of the run, copied
TABLE = ("mean", "log_var")  # the weights of a checkpoint of latent optimization that are left out


def in_half(weights):
    """The weights, a dict of tensors or of such dicts, in half precision, without the latent table."""
    return {
        name: in_half(value) if isinstance(value, dict) else value.half()
        for name, value in weights.items()
        if name not in TABLE
    }


def make(checkpoint_dir, results_dir, directory):
    """Writes the files to `directory`. Raises InputError if the results are not of the checkpoints' last epoch."""
    found = find_checkpoints(METHODS, checkpoint_dir)
    epoch, path = found.epochs[-1], Path(results_dir) / FILES[0]
    summary = load_json(path)
    if (summary.get("train_config"), summary.get("scored_epoch")) != (asdict(found.config), epoch):
        raise InputError(f"{path}: not of the last epoch of the checkpoints in {checkpoint_dir}")
    directory.mkdir(parents=True, exist_ok=True)
    for method in METHODS:
        checkpoint = load_checkpoint(found.path(method, epoch))
        half, index = in_half(checkpoint["weights"]), checkpoint["train_index"].to(torch.int32)
        save_checkpoint(directory / f"{method.prefix}.pt", {**checkpoint, "weights": half, "train_index": index})
    for name in FILES:
        contents = (Path(results_dir) / name).read_bytes()
        with atomic_write(directory / name) as tmp_path:
            tmp_path.write_bytes(contents)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint-dir", default="checkpoints", help="directory of the checkpoints (checkpoints)")
    parser.add_argument("--results-dir", default="results", help="directory of the run's results (results)")
    parser.add_argument("--output-dir", type=Path, default=ROOT / "pretrained", help="directory to write (pretrained)")
    arguments = parser.parse_args()
    make(arguments.checkpoint_dir, arguments.results_dir, arguments.output_dir)


if __name__ == "__main__":
    run_script(main)
