"""The evaluation of trained methods: `evaluate` finds every number, `draw_report` makes tables and figures of them."""

from dataclasses import replace
from functools import partial
from typing import NamedTuple

import torch

from data import SPLITS
from evaluation import figures, latent_figures, latents, measurements, samples, scores, style
from evaluation.page.explorer import explorer
from evaluation.statistics import find
from runtime.distributed import rank
from runtime.progress import check_interrupt
from vae_utils import random_generator

FOUND = {"none": "the pictured images", "quick": "images and bounds", "full": "images, bounds and log p(x)"}
PRIOR_SAMPLES, EARLIER_NUM_SAMPLES = 64, 100
# Images of every epoch: the split, and which image of each class it is.
PICTURED = {"training image": ("train", 0), "test image": ("test", 0), "compared image": ("test", 1)}
MOST_PICTURED = 30  # how many classes at most have an image of their own in a figure
# The files in the results directory but for reconstructions, as patterns; those of earlier versions, too.
RESULTS = (
    "samples_epoch_[0-9]*.png", "comparison_epoch_[0-9]*.png", "training_curves.png",
    "history.csv", "scores.csv", "gaps.csv",
    "log_probabilities.csv", "log_probabilities.np[yz]", "log_probabilities.png",
    "where_the_nats_go.png", "gaps_over_epochs.png", "gaps_per_digit.png", "quality_over_seconds.png",
    "latent_usage.csv", "latent_usage.png", "latent_probes.png", "latent_map.png", "latent_manifold.png",
    "traversals.png", "interpolation.png", "sample_quality.png", "summary.json", "report.html",
)  # fmt: skip


class Results(NamedTuple):
    """What an evaluation found: the numbers, and what draws its figures."""

    scores: list  # of Score
    images: list  # rows of log_probabilities.csv, dicts
    methods: list  # as they were after the last epoch
    classes: tuple
    likelihood: str  # p(x|z) in words
    files: dict  # {name: the contents of a table, or a function of the keyword `likelihood` that draws a figure}
    explorer: dict = None  # of a full evaluation, see explorer.explorer

    @property
    def labels(self):
        """{method's name: its label}."""
        return {method.name: method.label for method in self.methods}


