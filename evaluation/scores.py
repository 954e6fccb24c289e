"""The numbers of trained methods: bounds over whole splits, log p(x) per class, gaps, bidirectional bounds, costs.

What is random about an image is a function of (seed, purpose, method, image), so that its numbers depend on no other
image; the bounds over whole splits alone have one generator for all images.
"""

import math
import time
from dataclasses import replace
from itertools import combinations, product

import torch

from data import SPLITS, random_rows_per_class, stratified_subset
from evaluation import gaps
from evaluation.ais import bidirectional_bounds, gauss_newton_posterior
from evaluation.stats import proportional_error, regression_estimate, stratified_mean
from latent_optimization import fit_posterior, initial_posterior
from runtime.progress import ProgressBar
from vae_utils import (
    concatenate,
    evaluate_bound,
    generators_of,
    image_generators,
    mean_and_error,
    random_generator,
    select,
)

FEW = 10  # effective samples: below, log p(x) is too low by an amount that the weights cannot tell
EARLIER_NUM_SAMPLES = 100  # importance samples at the epochs before the last


def infer_sample(methods, data, config):
    """(Split, fits, seconds): stratified test images, and per method name their Fit and the seconds per image."""
    size = min(config.fitted_images, len(data.test.labels))
    sample = stratified_subset(data.test, size=size, seed=config.seed)
    fits, seconds = {}, {}
    with ProgressBar("inference", total=len(methods) * size, unit="img") as bar:
        for method in methods:
            started = time.perf_counter()
            fits[method.name] = infer(method, sample, config)
            fits[method.name].q.mean.cpu()  # waits for the device
            seconds[method.name] = (time.perf_counter() - started) / size
            bar.advance(size)
    return sample, fits, seconds


def infer(method, split, config):
    """The Fit of images that the method never saw, a Split."""
    own = image_generators(config.seed, "inference", method.name, index=split.index, device=split.images.device)
    return method.infer(split.images, generator=own, fit_steps=config.fit_steps)


@torch.no_grad()
def posterior_of_train(method, data, batch_size=1000):
    """q of every training image, a diagonal Normal (N, D)."""
    rows = torch.arange(len(data.train.labels), device=data.device).split(batch_size)
    return concatenate([method.posterior(data.train.images[part], part) for part in rows])


def final_bounds(methods, data, sample, fits, train_q, config):
    """The bounds at each method's own q, and which share of the test images' fits has converged.

    train_q: {name: q}; sample, fits: of `infer_sample`. Where inference is a forward pass, every test image is scored;
    where it is a fit, the sample alone. Returns ({name: {split: (Split, a Bound of (N,) each)}}, {name: share}).
    """
    bounds, converged = {}, {}
    for method in methods:
        fit, of_test = fits[method.name], sample
        if method.shared_inference:
            of_test, fit = data.test, infer(method, data.test, config)
        bounds[method.name] = {}
        for split, part, q in (("train", data.train, train_q[method.name]), ("test", of_test, fit.q)):
            generator = random_generator(config.seed, "final bound", method.name, split, device=data.device)
            bound = evaluate_bound(method.model, part.images, lambda x, rows, q=q: select(q, rows), generator=generator)
            bounds[method.name][split] = part, bound
        converged[method.name] = float(fit.converged.double().mean())
    return bounds, converged


def score_bounds(bounds, data):
    """{name: {split: {"elbo", "log_likelihood", "kl"}}} of what `final_bounds` found, as `mean_and_error` gives them.

    The errors of a stratified part of a split are those within its classes.
    """
    scores = {}
    for name, split in product(bounds, SPLITS):
        part, bound = bounds[name][split]
        found = {field: mean_and_error(value) for field, value in bound._asdict().items()}
        if len(part.labels) < len(getattr(data, split).labels):
            for field, score in found.items():
                score["standard_error"] = proportional_error(getattr(bound, field), part.labels)
        scores.setdefault(name, {})[split] = found
    return scores


def scored_rows(data, name, count, config):
    """The rows of `count` random images of each class of the split `name`, (classes, count), the same for all."""
    return random_rows_per_class(getattr(data, name), count, seed=config.seed)


