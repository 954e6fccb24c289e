"""Which network? Five candidates, both methods, three seeds, compared on validation images; no test image is read.

    python benchmarks/networks.py --checkpoint-dir /tmp/networks

Every candidate is trained as main_vae.py trains the default. The amortized VAE is scored by the ELBO of 5,000
validation images; latent optimization by the ELBO at q* of 200 of them, each fitted to convergence. A candidate whose
checkpoints are there is not trained again, so the script can be stopped and called again.
"""

import argparse
import sys
from itertools import product
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from torch import nn  # noqa: E402

from amortized_vae import AmortizedVAE  # noqa: E402
from benchmarks.harness import print_table  # noqa: E402
from data import load_data, stratified_subset  # noqa: E402
from evaluation.measurements import infer  # noqa: E402
from latent_optimization import LatentOptimization  # noqa: E402
from model import seeded_weights  # noqa: E402
from runtime.config import EvalConfig, TrainConfig, choose_precision  # noqa: E402
from training import read_checkpoint, train  # noqa: E402
from vae_utils import evaluate_bound, random_generator, select  # noqa: E402

METHODS = (AmortizedVAE, LatentOptimization)
FITTED_IMAGES = 200


class Candidate(NamedTuple):
    """A network for 28 x 28 pixels: two convolutions and back, with a hidden layer of 512 on either side."""

    encoder: tuple = (32, 32)  # channels at 14 x 14 and 7 x 7
    decoder: tuple = (32, 32)  # channels at 7 x 7 and 14 x 14
    activation: type = nn.SiLU
    sub_pixel: bool = True  # the last convolution; False: transposed, and the inner convolutions have a bias
    last_bias: float | None = None  # where it begins

    def make_encoder(self, latent_dim):
        """The layers of a model.Encoder."""
        first, second = self.encoder
        bias = not self.sub_pixel
        layers = nn.Sequential(
            nn.Conv2d(1, first, 4, stride=2, padding=1, bias=bias),
            self.activation(),
            nn.Conv2d(first, second, 4, stride=2, padding=1, bias=bias),
            self.activation(),
            nn.Flatten(),
            nn.Linear(49 * second, 512),
            nn.LayerNorm(512),
            self.activation(),
            nn.Linear(512, 2 * latent_dim),
        )
        return layers.to(memory_format=torch.channels_last)

    def make_layers(self, latent_dim):
        """The layers of a model.Decoder."""
        first, second = self.decoder
        layers = [
            nn.Linear(latent_dim, 512),
            nn.LayerNorm(512),
            self.activation(),
            nn.Linear(512, 49 * first),
            self.activation(),
            nn.Unflatten(1, (first, 7, 7)),
            nn.ConvTranspose2d(first, second, 4, stride=2, padding=1, bias=not self.sub_pixel),
            self.activation(),
        ]
        if self.sub_pixel:
            last = nn.Conv2d(second, 4, 3, padding=1)
            nn.init.uniform_(last.weight, -0.25, 0.25)
            layers += [last, nn.PixelShuffle(2)]
        else:
            last = nn.ConvTranspose2d(second, 1, 4, stride=2, padding=1)
            layers.append(last)
        if self.last_bias is not None:
            nn.init.constant_(last.bias, self.last_bias)
        return nn.Sequential(*layers, nn.Tanh()).to(memory_format=torch.channels_last)


CANDIDATES = {
    "the default": Candidate(),
    "biases, a transposed convolution at the end": Candidate(sub_pixel=False),
    "the same, convolutions 32, 64": Candidate((32, 64), (64, 32), sub_pixel=False),
    "Hardswish, 16 channels at 14 x 14, last bias -1": Candidate((16, 32), (32, 16), nn.Hardswish, last_bias=-1.0),
    "the same, 16 channels in the decoder alone": Candidate((32, 32), (32, 16), nn.Hardswish, last_bias=-1.0),
}


def make_method(method_class, candidate, config, data):
    """A method of the program with the networks of a Candidate."""
    method = method_class(config, data)
    with seeded_weights(config.seed):  # the same first weights of the decoder under both methods
        method.model.decoder.layers = candidate.make_layers(config.latent_dim)
        if method_class is AmortizedVAE:
            method.model.encoder.layers = candidate.make_encoder(config.latent_dim)
    method.optimizers[0] = torch.optim.Adam(method.model.parameters(), lr=config.learning_rate, fused=True)
    return method


def trained(method_class, candidate, config, data, directory):
    """The method after its last epoch, from its checkpoint if there is one."""
    method = make_method(method_class, candidate, config, data)
    path = directory / f"{method.prefix}_epoch_{config.epochs}.pt"
    if path.exists():
        method.load_weights(read_checkpoint(path, method.name)["weights"])
    else:
        directory.mkdir(parents=True, exist_ok=True)
        train(method, checkpoint_dir=directory)
    method.model.precision = "float32"
    return method


@torch.no_grad()
def validation_elbo(method, data, config):
    """The mean ELBO of validation images, nats: of all where q is a forward pass, else at q* of FITTED_IMAGES."""
    split = data.validation
    if not method.shared_inference:
        split = stratified_subset(split, size=min(FITTED_IMAGES, len(split.labels)), seed=config.seed)
    q = infer(method, split, config).q
    generator = random_generator(config.seed, "networks", method.name)
    bound = evaluate_bound(method.model, split.images, lambda x, rows: select(q, rows), generator=generator)
    return float(bound.elbo.mean())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint-dir", required=True, metavar="DIR", help="a directory for every candidate's")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], metavar="N")
    parser.add_argument("--epochs", type=int, default=30, metavar="N")
    parser.add_argument("--train-size", type=int, default=20_000, metavar="N")
    given = parser.parse_args()
    found = {}
    precision = choose_precision("auto", torch.device("cpu"))
    for seed, (number, (name, candidate)) in product(given.seeds, enumerate(CANDIDATES.items())):
        config = TrainConfig(epochs=given.epochs, train_size=given.train_size, seed=seed, precision=precision)
        data = load_data(config, data_dir=ROOT / "data")
        directory = Path(given.checkpoint_dir) / f"candidate_{number}_seed_{seed}"
        for method_class in METHODS:
            method = trained(method_class, candidate, config, data, directory)
            found[name, method.name, seed] = validation_elbo(method, data, EvalConfig(seed=seed))
            print(f"{name}, {method.label}, seed {seed}: {found[name, method.name, seed]:.2f}", flush=True)
    header = ["network", *(f"{method.label}, seed {seed}" for method in METHODS for seed in given.seeds)]
    rows = []
    for name in CANDIDATES:
        values = (found[name, method.name, seed] for method in METHODS for seed in given.seeds)
        rows.append([name, *(f"{value:.1f}" for value in values)])
    print_table(header, rows)


if __name__ == "__main__":
    main()
