"""The work of an evaluation as tasks: which images of which split are measured, by gaps.py, and what each one gives.

A task is a pure function of a model and of few images, or of a whole split. What is random about an image is a
function of (seed, purpose, method, image); only the bounds of whole splits have one generator for all images.
"""

import copy
import math
import time
from functools import partial
from itertools import product
from typing import NamedTuple

import torch

from data import Split, rows_per_class
from evaluation.gaps import gap_columns, measure
from evaluation.log_prob import bound_log_prob
from posterior_fit import Fit
from vae_utils import GaussianPosterior, Noise, evaluate_bound, random_generator

MEASURED_AT_ONCE, SIMULATED_AT_ONCE = 100, 20  # images of a task
PICTURED_PER_CLASS = 2  # test images: one in the reconstructions, one in the comparison
DRAWS, MOST_DRAWS, DECODED = 4, 64, 4_000  # of z for the ELBO of an image of a whole split: more where images are few
TRAIN_SHARE = 5  # measured test images for each training image, which is only a diagnosis


class Sample(NamedTuple):
    """The images of a split that are measured, the same for every method: the annealed ones first, class by class."""

    part: Split
    rows: torch.Tensor  # (N,), of these images in the split
    shares: torch.Tensor  # (classes,), float64: of the classes in the whole split
    annealed: int | None  # the first so many are annealed; None: no image is fitted, see `measure`

    @property
    def labels(self):
        return self.part.labels.cpu()

    def first(self, count):
        """The places (classes, count) of the first `count` images of each class. Raises InputError if one has fewer."""
        return rows_per_class(self.part, count).cpu()


def draw_sample(split, *, size, per_class, seed, least=1):
    """A Sample of `size` random images of a Split, in which every class has its share, but at least `least` images.

    `per_class` of each are annealed: InputError if one has fewer. A larger sample holds the images of a smaller one.
    """
    rows_per_class(split, per_class)
    labels = split.labels.cpu()
    order = torch.randperm(len(labels), generator=random_generator(seed, "scored images"))
    order = order[labels[order].argsort(stable=True)]  # class by class
    counts = labels.bincount(minlength=split.num_classes)
    place = torch.arange(len(order)) - (counts.cumsum(0) - counts)[labels[order]]  # of an image in its class
    share = (place + 0.5) / counts[labels[order]]  # of its class, up to this image
    share[place < least], share[place < per_class] = -1, -2
    annealed, fewest = (count * split.num_classes for count in (per_class, max(per_class, least)))
    rows = order[share.argsort(stable=True)][: max(size, fewest)]
    return Sample(split.at(rows), rows, counts.double() / len(labels), annealed)


