"""The Scores of trained methods, from what `measurements` found: means with their errors, differences, costs."""

import math
from itertools import combinations, product

import torch

from data import SPLITS
from evaluation.gaps import METRICS
from evaluation.measurements import blocks_of, draws_of
from evaluation.statistics import TRACKED, plain_score, proportional_error, regression_estimate, score, stratified_mean
from vae_utils import mean_and_error

FEWEST_REGRESSED = 10  # images: the errors of a regression on fewer are not to be trusted

# Columns whose means over images are Scores, with every class and, of PAIRED, the difference of two methods.
PAIRED = ("elbo", "fitted_elbo", "log_prob", "inference_gap", *(metric.__name__ for metric in METRICS))
GAPS = ("approximation_gap", "amortization_gap", "inference_gap")
MEANS = tuple(dict.fromkeys((*PAIRED, *GAPS, "importance_sampling", "fitted_importance_sampling")))
MEDIANS = ("effective_sample_size", "fitted_effective_sample_size", "log_weight_std", "temperatures")


def bound_scores(bounds, data, epoch):
    """Scores "elbo", "log_likelihood", "kl" and "draws" (of z per image) of `final_bounds`.

    The errors are over images, with what noise their draws of z leave; of a stratified part of a split they are those
    within its classes.
    """
    rows = []
    for (name, split), (part, bound) in bounds.items():
        labels = {"method": name, "split": split, "epoch": epoch}
        for quantity, values in bound._asdict().items():
            rows.append(score(quantity, _mean_of_part(values, part, getattr(data, split)), **labels))
        count = len(part.labels)
        rows.append(plain_score("draws", draws_of(count), count, **labels))
    return rows


def _mean_of_part(values, part, split):
    """`mean_and_error` of values of all images of `split`, or of those of a stratified `part` of it."""
    result = mean_and_error(values)
    if len(part.labels) < len(split.labels):
        result["standard_error"] = proportional_error(values, part.labels)
    return result


def annealed_columns(columns, count):
    """The columns of the first `count` images of each class, which were annealed, with the three gaps."""
    columns = {name: values[:, :count] for name, values in columns.items()}
    return columns | {
        "approximation_gap": columns["log_prob"] - columns["fitted_elbo"],
        "amortization_gap": columns["fitted_elbo"] - columns["elbo"],
        "inference_gap": columns["log_prob"] - columns["elbo"],
    }


def tracked_scores(measured, epoch, count):
    """Scores of the images that are scored at every saved epoch, the first `count` of each class."""
    return [
        score(name, stratified_mean(values[name]), method=method, split=split, epoch=epoch, group=TRACKED)
        for (method, split), columns in measured.items()
        for values in (annealed_columns(columns, count),)
        for name in MEANS
    ]


def image_scores(measured, bounds, data, config, epoch):
    """Scores of the annealed images: of all, of every class, and paired differences of every two methods.

    measured: of `collect_images`; bounds: of `final_bounds`. "log_prob" is of the whole split, by the regression of
    log p(x) on the ELBO, and "log_prob_annealed" the mean of the annealed images; of too few images "log_prob" is that
    mean. "elbo_annealed" is the ELBO of the annealed images.
    """
    rows = []
    annealed = {key: annealed_columns(columns, config.annealed_per_digit) for key, columns in measured.items()}
    regressions = {key: _regression(annealed[key], *bounds[key], getattr(data, key[1])) for key in measured}
    for (name, split), values in annealed.items():
        labels = {"method": name, "split": split, "epoch": epoch}
        rows += _sample_scores(values, **labels)

        # log p(x) of the whole split; of both splits by regression, or of neither.
        both = all(regressions[name, other] for other in SPLITS)
        regression = regressions[name, split] if both else None
        plain = stratified_mean(values["log_prob"])
        rows.append(score("log_prob", regression or plain, **labels))
        if regression:
            rows.append(score("log_prob_annealed", plain, **labels))

        # Every class.
        for number, group in enumerate(data.test.classes):
            rows += [score(key, stratified_mean(values[key][number]), group=group, **labels) for key in MEANS]

    # Paired differences, on the same images.
    names = list(dict.fromkeys(name for name, _ in measured))
    for (one, other), split, key in product(combinations(names, 2), SPLITS, PAIRED):
        values = stratified_mean(annealed[one, split][key] - annealed[other, split][key])
        rows.append(score(key, values, method=f"{one} - {other}", split=split, epoch=epoch))
    return rows


