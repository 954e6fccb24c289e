"""What log p(x) costs at a given accuracy, and whether the stated errors are true.

    python benchmarks/accuracy.py --checkpoint-dir checkpoints

Four tables for either method's decoder. Seconds are processor time of one thread: other processes do not change it.

1. Seconds per image until the bidirectional bounds of simulated images are less than 0.5 nats apart: annealing as the
   program does it (a fit, a Gaussian with full covariance, as many temperatures as needed), with those of AIMS that are
   enough; the same from the fitted diagonal q; from the prior with evenly spaced temperatures (Wu et al. 2017). The
   temperatures of the last two are raised by the root of two until the bounds meet, or until the next run would take
   more than --limit seconds; then the seconds are extrapolated, the gap taken to fall as one over the number of
   temperatures. Importance sampling with 100,000 samples has no such bound; the table says what it is short of
   annealing. The last column divides by the first row.
2. Chains against temperatures at equal cost: the root mean square of the error against a long run, and the stated bias.
3. Fits of test images against one of 24,000 gradients, after the first epoch, the tenth and the last.
4. Test images annealed with 4 times the chains and 4 times the temperatures: for how many the difference is within the
   stated error, Student's t times the standard error plus the bias.
"""

import argparse
import math
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from scipy.stats import t as student_t  # noqa: E402

from amortized_vae import AmortizedVAE  # noqa: E402
from benchmarks.harness import print_table  # noqa: E402
from data import load_data, stratified_subset  # noqa: E402
from evaluation.ais import (  # noqa: E402
    LOG_WEIGHT_STD,
    Pilot,
    anneal,
    annealed_importance_sampling,
    bidirectional_bounds,
    run_pilot,
)
from evaluation.hmc import AISTarget  # noqa: E402
from latent_optimization import LatentOptimization  # noqa: E402
from posterior_fit import PosteriorFit, fit_posterior, gauss_newton_posterior, unpack  # noqa: E402
from runtime.config import choose_precision  # noqa: E402
from training import find_checkpoints  # noqa: E402
from vae_utils import (  # noqa: E402
    GaussianPosterior,
    Noise,
    elbo,
    importance_sampling,
    mean_and_error,
    random_generator,
)

METHODS = (AmortizedVAE, LatentOptimization)
GAP, CHAINS, LEAPFROG_STEPS = 0.5, 8, 5
AIMS = 1.6, 1.13, LOG_WEIGHT_STD  # standard deviations of the log-weights, each for half the temperatures of the next


def timed(function, *arguments, **keywords):
    """(what the function returns, processor seconds)."""
    started = time.process_time()
    return function(*arguments, **keywords), time.process_time() - started


def text(score, form=".2f"):
    error = score["standard_error"]
    return f"{score['mean']:{form}}" if error is None else f"{score['mean']:{form}} ± {error:{form}}"


def evenly_spaced(model, x, z, q, *, noise, temperatures):
    """(bounds' gap (B,), seconds of the forward half) with evenly spaced temperatures."""
    target, started = AISTarget(model, x, q), time.process_time()
    pilot = run_pilot(target, leapfrog_steps=LEAPFROG_STEPS, noise=noise)
    counts = torch.full((len(x),), temperatures, device=x.device)
    schedule = Pilot(torch.ones_like(pilot.deviations), pilot.step_sizes).schedule(slice(None), counts, LEAPFROG_STEPS)
    options = {"schedule": schedule, "target": target, "noise": noise}
    forwards, _ = anneal(noise.normal((CHAINS, *q.mean.shape), like=q.mean), **options)
    seconds = time.process_time() - started
    backwards, _ = anneal(q.whiten(z).expand(CHAINS, -1, -1), **options, backwards=True)
    return math.log(CHAINS) - backwards.neg().logsumexp(0) - (forwards.logsumexp(0) - math.log(CHAINS)), seconds


def adapted(model, x, z, q, **settings):
    """The same with the program's schedule; settings: of annealing."""
    _, seconds = timed(annealed_importance_sampling, model, x, q, **settings)
    bounds = bidirectional_bounds(model, x, z, q, **settings)
    return bounds.upper - bounds.lower, seconds


