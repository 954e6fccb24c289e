"""The numbers of trained methods: bounds over whole splits, log p(x) per class, gaps, bidirectional bounds, costs."""

import math
import time
from dataclasses import replace
from itertools import product

import torch

from data import SPLITS, rows_per_class, stratified_subset
from evaluation import gaps
from evaluation.ais import bidirectional_bounds, gauss_newton_posterior
from latent_optimization import fit_posterior, initial_posterior
from runtime.progress import ProgressBar
from vae_utils import concatenate, evaluate_bound, importance_sampling, mean_and_error, random_generator, select

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
            fits[method.name] = infer(method, sample.images, config, "sample")
            fits[method.name].q.mean.cpu()  # waits for the device
            seconds[method.name] = (time.perf_counter() - started) / size
            bar.advance(size)
    return sample, fits, seconds


def infer(method, images, config, *purpose):
    """The Fit of images that the method never saw."""
    generator = random_generator(config.seed, "inference", method.name, *purpose, device=images.device)
    return method.infer(images, generator=generator, fit_steps=config.fit_steps)


@torch.no_grad()
def posterior_of_train(method, data, batch_size=1000):
    """q of every training image, a diagonal Normal (N, D)."""
    rows = torch.arange(len(data.train.labels), device=data.device).split(batch_size)
    return concatenate([method.posterior(data.train.images[part], part) for part in rows])


def final_bounds(methods, data, sample, fits, train_q, config):
    """{name: {split: {"elbo", "log_likelihood", "kl"}}}, each as `mean_and_error` gives it.

    train_q: {name: q}; sample, fits: of `infer_sample`. Where inference is a forward pass, every test image is scored;
    where it is a fit, the sample alone, and "fit_converged" says whether it has converged.
    """
    bounds = {}
    for method in methods:
        fit, of_test = fits[method.name], sample
        if not fit.gradients:
            of_test, fit = data.test, infer(method, data.test.images, config, "test")
        bounds[method.name] = {}
        for split, images, q in (("train", data.train.images, train_q[method.name]), ("test", of_test.images, fit.q)):
            generator = random_generator(config.seed, "final bound", method.name, split, device=data.device)
            bound = evaluate_bound(method.model, images, lambda x, rows, q=q: select(q, rows), generator=generator)
            bounds[method.name][split] = {part: mean_and_error(value) for part, value in bound._asdict().items()}
        bounds[method.name]["test"]["fit_converged"] = fit.converged
    return bounds


def measure_first(method, data, name, config, *purpose, on_batch):
    """Gaps (classes, images per class) of the first images of each class of the split `name`.

    All have importance sampling from the method's own q; the first `annealed_per_digit` of each class also importance
    sampling from the best diagonal q, and annealing. NaN where it was not measured. purpose: of the generator.
    """
    split = getattr(data, name)
    rows = rows_per_class(split, config.images_per_digit)  # (classes, n)
    images = split.images[rows.flatten()]
    if name == "train":
        with torch.no_grad():
            q, fitted = method.posterior(images, rows.flatten()), False
    else:
        fit = infer(method, images, config, name)
        q, fitted = fit.q, fit.gradients > 0
    generator = random_generator(config.seed, *purpose, method.name, name, device=data.device)
    numbers = torch.arange(rows.numel(), device=data.device).reshape(rows.shape)
    chosen, rest = (part.flatten() for part in numbers.tensor_split([config.annealed_per_digit], dim=1))
    fields = torch.full((len(gaps.Gaps._fields), len(images)), torch.nan, device=data.device)
    options = {"generator": generator, "fitted": fitted, "on_batch": on_batch}
    fields[:, chosen] = torch.stack(gaps.measure(method.model, images[chosen], select(q, chosen), config, **options))
    for part in rest.split(100) if len(rest) else ():
        own, count = select(q, part), config.num_samples
        estimate = importance_sampling(method.model, images[part], own, generator=generator, num_samples=count)
        fields[: len(estimate), part] = torch.stack(estimate)  # the first fields of Gaps
        on_batch(len(part))
    return gaps.Gaps(*fields.reshape(-1, *rows.shape))


def log_probabilities(methods, data, config):
    """{method's name: {split: `measure_first`}} in float64 on the CPU."""
    total = len(methods) * len(SPLITS) * data.test.num_classes * config.images_per_digit
    found = {method.name: {} for method in methods}
    with ProgressBar("log p(x)", total=total, unit="img") as bar:
        for method, name in product(methods, SPLITS):
            measured = measure_first(method, data, name, config, "log p(x)", on_batch=bar.advance)
            found[method.name][name] = gaps.Gaps(*(field.cpu().double() for field in measured))
    return found


