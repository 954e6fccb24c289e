"""The work of an evaluation as tasks: which images of which split are measured, by gaps.py, and what each one gives.

What is random about an image is a function of (seed, purpose, method, image), so that its numbers depend on no other
image; the bounds over whole splits alone have one generator for all images.
"""

import math
import time
from dataclasses import replace
from functools import partial
from itertools import product

import torch

from data import SPLITS, random_rows_per_class
from evaluation import gaps
from evaluation.log_prob import fit_and_anneal
from vae_utils import Fit, GaussianPosterior, Noise, evaluate_bound, random_generator

INFERRED_AT_ONCE, SIMULATED_AT_ONCE = 100, 10  # images
FEW_IMAGES, MANY_DRAWS, FEW_DRAWS = 2000, 64, 4  # draws of z for the ELBO of each of few or of many images
EARLIER_NUM_SAMPLES = 100  # importance samples at the epochs before the last


# Inference, and the bounds of whole splits


def infer(method, split, config):
    """The Fit of images that the method never saw, a Split."""
    noise = Noise.of_images(config.seed, "inference", method.name, index=split.index, device=split.images.device)
    return method.infer(split.images, noise=noise, fit_steps=config.fit_steps)


def inference_tasks(methods, sample, config):
    """Tasks that find q of stratified test images, `sample`, under each method, INFERRED_AT_ONCE at a time."""

    def infer_block(method, rows):
        started = time.perf_counter()
        fit = infer(method, sample.at(rows), config)
        values = {**fit.q.tensors(), "converged": fit.converged, "gradients": fit.gradients}
        return {name: value.cpu() for name, value in values.items()} | {"seconds": time.perf_counter() - started}

    blocks = torch.arange(len(sample.labels)).split(INFERRED_AT_ONCE)
    return {
        f"inference_{method.name}_{block}": partial(infer_block, method, rows)
        for method, (block, rows) in product(methods, enumerate(blocks))
    }


def collect_inference(methods, sample, results):
    """({method's name: Fit}, {method's name: seconds per image}) of the results of `inference_tasks`."""
    fits, seconds = {}, {}
    for method in methods:
        blocks = blocks_of(results, f"inference_{method.name}")
        seconds[method.name] = sum(block.pop("seconds") for block in blocks) / len(sample.labels)
        tensors = {key: torch.cat([block[key] for block in blocks]).to(sample.images.device) for key in blocks[0]}
        costs = {"converged": tensors.pop("converged"), "gradients": tensors.pop("gradients")}
        fits[method.name] = Fit(GaussianPosterior(**tensors), torch.empty(0, len(sample.labels)), **costs)
    return fits, seconds


def blocks_of(results, name):
    """The results of the tasks called `name`_0, `name`_1, ..., in the order in which they were given."""
    return [result for task, result in results.items() if task.rpartition("_")[0] == name]


@torch.no_grad()
def posterior_of_train(method, data, batch_size=1000):
    """q of every training image, (N, D)."""
    rows = torch.arange(len(data.train.labels), device=data.device).split(batch_size)
    return GaussianPosterior.concatenate([method.posterior(data.train.images[part], part) for part in rows])


def draws_of(images):
    """Of how many draws of z an image's bound is the mean: of more where images are few, whose noise averages less."""
    return MANY_DRAWS if images <= FEW_IMAGES else FEW_DRAWS


def final_bounds(methods, data, sample, fits, train_q, config):
    """{(method's name, split): (Split, its Bound)} at each method's own q.

    train_q: {name: q}; sample, fits: of `collect_inference`. Where inference is a forward pass, every test image is
    scored; where it is a fit, the sample alone.
    """
    bounds = {}
    for method in methods:
        test, test_q = sample, fits[method.name].q
        if method.shared_inference:
            test, test_q = data.test, infer(method, data.test, config).q
        for split, part, q in (("train", data.train, train_q[method.name]), ("test", test, test_q)):
            noise = Noise(config.seed, "final bound", method.name, split, device=data.device)
            options = {"noise": noise, "draws": draws_of(len(part.labels))}
            bound = evaluate_bound(method.model, part.images, lambda x, rows, q=q: q[rows], **options)
            bounds[method.name, split] = part, bound
    return bounds


# Random images of each class: log p(x) and the gaps


def scored_rows(data, split, count, config):
    """The rows of `count` random images of each class of a split, (classes, count), the same for all methods."""
    return random_rows_per_class(getattr(data, split), count, seed=config.seed)


