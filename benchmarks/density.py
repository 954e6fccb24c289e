"""Samples and transitions per second of the estimates of log p(x), against pythae's and against the bare decoder.

    python benchmarks/density.py

Importance sampling: as many samples per image and at once for all; one sample costs one pass of the decoder, and the
bare decoder's forward pass is what cannot be had for less. Annealed importance sampling: a transition is the energy and
`--leapfrog-steps` gradients of it for one chain of one image, and bare it is that many passes of the decoder and
back to its latents, and one forward. The network has its first, random weights: what they are does not change the work.
Everything is float32 and runs on the CPU.
"""

import argparse
import importlib.util
import math
import sys
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from annealing import annealed_importance_sampling  # noqa: E402
from benchmarks import textbook  # noqa: E402
from benchmarks.contest import REPEATS, contest, print_table, ratios, seconds, spread  # noqa: E402
from data import load_mnist  # noqa: E402
from model import LATENT_DIM, ConvVAE  # noqa: E402
from vae_utils import SIGMA_P, importance_sampling, random_generator  # noqa: E402

CHUNK = 500  # latents that go through the decoder at once, for all contestants


def scene(images):
    """The network, and the first test images (B, 1, 28, 28)."""
    _, test = load_mnist(data_dir=ROOT / "data")
    return ConvVAE(seed=0), test.images[:images]


def our_importance_sampling(*, images, num_samples):
    """vae_utils.importance_sampling. A turn returns the mean log p(x)."""
    vae, x = scene(images)
    generator = random_generator(0)

    def turn():
        with torch.no_grad():
            q = vae.encode(x)
        estimate = importance_sampling(
            q=q, x=x, decode=vae.decode, generator=generator, num_samples=num_samples, chunk=CHUNK
        )
        return float(estimate.log_prob.mean())

    return turn


def pythae_importance_sampling(*, images, num_samples):
    """pythae's get_nll on the same network. A turn returns the mean log p(x)."""
    from benchmarks import pythae_contestant

    vae, x = scene(images)
    model = pythae_contestant.pythae_vae(vae=textbook.in_default_layout(vae), sigma_p=SIGMA_P)
    # Its pixels are in units of sigma_p: the density of x is smaller by sigma_p to the power of their number.
    volume = x[0].numel() * math.log(SIGMA_P)

    def turn():
        with torch.no_grad():
            # What it calls nll is log p(x).
            return float(model.get_nll(x / SIGMA_P, n_samples=num_samples, batch_size=min(CHUNK, num_samples))) - volume

    return turn


def bare_decoder(*, images, num_samples):
    """The forward pass alone, of as many latents."""
    vae, _ = scene(images)
    z = torch.randn(CHUNK, LATENT_DIM, generator=random_generator(0))
    chunks = (images * num_samples) // CHUNK

    @torch.no_grad()
    def turn():
        for _ in range(chunks):
            vae.decode(z)

    return turn


def our_annealing(*, images, chains, temperatures, leapfrog_steps):
    """annealing.annealed_importance_sampling, its pilot run included. A turn returns the mean log p(x)."""
    vae, x = scene(images)
    generator = random_generator(0)
    with torch.no_grad():
        q = vae.encode(x)

    def turn():
        estimate = annealed_importance_sampling(
            q=q,
            x=x,
            decode=vae.decode,
            generator=generator,
            sigma_p=SIGMA_P,
            chains=chains,
            temperatures=temperatures + 1,  # which parts as many transitions as the bare decoder is asked for
            leapfrog_steps=leapfrog_steps,
        )
        return float(estimate.log_prob.mean())

    return turn


def bare_gradients(*, images, chains, temperatures, leapfrog_steps):
    """The decoder forward and back to its latents, as often as the transitions take it."""
    vae, x = scene(images)
    z = torch.randn(chains, images, LATENT_DIM, generator=random_generator(0)).requires_grad_()

    def turn():
        for _ in range(temperatures):
            for _ in range(leapfrog_steps):
                torch.autograd.grad((vae.decode(z) - x).square().sum(), z)

    return turn


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for flag, default, meaning in (
        ("--repeats", REPEATS, "rounds that count"),
        ("--images", 20, "images of importance sampling"),
        ("--num-samples", 1000, "importance samples per image, a multiple of 500"),
        ("--annealed-images", 12, "images of annealed importance sampling"),
        ("--chains", 40, "chains per image"),
        ("--temperatures", 40, "transitions of a chain"),
        ("--leapfrog-steps", 3, "gradients of a transition"),
    ):
        parser.add_argument(flag, type=int, default=default, help=f"{meaning} ({default})")
    arguments = parser.parse_args()
    if arguments.num_samples % CHUNK:
        parser.error(f"--num-samples {arguments.num_samples} is not a multiple of {CHUNK}")

    sampling = {"images": arguments.images, "num_samples": arguments.num_samples}
    samplers = {
        "importance sampling, ours": partial(our_importance_sampling, **sampling),
        "importance sampling, pythae": partial(pythae_importance_sampling, **sampling),
        "decoder, forward": partial(bare_decoder, **sampling),
    }
    annealing = {
        "images": arguments.annealed_images,
        "chains": arguments.chains,
        "temperatures": arguments.temperatures,
        "leapfrog_steps": arguments.leapfrog_steps,
    }
    annealers = {
        "annealed, ours": partial(our_annealing, **annealing),
        "decoder, forward and back": partial(bare_gradients, **annealing),
    }
    if not importlib.util.find_spec("pythae"):
        del samplers["importance sampling, pythae"]
        print("pythae is left out: pip install -r benchmarks/requirements.txt")
    turns = contest(contestants={**samplers, **annealers}, repeats=arguments.repeats)

    rows = []
    for contestants, count, unit in (
        (samplers, arguments.images * arguments.num_samples, "samples"),
        (annealers, arguments.annealed_images * arguments.chains * arguments.temperatures, "transitions"),
    ):
        for name in contestants:
            rate = spread([count / second for second in seconds(turns[name])], ",.0f")
            bare = list(contestants)[-1]
            # The bare one's seconds over its own: the share of the bare rate that is left.
            share = spread(ratios(seconds(turns[bare]), seconds(turns[name]))) if name != bare else ""
            ours = next(iter(contestants))
            over = spread(ratios(seconds(turns[name]), seconds(turns[ours]))) if name not in (ours, bare) else ""
            value = turns[name][-1].result
            rows.append([name, f"{rate} {unit}", share, over, "" if value is None else f"{value:.2f}"])
    print_table(["", "per second", "share of the bare decoder's", "ours over it", "log p(x), nats"], rows)


if __name__ == "__main__":
    main()
