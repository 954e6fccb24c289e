"""The Scores of trained methods, from what `measurements` found: means with their errors, differences, costs."""

import math
from itertools import combinations

import torch

from evaluation.gaps import GAP_BOUNDS, METRICS
from evaluation.measurements import draws_of, task_results
from evaluation.statistics import TRACKED, plain_score, regression_estimate, score, stratified_mean
from vae_utils import mean_and_error

BOUNDS_OF_ALL = ("elbo_all", "log_likelihood", "kl")  # of whole splits
# Columns whose means over images are Scores, of all and of every class; of PAIRED also the differences of two methods.
KNOWN = ("elbo", "fitted_elbo", "amortization_gap", *(metric.__name__ for metric in METRICS))  # of all measured images
OFFSETS = {  # of the annealed images alone: the column of KNOWN that carries it over to all measured ones, or None
    "log_prob": "fitted_elbo",
    "inference_gap": "amortization_gap",
    **dict.fromkeys(("mean_field_gap", "non_gaussian_gap", "approximation_gap")),
    **dict.fromkeys(("full_elbo", "importance_sampling", "full_importance_sampling"), "fitted_elbo"),
}
MEANS = (*KNOWN, *OFFSETS)
PAIRED = (*KNOWN, *(name for name in OFFSETS if name == "log_prob" or name.endswith("_gap")))
MEDIANS = ("effective_sample_size", "full_effective_sample_size", "log_weight_std", "temperatures")
TAKEN = """elbo fitted_elbo fit_converged draws log_prob_standard_error log_prob_bias bias acceptance trusted
    annealed_images images_not_trusted monte_carlo_error"""
if taken := {metric.__name__ for metric in METRICS} & {*TAKEN.split(), *GAP_BOUNDS, *OFFSETS, *MEDIANS, *BOUNDS_OF_ALL}:
    raise ValueError(f"METRICS: {min(taken)} is the name of another quantity")


def bound_scores(results, epoch):
    """Yields Scores of the results of `bound_tasks`, and "draws", of z for each image."""
    for task in (task for task in results if task.startswith("bound_")):
        name, split = task.removeprefix("bound_").rsplit("_", 1)
        labels, images = {"method": name, "split": split, "epoch": epoch}, results[task].shape[1]
        for quantity, values in zip(BOUNDS_OF_ALL, results[task], strict=True):
            yield score(quantity, mean_and_error(values), **labels)
        yield plain_score("draws", draws_of(images), images, **labels)


def tracked_scores(measured, samples, epoch, count):
    """Yields Scores of the images that are annealed at every saved epoch, the first `count` of each class."""
    for (method, split), (columns, _, _) in measured.items():
        sample = samples[split]
        places = sample.first(count).flatten()
        for name in (name for name in MEANS if name in columns):
            values = stratified_mean(columns[name][places], sample.labels[places], sample.shares)
            yield score(name, values, method=method, split=split, epoch=epoch, group=TRACKED)


def image_scores(measured, samples, epoch):
    """Scores of MEANS over the images of each Sample: of all, of every class, and paired differences of two methods.

    measured: of `collect_images`. What only the annealed images have is carried over to all measured ones by its
    regression on the ELBO(q*) of every method, see `regression_estimate`: so all numbers of a split stand on the same
    images, and the gaps add up. Where too few are annealed for a regression, their mean gaps stand for all.
    """
    rows, names = [], list(dict.fromkeys(name for name, _ in measured))
    for split, sample in samples.items():
        of = {name: measured[name, split].columns for name in names}
        predictors = torch.stack([of[name]["fitted_elbo"] for name in names], dim=1)
        every, labels = torch.arange(len(sample.rows)), {"split": split, "epoch": epoch}
        groups = {"": every} | {name: every[sample.labels == label] for label, name in enumerate(sample.part.classes)}
        for name in names:
            for group, places in groups.items():
                rows += _means(of[name], sample, predictors, places, method=name, group=group, **labels)
            rows += _trust_scores(of[name], sample.annealed, method=name, **labels)
        for one, other in combinations(names, 2):
            columns = {key: of[one][key] - of[other][key] for key in PAIRED if key in of[one]}
            rows += _means(columns, sample, predictors, every, method=f"{one} - {other}", **labels)
    return rows


