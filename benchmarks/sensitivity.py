"""Start and budget of latent optimization: the study's main table, one thing changed at a time.

    python -m benchmarks.sensitivity --directory sensitivity [--seeds 0 1 2] [--rows "zero start" ...]

Every training is scored on the same stratified validation images: used dimensions, ELBO(q*), log p(x), the paired
differences from the amortized VAE of the same seed, and this one's amortization gap. Beside them stand the objective
that the training reached, which is the mean ELBO of the training images at their own q, and its seconds, one thread
each, --jobs trainings side by side. A row with another setting of both methods is compared with an amortized VAE of
that setting.
Numbers that are in the directory are not made again.
"""

import argparse
import itertools
import multiprocessing
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")  # for the processes of --jobs

import torch

import latent_optimization
from amortized_vae import AmortizedVAE
from benchmarks.harness import plus_minus, print_table
from data import load_data, stratified_subset
from evaluation import gaps
from evaluation.measurements import posterior_of_train
from latent_optimization import LatentOptimization
from posterior_fit import fit_posterior
from runtime.checkpoint import load_checkpoint, load_json, save_checkpoint, save_file
from runtime.config import EvalConfig, TrainConfig, choose_device, choose_precision
from runtime.cuda_graph import record_step
from training import train_epoch
from vae_utils import Noise, evaluate_bound, mean_and_error

AMORTIZED, LONG_AMORTIZED = "amortized VAE", "amortized VAE, 90 epochs"


class StartedAtCodes(LatentOptimization):
    """Latent optimization whose table begins at the q(z|x) of an amortized VAE after its first epoch."""

    def __init__(self, config, data):
        super().__init__(config, data)
        encoder = AmortizedVAE(config, data)
        train_epoch(encoder, 1)
        q = posterior_of_train(encoder, data)
        self.table.load_parameters(q.mean, 2 * q.scale.log())


class FixedDimensions(LatentOptimization):
    """Latent optimization that starts at `dimensions` principal components, whatever these carry."""

    dimensions = 0

    def _make_start(self):
        pca, noise = latent_optimization.probabilistic_pca, self.model.likelihood.noise_variance
        start = pca(self.images, self.dimensions, noise, least_nats=0)
        start.stddev = torch.cat((start.stddev, torch.ones(self.config.latent_dim - self.dimensions)))  # at the prior
        return start


class Variant(NamedTuple):
    """One training: its method and what it changes of the TrainConfig and of the epochs."""

    method: type = LatentOptimization
    changes: dict = {}  # noqa: RUF012
    times: float = 1  # epochs, over those of the default
    reference: str = AMORTIZED  # what it is compared with


ZERO = {"latent_start": "zero"}
VARIANTS = {
    AMORTIZED: Variant(AmortizedVAE),
    "pca start": Variant(),
    "zero start": Variant(changes=ZERO),
    "normal start": Variant(changes={"latent_start": "normal"}),
    "start at the VAE's codes": Variant(StartedAtCodes),
    "pca, 4 steps": Variant(changes={"latent_steps": 4}),
    "zero, 4 steps": Variant(changes={**ZERO, "latent_steps": 4}),
    "pca, rate 0.003": Variant(changes={"latent_learning_rate": 0.003}),
    "zero, rate 0.003": Variant(changes={**ZERO, "latent_learning_rate": 0.003}),
    LONG_AMORTIZED: Variant(AmortizedVAE, times=3, reference=LONG_AMORTIZED),
    "pca, 90 epochs": Variant(times=3, reference=LONG_AMORTIZED),
    "zero, 90 epochs": Variant(changes=ZERO, times=3, reference=LONG_AMORTIZED),
    "amortized VAE, 20 epochs": Variant(AmortizedVAE, times=2 / 3),
    **{
        f"pca, {count} dimensions": Variant(type(f"Of{count}", (FixedDimensions,), {"dimensions": count}))
        for count in (16, 24, 32, 48, 64, 115)  # 115: all that are above the noise
    },
}
# Other settings of both methods, at about as many updates.
OTHER_SETTINGS = {
    "sigma 0.2": ({"sigma_p": 0.2}, 1),
    "width 128": ({"hidden": 128}, 1),
    "50 dimensions of z": ({"latent_dim": 50}, 1),
    "5000 images": ({"train_size": 5_000}, 4),
    "batches of 256": ({"batch_size": 256}, 4),
    "bernoulli": ({"likelihood": "bernoulli"}, 1),
}
for setting, (changes, times) in OTHER_SETTINGS.items():
    reference = f"{AMORTIZED}, {setting}"
    VARIANTS[reference] = Variant(AmortizedVAE, changes, times, reference)
    VARIANTS[f"pca, {setting}"] = Variant(LatentOptimization, changes, times, reference)


