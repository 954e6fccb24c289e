"""Does the verdict on latent optimization hang on its settings? The same images under several of its trainings.

    python benchmarks/sensitivity.py --checkpoint-dir /tmp/sensitivity

One setting at a time is changed: the table's learning rate, its steps per visit, the epochs. Every decoder is scored on
the same stratified validation images: the ELBO at q*, log p(x) by annealing, and the paired differences from the
amortized VAE of the same seed and epochs. Trainings whose checkpoints are there are not repeated.
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from amortized_vae import AmortizedVAE  # noqa: E402
from benchmarks.harness import print_table  # noqa: E402
from data import load_data, stratified_subset  # noqa: E402
from evaluation import gaps  # noqa: E402
from latent_optimization import LatentOptimization, fit_posterior, initial_posterior  # noqa: E402
from latent_table import LatentTable  # noqa: E402
from runtime.config import EvalConfig, TrainConfig, choose_precision  # noqa: E402
from training import read_checkpoint, train  # noqa: E402
from vae_utils import elbo, image_generators, mean_and_error  # noqa: E402


class StepsPerVisit(LatentOptimization):
    """Latent optimization that takes further steps of the table alone before each step of table and decoder."""

    further_steps = 3

    def __init__(self, config, data):
        super().__init__(config, data)
        self.table = LatentTable(
            size=len(self.images),
            latent_dim=config.latent_dim,
            max_steps=(1 + self.further_steps) * config.steps,
            learning_rate=config.latent_learning_rate,
            device=data.device,
        )
        self.optimizers[1] = self.table

    def train_step(self, rows, noise, *, beta=None):
        """See training.Method.train_step; the further steps draw their noise from PyTorch's global generator."""
        beta = self.config.beta if beta is None else beta
        x = self.images[rows]
        for parameter in self.model.parameters():
            parameter.requires_grad_(False)
        for _ in range(self.further_steps):
            bound = elbo(self.model, x, self.posterior(x, rows), torch.randn_like(noise))
            (beta * bound.kl - bound.log_likelihood).sum().backward()
            self.table.step()
        for parameter in self.model.parameters():
            parameter.requires_grad_(True)
        return super().train_step(rows, noise, beta=beta)


class Variant(NamedTuple):
    """One training."""

    method_class: type = LatentOptimization
    changes: dict = {}  # noqa: RUF012  of the TrainConfig
    reference: str = "amortized VAE"  # what it is compared with


VARIANTS = {
    "amortized VAE": Variant(AmortizedVAE),
    "latent optimization: rate 0.01, 1 step, 30 epochs": Variant(),
    "rate 0.003": Variant(changes={"latent_learning_rate": 0.003}),
    "rate 0.03": Variant(changes={"latent_learning_rate": 0.03}),
    "4 steps per visit": Variant(StepsPerVisit),
    "90 epochs": Variant(changes={"epochs": 90}, reference="amortized VAE, 90 epochs"),
    "amortized VAE, 90 epochs": Variant(AmortizedVAE, {"epochs": 90}, "amortized VAE, 90 epochs"),
}


def trained(variant, config, data, directory):
    """The method after its last epoch, from its checkpoint if there is one."""
    method = variant.method_class(config, data)
    path = directory / f"{method.prefix}_epoch_{config.epochs}.pt"
    if path.exists():
        method.load_weights(read_checkpoint(path, method.name)["weights"])
    else:
        directory.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(config.seed)
        train(method, checkpoint_dir=directory)
    method.model.precision = "float32"
    return method


def score(method, images, index, eval_config):
    """(ELBO at q*, log p(x)), (B,) each, of images that the method never saw."""
    own = image_generators(eval_config.seed, "sensitivity", index=index)
    start = initial_posterior(len(images), method.model.latent_dim)
    q = fit_posterior(method.model, images, start, generator=own).q
    found = gaps.measure(method.model, images, q, eval_config, generator=own, fitted=True)
    return found.fitted_elbo, found.ais_log_prob


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint-dir", required=True, metavar="DIR", help="a directory for every training's")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], metavar="N")
    parser.add_argument("--images", type=int, default=50, metavar="N", help="validation images (50)")
    parser.add_argument(
        "--epochs", type=int, default=30, metavar="N", help="of the default; the longest has 3 times as many"
    )
    parser.add_argument("--train-size", type=int, default=20_000, metavar="N")
    given = parser.parse_args()
    precision, rows = choose_precision("auto", torch.device("cpu")), []
    for seed in given.seeds:
        found = {}
        for number, (name, variant) in enumerate(VARIANTS.items()):
            config = TrainConfig(epochs=given.epochs, train_size=given.train_size, seed=seed, precision=precision)
            longer = {"epochs": 3 * given.epochs} if "epochs" in variant.changes else {}
            config = replace(config, **variant.changes | longer)
            data = load_data(config, data_dir=ROOT / "data")
            directory = Path(given.checkpoint_dir) / f"variant_{number}_seed_{seed}"
            method = trained(variant, config, data, directory)
            sample = stratified_subset(data.validation, size=given.images, seed=seed)
            found[name] = score(method, sample.images, sample.index, EvalConfig(seed=seed, precision=precision))
            print(f"{name}, seed {seed}: {float(found[name][1].mean()):.2f}", file=sys.stderr, flush=True)
        for name, variant in VARIANTS.items():
            values = [
                *found[name],
                *(one - other for one, other in zip(found[name], found[variant.reference], strict=True)),
            ]
            scores = (mean_and_error(value) for value in values)
            rows.append([name, str(seed), *(f"{each['mean']:.1f} ± {each['standard_error']:.1f}" for each in scores)])
    header = [
        "",
        "seed",
        "ELBO at q*",
        "log p(x)",
        "ELBO at q*, less the amortized VAE's",
        "log p(x), less the amortized VAE's",
    ]
    print_table(header, rows)


if __name__ == "__main__":
    main()