def _means(columns, sample, predictors, places, **labels):
    """Yields Scores of those of MEANS that are among the columns (N,), of the images of the Sample at `places`."""
    classes, annealed = sample.labels[places], places[places < sample.annealed]
    for name in (name for name in MEANS if name in columns):
        values = columns[name]
        if name in KNOWN:
            result = stratified_mean(values[places], classes, sample.shares)
        else:
            known = {"known_labels": classes, "shares": sample.shares}
            if OFFSETS[name]:
                known["offset"], values = columns[OFFSETS[name]][places], values - columns[OFFSETS[name]]
            few = values[annealed], sample.labels[annealed], predictors[annealed]
            result = regression_estimate(*few, predictors[places], **known)
        yield score(name, result, **labels)


def _trust_scores(columns, annealed, **labels):
    """Yields Scores of the first `annealed` images that say how far their log p(x) can be trusted."""
    converged = columns["fit_converged"]
    yield plain_score("fit_converged", converged.nanmean(), len(converged), **labels)
    if "log_prob" not in columns:
        return
    columns = {name: values[:annealed] for name, values in columns.items()}
    values = {name: columns[name].quantile(0.5) for name in MEDIANS} | {
        "annealed_images": annealed,
        "monte_carlo_error": columns["log_prob_standard_error"].square().sum().sqrt() / annealed,  # of their mean
        "bias": columns["log_prob_bias"].mean(),
        "acceptance": columns["acceptance"].mean(),
        "images_not_trusted": (columns["trusted"] == 0).sum(),
    }
    for name, value in values.items():
        yield plain_score(name, value, annealed, **labels)


def bidirectional_scores(methods, results, epoch):
    """Yields Scores of the bounds on log p(x) of simulated images, of `bidirectional_tasks`, and of their gap.

    It bounds the mean error of annealing with the same settings from `start_of_chains`, in either direction, on such
    images; the evaluation anneals from q*full, which is nearer.
    """
    for method in methods:
        lower, upper = torch.cat(task_results(results, f"bidirectional_{method.name}"), dim=1)
        for name, values in {"lower": lower, "upper": upper, "gap": upper - lower}.items():
            labels = {"method": method.name, "split": "simulated", "epoch": epoch}
            yield score(f"bidirectional_{name}", mean_and_error(values), **labels)


def cost_scores(methods, epoch, measured, training_seconds):
    """Scores of what training and inference took; measured: of `collect_images`.

    A gradient is one backward pass of one image's bound, at one sample of z, to the parameters of its q: the encoder's
    weights, which all images share, or that image's own mean and log-variance. training_seconds: where known.
    """
    rows = []
    for method in methods:
        config, (_, fit, seconds) = method.config, measured[method.name, "test"]
        images, visits = len(fit.gradients), epoch * method.gradients_per_visit
        training = {
            "decoder_updates": epoch * math.ceil(config.train_size / config.batch_size),
            "training_gradients": visits * config.train_size,
            "training_gradients_per_q": epoch * config.train_size if method.shared_inference else visits,
        }
        if method.name in training_seconds:
            training["training_seconds"] = training_seconds[method.name]
        inference = {
            "unseen_image_gradients": fit.gradients.cpu().double().mean(),
            "unseen_image_seconds": seconds / images,
            "inference_converged": fit.converged.cpu().double().mean(),
        }
        for split, count, costs in (("train", config.train_size, training), ("test", images, inference)):
            labels = {"method": method.name, "split": split, "epoch": epoch}
            rows += [plain_score(name, value, count, **labels) for name, value in costs.items()]
    return rows
