"""The evaluation of trained methods: `evaluate` finds every number, `draw_report` makes tables and figures of them."""

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch

from data import SPLITS
from evaluation import figures, latent_figures, latents, measurements, samples, scores, style
from evaluation.page.explorer import explorer
from evaluation.statistics import find
from runtime.distributed import rank
from runtime.progress import check_interrupt
from vae_utils import random_generator

PRIOR_SAMPLES, EARLIER_NUM_SAMPLES = 64, 100
# Images of every epoch: the split, and which image of each class it is.
PICTURED = {"training image": ("train", 0), "test image": ("test", 0), "compared image": ("test", 1)}
MOST_PICTURED = 30  # how many classes at most have an image of their own in a figure
# The files in the results directory, as patterns; those of earlier versions, too.
RESULTS = (
    "*recon_epoch_[0-9]*.png",
    "samples_epoch_[0-9]*.png",
    "comparison_epoch_[0-9]*.png",
    "training_curves.png",
    "scores.csv",
    "log_probabilities.csv",
    "log_probabilities.np[yz]",
    "log_probabilities.png",
    "gaps.csv",
    "where_the_nats_go.png",
    "gaps_over_epochs.png",
    "gaps_per_digit.png",
    "quality_over_seconds.png",
    "latent_usage.png",
    "latent_usage.csv",
    "latent_probes.png",
    "latent_map.png",
    "latent_manifold.png",
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
    methods: list  # as they were after the last epoch
    classes: tuple
    likelihood: str  # p(x|z) in words
    pictures: dict  # {epoch: see `draw_pictures`}
    manifold: dict  # see latents.manifold
    # Of a full evaluation alone:
    latent_usage: list = None  # rows of latent_usage.csv, dicts
    log_prob: np.ndarray = None  # (methods, splits, classes, annealed images of each class), float64: the best estimate
    sample_labels: torch.Tensor = None  # (M,), of the test images on the map
    points: dict = None  # {method's name: (M, 2)}, the map
    traversals: tuple = None  # see latents.traversals
    interpolations: dict = None  # see latents.interpolations
    samples: dict = None  # {kind: images}, see samples.assess
    explorer: dict = None  # see explorer.explorer

    @property
    def labels(self):
        """{method's name: its label}."""
        return {method.name: method.label for method in self.methods}


def evaluate(load, epochs, data, classifier, config, run):
    """The Results; on other ranks than 0 None.

    load: a function of an epoch, returning the methods as they were after it; epochs: rising, the last one is scored in
    full; data: a Data; classifier: the supervised baseline; config: an EvalConfig; run: a Run. The work on images is
    dealt to the ranks; rank 0 does the rest.
    """
    full, last = config.evaluation == "full", epochs[-1]
    # The work. At earlier epochs images are few: half the chains are enough.
    earlier = replace(config, num_samples=EARLIER_NUM_SAMPLES, chains=max(2, config.chains // 2))
    work, samples_of, methods_of = {}, {}, {}
    for epoch in reversed(epochs):  # the tasks of the last epoch take longest
        methods = load(epoch)
        samples_of[epoch] = measurements.draw_samples(data, config, last=epoch == last)
        settings = config if epoch == last else earlier
        work |= measurements.image_tasks(methods, samples_of[epoch], epoch, settings)
        methods_of[epoch] = methods if epoch == last else [method.frozen() for method in methods]
    methods = methods_of[last]
    if full:
        work |= measurements.bidirectional_tasks(methods, config, device=data.device)
    with run.timed("q of images, bounds and log p(x)" if full else "q of images and bounds"):
        results = run.tasks.map("evaluation", work, device=data.device)
    if rank():
        return None

    # Every saved epoch.
    rows, pictures = [], {}
    for epoch in epochs:
        drawn, measured = samples_of[epoch], measurements.collect_images(methods, samples_of[epoch], results, epoch)
        pictures[epoch] = draw_pictures(methods_of[epoch], drawn, measured, config)
        rows += scores.tracked_scores(measured, drawn, epoch, measurements.tracked_per_class(config))
    likelihood, manifold = methods[0].model.likelihood.label, latents.manifold(methods)
    found = {"classes": data.test.classes, "likelihood": likelihood, "pictures": pictures, "manifold": manifold}
    scored = Results(scores=[], images=[], methods=methods, **found)
    if config.evaluation == "none":
        return scored

    # Bounds, log p(x), gaps, costs.
    with run.timed("bounds of all images"):
        train_q = {method.name: measurements.posterior_of_train(method, data) for method in methods}
        rows += scores.bound_scores(measurements.whole_bounds(methods, data, train_q, config), last)
    rows += scores.image_scores(measured, drawn, last)
    rows += scores.cost_scores(methods, last, measured, run.training_seconds())
    scored = scored._replace(scores=rows, images=measurements.image_table(measured, drawn))
    if not full:
        return scored
    if config.simulated_images:
        rows += scores.bidirectional_scores(methods, results, last)

    # Latents and samples.
    sample, options = drawn["test"].part, {"epoch": last, "keep": run.tasks.keep}
    sample_q = {method.name: measured[method.name, "test"].fit.q for method in methods}
    with run.timed("probes and maps of the latents"):
        arguments = {"sample": sample, "sample_q": sample_q, **options}
        latent_scores, usage, points = latents.analyse(train_q, data, classifier, config, **arguments)
    with run.timed("samples"):
        sample_scores, sample_images = samples.assess(methods, data, classifier, config, **options)

    # What figures and the page draw.
    log_prob = [
        [
            measured[method.name, split].columns["log_prob"][drawn[split].first(config.images_per_digit)].numpy()
            for split in SPLITS
        ]
        for method in methods
    ]
    columns = "log_prob", "log_prob_standard_error"
    log_probs = {name: [measured[name, "test"].columns[column] for column in columns] for name in sample_q}
    return scored._replace(
        scores=rows + latent_scores + sample_scores,
        latent_usage=usage,
        log_prob=np.array(log_prob),
        sample_labels=sample.labels.cpu(),
        points=points,
        traversals=latents.traversals(methods, train_q, sample_q, sample),
        interpolations=latents.interpolations(methods, sample_q, sample, classifier),
        samples=sample_images,
        explorer=explorer(methods, train_q, sample, sample_q, log_probs, points=points, seed=config.seed),
    )


@torch.no_grad()
def draw_pictures(methods, drawn, measured, config):
    """Images of one epoch: {"training image", "test image", "compared image": (M, C, H, W)}, and for each method's name
    its drawings of the three and its "samples" from the prior, a dict.

    drawn: {split: Sample}; measured: of `measurements.collect_images`.
    """
    shown = {
        kind: (split, drawn[split].first(place + 1)[:MOST_PICTURED, place]) for kind, (split, place) in PICTURED.items()
    }
    pictures = {kind: drawn[split].part.images[rows].cpu() for kind, (split, rows) in shown.items()}
    for method in methods:
        # The same generator for every method: where they have the same number of dimensions, the same z.
        device = method.model.like.device
        generator = random_generator(config.seed, "prior samples", device=device)
        z = {"samples": torch.randn(PRIOR_SAMPLES, method.model.latent_dim, generator=generator, device=device)}
        z |= {kind: measured[method.name, split].fit.q.mean[rows] for kind, (split, rows) in shown.items()}
        pictures[method.name] = {kind: method.model.mean(values).cpu() for kind, values in z.items()}
    return pictures


def draw_history(history, methods, epochs, likelihood):
    """Yields history.csv and the training curves; history: of a Run; epochs: the saved ones, which the axes name."""
    yield "history.csv", history
    figure = figures.training_curves(history=history, methods=methods, saved_epochs=epochs, likelihood=likelihood)
    yield "training_curves.png", figure


def draw_report(results, summary):
    """Yields (name, contents) of every table and figure but the training curves, see `save_file`.

    results: a Results; summary: what summary.json will hold.
    """
    methods, classes = results.methods, results.classes

    def figure(name, draw, **values):
        check_interrupt()
        return f"{name}.png", draw(likelihood=results.likelihood, **values)

    # Figures of every saved epoch.
    for epoch, drawn in results.pictures.items():
        yield from _of_epoch(figure, epoch, drawn, methods, classes)
    if results.manifold:
        yield figure("latent_manifold", latent_figures.latent_manifold, images=results.manifold, methods=methods)

    # Tables.
    if not results.scores:
        return
    yield "scores.csv", [entry._asdict() for entry in results.scores]
    yield "log_probabilities.csv", results.images
    if results.log_prob is None:
        return
    yield "log_probabilities.npy", results.log_prob
    yield "latent_usage.csv", results.latent_usage

    # Figures of numbers.
    shared, examples = (
        {"scores": results.scores, "methods": methods},
        results.pictures[max(results.pictures)]["test image"],
    )
    options = {"num_samples": summary["eval_config"]["num_samples"], "classes": classes, **shared}
    options["example_values"] = results.log_prob[:, SPLITS.index("test"), : len(examples), 0]
    yield figure("log_probabilities", figures.log_probabilities, images=examples, **options)
    yield figure("where_the_nats_go", figures.where_the_nats_go, **shared)
    yield figure("gaps_over_epochs", figures.gaps_over_epochs, **shared)
    if all(find(results.scores, "training_seconds", method.name, "train") for method in methods):
        yield figure("quality_over_seconds", figures.quality_over_seconds, **shared)
    yield figure("gaps_per_digit", figures.gaps_per_class, classes=classes, **shared)
    yield figure("latent_usage", latent_figures.latent_usage, table=results.latent_usage, **shared)
    yield figure("latent_probes", latent_figures.probes, **shared)
    maps = {"points": results.points, "labels": results.sample_labels}
    maps["latent_dims"] = {method.name: method.model.latent_dim for method in methods}
    yield figure("latent_map", latent_figures.latent_map, classes=classes, **maps, **shared)
    yield _traversals(figure, results)
    yield _interpolations(figure, results)
    yield figure("sample_quality", latent_figures.sample_quality, examples=results.samples, classes=classes, **shared)


def _of_epoch(figure, epoch, drawn, methods, classes):
    """Yields the reconstructions of each method, the prior samples and the comparison after one epoch."""
    kinds, compared = ("training image", "test image"), drawn["compared image"]
    names = [] if style.are_short(classes) else style.shown(classes)[: len(compared)]
    captions = dict.fromkeys(kinds, names) if names else {}
    for method in methods:
        images, title = drawn[method.name], f"{method.label}, epoch {epoch}: reconstructions at the mean of q(z)"
        rows = [pair for kind in kinds for pair in ((kind, drawn[kind]), ("reconstruction", images[kind]))]
        name = f"{method.reconstruction_prefix}_epoch_{epoch}"
        yield figure(name, style.image_rows, rows=rows, captions=captions, title=title)
    sheets = {method.label: drawn[method.name]["samples"] for method in methods}
    title = f"Prior samples, epoch {epoch}: the mean of p(x|z) at the same {PRIOR_SAMPLES} draws of z"
    yield figure(f"samples_epoch_{epoch}", style.sample_sheets, sheets=sheets, title=title)
    rows, captions = {"test image": compared}, {"test image": names} if names else {}
    for method in methods:
        rows[method.label] = images = drawn[method.name]["compared image"]
        errors = (compared - images).square().flatten(1).sum(1)
        captions[method.label] = [f"{error:.1f}" for error in errors.tolist()]
    title = (
        f"Unseen test images, epoch {epoch}; below each reconstruction its squared error "
        r"$\|x-\hat x\|^2$ (pixels in [-1, 1])"
    )
    yield figure(f"comparison_epoch_{epoch}", style.image_rows, rows=list(rows.items()), captions=captions, title=title)


def _traversals(figure, results):
    values, columns = results.traversals
    axis = [f"{value:+g}" if value else "0" for value in values]
    captions = {rows[-1][0]: axis for rows in columns.values()}  # below the last row of each column
    title = (
        "z set to the value at the bottom, in standard deviations of p(z), along the dimensions with most KL (at "
        "the left its mean over training images)\nand, of many, along the directions in which the means of q vary "
        "most; across these, z stays at the mean of q of the test image"
    )
    rows = {results.labels[name]: rows for name, rows in columns.items()}
    return figure("traversals", style.image_rows, rows=rows, captions=captions, title=title)


def _interpolations(figure, results):
    labels, between = {"pixels": "mixed pixels", **results.labels}, ": " if style.are_short(results.classes) else "\n"
    rows, captions, shown = [], {}, style.shown(results.classes)
    for name, (images, classified) in results.interpolations.items():
        pairs = zip(classified.label.tolist(), classified.confidence.tolist(), strict=True)
        captions[labels[name]] = [f"{shown[label]}{between}{share:.0%}" for label, share in pairs]
        rows.append((labels[name], images))
    title = (
        "On the straight line between two test images (the ends of the upper row),\nor between their means of q; "
        "below each, the class that the supervised baseline finds most probable"
    )
    return figure("interpolation", style.image_rows, rows=rows, captions=captions, title=title)
