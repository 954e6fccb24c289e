"""The numbers at the end of a run: bounds over whole splits, log p(x) digit by digit, and their table."""

import time
from itertools import product
from typing import NamedTuple

import numpy as np
import torch
from torch.distributions import Normal

import gaps
from annealing import CHAINS, TEMPERATURES
from data import DIGITS, Split, rows_per_digit, stratified_subset
from gaps import NUM_SAMPLES
from latent_optimization import FIT_STEPS, joined, unseen_fits, unseen_posterior
from progress import Stage
from vae_utils import SIGMA_P, Estimate, evaluate, importance_sampling, mean_and_error, random_generator, select

REGIMES = ("amortized", "latent_optimization")
SPLITS = ("train", "test")
IMAGES_PER_DIGIT = 10
ANNEALED_PER_DIGIT = 5  # of these
FEW = 10  # effective samples; below, importance sampling is low by more than its weights can tell
FITTED_IMAGES = 500  # test images on which latent optimization is scored, its q fitted to convergence


class FittedSample(NamedTuple):
    """Test images with their q under latent optimization, fitted to convergence."""

    split: Split
    q: Normal  # diagonal, (M, D)
    converged: bool
    cost: dict  # {"gradients", "seconds"} per image, several being worked on at a time


def fit_sample(*, latents, test, sigma_p=SIGMA_P, seed=0, images=FITTED_IMAGES, **fitting):
    """A FittedSample of `images` of the Split test, stratified; latents: a LatentModel.

    fitting: precision and fit_steps of `latent_optimization.unseen_fits`.
    """
    sample = stratified_subset(test, size=min(images, len(test.labels)), seed=seed)
    count = len(sample.images)
    started = time.perf_counter()
    with Stage("fitting test images", total=count, unit="img") as stage:
        fits = unseen_fits(
            images=sample.images, decoder=latents.decoder, seed=seed, sigma_p=sigma_p, stage=stage, **fitting
        )
    q, converged = joined(fits)
    seconds = time.perf_counter() - started
    gradients = sum(fit.gradients * len(fit.q.mean) for fit in fits)
    return FittedSample(sample, q, converged, {"gradients": gradients / count, "seconds": seconds / count})


@torch.no_grad()
def encoding_cost(*, vae, images):
    """What q of one image takes the encoder, as FittedSample.cost says it of a fit."""
    started = time.perf_counter()
    vae.encode(images).mean.cpu()  # which waits for the device, as the fits do
    return {"gradients": 0, "seconds": (time.perf_counter() - started) / len(images)}


@torch.no_grad()
def final_bounds(*, vae, latents, train, test, sample, sigma_p=SIGMA_P, seed=0):
    """{regime: {split: {"elbo", "log_likelihood", "kl"}}}, each as `mean_and_error` gives it.

    The amortized VAE (a ConvVAE) is scored on every image of the Splits train and test. For latent optimization (a
    LatentModel) the training images' q is the table's; of the test images the FittedSample `sample` is scored, and
    "fit_converged" says whether it is what it should be.
    """
    cases = {
        ("amortized", "train"): (lambda x, index: vae.encode(x), vae.decoder, train.images),
        ("amortized", "test"): (lambda x, index: vae.encode(x), vae.decoder, test.images),
        ("latent_optimization", "train"): (latents.posterior, latents.decoder, train.images),
        ("latent_optimization", "test"): (
            lambda x, index: select(sample.q, index),
            latents.decoder,
            sample.split.images,
        ),
    }
    bounds = {regime: {} for regime in REGIMES}
    for (regime, split), (posterior, decode, images) in cases.items():
        generator = random_generator(seed, "final bound", regime, split, device=images.device)
        bound = evaluate(posterior=posterior, decode=decode, images=images, generator=generator, sigma_p=sigma_p)
        bounds[regime][split] = {name: mean_and_error(values) for name, values in bound._asdict().items()}
    bounds["latent_optimization"]["test"]["fit_converged"] = sample.converged
    return bounds


def own_posterior(*, regime, split, models, images, rows, seed, sigma_p=SIGMA_P, **fitting):
    """(q, decode, fitted): what a regime has for images (B, 1, 28, 28), at `rows` of the train or the test split.

    models: (ConvVAE, LatentModel). Under latent optimization an unseen image's q is fitted to convergence, which
    `fitted` says; fitting: precision and fit_steps of `latent_optimization.unseen_fits`.
    """
    vae, latents = models
    if regime == "amortized":
        with torch.no_grad():
            return vae.encode(images), vae.decoder, False
    if split == "train":
        return latents.posterior(images, rows), latents.decoder, False
    q, _ = unseen_posterior(images=images, decoder=latents.decoder, seed=seed, sigma_p=sigma_p, **fitting)
    return q, latents.decoder, True


