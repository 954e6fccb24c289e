"""Memory of the estimates of log p(x) against the number of samples and of chains: it must not grow with them.

    python benchmarks/memory.py

Every count has a process of its own, whose largest resident memory is shown, beside what it held before the estimate:
Python, PyTorch and the network. Weights and images are random, which changes nothing here. Runs on the CPU.
"""

import argparse
import sys
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from annealing import annealed_importance_sampling  # noqa: E402
from benchmarks.contest import contest, peak_memory, print_table  # noqa: E402
from model import ConvVAE  # noqa: E402
from vae_utils import importance_sampling, random_generator  # noqa: E402


def sampling(*, estimate, images, **counts):
    """A turn is one estimate of some images; it returns the bytes held before it."""
    vae, x = ConvVAE(seed=0), torch.rand(images, 1, 28, 28, generator=random_generator(0))
    with torch.no_grad():
        q = vae.encode(x)

    def turn():
        before = peak_memory()
        estimate(q=q, x=x, decode=vae.decode, generator=random_generator(0), **counts)
        return before

    return turn


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--counts", type=int, nargs="+", default=[1000, 100_000], help="samples and chains per image (1000 100000)"
    )
    parser.add_argument("--images", type=int, default=2, help="images (2)")
    arguments = parser.parse_args()
    contestants = {}
    for count in arguments.counts:
        case = {"images": arguments.images}
        contestants["importance sampling, samples", count] = partial(
            sampling, estimate=importance_sampling, num_samples=count, **case
        )
        # Two temperatures and one gradient each are the quickest that holds all that any annealing holds.
        contestants["annealing, chains", count] = partial(
            sampling, estimate=annealed_importance_sampling, chains=count, temperatures=2, leapfrog_steps=1, **case
        )
    turns = contest(contestants=contestants, repeats=1, warm_up=False, stay=False)
    rows = []
    for (name, count), (turn,) in turns.items():
        held = [f"{value / 1e6:.0f}" if value else "" for value in (turn.result, turn.peak_bytes)]
        rows.append([name, f"{count:,}", *held])
    rows.sort()
    print_table(["estimate", "of each image", "MB before it", "MB at most"], rows)


if __name__ == "__main__":
    main()