def until_the_bounds_meet(run, first, limit):
    """[temperatures, gap, seconds] of `run`, with ever more temperatures; extrapolated beyond `limit` seconds."""
    temperatures = first
    while True:
        gap, seconds = run(temperatures=temperatures)
        score = mean_and_error(gap)
        if score["mean"] < GAP:
            return f"{temperatures:,}", text(score), seconds
        if 2 * math.sqrt(2) * seconds > limit:  # forwards and backwards
            factor = score["mean"] / GAP
            return (
                f"{temperatures * factor:,.0f} (extrapolated)",
                f"{text(score)} with {temperatures:,}",
                seconds * factor,
            )
        temperatures = round(math.sqrt(2) * temperatures)


def cost_table(model, precision, *, images, limit):
    """Table 1 of one model."""
    x, z = model.sample(images, random_generator(0, "simulated images"))
    own = {"noise": Noise.of_images(0, "accuracy", index=torch.arange(images))}
    fast = model.in_precision(precision)
    with torch.no_grad():
        start = model.initial_posterior(x)
    fit, fitting = timed(fit_posterior, model, x, start, **own)
    full, linearizing = timed(gauss_newton_posterior, fast, x, fit.q, **own)
    rows, prior = [], GaussianPosterior(torch.zeros_like(fit.q.mean), torch.ones_like(fit.q.mean))
    for aim in AIMS:
        gap, seconds = adapted(fast, x, z, full, log_weight_std=aim, **own)
        ours = fitting + linearizing + seconds
        if (score := mean_and_error(gap))["mean"] < GAP or aim == AIMS[-1]:
            rows.append([f"ours, --log-weight-std {aim}", "by image", text(score), ours])
    ours = rows[0][-1]
    estimate = annealed_importance_sampling(fast, x, full, **own)
    for name, q, run, before in (
        ("from the diagonal q", fit.q, adapted, fitting),
        ("from the prior, evenly spaced", prior, evenly_spaced, 0.0),
    ):

        def run_it(temperatures, q=q, run=run):
            return run(fast, x, z, q, temperatures=temperatures, **own)

        temperatures, gap, seconds = until_the_bounds_meet(run_it, 128, limit)
        rows.append([name, temperatures, gap, before + seconds])
    sampled, seconds = timed(importance_sampling, model, x, fit.q, num_samples=100_000, **own)
    short = text(mean_and_error(estimate.log_prob - sampled.log_prob))
    rows.append(["importance sampling from q, 100,000 samples", "", f"short by {short}", fitting + seconds])
    cells = [[*row, f"{seconds / images:.2f}", f"{seconds / ours:.1f}"] for *row, seconds in rows]
    print_table(["", "temperatures", "gap, nats", "seconds per image", "times the first"], cells)


def trade_table(model, x, q, precision):
    """Table 2 of one model, from full covariance posteriors q of images x."""
    fast, rows = model.in_precision(precision), []

    def run(chains, temperatures, purpose):
        own = Noise.of_images(0, purpose, index=torch.arange(len(x)))
        settings = {"chains": chains, "temperatures": temperatures}
        return timed(annealed_importance_sampling, fast, x, q, noise=own, **settings)

    reference, _ = run(32, 512, "reference")
    for chains, temperatures in ((2, 256), (4, 128), (8, 64), (16, 32), (32, 16)):
        estimate, seconds = run(chains, temperatures, ("trade", chains))
        error = estimate.log_prob - reference.log_prob
        row = [f"{chains}", f"{temperatures}", f"{seconds / len(x):.2f}", f"{error.square().mean().sqrt():.3f}"]
        spread = estimate.log_weight_std.median()
        row += [text(mean_and_error(error), ".3f"), text(mean_and_error(estimate.bias), ".3f"), f"{spread:.2f}"]
        rows.append(row)
    header = ["chains", "temperatures", "seconds per image", "root mean square error", "mean error"]
    print_table([*header, "stated bias", "standard deviation of the log-weights"], rows)


def long_fit(model, x, q, *, steps=3000, pairs=4):
    """q after 2 * pairs * steps gradients of Adam with antithetic pairs, averaged over the second half."""
    fit, half, shape = PosteriorFit(q), steps // 2, (pairs, *q.mean.shape)
    generator = random_generator(0, "long fit")

    def noise():
        while True:
            drawn = torch.randn(shape, generator=generator, dtype=x.dtype)
            yield torch.cat((drawn, -drawn))

    source = noise()
    fit.run(model, x, noise=(next(source) for _ in range(half)), learning_rates=[0.05] * half)
    rates = [0.05 * (0.5 + 0.5 * math.cos(math.pi * step / half)) for step in range(half)]
    average = fit.run(model, x, noise=(next(source) for _ in range(half)), learning_rates=rates)
    return unpack(average)