def log_probabilities(
    *,
    models,
    train,
    test,
    sigma_p=SIGMA_P,
    seed=0,
    precision="float32",
    num_samples=NUM_SAMPLES,
    images_per_digit=IMAGES_PER_DIGIT,
    annealed_per_digit=ANNEALED_PER_DIGIT,
    chains=CHAINS,
    temperatures=TEMPERATURES,
    fit_steps=FIT_STEPS,
    batch_size=100,
):
    """log p(x) of the first images of each digit by importance sampling from each regime's own q.

    Of these the first `annealed_per_digit` of each digit are also scored by importance sampling from the best diagonal
    q and by annealing. models: (ConvVAE, LatentModel). Returns one dict per image, regime by regime, split by split,
    digit by digit: what Gaps holds, None where it was not measured.
    """
    scene = {"sigma_p": sigma_p, "num_samples": num_samples, "batch_size": batch_size}
    fitting = {"precision": precision, "fit_steps": fit_steps}
    more = {"chains": chains, "temperatures": temperatures, **fitting}
    total = len(REGIMES) * len(SPLITS) * DIGITS * images_per_digit
    records = []
    with Stage("log p(x)", total=total, unit="img") as stage:
        for regime, (name, split) in product(REGIMES, zip(SPLITS, (train, test), strict=True)):
            rows = rows_per_digit(split.labels, images_per_digit)  # (10, n)
            flat = rows.flatten()
            images = split.images[flat]
            q, decode, fitted = own_posterior(
                regime=regime,
                split=name,
                models=models,
                images=images,
                rows=flat,
                seed=seed,
                sigma_p=sigma_p,
                **fitting,
            )
            places = torch.arange(len(flat), device=flat.device).reshape_as(rows)
            found = {}
            for purpose, chosen, score, extra in (
                ("annealing", places[:, :annealed_per_digit].flatten(), gaps.measure, {"fitted": fitted, **more}),
                ("log p(x)", places[:, annealed_per_digit:].flatten(), _importance_sampling, {}),
            ):
                if not len(chosen):
                    continue
                generator = random_generator(seed, purpose, regime, name, device=images.device)
                values = score(
                    q=select(q, chosen),
                    x=images[chosen],
                    decode=decode,
                    generator=generator,
                    stage=stage,
                    **scene,
                    **extra,
                )
                columns = {key: column.tolist() for key, column in values._asdict().items()}
                for place, row in enumerate(flat[chosen].tolist()):
                    found[row] = {key: column[place] for key, column in columns.items()}
            for digit, of_digit in enumerate(rows.tolist()):
                for row in of_digit:
                    place = {"regime": regime, "split": name, "digit": digit, "index": int(split.index[row])}
                    records.append({**place, **dict.fromkeys(gaps.Gaps._fields), **found[row]})
    return records


def _importance_sampling(*, q, x, batch_size, stage, **scene):
    """The Estimate of all images, some at a time."""
    parts = []
    for batch in torch.arange(len(x), device=x.device).split(batch_size):
        parts.append(importance_sampling(q=select(q, batch), x=x[batch], **scene))
        stage.advance(len(batch))
    return Estimate(*(torch.cat(part) for part in zip(*parts, strict=True)))


def as_gaps(records, **place):
    """The annealed records at a place, such as regime="amortized", split="test", as Gaps, (B,) each."""
    chosen = [
        record
        for record in records
        if record["annealed_log_prob"] is not None and all(record[name] == value for name, value in place.items())
    ]
    return gaps.Gaps(*(torch.tensor([record[name] for record in chosen]) for name in gaps.Gaps._fields))


def as_array(records, *, images_per_digit):
    """log p(x) of the records as float64 (2 regimes, 2 splits, 10 digits, images per digit)."""
    values = np.array([record["log_prob"] for record in records], dtype=np.float64)
    return values.reshape(len(REGIMES), len(SPLITS), DIGITS, images_per_digit)


