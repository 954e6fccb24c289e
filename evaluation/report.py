"""The evaluation of trained methods: every number, table and figure, in the order in which they are made."""

from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
import torch

from data import SPLITS, rows_per_class, stratified_subset
from evaluation import figures, latents, samples, scores, style
from evaluation.explorer import explorer
from runtime.checkpoint import save_array, save_csv, save_figure
from runtime.distributed import rank
from vae_utils import random_generator

PRIOR_SAMPLES, MOST_PICTURED = 64, 30  # how many classes at most have an image of their own in a figure
RESULTS = (  # the files in the results directory, as patterns
    "*recon_epoch_[0-9]*.png",
    "samples_epoch_[0-9]*.png",
    "comparison_epoch_[0-9]*.png",
    "training_curves.png",
    "log_probabilities.*",
    "gaps.csv",
    "gaps_over_epochs.png",
    "gaps_per_digit.png",
    "quality_over_seconds.png",
    "latent_usage.png",
    "latent_probes.png",
    "latent_map.png",
    "latent_usage.csv",
    "traversals.png",
    "interpolation.png",
    "sample_quality.png",
    "history.csv",
    "summary.json",
    "report.html",
)


def evaluate(checkpoints, data, classifier, config, *, results_dir, training_seconds, tasks):
    """Every number and every figure but the training curves; on rank 0 the summary's numbers, and those of `explorer`.

    checkpoints: a training.Checkpoints, whose last epoch is scored; data: a Data; classifier: the supervised baseline;
    config: an EvalConfig; training_seconds: {method's name: seconds}, where known; tasks: a Tasks. The work on images
    is dealt to the ranks; rank 0 does the rest.
    """
    results_dir, coarse = Path(results_dir), scores.at_earlier_epochs(config)
    sample = stratified_subset(data.test, size=min(config.fitted_images, len(data.test.labels)), seed=config.seed)
    rows = []  # of gaps.csv
    for epoch in checkpoints.epochs:  # rising: the methods of the last one are scored below
        methods, last = checkpoints.load(epoch, data), epoch == checkpoints.epochs[-1]
        work = picture_tasks(epoch, methods, data, config)
        if last:
            work |= scores.image_tasks(methods, data, config, "log p(x)")
            work |= scores.bdmc_tasks(methods, config, device=data.device)
            work |= scores.inference_tasks(methods, sample, config)
        else:
            work |= scores.image_tasks(methods, data, coarse, "gaps", epoch)
        done = tasks.map(f"evaluation, epoch {epoch}", work)
        if rank() == 0:
            draw_epoch(epoch, methods, data, config, results_dir, done)
        if not last:
            measured = scores.collect_images(methods, data, coarse, done, "gaps", epoch)
            for method, split in product(methods, SPLITS):
                summary = scores.summarize(measured[method.name][split])
                rows.append({"epoch": epoch, "method": method.name, "split": split, "scores": summary})
    if rank():
        return None, None
    likelihood, classes = methods[0].model.likelihood.label, data.test.classes

    def save(name, draw, **values):
        save_figure(results_dir / f"{name}.png", draw(methods=methods, likelihood=likelihood, **values))

    fits, seconds = scores.collect_inference(methods, sample, done)
    train_q = {method.name: scores.posterior_of_train(method, data) for method in methods}
    bounds, converged = scores.final_bounds(methods, data, sample, fits, train_q, config)

    found = scores.collect_images(methods, data, config, done, "log p(x)")
    log_prob = {
        name: {
            split: scores.summarize_log_prob(values, bounds[name][split], getattr(data, split), config)
            for split, values in of_splits.items()
        }
        for name, of_splits in found.items()
    }
    values = np.stack([[found[method.name][split].importance_sampling for split in SPLITS] for method in methods])
    save_csv(results_dir / "log_probabilities.csv", scores.records(found, data, config))
    save_array(results_dir / "log_probabilities.npy", values)
    examples = data.test.images[scores.scored_rows(data, "test", 1, config).flatten()[:MOST_PICTURED]]
    shown = [found[method.name]["test"].log_prob[:MOST_PICTURED, 0].tolist() for method in methods]
    counts = {"num_samples": config.num_samples, "classes": classes}
    save(
        "log_probabilities", figures.log_probabilities, scores=log_prob, images=examples, example_values=shown, **counts
    )

    last_gaps, per_class = ({method.name: {} for method in methods} for _ in range(2))
    for method, split in product(methods, SPLITS):
        measured = found[method.name][split]
        same = scores.summarize(scores.annealed(measured, config.gap_images_per_digit))
        last_gaps[method.name][split] = scores.summarize(scores.annealed(measured))
        for summary in (same, last_gaps[method.name][split]):
            rows.append({"epoch": epoch, "method": method.name, "split": split, "scores": summary})
        fields = zip(*scores.annealed(measured), strict=True)
        per_class[method.name][split] = [scores.summarize(scores.Gaps(*of_class)) for of_class in fields]
    save_csv(results_dir / "gaps.csv", [_flat(row) for row in rows])
    save("gaps_over_epochs", figures.gaps_over_epochs, rows=rows, saved_epochs=checkpoints.epochs)
    if training_seconds.keys() >= found.keys():
        save("quality_over_seconds", figures.quality_over_seconds, rows=rows, training_seconds=training_seconds)
    save("gaps_per_digit", figures.gaps_per_class, per_class=per_class, classes=classes)

    bdmc = {method.name: scores.bdmc_gap(method, done) for method in methods}
    sample_q = {name: fit.q for name, fit in fits.items()}
    options = {"results_dir": results_dir, "keep": tasks.keep}
    used = latents.analyse(methods, train_q, data, classifier, config, sample=sample, sample_q=sample_q, **options)
    quality = samples.assess(methods, data, classifier, config, **options)
    parts = {
        "bounds": scores.score_bounds(bounds, data),
        "fits_converged": converged,
        "log_prob": log_prob,
        "gaps": last_gaps,
        "bdmc": bdmc,
        "latents": used["methods"],
        "cost": scores.compute_cost(methods, checkpoints, fits, seconds, training_seconds),
    }
    parts_of_page = {
        "annealed": data.test.at(scores.scored_rows(data, "test", config.annealed_per_digit, config).flatten()),
        "annealed_q": scores.collect_posteriors(methods, config, done, "log p(x)"),
        "found": {
            name: scores.Gaps(*(field.flatten() for field in scores.annealed(of_splits["test"])))
            for name, of_splits in found.items()
        },
        "points": used["points"],
    }
    page_data = explorer(methods, train_q, sample, sample_q, **parts_of_page, seed=config.seed)
    numbers = {
        "likelihood": likelihood,
        "methods": {
            method.name: {"label": method.label, **{name: part[method.name] for name, part in parts.items()}}
            for method in methods
        },
        "differences": scores.paired_differences(found, methods),
        "probes": used["probes"],
        "samples": quality,
    }
    return numbers, page_data