def measure_images(method, data, name, config, *purpose, on_batch):
    """Gaps (classes, images per class) of random images of each class of the split `name`.

    All have what needs only the method's own q; the first `annealed_per_digit` of each class also importance sampling
    from the best diagonal q, and annealing. NaN where it was not measured. purpose: of the generators.
    """
    split = getattr(data, name)
    rows = scored_rows(data, name, config.images_per_digit, config)  # (classes, n)
    part = split.at(rows.flatten())
    if name == "train":
        with torch.no_grad():
            q, fitted = method.posterior(part.images, rows.flatten()), False
    else:
        fit = infer(method, part, config)
        q, fitted = fit.q, not method.shared_inference
    own = image_generators(config.seed, *purpose, method.name, name, index=part.index, device=data.device)
    numbers = torch.arange(rows.numel(), device=data.device).reshape(rows.shape)
    chosen, rest = (each.flatten() for each in numbers.tensor_split([config.annealed_per_digit], dim=1))
    fields = torch.full((len(gaps.Gaps._fields), len(part.images)), torch.nan, device=data.device)

    def score(function, rows, **options):
        options["generator"] = generators_of(own, rows)
        return function(method.model, part.images[rows], select(q, rows), config, **options)

    measured = score(gaps.measure, chosen, fitted=fitted, on_batch=on_batch)
    if fitted:
        measured = measured._replace(fit_converged=fit.converged[chosen].float())
    fields[:, chosen] = torch.stack(measured)
    for block in rest.split(100) if len(rest) else ():
        fields[: gaps.OF_Q, block] = torch.stack(score(gaps.measure_q, block))
        on_batch(len(block))
    return gaps.Gaps(*fields.reshape(-1, *rows.shape))


def log_probabilities(methods, data, config):
    """{method's name: {split: `measure_images`}} in float64 on the CPU."""
    total = len(methods) * len(SPLITS) * data.test.num_classes * config.images_per_digit
    found = {method.name: {} for method in methods}
    with ProgressBar("log p(x)", total=total, unit="img") as bar:
        for method, name in product(methods, SPLITS):
            measured = measure_images(method, data, name, config, "log p(x)", on_batch=bar.advance)
            found[method.name][name] = gaps.Gaps(*(field.cpu().double() for field in measured))
    return found


def records(found, data, config):
    """What `log_probabilities` found as one dict per image, None where it was not measured."""
    rows = []
    for name, of_splits in found.items():
        for split, values in of_splits.items():
            part = getattr(data, split)
            part = part.at(scored_rows(data, split, values.is_log_prob.shape[1], config).flatten())
            columns = zip(*(field.flatten().tolist() for field in values), strict=True)
            for label, index, numbers in zip(part.labels.tolist(), part.index.tolist(), columns, strict=True):
                numbers = (None if math.isnan(number) else number for number in numbers)
                identity = {"method": name, "split": split, "class": part.classes[label], "index": index}
                rows.append({**identity, **dict(zip(values._fields, numbers, strict=True))})
    return rows