def at_earlier_epochs(config):
    """The EvalConfig for the epochs before the last: fewer images, all of them annealed.

    Half the chains of the last epoch are enough: the error of annealing is far smaller than the differences between so
    few images.
    """
    count = config.gap_images_per_digit
    coarse = replace(config, images_per_digit=count, annealed_per_digit=count, num_samples=EARLIER_NUM_SAMPLES)
    return replace(coarse, chains=max(2, config.chains // 2))


def image_tasks(methods, data, config, *purpose):
    """Tasks that measure random images of each class: one per method, split and column of `scored_rows`.

    A column has one image of each class. The first `annealed_per_digit` columns are annealed.
    """
    return {
        _task_name(purpose, method, split, column): partial(
            measure_rows, method, data, split, config, rows, column < config.annealed_per_digit, *purpose
        )
        for method, split in product(methods, SPLITS)
        for column, rows in enumerate(scored_rows(data, split, config.images_per_digit, config).T)
    }


def _task_name(purpose, method, split, column):
    return "_".join(str(part).replace(" ", "-") for part in (*purpose, method.name, split, column))


def measure_rows(method, data, split, config, rows, annealed, *purpose):
    """{"columns", "q"} of the images at `rows` (B,) of a split, on the CPU.

    columns: of gaps.measure, or if not `annealed`, of gaps.measure_q; q: its `tensors`. purpose: of the noise.
    """
    part = getattr(data, split).at(rows)

    # q: of training images as trained, of test images as inferred.
    if split == "train":
        with torch.no_grad():
            q, fit = method.posterior(part.images, rows), None
    else:
        fit = infer(method, part, config)
        q = fit.q

    # Columns; where inference is a fit, a diagonal q is q* already.
    fitted = fit is not None and not method.shared_inference and q.is_diagonal
    noise = Noise.of_images(config.seed, *purpose, method.name, split, index=part.index, device=data.device)
    if annealed:
        columns = gaps.measure(method.model, part.images, q, config, noise=noise, fitted=fitted)
        if fitted:
            columns["fit_converged"] = fit.converged.float()
    else:
        columns = gaps.measure_q(method.model, part.images, q, config, noise=noise)
    return {
        "columns": {name: column.cpu() for name, column in columns.items()},
        "q": q.to("cpu").tensors(),
    }


def collect_images(methods, config, results, *purpose):
    """{(method's name, split): {column: (classes, images per class)}} of `image_tasks`, NaN if not measured."""
    collected = {}
    for method, split in product(methods, SPLITS):
        tasks = [_task_name(purpose, method, split, number) for number in range(config.images_per_digit)]
        parts = [results[task]["columns"] for task in tasks]
        missing = torch.full_like(parts[0]["elbo"], torch.nan)
        collected[method.name, split] = {
            name: torch.stack([part.get(name, missing) for part in parts], dim=-1).double() for name in parts[0]
        }
    return collected


def collect_posteriors(methods, config, results, *purpose):
    """{method's name: q of the test images that were annealed}, GaussianPosteriors (classes * annealed_per_digit, D).

    results: of `image_tasks`. The images are in the order of `scored_rows(...).flatten()`.
    """
    columns, collected = range(config.annealed_per_digit), {}
    for method in methods:
        parts = [results[_task_name(purpose, method, "test", column)]["q"] for column in columns]
        tensors = {name: torch.stack([part[name] for part in parts], dim=1).flatten(0, 1) for name in parts[0]}
        collected[method.name] = GaussianPosterior(**tensors)
    return collected


def image_table(measured, data, config):
    """Rows of log_probabilities.csv, dicts, None where not measured; measured: of `collect_images`."""
    table = []
    for (name, split), columns in measured.items():
        part = getattr(data, split)
        part = part.at(scored_rows(data, split, config.images_per_digit, config).flatten())
        values = zip(*(column.flatten().tolist() for column in columns.values()), strict=True)
        for label, index, numbers in zip(part.labels.tolist(), part.index.tolist(), values, strict=True):
            identity = {"method": name, "split": split, "class": part.classes[label], "index": index}
            numbers = (None if math.isnan(number) else number for number in numbers)
            table.append({**identity, **dict(zip(columns, numbers, strict=True))})
    return table


# Bidirectional bounds of simulated images


def bidirectional_tasks(methods, config, *, device="cpu"):
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
