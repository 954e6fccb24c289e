"""What log p(x) costs at a given accuracy, and whether the stated errors are true.

    python -m benchmarks.accuracy --checkpoint-dir checkpoints

Tables for either method's decoder. Seconds are processor time of one thread: other processes do not change it.

cost    Seconds per image for log p(x) of images simulated from the model, whose true value lies between bidirectional
        bounds (Grosse et al. 2015): annealing from the Gauss-Newton posterior around a short fit, as log_prob does
        it; from q*full, as the evaluation does it; from the Gauss-Newton posterior around q*, from q*, and from the
        prior (Wu et al. 2017), with at most as many temperatures as the program takes. Importance sampling from
        q*full has no such bounds; the table says what it is short of annealing from there.
fits    q* and q*full of test images against long fits, of 24,000 and 28,800 gradients, after the first epoch, the tenth
        and the last. A long fit is itself short of the optimum: the numbers are lower limits.
errors  Test images annealed with 4 times the chains and 4 times the temperatures: for how many the difference is within
        the stated error, Student's t times the standard error plus the bias.
"""

import argparse
import time

import torch
from scipy.stats import t as student_t

from benchmarks.harness import plus_minus, print_table
from benchmarks.pretrained import METHODS
from data import load_data, stratified_subset
from evaluation.ais import annealed_importance_sampling, bidirectional_bounds
from evaluation.log_prob import start_of_chains
from posterior_fit import PosteriorFit, cosine, fit_posterior, gauss_newton_posterior, unpack
from runtime.config import EvalConfig, choose_precision
from runtime.learners import find_checkpoints
from vae_utils import GaussianPosterior, Noise, evaluate_bound, importance_sampling, mean_and_error, random_generator

TABLES, CHAINS = ("cost", "fits", "errors"), EvalConfig.chains


def timed(function, *arguments, **keywords):
    """(what the function returns, processor seconds)."""
    started = time.process_time()
    return function(*arguments, **keywords), time.process_time() - started


def cost_rows(model, precision, *, images=20, num_samples=1000):
    """[where annealing starts, mean number of temperatures, gap of the bounds, seconds per image], all as text."""
    x, z = model.sample(images, random_generator(0, "simulated images"))
    own = {"noise": Noise.of_images(0, "accuracy", index=torch.arange(images))}
    fast = model.in_precision(precision)
    fit, fitting = timed(fit_posterior, model, x, model.initial_posterior(x), **own)
    gauss_newton, linearizing = timed(gauss_newton_posterior, fast, x, fit.q, **own)
    full, fitting_full = timed(fit_posterior, fast, x, fit.q, covariance="full", **own)
    short, fitting_short = timed(start_of_chains, model, x, **own)
    starts = {
        "Gauss-Newton, short fit, as log_prob does it": (short, fitting_short, model),
        "q*full, as the evaluation does it": (full.q, fitting + fitting_full, fast),
        "Gauss-Newton": (gauss_newton, fitting + linearizing, fast),
        "q*": (fit.q, fitting, fast),
        "the prior": (GaussianPosterior(torch.zeros_like(fit.q.mean), torch.ones_like(fit.q.mean)), 0, fast),
    }
    rows, log_prob = [], {}
    for name, (q, before, annealed) in starts.items():
        estimate, seconds = timed(annealed_importance_sampling, annealed, x, q, chains=CHAINS, **own)
        bounds, log_prob[name] = bidirectional_bounds(annealed, x, z, q, chains=CHAINS, **own), estimate.log_prob
        gap = plus_minus(mean_and_error(bounds.upper - bounds.lower))
        rows.append([name, f"{estimate.temperatures.double().mean():.0f}", gap, f"{(before + seconds) / images:.2f}"])
    sampled, seconds = timed(importance_sampling, model, x, full.q, num_samples=num_samples, **own)
    low = f"short by {plus_minus(mean_and_error(log_prob[rows[1][0]] - sampled.log_prob))}"
    name = f"importance sampling from q*full, {num_samples:,} samples"
    return [*rows, [name, "", low, f"{(fitting + fitting_full + seconds) / images:.2f}"]]


def long_fit(model, x, q, *, steps=3000):
    """q after 8 * steps gradients of Adam, four antithetic pairs a step, averaged over the second half."""
    fit, half, generator = PosteriorFit(q), steps // 2, random_generator(0, "long fit")

    def noise():
        for _ in range(half):
            drawn = torch.randn(4, *q.mean.shape, generator=generator, dtype=x.dtype)
            yield torch.cat((drawn, -drawn))

    fit.run(model, x, noise=noise(), learning_rates=[0.05] * half)
    return unpack(fit.run(model, x, noise=noise(), learning_rates=cosine(0.05, 0, half)))