def _flat(row):
    """A row of gaps as gaps.csv has it."""
    flat = {name: row[name] for name in ("epoch", "method", "split")}
    for name, score in row["scores"].items():
        flat["images"] = score["images"]
        flat[name], flat[f"{name}_standard_error"] = score["mean"], score["standard_error"]
    return flat


def picture_tasks(epoch, methods, data, config):
    """Tasks that find the means of q (B, D) of the `pictured` test images."""

    def infer_mean(method):
        return scores.infer(method, pictured(data), config).q.mean.cpu()

    return {_picture_task(epoch, method): partial(infer_mean, method) for method in methods}


def _picture_task(epoch, method):
    return f"pictures_{epoch}_{method.name}"


def pictured(data):
    """The test images that are drawn, a Split: the first of each class to reconstruct, then the second."""
    return data.test.at(rows_per_class(data.test, 2)[:MOST_PICTURED].T.flatten())


def draw_epoch(epoch, methods, data, config, results_dir, done):
    """Draws the reconstructions of each method, the prior samples and the comparison after one epoch.

    done: the results of `picture_tasks`.
    """
    likelihood = methods[0].model.likelihood.label
    train_rows = rows_per_class(data.train, 1)[:MOST_PICTURED].flatten()
    seen, (unseen, original) = data.train.images[train_rows], pictured(data).images.chunk(2)
    names = [] if style.are_short(data.test.classes) else [style.short(name) for name in data.test.classes[: len(seen)]]
    compared, sheets = {}, {}
    for method in methods:
        mean = done[_picture_task(epoch, method)].to(data.device)
        # The same generator for every method: where they have the same number of dimensions, the same z.
        generator = random_generator(config.seed, "prior samples", device=data.device)
        z = torch.randn(PRIOR_SAMPLES, method.model.latent_dim, generator=generator, device=data.device)
        with torch.no_grad():
            of_seen = method.model.mean(method.posterior(seen, train_rows).mean)
            of_unseen, compared[method.label] = method.model.mean(mean).chunk(2)
            sheets[method.label] = method.model.mean(z)
        rows = [("training image", seen), ("reconstruction", of_seen)]
        rows += [("test image", unseen), ("reconstruction", of_unseen)]
        figure = style.image_rows(
            rows=rows,
            captions={"training image": names, "test image": names} if names else None,
            title=f"{method.label}, epoch {epoch}: reconstructions at the mean of q(z)",
            likelihood=likelihood,
        )
        save_figure(results_dir / f"{method.reconstruction_prefix}_epoch_{epoch}.png", figure)
    figure = style.sample_sheets(
        sheets=sheets,
        title=f"Prior samples, epoch {epoch}: the mean of p(x|z) at the same {PRIOR_SAMPLES} draws of z",
        likelihood=likelihood,
    )
    save_figure(results_dir / f"samples_epoch_{epoch}.png", figure)
    errors = {
        label: [f"{error:.1f}" for error in (original - images).square().flatten(1).sum(1).tolist()]
        for label, images in compared.items()
    }
    figure = style.image_rows(
        rows=[("test image", original), *compared.items()],
        captions=errors | ({"test image": names} if names else {}),
        title=f"Unseen test images, epoch {epoch}; below each reconstruction its squared error "
        r"$\|x-\hat x\|^2$ (pixels in [-1, 1])",
        likelihood=likelihood,
    )
    save_figure(results_dir / f"comparison_epoch_{epoch}.png", figure)
