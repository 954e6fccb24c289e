"""log p(x) on binarized MNIST beside published values.

    python main_vae.py --likelihood bernoulli --train-size 55000 --latent-dim 50 --epochs 100 \\
        --checkpoint-dir checkpoints/bernoulli --results-dir results/bernoulli
    python -m benchmarks.literature --checkpoint checkpoints/bernoulli/vae_epoch_100.pt

-log p(x) of the amortized VAE by importance sampling from q with few samples, on all test images, and with many, as
papers report it; and annealed. The 5,000 training images left over say whether the epochs were enough.
"""

import argparse

import torch

from amortized_vae import load_model
from benchmarks.harness import plus_minus, print_table
from data import load_data, stratified_subset
from evaluation import gaps
from evaluation.measurements import draw_sample
from evaluation.statistics import regression_estimate
from runtime.config import EvalConfig, choose_precision
from vae_utils import Noise, evaluate_bound, importance_sampling, mean_and_error

PUBLISHED = [
    ["VAE, pythae's reproduction of Rezende & Mohamed 2015", "200 samples", "89.78"],
    ["the same, in the paper", "200 samples", "89.9"],
    ["IWAE with 50 samples, pythae's reproduction of Burda et al. 2016", "5,000 samples", "86.82 (87.1)"],
    ["PIWAE, pythae's reproduction of Rainforth et al. 2018", "5,000 samples", "84.58 (84.46)"],
]


@torch.no_grad()
def sampled(model, split, count):
    """-log p(x) by importance sampling with `count` samples, as text, nats."""
    own = Noise.of_images(0, "literature", count, index=split.index)
    estimate = importance_sampling(model, split.images, model.encode(split.images), noise=own, num_samples=count)
    return plus_minus(mean_and_error(-estimate.log_prob))


def annealed(model, data, per_class):
    """[-log p(x), -ELBO] of all test images, as text, and the bias, nats.

    `per_class` random images of each class are annealed; a regression on their ELBOs carries this to all images.
    """
    config = EvalConfig(images_per_digit=per_class, precision=choose_precision("auto", data.device))
    sample = draw_sample(data.test, size=0, per_class=per_class, seed=0)
    with torch.no_grad():
        q, q_all = model.encode(sample.part.images), model.encode(data.test.images)
    own = Noise.of_images(0, "literature", index=sample.part.index)
    found = gaps.measure(model, sample.part.images, q, config, noise=own, annealed=len(q))
    bound = evaluate_bound(model, data.test.images, q_all, noise=Noise(0, "literature"))
    few = found["log_prob"], sample.part.labels, found["elbo"][:, None]
    known = {"known_labels": data.test.labels, "shares": sample.shares}
    score = regression_estimate(*few, bound.elbo[:, None], **known)
    bias = float(found["log_prob_bias"].mean())
    return plus_minus({**score, "mean": -score["mean"]}), f"{-bound.elbo.mean():.2f}", bias


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True, metavar="FILE")
    parser.add_argument("--images", type=int, default=1000, metavar="N", help="test images with 5,000 samples (1000)")
    parser.add_argument("--annealed-per-digit", type=int, default=10, metavar="N", help="test images annealed (10)")
    given = parser.parse_args()
    model = load_model(given.checkpoint)
    data = load_data(model.config, train_index=model.train_index)
    model = model.in_precision("float32")
    value, bound, bias = annealed(model, data, given.annealed_per_digit)
    some, count = stratified_subset(data.test, size=given.images), f"{len(data.test.labels):,} test images"
    rows = [
        [f"ours, -ELBO, {count}", "1 sample", bound],
        [f"ours, {count}", "200 samples", sampled(model, data.test, 200)],
        [f"ours, {given.images:,} of them", "5,000 samples", sampled(model, some, 5000)],
        [f"ours, all, by regression from {10 * given.annealed_per_digit} annealed", f"bias {bias:.2f}", value],
    ]
    print_table(["binarized MNIST", "estimate", "-log p(x), nats"], rows + PUBLISHED)


if __name__ == "__main__":
    main()
