"""On a GPU, in at most six minutes: what only a GPU can show, a whole default run, its numbers beside a CPU's.

    python -m benchmarks.gpu --output-dir gpu

Needs the packages of requirements.txt alone. Writes gpu/ and prints three tables: checks (a recorded training step
against the same steps launched kernel by kernel; log p(x) of the pretrained models on the GPU and on the CPU), the
run's Scores beside pretrained/scores.csv, which is of a CPU, and the seconds of each stage.
"""

import argparse
import subprocess
import sys
from pathlib import Path

import torch

from benchmarks.harness import print_table
from benchmarks.pretrained import METHODS
from data import load_data
from evaluation.log_prob import log_prob
from evaluation.statistics import find
from evaluation.tables import read_scores
from runtime.checkpoint import load_json
from runtime.config import TrainConfig, choose_device, use_exact_kernels
from runtime.cuda_graph import record_step
from training import train_epoch

QUANTITIES = ("elbo", "fitted_elbo", "full_elbo", "log_prob")
IMAGES = 20


def recorded_rows(device):
    """[method, largest difference of a weight]: an epoch of recorded steps against one of eager steps."""
    rows, config = [], TrainConfig(train_size=2000, epochs=1, precision="float32")
    for method_class in METHODS:
        weights = []
        for recorded in (True, False):
            method = method_class(config, load_data(config, device=device))
            if recorded:
                record_step(method)
            train_epoch(method, 1)
            weights.append(torch.cat([value.flatten() for value in method.model.parameters()]))
        rows.append([method_class.label, "weight, recorded less eager", f"{(weights[0] - weights[1]).abs().max():.1e}"])
    return rows


def estimate_rows(device):
    """[method, quantity, GPU minus CPU]: the pretrained models on the same test images."""
    rows, x = [], load_data(TrainConfig()).test.images[:IMAGES]
    for method in METHODS:
        models = [method.load_model(f"pretrained/{method.prefix}.pt", device=place) for place in ("cpu", device)]
        found = [log_prob(model, x.to(model.like.device)) for model in models]
        difference = (found[1].log_prob.cpu() - found[0].log_prob).mean()
        error = sum(value.standard_error.cpu().square().sum() for value in found).sqrt() / IMAGES
        shown = f"{difference:.2f} ± {error:.2f} (Monte Carlo)"
        rows.append([method.label, f"mean log p(x) of {IMAGES} images", shown])
    return rows


def score_rows(directory):
    """[method, split, quantity, GPU, CPU]."""
    scores = [read_scores(path / "scores.csv") for path in (directory, Path("pretrained"))]
    return [
        [method.label, split, quantity, *(f"{entry.mean:.2f} ± {entry.standard_error:.2f}" for entry in entries)]
        for method in METHODS
        for split in ("train", "test")
        for quantity in QUANTITIES
        if all(entries := [find(of_run, quantity, method.name, split) for of_run in scores])
    ]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output-dir", type=Path, default=Path("gpu"), help="directory to write (gpu)")
    parser.add_argument("--device", default="cuda", help="(cuda)")
    given = parser.parse_args()
    device = choose_device(given.device)
    use_exact_kernels(device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    print(f"{name}, PyTorch {torch.__version__}\n")
    recorded = recorded_rows(device) if device.type == "cuda" else []
    print_table(["method", "check", "difference"], [*recorded, *estimate_rows(device)])
    directories = ["--checkpoint-dir", given.output_dir / "checkpoints", "--results-dir", given.output_dir]
    subprocess.run([sys.executable, "main_vae.py", *directories, "--device", given.device, "--overwrite"], check=True)
    print()
    print_table(["method", "split", "quantity", name, "a CPU (pretrained/)"], score_rows(given.output_dir))
    seconds = load_json(given.output_dir / "summary.json")["seconds"]
    rows = seconds["training"] | seconds["stages"] | {name: seconds[name] for name in ("evaluation", "total")}
    print()
    print_table(["stage", "seconds"], [[stage, f"{value:.0f}"] for stage, value in rows.items()])


if __name__ == "__main__":
    main()
