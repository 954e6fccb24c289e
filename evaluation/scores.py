"""The numbers of trained methods: bounds over whole splits, log p(x) per class, gaps, bidirectional bounds, costs.

What is random about an image is a function of (seed, purpose, method, image), so that its numbers depend on no other
image; the bounds over whole splits alone have one generator for all images.
"""

import math
import time
from dataclasses import replace
from functools import partial
from itertools import combinations, product
from typing import NamedTuple

import torch

from data import SPLITS, random_rows_per_class
from evaluation import gaps
from evaluation.ais import TRUSTED_ACCEPTANCE
from evaluation.log_prob import fit_and_anneal
from evaluation.stats import proportional_error, regression_estimate, stratified_mean
from vae_utils import Fit, GaussianPosterior, Noise, evaluate_bound, mean_and_error, random_generator

FEW = 10  # effective samples: below, log p(x) is too low by an amount that the weights cannot tell
FEWEST_REGRESSED = 10  # images: the errors of a regression on fewer are not to be trusted
INFERRED_AT_ONCE, SIMULATED_AT_ONCE = 100, 10  # images
FEW_IMAGES, MANY_DRAWS, FEW_DRAWS = 2000, 64, 4  # draws of z for the ELBO of each of few or of many images
EARLIER_NUM_SAMPLES = 100  # importance samples at the epochs before the last


class Gaps(NamedTuple):
    """The columns of `gaps.measure`, in the order of the tables; see there."""

    importance_sampling: torch.Tensor
    elbo: torch.Tensor
    effective_sample_size: torch.Tensor
    squared_error: torch.Tensor
    fitted_importance_sampling: torch.Tensor
    fitted_elbo: torch.Tensor
    fitted_effective_sample_size: torch.Tensor
    fit_converged: torch.Tensor
    log_prob: torch.Tensor
    log_prob_standard_error: torch.Tensor
    log_prob_bias: torch.Tensor
    log_weight_std: torch.Tensor
    acceptance: torch.Tensor
    temperatures: torch.Tensor
    modes: torch.Tensor
    trusted: torch.Tensor


def summarize(gaps):
    """{"elbo", "fitted_elbo", "log_prob" and three gaps}, as `stratified_mean` gives them.

    gaps: Gaps (classes, images per class); log_prob is the annealed one. The gaps are paired differences on the same
    images; the inference gap is the sum of the two others.
    """
    values = {
        "elbo": gaps.elbo,
        "fitted_elbo": gaps.fitted_elbo,
        "log_prob": gaps.log_prob,
        "approximation_gap": gaps.log_prob - gaps.fitted_elbo,
        "amortization_gap": gaps.fitted_elbo - gaps.elbo,
        "inference_gap": gaps.log_prob - gaps.elbo,
    }
    return {name: stratified_mean(value) for name, value in values.items()}


def differences(one, other):
    """{"elbo", "fitted_elbo", "log_prob", "squared_error", "inference_gap"} of one method less those of another.

    Gaps (classes, images per class) of the same images each; every difference as `stratified_mean` gives it.
    """
    names = {"elbo": "elbo", "fitted_elbo": "fitted_elbo", "log_prob": "log_prob", "squared_error": "squared_error"}
    values = {name: getattr(one, field) - getattr(other, field) for name, field in names.items()}
    values["inference_gap"] = values["log_prob"] - values["elbo"]
    return {name: stratified_mean(value) for name, value in values.items()}


def inference_tasks(methods, sample, config):
    """Tasks that find q of stratified test images, `sample`, under each method, INFERRED_AT_ONCE at a time."""

    def infer_block(method, rows):
        started = time.perf_counter()
        fit = infer(method, sample.at(rows), config)
        found = {"mean": fit.q.mean, "scale": fit.q.scale, "converged": fit.converged, "gradients": fit.gradients}
        return {name: value.cpu() for name, value in found.items()} | {"seconds": time.perf_counter() - started}

    blocks = torch.arange(len(sample.labels)).split(INFERRED_AT_ONCE)
    return {
        f"inference_{method.name}_{block}": partial(infer_block, method, rows)
        for method, (block, rows) in product(methods, enumerate(blocks))
    }


def collect_inference(methods, sample, found):
    """({method's name: Fit}, {method's name: seconds per image}) of the results of `inference_tasks`."""
    fits, seconds = {}, {}
    for method in methods:
        blocks = _blocks(found, f"inference_{method.name}")
        fields = ("mean", "scale", "converged", "gradients")
        parts = (torch.cat([block[field] for block in blocks]).to(sample.images.device) for field in fields)
        mean, scale, converged, gradients = parts
        fits[method.name] = Fit(GaussianPosterior(mean, scale), torch.empty(0, len(mean)), converged, gradients)
        seconds[method.name] = sum(block["seconds"] for block in blocks) / len(mean)
    return fits, seconds


