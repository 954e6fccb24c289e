"""Makes pretrained/ of a finished run: what the notebook and the README begin with, small enough for the repository.

    python -m benchmarks.pretrained --checkpoint-dir checkpoints --results-dir results

The networks of the last epoch go there in half precision, without the latent table, which is most of a checkpoint of
latent optimization; beside them go summary, scores and numbers per image. The same run gives the same bytes.
"""

import argparse
from dataclasses import asdict
from pathlib import Path

import torch

from amortized_vae import AmortizedVAE
from latent_optimization import LatentOptimization
from runtime.checkpoint import atomic_write, load_checkpoint, load_json, save_checkpoint
from runtime.cli import run_script
from runtime.config import InputError
from runtime.learners import find_checkpoints

METHODS = (AmortizedVAE, LatentOptimization)
FILES = ("summary.json", "scores.csv", "log_probabilities.csv")  # of the run, copied
TABLE = ("mean", "log_var")  # the weights of a checkpoint of latent optimization that are left out


def make(checkpoint_dir, results_dir, output_dir):
    """Writes the files to `output_dir`. Raises InputError if the results are not of the checkpoints' last epoch."""
    found = find_checkpoints(METHODS, checkpoint_dir)
    epoch, path = found.epochs[-1], Path(results_dir) / FILES[0]
    summary = load_json(path)
    if (summary.get("train_config"), summary.get("scored_epoch")) != (asdict(found.config), epoch):
        raise InputError(f"{path}: not of the last epoch of the checkpoints in {checkpoint_dir}")
    output_dir.mkdir(parents=True, exist_ok=True)
    for method in METHODS:
        checkpoint = load_checkpoint(found.path(method, epoch))
        half = {name: value.half() for name, value in checkpoint["weights"].items() if name not in TABLE}
        index = checkpoint["train_index"].to(torch.int32)
        save_checkpoint(output_dir / f"{method.prefix}.pt", {**checkpoint, "weights": half, "train_index": index})
    for name in FILES:
        with atomic_write(output_dir / name) as tmp_path:
            tmp_path.write_bytes((Path(results_dir) / name).read_bytes())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint-dir", default="checkpoints", help="directory of the checkpoints (checkpoints)")
    parser.add_argument("--results-dir", default="results", help="directory of the run's results (results)")
    parser.add_argument("--output-dir", type=Path, default=Path("pretrained"), help="directory to write (pretrained)")
    make(**vars(parser.parse_args()))


if __name__ == "__main__":
    run_script(main)