def work(name, seed, given):
    """Trains and scores one variant with one seed, unless its numbers are there: a dict of plain values."""
    directory = Path(given.directory) / f"{name.replace(' ', '_').replace(',', '')}_seed_{seed}"
    directory.mkdir(parents=True, exist_ok=True)
    scores = load_json(directory / "scores.json") if (directory / "scores.json").exists() else {}
    if "amortization_gap" in scores:  # not of an older version
        return scores
    variant, device = VARIANTS[name], choose_device(given.device)
    precision = choose_precision("auto", device)
    epochs, own = max(1, round(variant.times * given.epochs)), {"seed": seed, "precision": precision}
    config = TrainConfig(**{"epochs": epochs, "train_size": given.train_size, **own, **variant.changes})
    data = load_data(config, device=device)
    started = time.perf_counter()
    method, path = variant.method(config, data), directory / "weights.pt"
    if path.exists():
        saved = load_checkpoint(path)
        method.load_weights(saved["weights"])
    else:
        if device.type == "cuda":
            record_step(method)
        for epoch in range(1, config.epochs + 1):
            train_epoch(method, epoch)
        saved = {"weights": method.weights(), "seconds": time.perf_counter() - started}
        save_checkpoint(path, saved)
    sample = stratified_subset(data.validation, size=given.images, seed=seed)
    scores = {"seconds": saved["seconds"], **score(method, data, sample, EvalConfig(**own))}
    save_file(directory / "scores.json", scores)
    print(f"{name}, seed {seed}: {mean_and_error(torch.tensor(scores['log_prob']))}", file=sys.stderr, flush=True)
    return scores


@torch.no_grad()
def score(method, data, sample, config):
    """{"objective", "used_dimensions", "fitted_elbo", "log_prob", "amortization_gap"}.

    The last three: of each image of `sample`; no gap where q is fitted.
    """
    model, seed = method.model, config.seed
    model.precision = "float32"
    q, noise = posterior_of_train(method, data), Noise(seed, "objective", device=data.device)
    objective = evaluate_bound(model, data.train.images, q, noise=noise)
    own = Noise.of_images(seed, "sensitivity", index=sample.index, device=data.device)
    fitted = fit_posterior(model, sample.images, model.initial_posterior(sample.images, own), noise=own).q
    found = gaps.measure(model, sample.images, fitted, config, noise=own, annealed=len(fitted), fitted=True)
    gap = torch.empty(0)
    if method.shared_inference:
        gap = found["fitted_elbo"] - gaps.bound_at(model, sample.images, model.encode(sample.images), noise=own)
    return {
        "objective": float(objective.elbo.mean()),
        "used_dimensions": int((fitted.kl_per_dimension().mean(0) > 0.1).sum()),
        "fitted_elbo": found["fitted_elbo"].tolist(),
        "log_prob": found["log_prob"].tolist(),
        "amortization_gap": gap.tolist(),
    }


def table_row(name, seeds, found):
    """A row of the table: of one seed ± the standard error over images, of several that over seeds."""
    own, other = ([found[key, seed] for seed in seeds] for key in (name, VARIANTS[name].reference))

    def cell(quantity, less=False, of=own):
        values = [torch.tensor(one[quantity]) for one in of]
        if less:
            values = [value - torch.tensor(two[quantity]) for value, two in zip(values, other, strict=True)]
        values = values[0] if len(seeds) == 1 else torch.stack([value.mean() for value in values])
        return plus_minus(mean_and_error(values), ".1f")

    forms = {"seconds": ".0f", "objective": ".1f", "used_dimensions": ".0f"}
    shown = [format(sum(one[quantity] for one in own) / len(own), form) for quantity, form in forms.items()]
    differences = [cell(quantity, less=True) if other != own else "" for quantity in ("fitted_elbo", "log_prob")]
    amortization_gap = cell("amortization_gap", of=other)
    return [name, str(len(seeds)), *shown, cell("fitted_elbo"), cell("log_prob"), *differences, amortization_gap]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--directory", required=True, metavar="DIR", help="for weights and numbers")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], metavar="N")
    parser.add_argument("--rows", nargs="+", choices=VARIANTS, default=list(VARIANTS), metavar="NAME")
    parser.add_argument("--device", default="cpu", metavar="NAME", help="cpu, cuda, ... (cpu)")
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="trainings side by side (2)")
    parser.add_argument("--images", type=int, default=50, metavar="N", help="validation images (50)")
    parser.add_argument("--epochs", type=int, default=30, metavar="N", help="of the default")
    parser.add_argument("--train-size", type=int, default=20_000, metavar="N")
    given = parser.parse_args()
    needed = dict.fromkeys([*(VARIANTS[name].reference for name in given.rows), *given.rows])
    tasks = list(itertools.product(needed, given.seeds))
    with ProcessPoolExecutor(given.jobs, multiprocessing.get_context("spawn")) as pool:
        found = dict(zip(tasks, pool.map(work, *zip(*tasks, strict=True), itertools.repeat(given)), strict=True))
    header = ["latent optimization", "seeds", "seconds", "objective reached", "used dimensions", "ELBO(q*)", "log p(x)"]
    header += [f"{quantity} minus the amortized VAE's" for quantity in ("ELBO(q*)", "log p(x)")]
    header.append("its amortization gap")
    print_table(header, [table_row(name, given.seeds, found) for name in given.rows])


if __name__ == "__main__":
    main()