def _blocks(found, name):
    """The results of the tasks called `name`_0, `name`_1, ..., in the order in which they were given."""
    return [result for task, result in found.items() if task.rpartition("_")[0] == name]


def infer(method, split, config):
    """The Fit of images that the method never saw, a Split."""
    noise = Noise.of_images(config.seed, "inference", method.name, index=split.index, device=split.images.device)
    return method.infer(split.images, noise=noise, fit_steps=config.fit_steps)


@torch.no_grad()
def posterior_of_train(method, data, batch_size=1000):
    """q of every training image, diagonal, (N, D)."""
    rows = torch.arange(len(data.train.labels), device=data.device).split(batch_size)
    return GaussianPosterior.concatenate([method.posterior(data.train.images[part], part) for part in rows])


def final_bounds(methods, data, sample, fits, train_q, config):
    """The bounds at each method's own q, and which share of the test images' fits has converged.

    train_q: {name: q}; sample, fits: of `collect_inference`. Where inference is a forward pass, every test image is
    scored; where it is a fit, the sample alone. Returns ({name: {split: (Split, its Bound)}}, {name: share}).
    """
    bounds, converged = {}, {}
    for method in methods:
        fit, of_test = fits[method.name], sample
        if method.shared_inference:
            of_test, fit = data.test, infer(method, data.test, config)
        bounds[method.name] = {}
        for split, part, q in (("train", data.train, train_q[method.name]), ("test", of_test, fit.q)):
            noise = Noise(config.seed, "final bound", method.name, split, device=data.device)
            options = {"noise": noise, "draws": draws_of(len(part.labels))}
            bound = evaluate_bound(method.model, part.images, lambda x, rows, q=q: q[rows], **options)
            bounds[method.name][split] = part, bound
        converged[method.name] = float(fit.converged.double().mean())
    return bounds, converged


def draws_of(images):
    """Of how many draws of z an image's bound is the mean: of more where images are few, whose noise averages less."""
    return MANY_DRAWS if images <= FEW_IMAGES else FEW_DRAWS


def score_bounds(bounds, data):
    """{name: {split: {"elbo", "log_likelihood", "kl"}}} of what `final_bounds` found, as `mean_and_error` gives them.

    The errors are over images, with what noise their `draws_of` z leave; of a stratified part of a split they are those
    within its classes.
    """
    scores = {}
    for name, split in product(bounds, SPLITS):
        part, bound = bounds[name][split]
        found = {field: _mean_of_part(value, part, getattr(data, split)) for field, value in bound._asdict().items()}
        scores.setdefault(name, {})[split] = found
    return scores


def _mean_of_part(values, part, split):
    """`mean_and_error` of values of all images of `split`, or of those of a stratified `part` of it."""
    score = mean_and_error(values)
    if len(part.labels) < len(split.labels):
        score["standard_error"] = proportional_error(values, part.labels)
    return score


def scored_rows(data, name, count, config):
    """The rows of `count` random images of each class of the split `name`, (classes, count), the same for all."""
    return random_rows_per_class(getattr(data, name), count, seed=config.seed)


def image_tasks(methods, data, config, *purpose):
    """Tasks that measure random images of each class: one per method, split and column of `scored_rows`.

    A column has one image of each class: more columns change nothing in those that are there. The first
    `annealed_per_digit` columns get all fields of Gaps, the others those that need only the method's own q.
    """
    return {
        _task_name(purpose, method, split, column): partial(
            measure_column, method, data, split, config, rows, column < config.annealed_per_digit, *purpose
        )
        for method, split in product(methods, SPLITS)
        for column, rows in enumerate(scored_rows(data, split, config.images_per_digit, config).T)
    }


def _task_name(purpose, method, split, column):
    return "_".join(str(part).replace(" ", "-") for part in (*purpose, method.name, split, column))


