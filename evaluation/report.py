"""The evaluation of trained methods: `evaluate` finds every number, `draw_report` writes and draws."""

from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from data import SPLITS, rows_per_class, stratified_subset
from evaluation import figures, latent_figures, latents, measurements, samples, scores, style
from evaluation.page.explorer import explorer
from evaluation.statistics import find
from evaluation.tables import write_scores
from runtime.checkpoint import save_array, save_csv, save_figure
from runtime.distributed import rank
from runtime.progress import check_interrupt
from vae_utils import random_generator

PRIOR_SAMPLES, MOST_PICTURED = 64, 30  # how many classes at most have an image of their own in a figure
RESULTS = (  # the files in the results directory, as patterns; those of earlier versions, too
    "*recon_epoch_[0-9]*.png",
    "samples_epoch_[0-9]*.png",
    "comparison_epoch_[0-9]*.png",
    "training_curves.png",
    "scores.csv",
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


class Results(NamedTuple):
    """What an evaluation found: the numbers, and the images and points that figures need."""

    scores: list  # of Score
    images: list  # rows of log_probabilities.csv, dicts
    latent_usage: list  # rows of latent_usage.csv, dicts
    methods: list  # as they were after the last epoch
    classes: tuple
    likelihood: str  # p(x|z) in words
    log_prob: np.ndarray  # (methods, splits, classes, annealed images of each class), float64: the best estimate
    pictures: dict  # {epoch: see `draw_pictures`}
    examples: torch.Tensor  # (M, C, H, W), the first annealed test image of each class
    sample_labels: torch.Tensor  # (M,), of the test images on the map
    points: dict  # {method's name: (M, 2)}, the map
    traversals: tuple  # see latents.traversals
    interpolations: dict  # see latents.interpolations
    samples: dict  # {kind: images}, see samples.assess
    explorer: dict  # see explorer.explorer

    @property
    def labels(self):
        """{method's name: its label}."""
        return {method.name: method.label for method in self.methods}


def evaluate(load, epochs, data, classifier, config, *, training_seconds, run):
    """The Results; on other ranks than 0 None.

    load: a function of an epoch, returning the methods as they were after it; epochs: rising, the last one is scored in
    full; data: a Data; classifier: the supervised baseline; config: an EvalConfig; training_seconds: {method's name:
    seconds}, where known; run: a Run. The work on images is dealt to the ranks; rank 0 does the rest.
    """
    coarse, last, pictures, rows = measurements.at_earlier_epochs(config), epochs[-1], {}, []
    sample = stratified_subset(data.test, size=min(config.fitted_images, len(data.test.labels)), seed=config.seed)
    for epoch in epochs:
        # The work of this epoch.
        methods = load(epoch)
        work = {f"pictures_{epoch}_{method.name}": partial(pictured_means, method, data, config) for method in methods}
        if epoch == last:
            work |= measurements.image_tasks(methods, data, config, "log p(x)")
            work |= measurements.bidirectional_tasks(methods, config, device=data.device)
            work |= measurements.inference_tasks(methods, sample, config)
        else:
            work |= measurements.image_tasks(methods, data, coarse, "gaps", epoch)
        results = run.map(f"evaluation, epoch {epoch}", work)

        # What it gave.
        if rank() == 0:
            means = {method.name: results[f"pictures_{epoch}_{method.name}"] for method in methods}
            pictures[epoch] = draw_pictures(methods, means, data, config)
            purpose = ("log p(x)",) if epoch == last else ("gaps", epoch)
            measured = measurements.collect_images(methods, config if epoch == last else coarse, results, *purpose)
            rows += scores.tracked_scores(measured, epoch, config.gap_images_per_digit)
    if rank():
        return None

    # Bounds, log p(x), gaps, costs.
    fits, seconds = measurements.collect_inference(methods, sample, results)
    train_q = {method.name: measurements.posterior_of_train(method, data) for method in methods}
    sample_q = {name: fit.q for name, fit in fits.items()}
    bounds = measurements.final_bounds(methods, data, sample, fits, train_q, config)
    rows += scores.bound_scores(bounds, data, last)
    rows += scores.image_scores(measured, bounds, data, config, last)
    rows += scores.bidirectional_scores(methods, results, last)
    rows += scores.cost_scores(methods, last, fits, seconds, training_seconds)

    # Latents and samples.
    options = {"epoch": last, "keep": run.keep}
    drawn = {"sample": sample, "sample_q": sample_q}
    latent_scores, usage, points = latents.analyse(methods, train_q, data, classifier, config, **drawn, **options)
    sample_scores, sample_images = samples.assess(methods, data, classifier, config, **options)

    # What figures and the page draw.
    count = config.annealed_per_digit
    annealed = data.test.at(measurements.scored_rows(data, "test", count, config).flatten())
    columns = ("log_prob", "log_prob_standard_error")
    annealed_log_prob = {
        method.name: [measured[method.name, "test"][column][:, :count].flatten() for column in columns]
        for method in methods
    }
    annealed_q = measurements.collect_posteriors(methods, config, results, "log p(x)")
    log_prob = [[measured[method.name, split]["log_prob"][:, :count] for split in SPLITS] for method in methods]
    shown = {"points": points, "seed": config.seed}
    return Results(
        scores=rows + latent_scores + sample_scores,
        images=measurements.image_table(measured, data, config),
        latent_usage=usage,
        methods=methods,
        classes=data.test.classes,
        likelihood=methods[0].model.likelihood.label,
        log_prob=np.stack([np.stack([values.numpy() for values in splits]) for splits in log_prob]),
        pictures=pictures,
        examples=annealed.images[::count][:MOST_PICTURED].cpu(),
        sample_labels=sample.labels.cpu(),
        points=points,
        traversals=latents.traversals(methods, train_q, sample_q, sample),
        interpolations=latents.interpolations(methods, sample_q, sample, classifier),
        samples=sample_images,
        explorer=explorer(methods, train_q, sample, sample_q, annealed, annealed_q, annealed_log_prob, **shown),
    )


def pictured(data):
    """The test images that are drawn, a Split: the first of each class to reconstruct, then the second."""
    return data.test.at(rows_per_class(data.test, 2)[:MOST_PICTURED].T.flatten())


def pictured_means(method, data, config):
    """The means of q (B, D) of the `pictured` test images."""
    return measurements.infer(method, pictured(data), config).q.mean.cpu()


@torch.no_grad()
def draw_pictures(methods, means, data, config):
    """Images of one epoch: {"training image", "test image", "compared image": (M, C, H, W)}, and for each method's name
    its drawings of the three and its "samples" from the prior, a dict.

    means: {method's name: of q, as of `pictured_means`}.
    """
    rows = rows_per_class(data.train, 1)[:MOST_PICTURED].flatten()
    seen, (unseen, compared) = data.train.images[rows], pictured(data).images.chunk(2)
    drawn = {"training image": seen.cpu(), "test image": unseen.cpu(), "compared image": compared.cpu()}
    for method in methods:
        # The same generator for every method: where they have the same number of dimensions, the same z.
        generator = random_generator(config.seed, "prior samples", device=data.device)
        z = torch.randn(PRIOR_SAMPLES, method.model.latent_dim, generator=generator, device=data.device)
        of_test = method.model.mean(means[method.name].to(data.device)).chunk(2)
        images = (method.model.mean(method.posterior(seen, rows).mean), *of_test, method.model.mean(z))
        kinds = ("training image", "test image", "compared image", "samples")
        drawn[method.name] = {kind: image.cpu() for kind, image in zip(kinds, images, strict=True)}
    return drawn


def draw_report(results_dir, results, summary):
    """Writes the tables, and the figures but the training curves; summary: what summary.json will hold."""
    results_dir, methods, classes = Path(results_dir), results.methods, results.classes

    def save(name, draw, **values):
        check_interrupt()
        save_figure(results_dir / f"{name}.png", draw(likelihood=results.likelihood, **values))

    # Figures of every saved epoch.
    for epoch, drawn in results.pictures.items():
        _save_epoch(save, epoch, drawn, methods, classes)

    # Tables.
    write_scores(results_dir / "scores.csv", results.scores)
    save_csv(results_dir / "log_probabilities.csv", results.images)
    save_array(results_dir / "log_probabilities.npy", results.log_prob)
    save_csv(results_dir / "latent_usage.csv", results.latent_usage)

    # Figures of numbers.
    shared = {"scores": results.scores, "methods": methods}
    values = results.log_prob[:, SPLITS.index("test"), : len(results.examples), 0]
    options = {"num_samples": summary["eval_config"]["num_samples"], "classes": classes, **shared}
    save("log_probabilities", figures.log_probabilities, images=results.examples, example_values=values, **options)
    save("gaps_over_epochs", figures.gaps_over_epochs, **shared)
    if all(find(results.scores, "training_seconds", method.name, "train") for method in methods):
        save("quality_over_seconds", figures.quality_over_seconds, **shared)
    save("gaps_per_digit", figures.gaps_per_class, classes=classes, **shared)
    save("latent_usage", latent_figures.latent_usage, table=results.latent_usage, **shared)
    save("latent_probes", latent_figures.probes, **shared)
    maps = {"points": results.points, "labels": results.sample_labels}
    save("latent_map", latent_figures.latent_map, classes=classes, **maps, **shared)
    _save_traversals(save, results)
    _save_interpolations(save, results)
    save("sample_quality", latent_figures.sample_quality, examples=results.samples, classes=classes, **shared)


def _save_epoch(save, epoch, drawn, methods, classes):
    """Saves the reconstructions of each method, the prior samples and the comparison after one epoch."""
    kinds = ("training image", "test image")
    compared = drawn["compared image"]
    names = [] if style.are_short(classes) else [style.short(name) for name in classes[: len(compared)]]
    captions = dict.fromkeys(kinds, names) if names else {}
    for method in methods:
        images = drawn[method.name]
        save(
            f"{method.reconstruction_prefix}_epoch_{epoch}",
            style.image_rows,
            rows=[pair for kind in kinds for pair in ((kind, drawn[kind]), ("reconstruction", images[kind]))],
            captions=captions,
            title=f"{method.label}, epoch {epoch}: reconstructions at the mean of q(z)",
        )
    save(
        f"samples_epoch_{epoch}",
        style.sample_sheets,
        sheets={method.label: drawn[method.name]["samples"] for method in methods},
        title=f"Prior samples, epoch {epoch}: the mean of p(x|z) at the same {PRIOR_SAMPLES} draws of z",
    )
    rows = {method.label: drawn[method.name]["compared image"] for method in methods}
    errors = {
        label: [f"{error:.1f}" for error in (compared - images).square().flatten(1).sum(1).tolist()]
        for label, images in rows.items()
    }
    save(
        f"comparison_epoch_{epoch}",
        style.image_rows,
        rows=[("test image", compared), *rows.items()],
        captions=errors | ({"test image": names} if names else {}),
        title=f"Unseen test images, epoch {epoch}; below each reconstruction its squared error "
        r"$\|x-\hat x\|^2$ (pixels in [-1, 1])",
    )


def _save_traversals(save, results):
    values, columns = results.traversals
    axis = [f"{value:+g}" if value else "0" for value in values]
    save(
        "traversals",
        style.image_rows,
        rows={results.labels[name]: rows for name, rows in columns.items()},
        captions={rows[-1][0]: axis for rows in columns.values()},
        title="z set to the value at the bottom, in standard deviations of p(z), along the dimensions with most KL (at "
        "the left its mean over training images)\nand along the directions in which the means of q vary most; across "
        "these, z stays at the mean of q of the test image",
    )


def _save_interpolations(save, results):
    labels, between = {"pixels": "mixed pixels", **results.labels}, ": " if style.are_short(results.classes) else "\n"
    captions = {}
    for name, (_, classified) in results.interpolations.items():
        pairs = zip(classified.label.tolist(), classified.confidence.tolist(), strict=True)
        texts = [f"{style.short(results.classes[label])}{between}{share:.0%}" for label, share in pairs]
        captions[labels[name]] = texts
    save(
        "interpolation",
        style.image_rows,
        rows=[(labels[name], images) for name, (images, _) in results.interpolations.items()],
        captions=captions,
        title="On the straight line between two test images (the ends of the upper row),\nor between their means of q; "
        "below each, the class that the supervised baseline finds most probable",
    )
