"""Samples and transitions per second of the estimates of log p(x), against pythae's and against the bare decoder.

    python benchmarks/density.py
    python benchmarks/density.py --memory

Importance sampling: as many samples per image and at once for all; one sample costs one pass of the decoder, and the
bare decoder's forward pass is what cannot be had for less. Annealed importance sampling: a transition is the energy and
three gradients of it for one chain of one image, and bare it is three passes of the decoder and back to its latents.
The network has its first, random weights, and the images are random: what they are does not change the work.

--memory: the largest memory of a process that scores images with few and with many samples or chains, and what it held
before the estimate. It must not grow with the counts. Everything is float32 and runs on the CPU.
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

from benchmarks.harness import REPEATS, median_and_range, peak_memory, print_table, ratios, take_turns  # noqa: E402
from evaluation.ais import annealed_importance_sampling  # noqa: E402
from model import ConvVAE  # noqa: E402
from vae_utils import Noise, importance_sampling, random_generator  # noqa: E402

CHUNK = 500  # latents that go through the decoder at once, for all candidates
LEAPFROG_STEPS = 3  # gradients of a transition


def model_and_images(images):
    """The network, random images x (B, 1, 28, 28), and their q."""
    vae, x = ConvVAE(seed=0), torch.rand(images, 1, 28, 28, generator=random_generator(0))
    with torch.no_grad():
        return vae, x, vae.encode(x)


def estimating(estimate, *, images, **counts):
    """A turn is an estimate of some images; it returns (the mean log p(x), the bytes held before it)."""
    vae, x, q = model_and_images(images)
    noise = Noise(0)

    def turn():
        before = peak_memory()
        return float(estimate(vae, x, q, noise=noise, **counts).log_prob.mean()), before

    return turn


def pythae_importance_sampling(*, images, num_samples):
    """pythae's get_nll, which is log p(x), on the same network; a turn is like that of `estimating`."""
    from benchmarks import pythae_loop

    vae, x, _ = model_and_images(images)
    model, sigma = pythae_loop.pythae_vae(vae), vae.likelihood.sigma
    # Its pixels are in units of sigma: the density of x is smaller by sigma to the power of their number.
    volume = x[0].numel() * math.log(sigma)

    @torch.no_grad()
    def turn():
        return float(model.get_nll(x / sigma, n_samples=num_samples, batch_size=CHUNK)) - volume, None

    return turn


def bare_decoder(*, shape, passes, back=False):
    """A turn is passes of latents of that shape through the decoder, and back to them if `back` says so."""
    vae = ConvVAE(seed=0)
    z = torch.randn(*shape, vae.latent_dim, generator=random_generator(0))

    def turn():
        with torch.set_grad_enabled(back):
            for _ in range(passes):
                x_mean = vae.decode(z.requires_grad_(back))
                if back:
                    torch.autograd.grad(x_mean.square().sum(), z)

    return turn


def compare_memory(*, counts, images=2):
    """Prints the table of memory; every count has a process of its own."""
    candidates = {}
    for count in counts:
        # Two temperatures and one gradient each are the quickest that holds all that any annealing holds.
        annealing = {"images": images, "chains": count, "temperatures": 2, "leapfrog_steps": 1}
        candidates["annealing, chains", count] = partial(estimating, annealed_importance_sampling, **annealing)
        sampling = partial(estimating, importance_sampling, images=images, num_samples=count)
        candidates["importance sampling, samples", count] = sampling
    turns = take_turns(candidates, repeats=1, warm_up=False, keep_processes=False)
    rows = []
    for (name, count), (turn,) in sorted(turns.items()):
        rows.append([name, f"{count:,}", f"{turn.result[1] / 1e6:.0f}", f"{turn.peak_bytes / 1e6:.0f}"])
    print_table(["estimate", "of each image", "MB before it", "MB at most"], rows)


def compare_speed(*, repeats, images, num_samples, chains, transitions):
    """Prints the table of samples and transitions per second."""
    sampling = {"images": images, "num_samples": num_samples}
    # Between so many temperatures lie as many transitions as the bare decoder makes.
    annealing = {"images": images, "chains": chains, "temperatures": transitions + 1, "leapfrog_steps": LEAPFROG_STEPS}
    back = {"shape": [chains, images], "passes": transitions * LEAPFROG_STEPS, "back": True}
    samplers = {
        "importance sampling, ours": partial(estimating, importance_sampling, chunk=CHUNK, **sampling),
        "importance sampling, pythae": partial(pythae_importance_sampling, **sampling),
        "decoder, forward": partial(bare_decoder, shape=[CHUNK], passes=images * num_samples // CHUNK),
    }
    annealers = {
        "annealed, ours": partial(estimating, annealed_importance_sampling, **annealing),
        "decoder, forward and back": partial(bare_decoder, **back),
    }
    if not importlib.util.find_spec("pythae"):
        del samplers["importance sampling, pythae"]
        print("pythae is left out: pip install -r benchmarks/requirements.txt")
    turns = take_turns(samplers | annealers, repeats=repeats)
    times, rows = {name: [turn.seconds for turn in turns[name]] for name in turns}, []
    for candidates, count, unit in (
        (samplers, images * num_samples, "samples"),
        (annealers, images * chains * transitions, "transitions"),
    ):
        ours, *_, bare = candidates
        for name in candidates:
            rate = median_and_range([count / second for second in times[name]], ",.0f")
            # The bare one's seconds over its own: the share of the bare rate that is left.
            share = median_and_range(ratios(times[bare], times[name]))
            over = median_and_range(ratios(times[name], times[ours]))
            cells = [share if name != bare else "", over if name not in (ours, bare) else ""]
            value = "" if name == bare else f"{turns[name][-1].result[0]:.2f}"
            rows.append([name, f"{rate} {unit}", *cells, value])
    print_table(["", "per second", "share of the bare decoder's", "ours over it", "log p(x), nats"], rows)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    meaning = "in place of speed: samples and chains per image whose memory is measured (1000 100000)"
    parser.add_argument("--memory", type=int, nargs="*", metavar="COUNT", help=meaning)
    parser.add_argument("--repeats", type=int, default=REPEATS, help=f"rounds that count ({REPEATS})")
    parser.add_argument("--images", type=int, default=20, help="images of either estimate (20)")
    parser.add_argument("--num-samples", type=int, default=1000, help="samples per image, a multiple of 500 (1000)")
    parser.add_argument("--chains", type=int, default=25, help="chains per image (25)")
    parser.add_argument("--transitions", type=int, default=40, help="transitions of a chain (40)")
    arguments = vars(parser.parse_args())
    counts = arguments.pop("memory")
    if counts is not None:
        compare_memory(counts=counts or [1000, 100_000])
    else:
        compare_speed(**arguments)


if __name__ == "__main__":
    main()