def measure_column(method, data, name, config, rows, annealed, *purpose):
    """{"gaps", "mean", "scale"} of the images at `rows` (classes,) of the split `name`, on the CPU.

    "gaps": the fields of Gaps, (fields, classes), NaN where not measured; mean and scale: of q, (classes, D). purpose:
    of the generators.
    """
    part = getattr(data, name).at(rows)
    if name == "train":
        with torch.no_grad():
            q, fitted = method.posterior(part.images, rows), False
    else:
        fit = infer(method, part, config)
        q, fitted = fit.q, not method.shared_inference
    noise = Noise.of_images(config.seed, *purpose, method.name, name, index=part.index, device=data.device)
    if annealed:
        measured = gaps.measure(method.model, part.images, q, config, noise=noise, fitted=fitted)
        if fitted:
            measured["fit_converged"] = fit.converged.float()
    else:
        measured = gaps.measure_q(method.model, part.images, q, config, noise=noise)
    missing = torch.full((len(rows),), torch.nan)
    fields = torch.stack([measured.get(column, missing).cpu() for column in Gaps._fields])
    return {"gaps": fields, "mean": q.mean.cpu(), "scale": q.scale.cpu()}


def collect_images(methods, data, config, found, *purpose):
    """{method's name: {split: Gaps (classes, images per class)}} of the results of `image_tasks`, in float64."""
    columns, collected = range(config.images_per_digit), {}
    for method, split in product(methods, SPLITS):
        parts = [found[_task_name(purpose, method, split, column)]["gaps"] for column in columns]
        collected.setdefault(method.name, {})[split] = Gaps(*torch.stack(parts, dim=-1).double())
    return collected


def collect_posteriors(methods, config, found, *purpose):
    """{method's name: q of the test images that were annealed}, diagonal, (classes * annealed_per_digit, D).

    found: the results of `image_tasks`. The images are in the order of `scored_rows(...).flatten()`.
    """
    columns, collected = range(config.annealed_per_digit), {}
    for method in methods:
        parts = [found[_task_name(purpose, method, "test", column)] for column in columns]
        values = (torch.stack([part[name] for part in parts], dim=1).flatten(0, 1) for name in ("mean", "scale"))
        collected[method.name] = GaussianPosterior(*values)
    return collected


def records(found, data, config):
    """What `collect_images` gives as one dict per image, None where it was not measured."""
    rows = []
    for name, of_splits in found.items():
        for split, values in of_splits.items():
            part = getattr(data, split)
            part = part.at(scored_rows(data, split, values.elbo.shape[1], config).flatten())
            columns = zip(*(field.flatten().tolist() for field in values), strict=True)
            for label, index, numbers in zip(part.labels.tolist(), part.index.tolist(), columns, strict=True):
                numbers = (None if math.isnan(number) else number for number in numbers)
                identity = {"method": name, "split": split, "class": part.classes[label], "index": index}
                rows.append({**identity, **dict(zip(values._fields, numbers, strict=True))})
    return rows