def gaps_over_epochs(checkpoints, data, config):
    """One dict per earlier epoch, method and split: gaps.summarize of random images of each class, always the same.

    checkpoints: a training.Checkpoints. Half the chains of the last epoch are enough: the error of annealing is far
    smaller than the differences between so few images.
    """
    rows, epochs, count = [], checkpoints.epochs[:-1], config.gap_images_per_digit
    total = len(epochs) * len(checkpoints.methods) * len(SPLITS) * data.test.num_classes * count
    coarse = replace(config, images_per_digit=count, annealed_per_digit=count, num_samples=EARLIER_NUM_SAMPLES)
    coarse = replace(coarse, chains=max(2, config.chains // 2))
    with ProgressBar("gaps", total=total, unit="img") as bar:
        for epoch in epochs:
            for method, name in product(checkpoints.load(epoch, data), SPLITS):
                found = measure_images(method, data, name, coarse, "gaps", epoch, on_batch=bar.advance)
                rows.append({"epoch": epoch, "method": method.name, "split": name, "scores": gaps.summarize(found)})
    return rows


def bdmc_gap(method, config, *, device="cpu"):
    """{"lower", "upper", "gap"} of log p(x) of images simulated from the model (Grosse et al. 2015).

    Each as `mean_and_error` gives it. The gap bounds the mean error of annealing with the same settings, in either
    direction, on such images.
    """
    model, index = method.model, torch.arange(config.simulated_images)
    x, z = model.sample(len(index), random_generator(config.seed, "simulated images", method.name, device=device))
    own = image_generators(config.seed, "bidirectional bounds", method.name, index=index, device=device)
    start = initial_posterior(len(x), model.latent_dim, device=device)
    q = fit_posterior(model, x, start, generator=own, fit_steps=config.fit_steps).q
    fast = model.in_precision(config.precision)
    q = gauss_newton_posterior(fast, x, q, generator=own)
    bounds = bidirectional_bounds(fast, x, z, q, generator=own, **gaps.annealing(config))
    values = {**bounds._asdict(), "gap": bounds.upper - bounds.lower}
    return {name: mean_and_error(value) for name, value in values.items()}


def annealed(found, count=None):
    """Of Gaps (classes, images per class), those of the images that were annealed, the first `count` of each class."""
    count = count or int((~found.ais_log_prob[0].isnan()).sum())
    return gaps.Gaps(*(field[:, :count] for field in found))


def summarize_log_prob(found, known, split, config):
    """{"regression", "annealed", "importance_sampling", "importance_sampling_fitted", "classes"} of log p(x).

    found: Gaps (classes, images per class) of random images of the Split `split`; known: the Split of all of its
    images, or of a stratified part, and their Bound. Each is like a `stratified_mean`, nats. "regression" is log p(x)
    of the whole split, by the regression of the annealed values on the bounds, None if there are too few. "annealed"
    and the two by importance sampling, from q and from q*, are means over the images that have all three.
    "images_beyond_twice_the_aim": whose log-weights have more than twice the standard deviation that was aimed at.
    "classes": the estimates of each class.
    """
    both, shares = annealed(found), torch.bincount(split.labels, minlength=split.num_classes).double()
    regression = None
    if both.elbo.numel() > 2 and both.elbo.std() > 0:
        part, bound = known
        options = {"shares": shares / shares.sum(), "known": bound.elbo, "known_labels": part.labels}
        options["population"] = len(split.labels)
        regression = regression_estimate(both.ais_log_prob, both.elbo, **options)
    beyond = int((both.ais_log_weight_std > 2 * config.log_weight_std).sum())
    return {
        "regression": regression,
        **_estimates(both),
        "images_beyond_twice_the_aim": beyond,
        "fits_converged": float(both.fit_converged.mean()),
        "classes": [_estimates(each) for each in _per_class(both)],
    }


def _per_class(found):
    """One Gaps (1, images) for each class of Gaps (classes, images)."""
    return [gaps.Gaps(*(field[None] for field in fields)) for fields in zip(*found, strict=True)]


def _estimates(found):
    """Three estimates of log p(x), of Gaps (classes, images per class).

    Of annealing, "monte_carlo_error" is the standard error of the mean's own estimate, over the chains, and "bias" the
    jackknife's estimate of the mean's bias.
    """

    def sampled(log_prob, sizes):
        return {**stratified_mean(log_prob), "effective_sample_size_median": float(sizes.flatten().quantile(0.5))}

    return {
        "annealed": {
            **stratified_mean(found.ais_log_prob),
            "monte_carlo_error": float(found.ais_standard_error.square().sum().sqrt() / found.ais_log_prob.numel()),
            "bias": float(found.ais_bias.mean()),
            "log_weight_std_median": float(found.ais_log_weight_std.flatten().quantile(0.5)),
            "temperatures_median": float(found.ais_temperatures.flatten().quantile(0.5)),
            "acceptance": float(found.ais_acceptance.mean()),
        },
        "importance_sampling": sampled(found.is_log_prob, found.effective_sample_size),
        "importance_sampling_fitted": sampled(found.fitted_is_log_prob, found.fitted_effective_sample_size),
    }


def paired_differences(found, methods):
    """[{"methods": [name, name], split: gaps.differences}] of every two methods, on the images that were annealed."""
    return [
        {"methods": [one.name, other.name]}
        | {
            split: gaps.differences(annealed(found[one.name][split]), annealed(found[other.name][split]))
            for split in SPLITS
        }
        for one, other in combinations(methods, 2)
    ]


def compute_cost(methods, checkpoints, fits, seconds, training_seconds):
    """{method's name: what its training and its inference took}, plain values; fits, seconds: of `infer_sample`.

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