def records(found, data):
    """What `log_probabilities` found as one dict per image, None where it was not measured."""
    rows = []
    for name, of_splits in found.items():
        for split, values in of_splits.items():
            part = getattr(data, split)
            part = part.at(rows_per_class(part, values.is_log_prob.shape[1]).flatten())
            columns = zip(*(field.flatten().tolist() for field in values), strict=True)
            for label, index, numbers in zip(part.labels.tolist(), part.index.tolist(), columns, strict=True):
                numbers = (None if math.isnan(number) else number for number in numbers)
                identity = {"method": name, "split": split, "class": part.classes[label], "index": index}
                rows.append({**identity, **dict(zip(values._fields, numbers, strict=True))})
    return rows


def gaps_over_epochs(checkpoints, data, config):
    """One dict per earlier epoch, method and split: gaps.summarize of the first images of each class, always the same.

    checkpoints: a training.Checkpoints. Half the chains and half the temperatures of the last epoch are enough: the
    error of annealing is far smaller than the differences between so few images.
    """
    rows, epochs, count = [], checkpoints.epochs[:-1], config.gap_images_per_digit
    total = len(epochs) * len(checkpoints.methods) * len(SPLITS) * data.test.num_classes * count
    coarse = replace(config, images_per_digit=count, annealed_per_digit=count, num_samples=EARLIER_NUM_SAMPLES)
    coarse = replace(coarse, chains=max(2, config.chains // 2), temperatures=max(1, config.temperatures // 2))
    with ProgressBar("gaps", total=total, unit="img") as bar:
        for epoch in epochs:
            for method, name in product(checkpoints.load(epoch, data), SPLITS):
                scores = gaps.summarize(measure_first(method, data, name, coarse, "gaps", epoch, on_batch=bar.advance))
                rows.append({"epoch": epoch, "method": method.name, "split": name, "scores": scores})
    return rows


def bdmc_gap(method, config, *, device="cpu"):
    """{"lower", "upper", "gap"} of log p(x) of images simulated from the model (Grosse et al. 2015).

    Each as `mean_and_error` gives it. The gap bounds the mean error of annealing with the same chains and temperatures,
    in either direction, on such images.
    """
    model = method.model
    generator = random_generator(config.seed, "simulated images", method.name, device=device)
    x, z = model.sample(config.simulated_images, generator)
    start = initial_posterior(len(x), model.latent_dim, device=device)
    fit = fit_posterior(model, x, start, generator=generator, fit_steps=config.fit_steps)
    fast = model.in_precision(config.precision)
    q = gauss_newton_posterior(fast, x, fit.q, generator=generator)
    chains, temperatures = config.chains, config.temperatures
    bounds = bidirectional_bounds(fast, x, z, q, generator=generator, chains=chains, temperatures=temperatures)
    values = {**bounds._asdict(), "gap": bounds.upper - bounds.lower}
    return {name: mean_and_error(value) for name, value in values.items()}


def annealed(found):
    """Of Gaps (classes, images per class), those of the images that were annealed, the first of each class."""
    count = int((~found.ais_log_prob[0].isnan()).sum())
    return gaps.Gaps(*(field[:, :count] for field in found))


def summarize_log_prob(found):
    """{"overall": score, "classes": [scores], "three_estimates": {...}} of Gaps (classes, images per class).

    "three_estimates" are importance sampling from q, the same from q*, and annealing, on the images that have all
    three. Of their mean, "standard_error" is the error over images, "monte_carlo_error" that of the estimator.
    """

    def score(log_prob, sizes):
        return {**mean_and_error(log_prob), "effective_sample_size_median": float(sizes.flatten().quantile(0.5))}

    both = annealed(found)
    return {
        "overall": score(found.is_log_prob, found.effective_sample_size),
        "classes": [score(*pair) for pair in zip(found.is_log_prob, found.effective_sample_size, strict=True)],
        "three_estimates": {
            "importance_sampling": score(both.is_log_prob, both.effective_sample_size),
            "importance_sampling_fitted": score(both.fitted_is_log_prob, both.fitted_effective_sample_size),
            "annealed": {
                **mean_and_error(both.ais_log_prob),
                "monte_carlo_error": float(both.ais_standard_error.square().sum().sqrt() / both.ais_log_prob.numel()),
                "log_weight_std_median": float(both.ais_log_weight_std.flatten().quantile(0.5)),
                "acceptance": float(both.ais_acceptance.mean()),
            },
        },
    }


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
            "unseen_image_gradients": fits[method.name].gradients,
            "unseen_image_seconds": seconds[method.name],
        }
        for method in methods
    }