def at_earlier_epochs(config):
    """The EvalConfig for the epochs before the last: fewer images, all of them annealed.

    Half the chains of the last epoch are enough: the error of annealing is far smaller than the differences between so
    few images.
    """
    count = config.gap_images_per_digit
    coarse = replace(config, images_per_digit=count, annealed_per_digit=count, num_samples=EARLIER_NUM_SAMPLES)
    return replace(coarse, chains=max(2, config.chains // 2))


def bdmc_tasks(methods, config, *, device="cpu"):
    """Tasks that bound log p(x) of images simulated from each method's model, SIMULATED_AT_ONCE at a time."""
    blocks = enumerate(torch.arange(config.simulated_images).split(SIMULATED_AT_ONCE))
    return {
        f"bidirectional_bounds_{method.name}_{block}": partial(bound_simulated, method, index, config, device)
        for (block, index), method in product(blocks, methods)
    }


def bound_simulated(method, index, config, device):
    """Lower and upper bounds (2, B) of the simulated images with these numbers (Grosse et al. 2015)."""
    model = method.model
    generator = random_generator(config.seed, "simulated images", method.name, device=device)
    x, z = (values[index] for values in model.sample(config.simulated_images, generator))
    noise = Noise.of_images(config.seed, "bidirectional bounds", method.name, index=index, device=device)
    columns, _ = fit_and_anneal(model, x, config=config, noise=noise, z=z)
    return torch.stack((columns["lower"], columns["upper"])).cpu()


def bdmc_gap(method, found):
    """{"lower", "upper", "gap"} of log p(x) of simulated images, each as `mean_and_error` gives it.

    found: the results of `bdmc_tasks`. The gap bounds the mean error of annealing with the same settings, in either
    direction, on such images, where posteriors have one mode.
    """
    blocks = _blocks(found, f"bidirectional_bounds_{method.name}")
    lower, upper = torch.cat(blocks, dim=1)
    return {name: mean_and_error(v) for name, v in {"lower": lower, "upper": upper, "gap": upper - lower}.items()}


def annealed(found, count=None):
    """Of Gaps (classes, images per class), those of the images that were annealed, the first `count` of each class."""
    count = count or int((~found.log_prob[0].isnan()).sum())
    return Gaps(*(field[:, :count] for field in found))


def summarize_log_prob(found, known, split, config):
    """{"regression", "annealed", "importance_sampling", "importance_sampling_fitted", "classes"} of log p(x).

    found: Gaps (classes, images per class) of random images of the Split `split`; known: the Split of all of its
    images, or of a stratified part, and their Bound. Each is like a `stratified_mean`, nats. "regression" is log p(x)
    of the whole split, by the regression of the annealed values on the bounds, None if there are too few. "annealed"
    and the two by importance sampling, from q and from q*, are means over the images that have all three.
    "images_not_trusted": whose log-weights have more than twice the standard deviation that was aimed at, or whose
    chains hardly move; "images_with_several_modes": of which several were combined.
    "classes": the estimates of each class.
    """
    both, shares = annealed(found), torch.bincount(split.labels, minlength=split.num_classes).double()
    regression = None
    if both.elbo.numel() >= FEWEST_REGRESSED and both.elbo.std() > 0:
        part, bound = known
        options = {"shares": shares / shares.sum(), "known": bound.elbo}
        options["known_error"] = _mean_of_part(bound.elbo, part, split)["standard_error"]
        regression = regression_estimate(both.log_prob, both.elbo, **options)
    sure = (both.log_weight_std <= 2 * config.log_weight_std) & (both.acceptance >= TRUSTED_ACCEPTANCE)
    return {
        "regression": regression,
        **_estimates(both),
        "images_not_trusted": int((~sure).sum()),
        "images_with_several_modes": int((both.modes > 1).sum()),
        "fits_converged": float(both.fit_converged.mean()),
        "classes": [_estimates(each) for each in _per_class(both)],
    }


def _per_class(found):
    """One Gaps (1, images) for each class of Gaps (classes, images)."""
    return [Gaps(*(field[None] for field in fields)) for fields in zip(*found, strict=True)]


def _estimates(found):
    """Three estimates of log p(x), of Gaps (classes, images per class).

    Of annealing, "monte_carlo_error" is the standard error of the mean's own estimate, over draws of the chains, and
    "bias" an estimate of the mean's bias.
    """

    def sampled(log_prob, sizes):
        return {**stratified_mean(log_prob), "effective_sample_size_median": float(sizes.flatten().quantile(0.5))}

    return {
        "annealed": {
            **stratified_mean(found.log_prob),
            "monte_carlo_error": float(found.log_prob_standard_error.square().sum().sqrt() / found.log_prob.numel()),
            "bias": float(found.log_prob_bias.mean()),
            "log_weight_std_median": float(found.log_weight_std.flatten().quantile(0.5)),
            "temperatures_median": float(found.temperatures.flatten().quantile(0.5)),
            "acceptance": float(found.acceptance.mean()),
        },
        "importance_sampling": sampled(found.importance_sampling, found.effective_sample_size),
        "importance_sampling_fitted": sampled(found.fitted_importance_sampling, found.fitted_effective_sample_size),
    }


def paired_differences(found, methods):
    """[{"methods": [name, name], split: differences}] of every two methods, on the images that were annealed."""
    return [
        {"methods": [one.name, other.name]}
        | {split: differences(annealed(found[one.name][split]), annealed(found[other.name][split])) for split in SPLITS}
        for one, other in combinations(methods, 2)
    ]


def compute_cost(methods, checkpoints, fits, seconds, training_seconds):
    """{method's name: what its training and its inference took}, plain values; fits, seconds: of `collect_inference`.

    A gradient is one backward pass of one image's bound, at one sample of z, to the parameters of its q: the encoder's
    weights, which all images share, or that image's own mean and log-variance.
    """
    config, epochs = checkpoints.config, checkpoints.epochs[-1]
    gradients = epochs * config.train_size
    return {
        method.name: {
            "decoder_updates": epochs * math.ceil(config.train_size / config.batch_size),
            "training_gradients": gradients,
            "training_gradients_per_q": gradients if method.shared_inference else epochs,
            "training_seconds": training_seconds.get(method.name),
            "unseen_image_gradients": float(fits[method.name].gradients.double().mean()),
            "unseen_image_seconds": seconds[method.name],
        }
        for method in methods
    }