def _sample_scores(values, **labels):
    """Scores of the annealed images, columns (classes, images per class), and how far they can be trusted."""
    count = values["log_prob"].numel()
    rows = [
        score("elbo_annealed" if name == "elbo" else name, stratified_mean(values[name]), **labels)
        for name in MEANS
        if name != "log_prob"
    ]
    rows += [plain_score(name, values[name].flatten().quantile(0.5), count, **labels) for name in MEDIANS]
    # The mean's Monte Carlo error over draws of the chains, and an estimate of its bias.
    error = values["log_prob_standard_error"].square().sum().sqrt() / count
    others = {
        "monte_carlo_error": error,
        "bias": values["log_prob_bias"].mean(),
        "acceptance": values["acceptance"].mean(),
        "images_not_trusted": (values["trusted"] == 0).sum(),
        "images_with_several_modes": (values["modes"] > 1).sum(),
        "fit_converged": values["fit_converged"].mean(),
    }
    return rows + [plain_score(name, value, count, **labels) for name, value in others.items()]


def _regression(values, part, bound, split):
    """`regression_estimate` of log p(x) of a whole Split, of which `part` has a Bound; None if there are too few."""
    log_prob, elbo = values["log_prob"], values["elbo"]
    if elbo.numel() < FEWEST_REGRESSED or not elbo.std() > 0:
        return None
    shares = torch.bincount(split.labels, minlength=split.num_classes).double()
    known_error = _mean_of_part(bound.elbo, part, split)["standard_error"]
    options = {"shares": shares / shares.sum(), "known": bound.elbo, "known_error": known_error}
    return regression_estimate(log_prob, elbo, **options)


def bidirectional_scores(methods, results, epoch):
    """Scores "bidirectional_lower", "_upper" and "_gap" of log p(x) of simulated images; see `bidirectional_tasks`.

    The gap bounds the mean error of annealing with the same settings, in either direction, on such images, where
    posteriors have one mode.
    """
    rows = []
    for method in methods:
        lower, upper = torch.cat(blocks_of(results, f"bidirectional_bounds_{method.name}"), dim=1)
        for name, values in {"lower": lower, "upper": upper, "gap": upper - lower}.items():
            labels = {"method": method.name, "split": "simulated", "epoch": epoch}
            rows.append(score(f"bidirectional_{name}", mean_and_error(values), **labels))
    return rows


# Costs


def cost_scores(methods, epoch, fits, seconds, training_seconds):
    """Scores of what training and inference took; fits, seconds: of `collect_inference`.

    A gradient is one backward pass of one image's bound, at one sample of z, to the parameters of its q: the encoder's
    weights, which all images share, or that image's own mean and log-variance. training_seconds: where known.
    """
    rows = []
    for method in methods:
        config, fit = method.config, fits[method.name]
        visits = epoch * method.gradients_per_visit
        gradients = visits * config.train_size
        training = {
            "decoder_updates": epoch * math.ceil(config.train_size / config.batch_size),
            "training_gradients": gradients,
            "training_gradients_per_q": gradients if method.shared_inference else visits,
        }
        if method.name in training_seconds:
            training["training_seconds"] = training_seconds[method.name]
        inference = {
            "unseen_image_gradients": fit.gradients.double().mean(),
            "unseen_image_seconds": seconds[method.name],
            "inference_converged": fit.converged.double().mean(),
        }
        counts = {"train": (training, config.train_size), "test": (inference, len(fit.gradients))}
        for split, (costs, images) in counts.items():
            labels = {"method": method.name, "split": split, "epoch": epoch}
            rows += [plain_score(name, value, images, **labels) for name, value in costs.items()]
    return rows
