"""The numbers at the end of a run: bounds over whole splits, log p(x) digit by digit, and their table."""

import time
from itertools import product

import numpy as np
import torch
from torch.distributions import Normal

from data import DIGITS, rows_per_digit, stratified_subset
from latent_optimization import joined, unseen_fits, unseen_posterior
from progress import Stage
from vae_utils import SIGMA_P, evaluate, importance_sampling, mean_and_error, random_generator

REGIMES = ("amortized", "latent_optimization")
SPLITS = ("train", "test")
NUM_SAMPLES = 1000
IMAGES_PER_DIGIT = 10
FITTED_IMAGES = 500  # test images on which latent optimization is scored, its q fitted to convergence


@torch.no_grad()
def final_bounds(*, vae, latents, train, test, sigma_p=SIGMA_P, seed=0, precision="float32"):
    """Returns (bounds, inference): how good q is, and what q of one unseen image took.

    bounds: {regime: {split: {"elbo", "log_likelihood", "kl"}}}, each as `mean_and_error` gives it; inference:
    {regime: {"gradients", "seconds"}}, means over a sample of test images that are worked on several at a time.
    The amortized VAE (a ConvVAE) is scored on every image of the Splits train and test. For latent optimization
    (a LatentModel) the training images' q is the table's, the test images' is fitted to convergence, on a
    stratified sample of them; "fit_converged" says whether it did.
    """
    sample = stratified_subset(test, size=min(FITTED_IMAGES, len(test.labels)), seed=seed).images
    with Stage("fitting test images", total=len(sample), unit="img") as stage, torch.enable_grad():
        started = time.perf_counter()
        fits = unseen_fits(
            images=sample, decoder=latents.decoder, seed=seed, sigma_p=sigma_p, precision=precision, stage=stage
        )
        fitted = time.perf_counter() - started
    q, converged = joined(fits)
    started = time.perf_counter()
    vae.encode(sample).mean.cpu()  # which waits for the device, as the fits do
    encoded = time.perf_counter() - started
    gradients = sum(fit.gradients * len(fit.q.mean) for fit in fits) / len(sample)
    inference = {
        "amortized": {"gradients": 0, "seconds": encoded / len(sample)},
        "latent_optimization": {"gradients": gradients, "seconds": fitted / len(sample)},
    }
    cases = {
        ("amortized", "train"): (lambda x, index: vae.encode(x), vae.decoder, train.images),
        ("amortized", "test"): (lambda x, index: vae.encode(x), vae.decoder, test.images),
        ("latent_optimization", "train"): (latents.posterior, latents.decoder, train.images),
        ("latent_optimization", "test"): (lambda x, index: _rows(q, index), latents.decoder, sample),
    }
    bounds = {regime: {} for regime in REGIMES}
    for (regime, split), (posterior, decode, images) in cases.items():
        generator = random_generator(seed, "final bound", regime, split, device=images.device)
        bound = evaluate(posterior=posterior, decode=decode, images=images, generator=generator, sigma_p=sigma_p)
        bounds[regime][split] = {name: mean_and_error(values) for name, values in bound._asdict().items()}
    bounds["latent_optimization"]["test"]["fit_converged"] = converged
    return bounds, inference


def log_probabilities(
    *,
    vae,
    latents,
    train,
    test,
    sigma_p=SIGMA_P,
    seed=0,
    precision="float32",
    num_samples=NUM_SAMPLES,
    images_per_digit=IMAGES_PER_DIGIT,
    batch_size=100,
):
    """log p(x) of the first images of each digit by importance sampling from each regime's own q.

    Returns one dict per image, regime by regime, split by split, digit by digit.
    """
    chosen = {}
    for name, split in zip(SPLITS, (train, test), strict=True):
        rows = rows_per_digit(split.labels, images_per_digit).flatten()
        chosen[name] = rows, split.images[rows], split.index[rows].tolist()
    total = len(REGIMES) * len(SPLITS) * DIGITS * images_per_digit
    records = []
    with Stage("log p(x)", total=total, unit="img") as stage:
        for regime, split in product(REGIMES, SPLITS):
            rows, images, index = chosen[split]
            if regime == "amortized":
                decode = vae.decoder
                with torch.no_grad():
                    q = vae.encode(images)
            elif split == "train":
                decode, q = latents.decoder, latents.posterior(images, rows)
            else:
                decode = latents.decoder
                q, _ = unseen_posterior(images=images, decoder=decode, seed=seed, sigma_p=sigma_p, precision=precision)
            generator = random_generator(seed, "log p(x)", regime, split, device=images.device)
            for batch in torch.arange(len(images), device=images.device).split(batch_size):
                estimate = importance_sampling(
                    q=_rows(q, batch),
                    x=images[batch],
                    decode=decode,
                    generator=generator,
                    sigma_p=sigma_p,
                    num_samples=num_samples,
                )
                columns = [column.tolist() for column in estimate]
                for position, values in zip(batch.tolist(), zip(*columns, strict=True), strict=True):
                    records.append(
                        {
                            "regime": regime,
                            "split": split,
                            "digit": position // images_per_digit,
                            "index": index[position],
                            **dict(zip(estimate._fields, values, strict=True)),
                        }
                    )
                stage.advance(len(batch))
    return records


def as_array(records, *, images_per_digit, column="log_prob"):
    """The records' column as float64 (2 regimes, 2 splits, 10 digits, images per digit)."""
    values = np.array([record[column] for record in records], dtype=np.float64)
    return values.reshape(len(REGIMES), len(SPLITS), DIGITS, images_per_digit)


def summarize_log_prob(records):
    """{regime: {split: {"overall": score, "digits": [ten scores]}}}, each score with its standard error."""

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
        summary.setdefault(regime, {})[split] = {"overall": score(mine), "digits": digits}
    return summary


def table(summary):
    """The final table, at most 100 columns wide."""

    def number(score):
        error = score["standard_error"]
        return f"{score['mean']:8.2f} ± {error:.2f}" if error is not None else f"{score['mean']:8.2f}"

    lines = [
        f"{'nats per image (± standard error)':36}{'train':>16}{'images':>8}{'test':>16}{'images':>8}",
        "-" * 84,
    ]
    for regime, label in zip(REGIMES, ("amortized VAE", "latent optimization"), strict=True):
        for part, name in (("elbo", "ELBO"), ("log_likelihood", "E_q log p(x|z)"), ("kl", "KL(q || p)")):
            train, test = (summary[regime][split][part] for split in SPLITS)
            columns = f"{number(train):>16}{train['images']:>8,}{number(test):>16}{test['images']:>8,}"
            lines.append(f"{label + ', ' + name:36}{columns}")
        train, test = (summary["log_prob"][regime][split]["overall"] for split in SPLITS)
        columns = f"{number(train):>16}{train['images']:>8,}{number(test):>16}{test['images']:>8,}"
        lines.append(f"{label + ', log p(x)':36}{columns}")
        sizes = [score["effective_sample_size_median"] for score in (train, test)]
        lines.append(f"{'  its effective samples (median)':36}{sizes[0]:>16.1f}{'':8}{sizes[1]:>16.1f}")
        lines.append("-" * 84)
    return "\n".join(lines)


def _rows(q, index):
    """The diagonal Normal of some of q's rows."""
    return Normal(q.mean[index], q.stddev[index], validate_args=False)