def evaluate(load, epochs, data, classifier, config, run):
    """The Results; on other ranks than 0 None.

    load(epoch): the methods as they were after it; epochs: rising, the last one is scored in full; classifier: the
    supervised baseline; config: an EvalConfig. The work on images is dealt to the ranks; rank 0 does the rest.
    """
    full, last = config.evaluation == "full", epochs[-1]
    # The work. At earlier epochs images are few: half the chains are enough.
    earlier = replace(config, num_samples=EARLIER_NUM_SAMPLES, chains=max(2, config.chains // 2))
    work, samples_of, methods_of = {}, {}, {}
    for epoch in reversed(epochs):  # the images of the last epoch take longest
        methods = load(epoch)
        samples_of[epoch] = measurements.draw_samples(data, config, last=epoch == last)
        work |= measurements.image_tasks(methods, samples_of[epoch], epoch, config if epoch == last else earlier)
        methods_of[epoch] = methods if epoch == last else [method.frozen() for method in methods]
    methods = methods_of[last]
    with run.timed(f"q of {FOUND[config.evaluation]}"):
        if config.evaluation != "none":
            train_q = {method.name: measurements.posterior_of_train(method, data) for method in methods}
            work = measurements.bound_tasks(methods, data, train_q, config) | work
        if full:
            work |= measurements.bidirectional_tasks(methods, config, device=data.device)
        results = run.tasks.map("evaluation", work, device=data.device)
    if rank():
        return None

    # Every saved epoch.
    rows, files = [], {}
    for epoch in epochs:
        drawn, measured = samples_of[epoch], measurements.collect_images(methods, samples_of[epoch], results, epoch)
        files |= epoch_figures(epoch, methods_of[epoch], drawn, measured, config)
        rows += scores.tracked_scores(measured, drawn, epoch, max(1, config.gap_images_per_digit))
    if manifold := latents.manifold(methods):
        files["latent_manifold.png"] = partial(latent_figures.latent_manifold, images=manifold, methods=methods)
    found = Results([], [], methods, data.test.classes, methods[0].caption, files)
    if config.evaluation == "none":
        return found

    # Bounds, log p(x), gaps, costs.
    rows += scores.bound_scores(results, last)
    rows += scores.image_scores(measured, drawn, last)
    rows += scores.cost_scores(methods, last, measured, run.training_seconds())
    found = found._replace(scores=rows, images=measurements.image_table(measured, drawn))
    if not full:
        return found
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
    rows += latent_scores + sample_scores

    # What the page moves, and the figures of numbers.
    of_sample = {name: measured[name, "test"] for name in sample_q}
    moved = explorer(methods, train_q, sample, of_sample, points=points)
    annealed = {split: drawn[split].first(config.images_per_digit) for split in SPLITS}  # (classes, annealed of each)
    values = [of.columns["log_prob"][annealed[split]] for (_, split), of in measured.items()]
    log_prob = torch.stack(values).unflatten(0, (len(methods), len(SPLITS))).numpy()
    places = annealed["test"][:MOST_PICTURED, 0]
    examples = {"images": sample.images[places].cpu(), "num_samples": config.num_samples}
    examples["example_values"] = log_prob[:, SPLITS.index("test"), : len(places), 0]
    shown = {"points": points, "labels": sample.labels.cpu()}
    shown["latent_dims"] = {method.name: method.model.latent_dim for method in methods}
    of_methods = {"scores": rows, "methods": methods}
    of_classes = {"classes": data.test.classes, **of_methods}
    files |= {
        "log_probabilities.npy": log_prob,
        "latent_usage.csv": usage,
        "log_probabilities.png": partial(figures.log_probabilities, **examples, **of_classes),
        "where_the_nats_go.png": partial(figures.where_the_nats_go, **of_methods),
        "gaps_over_epochs.png": partial(figures.gaps_over_epochs, **of_methods),
        "gaps_per_digit.png": partial(figures.gaps_per_class, **of_classes),
        "latent_usage.png": partial(latent_figures.latent_usage, table=usage, **of_methods),
        "latent_probes.png": partial(latent_figures.probes, **of_methods),
        "latent_map.png": partial(latent_figures.latent_map, **shown, **of_classes),
        "traversals.png": traversal_figure(found.labels, *latents.traversals(methods, train_q, sample_q, sample)),
        "interpolation.png": interpolation_figure(
            found.labels, data.test.classes, latents.interpolations(methods, sample_q, sample, classifier)
        ),
        "sample_quality.png": partial(latent_figures.sample_quality, examples=sample_images, **of_classes),
    }
    if all(find(rows, "training_seconds", method.name, "train") for method in methods):
        files["quality_over_seconds.png"] = partial(figures.quality_over_seconds, **of_methods)
    return found._replace(explorer=moved)


@torch.no_grad()
def epoch_figures(epoch, methods, drawn, measured, config):
    """{name: function that draws it} of one epoch: reconstructions of each method, prior samples and the comparison.

    drawn: {split: Sample}; measured: of `measurements.collect_images`.
    """
    files, classes, (*reconstructed, compared) = {}, drawn["test"].part.classes, PICTURED
    captions = {} if style.are_short(classes) else dict.fromkeys(PICTURED, style.shown(classes)[:MOST_PICTURED])
    places = {kind: drawn[split].first(place + 1)[:MOST_PICTURED, place] for kind, (split, place) in PICTURED.items()}
    images = {kind: drawn[split].part.images[places[kind]].cpu() for kind, (split, _) in PICTURED.items()}
    sheets, comparison, errors = {}, [("test image", images[compared])], {}
    for method in methods:
        # The same generator for every method: where they have the same number of dimensions, the same z.
        device = method.model.like.device
        generator = random_generator(config.seed, "prior samples", device=device)
        z = torch.randn(PRIOR_SAMPLES, method.model.latent_dim, generator=generator, device=device)
        sheets[method.label] = method.model.mean(z).cpu()
        means = {kind: measured[method.name, split].fit.q.mean[places[kind]] for kind, (split, _) in PICTURED.items()}
        decoded = {kind: method.model.mean(mean).cpu() for kind, mean in means.items()}
        rows = [row for kind in reconstructed for row in ((kind, images[kind]), ("reconstruction", decoded[kind]))]
        title = f"{method.label}, epoch {epoch}: reconstructions at the mean of q(z)"
        draw = partial(style.image_rows, rows=rows, captions=captions, title=title)
        files[f"{method.reconstruction_prefix}_epoch_{epoch}.png"] = draw
        comparison.append((method.label, decoded[compared]))
        squared = (images[compared] - decoded[compared]).square().flatten(1).sum(1)
        errors[method.label] = [f"{error:.1f}" for error in squared.tolist()]
    title = f"Prior samples, epoch {epoch}: the mean of p(x|z) at the same {PRIOR_SAMPLES} draws of z"
    files[f"samples_epoch_{epoch}.png"] = partial(style.sample_sheets, sheets=sheets, title=title)
    title = f"Unseen test images, epoch {epoch}; below each reconstruction its squared error "
    title += r"$\|x-\hat{x}\|^2$ (pixels in [-1, 1])"
    draw = partial(style.image_rows, rows=comparison, captions=captions | errors, title=title)
    return {**files, f"comparison_epoch_{epoch}.png": draw}


def traversal_figure(labels, values, columns):
    """A function that draws the values of latents.traversals; labels: {method's name: its label}."""
    axis = [f"{value:+g}" if value else "0" for value in values]
    captions = {rows[-1][0]: axis for rows in columns.values()}  # below the last row of each column
    several = any("variance" in label for rows in columns.values() for label, _ in rows)  # not of one or two dimensions
    directions = ", and along principal directions of the means of q" if several else ""
    title = "Decoded z along single dimensions, those with most KL (at the left its mean over training images)"
    title += f"{directions}.\nz begins at the mean of q of a test image; along the direction it is the value at the "
    title += "bottom, in standard deviations of p(z)"
    rows = {labels[name]: rows for name, rows in columns.items()}
    return partial(style.image_rows, rows=rows, captions=captions, title=title)


def interpolation_figure(labels, classes, found):
    """A function that draws the values of latents.interpolations; labels: {method's name: its label}."""
    labels, between = {"pixels": "mixed pixels", **labels}, ": " if style.are_short(classes) else "\n"
    captions, shown = {}, style.shown(classes)
    for name, (_, classified) in found.items():
        pairs = zip(classified.label.tolist(), classified.confidence.tolist(), strict=True)
        captions[labels[name]] = [f"{shown[label]}{between}{share:.0%}" for label, share in pairs]
    title = "On the straight line between two test images (the ends of the upper row),\nor between their means of q; "
    title += "below each, the class that the supervised baseline finds most probable"
    rows = [(labels[name], images) for name, (images, _) in found.items()]
    return partial(style.image_rows, rows=rows, captions=captions, title=title)


def draw_history(history, methods, epochs, likelihood):
    """Yields history.csv and the training curves; history: of a Run; epochs: the saved ones, which the axes name."""
    yield "history.csv", history
    figure = figures.training_curves(history=history, methods=methods, saved_epochs=epochs, likelihood=likelihood)
    yield "training_curves.png", figure


def draw_report(results):
    """Yields (name, contents) of every table and figure of Results, see `save_file`."""
    if results.scores:
        yield "scores.csv", [entry._asdict() for entry in results.scores]
        yield "log_probabilities.csv", results.images
    for name, contents in results.files.items():
        check_interrupt()
        yield name, contents(likelihood=results.likelihood) if callable(contents) else contents