def summarize_log_prob(records):
    """{regime: {split: {"overall": score, "digits": [ten scores], "three_estimates": {...}}}}.

    Scores carry their standard errors over images. "three_estimates" sets importance sampling from q, the same from q*,
    and annealing side by side on the images that have all three.
    """

    def score(chosen):
        sizes = [record["effective_sample_size"] for record in chosen]
        return {
            **mean_and_error(torch.tensor([record["log_prob"] for record in chosen])),
            "effective_sample_size_median": float(np.median(sizes)),
        }

    summary = {}
    for regime, split in product(REGIMES, SPLITS):
        mine = [record for record in records if (record["regime"], record["split"]) == (regime, split)]
        digits = [score([record for record in mine if record["digit"] == digit]) for digit in range(DIGITS)]
        estimates = three_estimates(as_gaps(records, regime=regime, split=split))
        summary.setdefault(regime, {})[split] = {"overall": score(mine), "digits": digits, "three_estimates": estimates}
    return summary


def three_estimates(found):
    """{"importance_sampling", "importance_sampling_fitted", "annealed"} of Gaps, each with its errors.

    "monte_carlo_error" is what another seed of the estimator would change in the mean over these images;
    "standard_error" is what other images would.
    """
    weighed = {"importance_sampling": (found.log_prob, found.effective_sample_size)}
    weighed["importance_sampling_fitted"] = (found.fitted_log_prob, found.fitted_effective_sample_size)
    scores = {
        name: {**mean_and_error(values), "effective_sample_size_median": float(sizes.median())}
        for name, (values, sizes) in weighed.items()
    }
    count = len(found.annealed_log_prob)
    scores["annealed"] = {
        **mean_and_error(found.annealed_log_prob),
        "monte_carlo_error": float(found.annealed_standard_error.double().square().sum().sqrt() / count),
        "spread_median": float(found.annealed_spread.median()),
        "acceptance": float(found.annealed_acceptance.mean()),
    }
    return scores


def table(summary):
    """The final table, at most 100 columns wide."""

    def number(score):
        error = score["standard_error"]
        return f"{score['mean']:8.2f} ± {error:.2f}" if error is not None else f"{score['mean']:8.2f}"

    def line(label, train, test):
        columns = f"{number(train):>16}{train['images']:>8,}{number(test):>16}{test['images']:>8,}"
        return f"{label:44}{columns}"

    lines = [f"{'nats per image (± standard error)':44}{'train':>16}{'images':>8}{'test':>16}{'images':>8}", "-" * 92]
    for regime, label in zip(REGIMES, ("amortized VAE", "latent optimization"), strict=True):
        lines.append(label)
        for part, name in (("elbo", "ELBO"), ("log_likelihood", "E_q log p(x|z)"), ("kl", "KL(q || p)")):
            lines.append(line(f"  {name}", *(summary[regime][split][part] for split in SPLITS)))
        of_splits = [summary["log_prob"][regime][split] for split in SPLITS]
        lines.append(line("  log p(x), importance sampling from q", *(each["overall"] for each in of_splits)))
        lines.append(_effective([each["overall"] for each in of_splits]))
        fitted, annealed = (
            [each["three_estimates"][name] for each in of_splits] for name in ("importance_sampling_fitted", "annealed")
        )
        lines.append(line("  log p(x), importance sampling from q*", *fitted))
        lines.append(_effective(fitted))
        lines.append(line("  log p(x), annealed from q*", *annealed))
        errors = [f"± {score['monte_carlo_error']:.2f}" for score in annealed]
        lines.append(f"{'    of that, error of the estimate itself':44}{errors[0]:>16}{'':8}{errors[1]:>16}")
        for name, gap in (("approximation", "log p(x) - ELBO(q*)"), ("amortization", "ELBO(q*) - ELBO(q)")):
            of_gap = [summary["gaps"][regime][split][f"{name}_gap"] for split in SPLITS]
            lines.append(line(f"  {name} gap, {gap}", *of_gap))
        certificate = summary["certificate"][regime]
        lines.append(
            f"  log p(x) of {certificate['gap']['images']} simulated images lies between bounds "
            f"{number(certificate['gap']).strip()} nats apart"
        )
        lines.append("-" * 92)
    return "\n".join(lines)


def _effective(scores):
    """The table's line on effective sample sizes, which says where they are too few to be believed."""
    sizes = [score["effective_sample_size_median"] for score in scores]
    warning = " too low" if min(sizes) < FEW else ""
    return f"{'    rests on (median effective samples)':44}{sizes[0]:>16.1f}{'':8}{sizes[1]:>16.1f}{warning:>8}"
