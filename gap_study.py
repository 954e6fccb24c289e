"""How the gaps of both regimes grow over training and differ between digits, and how far log p(x) can be trusted."""

from itertools import product
from pathlib import Path

import gap_figures
import gaps
from annealing import CHAINS, TEMPERATURES, bidirectional_bounds, linearized_posterior, simulate
from data import DIGITS, rows_per_digit
from evaluation import REGIMES, SPLITS, as_gaps, own_posterior
from files import save_csv, save_figure
from latent_optimization import FIT_STEPS, unseen_posterior
from progress import Stage
from trained import load_models
from vae_utils import SIGMA_P, mean_and_error, random_generator

IMAGES_PER_DIGIT = 1  # at the epochs before the last
NUM_SAMPLES = 100  # of the two bounds there
SIMULATED_IMAGES = 20


def over_epochs(
    *,
    epochs,
    checkpoint_dir,
    train,
    test,
    sigma_p=SIGMA_P,
    seed=0,
    precision="float32",
    fit_steps=FIT_STEPS,
    images_per_digit=IMAGES_PER_DIGIT,
    chains=CHAINS,
    temperatures=TEMPERATURES,
):
    """One dict per epoch, regime and split: what `gaps.summarize` says of the first images of each digit.

    train, test: Splits; the images are the same at every epoch.
    """
    rows = []
    total = len(epochs) * len(REGIMES) * len(SPLITS) * DIGITS * images_per_digit
    with Stage("gaps", total=total, unit="img") as stage:
        for epoch in epochs:
            models = load_models(checkpoint_dir, epoch=epoch, device=train.images.device)
            for regime, (name, split) in product(REGIMES, zip(SPLITS, (train, test), strict=True)):
                chosen = rows_per_digit(split.labels, images_per_digit).flatten()
                images = split.images[chosen]
                scene = {"sigma_p": sigma_p, "precision": precision, "fit_steps": fit_steps}
                q, decode, fitted = own_posterior(
                    regime=regime, split=name, models=models, images=images, rows=chosen, seed=seed, **scene
                )
                found = gaps.measure(
                    q=q,
                    x=images,
                    decode=decode,
                    generator=random_generator(seed, "gaps", epoch, regime, name, device=images.device),
                    num_samples=NUM_SAMPLES,
                    chains=chains,
                    temperatures=temperatures,
                    fitted=fitted,
                    stage=stage,
                    **scene,
                )
                rows.append({"epoch": epoch, "regime": regime, "split": name, "scores": gaps.summarize(found)})
    return rows


def certificate(
    *,
    decoder,
    count=SIMULATED_IMAGES,
    sigma_p=SIGMA_P,
    seed=0,
    precision="float32",
    fit_steps=FIT_STEPS,
    chains=CHAINS,
    temperatures=TEMPERATURES,
    device="cpu",
):
    """{"lower", "upper", "gap"} of log p(x) of `count` images simulated from the model (Grosse et al. 2015).

    Each as `mean_and_error` gives it. The gap bounds, in the mean, by how much annealing with the same chains and
    temperatures is off in either direction on images such as these.
    """
    generator = random_generator(seed, "certificate", device=device)
    x, z = simulate(
        decode=decoder,
        count=count,
        latent_dim=decoder.latent_dim,
        generator=generator,
        sigma_p=sigma_p,
        device=device,
    )
    q, _ = unseen_posterior(
        images=x, decoder=decoder, seed=seed, sigma_p=sigma_p, precision=precision, fit_steps=fit_steps
    )
    start = linearized_posterior(q=q, x=x, decode=decoder, generator=generator, sigma_p=sigma_p, precision=precision)
    bounds = bidirectional_bounds(
        q=start,
        x=x,
        z=z,
        decode=decoder,
        generator=generator,
        sigma_p=sigma_p,
        chains=chains,
        temperatures=temperatures,
        precision=precision,
    )
    values = {**bounds._asdict(), "gap": bounds.upper - bounds.lower}
    return {name: mean_and_error(value) for name, value in values.items()}


def study(*, epochs, models, records, checkpoint_dir, results_dir, train, test, simulated, **scene):
    """Writes gaps.csv, gaps_over_epochs.png and gaps_per_digit.png; returns ({"gaps", "certificate"}).

    epochs: the saved ones; of the last, the numbers are those of the annealed among `records`, which
    `evaluation.log_probabilities` has made; models: (ConvVAE, LatentModel) of the last; scene: what `over_epochs` and
    `certificate` have in common, and images_per_digit of the first, which anneals half as many chains half as finely.
    """
    results_dir = Path(results_dir)
    images_per_digit = scene.pop("images_per_digit")
    rows = over_epochs(
        epochs=epochs[:-1],
        checkpoint_dir=checkpoint_dir,
        train=train,
        test=test,
        images_per_digit=images_per_digit,
        # So few images differ among themselves by far more than a coarser annealing is off.
        **{**scene, "chains": max(2, scene["chains"] // 2), "temperatures": max(1, scene["temperatures"] // 2)},
    )
    last, digits = {}, {}
    for regime, split in product(REGIMES, SPLITS):
        scores = gaps.summarize(as_gaps(records, regime=regime, split=split))
        last.setdefault(regime, {})[split] = scores
        rows.append({"epoch": epochs[-1], "regime": regime, "split": split, "scores": scores})
        digits.setdefault(regime, {})[split] = [
            gaps.summarize(as_gaps(records, regime=regime, split=split, digit=digit)) for digit in range(DIGITS)
        ]
    save_csv(results_dir / "gaps.csv", [_flat(row) for row in rows])
    save_figure(results_dir / "gaps_over_epochs.png", gap_figures.over_epochs(rows=rows))
    save_figure(results_dir / "gaps_per_digit.png", gap_figures.per_digit(digits=digits))
    device = train.images.device
    bounds = {}
    with Stage("certificate", total=len(models), unit="decoder") as stage:
        for regime, model in zip(REGIMES, models, strict=True):
            bounds[regime] = certificate(decoder=model.decoder, count=simulated, device=device, **scene)
            stage.advance()
    return {"gaps": last, "certificate": bounds}


def _flat(row):
    """A row of `over_epochs` as gaps.csv has it."""
    flat = {name: row[name] for name in ("epoch", "regime", "split")}
    for name, score in row["scores"].items():
        flat["images"] = score["images"]
        flat[name], flat[f"{name}_standard_error"] = score["mean"], score["standard_error"]
    return flat