def bound(model, x, q):
    """The bound of every image (B,), with the same noise for any q."""
    return evaluate_bound(model, x, q, noise=Noise(0, "bound"), draws=2000).elbo


def short_of_long_fits(model, split, start):
    """[name, gradients, nats short of a long fit] of q* and of q*full, of a Split's images, from q `start`."""
    x, own = split.images, Noise.of_images(0, "fit", index=split.index)
    fit = fit_posterior(model, x, start, noise=own)
    full = longest = fit_posterior(model, x, fit.q, covariance="full", noise=own)
    for rate in (0.05, 0.02, 0.01):
        options = {"covariance": "full", "fit_steps": 1200, "rate": rate, "max_cycles": 1, "noise": own}
        longest = fit_posterior(model, x, longest.q, **options)
    rows = []
    for name, short, best in (("q*", fit, long_fit(model, x, fit.q)), ("q*full", full, longest.q)):
        less = mean_and_error(bound(model, x, best) - bound(model, x, short.q))
        rows.append([name, f"{short.gradients.double().mean():.0f}", plus_minus(less)])
    return rows


def longer_annealing(model, x, q, precision):
    """[share within the stated error, mean difference] of the default against 4 times the chains and temperatures."""
    fast, index = model.in_precision(precision), torch.arange(len(x))
    default = annealed_importance_sampling(fast, x, q, chains=CHAINS, noise=Noise.of_images(0, "default", index=index))
    longer = torch.empty_like(default.log_prob)
    for count in default.temperatures.unique().tolist():
        rows = torch.nonzero(default.temperatures == count).flatten()
        own = Noise.of_images(0, "longer", index=index[rows])
        settings = {"chains": 4 * CHAINS, "temperatures": 4 * count, "noise": own}
        longer[rows] = annealed_importance_sampling(fast, x[rows], q[rows], **settings).log_prob
    difference = longer - default.log_prob
    stated = student_t.ppf(0.975, CHAINS - 1) * default.standard_error + default.bias.abs()
    return [f"{int((difference.abs() < stated).sum())} of {len(x)}", plus_minus(mean_and_error(difference), ".3f")]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint-dir", default="checkpoints", metavar="DIR")
    parser.add_argument("--images", type=int, default=20, metavar="N", help="simulated images (20)")
    parser.add_argument("--test-images", type=int, default=50, metavar="N", help="of the other tables (50)")
    parser.add_argument("--tables", nargs="+", default=TABLES, choices=TABLES, help="(all)")
    given = parser.parse_args()
    torch.set_num_threads(1)
    checkpoints = find_checkpoints(METHODS, given.checkpoint_dir)
    precision = choose_precision("auto", torch.device("cpu"))
    data = load_data(checkpoints.config, train_index=checkpoints.train_index)
    sample = stratified_subset(data.test, size=given.test_images, seed=1)
    for epoch in checkpoints.epochs:
        for method in checkpoints.load(epoch, data):
            model, last = method.model.requires_grad_(False), epoch == checkpoints.epochs[-1]
            own = Noise.of_images(0, "inference", index=sample.index)
            start = model.initial_posterior(sample.images, own)
            if "fits" in given.tables and epoch in (checkpoints.epochs[0], 10, checkpoints.epochs[-1]):
                print(f"\n{method.label}, fits after epoch {epoch}\n", flush=True)
                header = ["", "gradients of the fit", "nats short of a long one"]
                print_table(header, short_of_long_fits(model, sample, start))
            if last and "cost" in given.tables:
                print(f"\n{method.label}, cost\n", flush=True)
                header = ["annealing from", "temperatures", "gap, nats", "seconds per image"]
                print_table(header, cost_rows(model, precision, images=given.images))
            if last and "errors" in given.tables:
                print(f"\n{method.label}, errors\n", flush=True)
                fit = fit_posterior(model, sample.images, start, noise=own)
                fast = model.in_precision(precision)
                full = fit_posterior(fast, sample.images, fit.q, covariance="full", noise=own).q
                header = ["within the stated error", "longer minus default, nats"]
                print_table(header, [longer_annealing(model, sample.images, full, precision)])


if __name__ == "__main__":
    main()