@torch.no_grad()
def bound(model, x, q, draws=2000):
    """The bound of every image (B,), with the same antithetic noise for any q."""
    generator, found = random_generator(0, "bound"), 0.0
    for _ in range(draws // 20):
        noise = torch.randn(10, *q.mean.shape, generator=generator, dtype=x.dtype)
        found = found + elbo(model, x, q, torch.cat((noise, -noise))).elbo / (draws // 20)
    return found


def short_of_long_fit(model, split, start):
    """[gradients, nats short of a long fit] of the fits of a Split's images from q `start`."""
    own = Noise.of_images(0, "fit", index=split.index)
    fit = fit_posterior(model, split.images, start, noise=own)
    best = long_fit(model, split.images, fit.q)
    short = mean_and_error(bound(model, split.images, best) - bound(model, split.images, fit.q))
    return [f"{fit.gradients.double().mean():.0f}", text(short)]


def longer_annealing(model, x, q, precision):
    """[share within the stated error, mean difference] of the default against 4 times the chains and temperatures."""
    fast, index = model.in_precision(precision), torch.arange(len(x))
    default = annealed_importance_sampling(fast, x, q, noise=Noise.of_images(0, "default", index=index))
    longer = torch.empty_like(default.log_prob)
    for count in default.temperatures.unique().tolist():
        rows = torch.nonzero(default.temperatures == count).flatten()
        own = Noise.of_images(0, "longer", index=index[rows])
        settings = {"chains": 4 * CHAINS, "temperatures": 4 * count, "noise": own}
        longer[rows] = annealed_importance_sampling(fast, x[rows], q[rows], **settings).log_prob
    difference = longer - default.log_prob
    stated = student_t.ppf(0.975, CHAINS - 1) * default.standard_error + default.bias.abs()
    return [f"{int((difference.abs() < stated).sum())} of {len(x)}", text(mean_and_error(difference), ".3f")]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint-dir", default="checkpoints", metavar="DIR")
    parser.add_argument("--images", type=int, default=20, metavar="N", help="simulated images (20)")
    parser.add_argument("--test-images", type=int, default=50, metavar="N", help="of tables 2 to 4 (50)")
    parser.add_argument("--limit", type=float, default=600, metavar="X", help="seconds of one annealing (600)")
    parser.add_argument("--tables", type=int, nargs="+", default=[1, 2, 3, 4], choices=(1, 2, 3, 4), metavar="N")
    given = parser.parse_args()
    torch.set_num_threads(1)
    checkpoints = find_checkpoints(METHODS, given.checkpoint_dir)
    precision = choose_precision("auto", torch.device("cpu"))
    data = load_data(checkpoints.config, data_dir=ROOT / "data", train_index=checkpoints.train_index)
    sample = stratified_subset(data.test, size=given.test_images, seed=1)
    for epoch in checkpoints.epochs:
        for method in checkpoints.load(epoch, data):
            model, last = method.model, epoch == checkpoints.epochs[-1]
            own = Noise.of_images(0, "inference", index=sample.index)
            with torch.no_grad():
                start = model.initial_posterior(sample.images, own)
            if 3 in given.tables and epoch in (checkpoints.epochs[0], 10, checkpoints.epochs[-1]):
                print(f"\n{method.label}, fits after epoch {epoch}\n")
                print_table(["gradients of a fit", "nats short of 24,000"], [short_of_long_fit(model, sample, start)])
            if not last or not {1, 2, 4} & {*given.tables}:
                continue
            print(f"\n{method.label}\n", flush=True)
            fit = fit_posterior(model, sample.images, start, noise=own)
            full = gauss_newton_posterior(model.in_precision(precision), sample.images, fit.q, noise=own)
            if 1 in given.tables:
                cost_table(model, precision, images=given.images, limit=given.limit)
            if 2 in given.tables:
                trade_table(model, sample.images, full, precision)
            if 4 in given.tables:
                header = ["within the stated error", "longer less default, nats"]
                print_table(header, [longer_annealing(model, sample.images, full, precision)])


if __name__ == "__main__":
    main()