def draw_samples(data, config, *, last):
    """{split: Sample} of an epoch; at those before the last, of the images alone that are tracked or pictured."""
    full, scored = config.evaluation == "full", last and config.evaluation != "none"
    fitted = scored or (full and config.gap_images_per_digit > 0)
    sizes = {"train": config.fitted_images // TRAIN_SHARE, "test": config.fitted_images} if scored else {}
    per_class = config.images_per_digit if scored else max(1, config.gap_images_per_digit)
    samples = {}
    for split, least in (("train", 1), ("test", PICTURED_PER_CLASS)):
        options = {"size": sizes.get(split, 0), "per_class": per_class, "least": least}
        sample = draw_sample(getattr(data, split), **options, seed=config.seed)
        annealed = sample.annealed if full and (last or split == "test") else 0
        samples[split] = sample._replace(annealed=annealed if fitted else None)
    return samples


@torch.no_grad()
def image_tasks(methods, samples, epoch, config):
    """Tasks that measure the images of {split: Sample} under each method after an epoch: {name: function}."""
    tasks = {}
    for method, (split, sample) in product(methods, samples.items()):
        for number, block in enumerate(_blocks(len(sample.rows), MEASURED_AT_ONCE)):
            part, q = sample.part.at(block), None
            if split == "train":  # q as trained
                q = method.posterior(part.images, sample.rows[block].to(part.images.device))
            annealed = None if sample.annealed is None else max(sample.annealed - int(block[0]), 0)
            task = partial(measure_images, method.frozen(), part, q, config, annealed, split, epoch)
            tasks[f"images_{epoch}_{method.name}_{split}_{number}"] = task
    return tasks


def _blocks(count, most):
    """The places of `count` images in blocks of nearly the same size, none larger than `most`."""
    return torch.arange(count).chunk(math.ceil(count / most))


def _clock(device):
    """The time in seconds, when the device has done what it was given."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return time.perf_counter()


def measure_images(method, part, q, config, annealed, split, epoch):
    """{"columns" of gaps.measure, "q": its tensors, "costs", "seconds"} of the images of a Split, on the CPU.

    q: of training images as trained; None: it is inferred, as of test images; annealed: see gaps.measure.
    """
    images = part.images
    noise_of = partial(Noise.of_images, config.seed, index=part.index.tolist(), device=images.device)
    started = _clock(images.device)
    if q is None:
        fit = method.infer(images, noise=noise_of("inference", method.name), fit_steps=config.fit_steps)
    else:
        fit = Fit.given(q)
    seconds, noise = _clock(images.device) - started, noise_of("measured", method.name, split, epoch)
    is_best = q is None and method.infers_best and fit.q.is_diagonal
    try:
        columns = measure(method.model, images, fit.q, config, noise=noise, annealed=annealed, fitted=is_best)
    except FloatingPointError as error:
        raise FloatingPointError(f"{method.name}, {split} images after epoch {epoch}: {error}") from None
    if is_best and "fit_converged" in columns:
        columns["fit_converged"] *= fit.converged.to(images.dtype)
    costs = {"converged": fit.converged, "gradients": fit.gradients}
    tensors = {"q": fit.q.tensors(), "columns": columns, "costs": costs}
    on_cpu = {key: {name: value.cpu() for name, value in values.items()} for key, values in tensors.items()}
    return {**on_cpu, "seconds": seconds}


class Measured(NamedTuple):
    """What is known of the images of a Sample under a method."""

    columns: dict  # {name: (N,)}, float64; NaN where not measured
    fit: Fit  # q of the images, on the device
    seconds: float  # of the inference of q


def collect_images(methods, samples, results, epoch):
    """{(method's name, split): Measured} of the results of `image_tasks`, with the differences of the bounds."""
    collected = {}
    for method, (split, sample) in product(methods, samples.items()):
        blocks = task_results(results, f"images_{epoch}_{method.name}_{split}")
        parts = [block["columns"] for block in blocks]
        columns = {
            name: torch.cat([part.get(name, torch.full_like(part["elbo"], torch.nan)) for part in parts]).double()
            for name in parts[0]  # of the first block some images are annealed, if any are
        }
        q = GaussianPosterior.concatenate([GaussianPosterior(**block["q"]) for block in blocks])
        costs = {name: torch.cat([block["costs"][name] for block in blocks]) for name in blocks[0]["costs"]}
        fit = Fit(q.to(sample.part.images.device), torch.empty(0, len(q)), **costs)
        seconds = sum(block["seconds"] for block in blocks)
        collected[method.name, split] = Measured(columns | gap_columns(columns), fit, seconds)
    return collected


def image_table(measured, samples):
    """Rows of log_probabilities.csv, dicts, None where not measured; measured: of `collect_images`."""
    table = []
    for (method, split), (columns, _, _) in measured.items():
        part, values = samples[split].part, torch.stack([*columns.values()], dim=1)  # (N, columns)
        for label, index, numbers in zip(part.labels.tolist(), part.index.tolist(), values.tolist(), strict=True):
            row = {"method": method, "split": split, "class": part.classes[label], "index": index}
            known = (None if math.isnan(number) else number for number in numbers)
            table.append(row | dict(zip(columns, known, strict=True)))
    return table


@torch.no_grad()
def posterior_of_train(method, data):
    """q of every training image, (N, D)."""
    rows = torch.arange(len(data.train.labels), device=data.device).split(1000)
    return GaussianPosterior.concatenate([method.posterior(data.train.images[part], part) for part in rows])


def draws_of(images):
    """Of how many draws of z an image's bound is the mean: of more where images are few, whose noise averages less."""
    return min(max(DECODED // images, DRAWS), MOST_DRAWS)


def bound_tasks(methods, data, train_q, config):
    """Tasks that bound log p(x) of all images of a split at each method's own q; train_q: {method's name: q}."""
    tasks = {}
    for method in methods:
        q_of = {"train": train_q[method.name]}
        if method.shared_inference:  # a fit would take too long
            q_of["test"] = None
        for split, q in q_of.items():
            images = getattr(data, split).images
            tasks[f"bound_{method.name}_{split}"] = partial(bound_split, method.frozen(), images, q, split, config)
    return tasks


def bound_split(method, x, q, split, config):
    """The Bound, as (3, N), of all images x (N, *image) of a split at q, (N, D); None: it is inferred."""
    if q is None:
        noise = Noise(config.seed, "inference", method.name, device=x.device)
        q = method.infer(x, noise=noise, fit_steps=config.fit_steps).q
    noise = Noise(config.seed, "final bound", method.name, split, device=x.device)
    bound = evaluate_bound(method.model, x, q, noise=noise, draws=draws_of(len(x)))
    return torch.stack(bound).cpu()


def bidirectional_tasks(methods, config, *, device="cpu"):
    """Tasks that bound log p(x) of images simulated from each method's model, SIMULATED_AT_ONCE at a time."""
    blocks = enumerate(_blocks(config.simulated_images, SIMULATED_AT_ONCE) if config.simulated_images else ())
    return {
        f"bidirectional_{method.name}_{block}": partial(bound_simulated, method.frozen(), index, config, device)
        for (block, index), method in product(blocks, methods)
    }


def bound_simulated(method, index, config, device):
    """Lower and upper bounds (2, B) of the simulated images with these numbers (Grosse et al. 2015)."""
    model = copy.copy(method.model)
    model.reach = math.inf  # of a likelihood with long tails pixels lie far beyond [-1, 1]
    generator = random_generator(config.seed, "simulated images", method.name, device=device)
    x, z = (values[index] for values in model.sample(config.simulated_images, generator))
    noise = Noise.of_images(config.seed, "bidirectional bounds", method.name, index=index, device=device)
    return bound_log_prob(model, x, z, noise=noise, config=config).cpu()


def task_results(results, name):
    """The results of the tasks called `name`_0, `name`_1, ...: not those of a method whose name begins alike."""
    return [result for task, result in results.items() if task.rpartition("_")[0] == name]
