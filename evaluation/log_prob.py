"""log p(x) of any images: `log_prob` in one call; `estimate_log_prob` from a known q, as in the evaluation."""

import sys

import torch
from tqdm import tqdm

from evaluation.ais import LogProb, annealed_importance_sampling, bidirectional_bounds
from evaluation.quadrature import MOST_DIMENSIONS, integrate
from images import warn_unlike_mnist
from posterior_fit import fit_posterior, gauss_newton_posterior
from runtime.config import EvalConfig, choose_precision
from runtime.progress import bar_width
from vae_utils import Noise, check_inputs, check_mode, check_model, check_range, check_weights

AT_ONCE = 20  # images: more would save little time, and the bar would stand still for long
SHORT_FIT = {"fit_steps": 100, "max_cycles": 1}  # of q*, from where it is not far to the posterior


@torch.no_grad()
def estimate_log_prob(model, x, q, *, noise, config):
    """log p(x) of images x (B, *image) under any LatentVariableModel: columns {name: (B,)}, nats.

    q: from where chains start, (B, D), best q*full; config: an EvalConfig. Columns are those of LogProb, its errors by
    the names log_prob_standard_error and log_prob_bias. With at most MOST_DIMENSIONS dimensions log p(x) is integrated,
    and q is not used. Raises ValueError for inputs that do not fit.
    """
    check_inputs(model, x, q, noise, "estimate_log_prob")
    if model.latent_dim > MOST_DIMENSIONS:
        fast, options = _annealing(model, x, config)
        found = annealed_importance_sampling(fast, x, q, noise=noise, **options)
    else:
        value, error = integrate(model, x)
        # An integral that has not settled is trusted as little as chains that disagree.
        settled = error.isfinite()
        exact, none = torch.where(settled, 0.0, error), torch.zeros_like(error, dtype=torch.int64)
        found = LogProb(value, error, exact, exact, torch.ones_like(error), none, settled)
    names = {"standard_error": "log_prob_standard_error", "bias": "log_prob_bias"}
    return {names.get(name, name): values for name, values in found._asdict().items()}


@torch.no_grad()
def bound_log_prob(model, x, z, *, noise, config):
    """Lower and upper bounds on log p(x), (2, B), of draws x (B, *image), z (B, D) of the model's own p(x, z)."""
    if model.latent_dim <= MOST_DIMENSIONS:
        value, error = integrate(model, x)
        return torch.stack((value - error, value + error))
    fast, options = _annealing(model, x, config)
    return torch.stack(bidirectional_bounds(fast, x, z, start_of_chains(model, x, noise=noise), noise=noise, **options))


def _annealing(model, x, config):
    """The model in the precision of an EvalConfig, and the options of annealing."""
    options = {"chains": config.chains, "temperatures": config.temperatures, "log_weight_std": config.log_weight_std}
    return model.in_precision(choose_precision(config.precision, x.device)), options


@torch.no_grad()
def start_of_chains(model, x, *, noise):
    """A q of images x, (B, D), for where q*full is not worth its fit: the Gauss-Newton posterior around a short fit."""
    q = model.initial_posterior(x, noise)
    if model.latent_dim <= MOST_DIMENSIONS:  # log p(x) is integrated, without chains
        return q
    q = fit_posterior(model, x, q, noise=noise, **SHORT_FIT).q
    return gauss_newton_posterior(model, x, q, noise=noise, draws=2)


def log_prob(model, images, *, seed=0, chains=EvalConfig.chains, log_weight_std=EvalConfig.log_weight_std):
    """log p(x) of images under a LatentVariableModel, by `estimate_log_prob` from a `start_of_chains`: a LogProb.

    images: one, (C, H, W), or many, (N, C, H, W), pixels in [-1, 1]; of a single channel, C may be left out. What is
    random about an image is a function of the seed and its pixels: its result does not depend on the other images.
    Of a decoder for MNIST, warns of images unlike MNIST's. Raises ValueError for images of another model, and for
    settings out of range.
    """
    # In bfloat16 a batch of another size would give an image other values.
    config = EvalConfig(seed=seed, precision="float32", chains=chains, log_weight_std=log_weight_std)
    x, batches, model = _batch(model, images), [], model.in_precision("float32")
    perhaps = "mnist" if getattr(model, "image_shape", None) == (1, 28, 28) else None  # a decoder of model.py
    if getattr(getattr(model, "config", None), "dataset", perhaps) == "mnist":
        warn_unlike_mnist(x)
    with tqdm(total=len(x), desc="log p(x)", unit="img", disable=not sys.stderr, **bar_width()) as bar:
        for part in x.split(AT_ONCE):
            pixels = [image.cpu().numpy().tobytes() for image in part]
            noise = Noise.of_images(seed, "log p(x)", index=pixels, device=x.device)
            q = start_of_chains(model, part, noise=noise)
            columns = estimate_log_prob(model, part, q, noise=noise, config=config)
            batches.append(columns.values())  # in the order of the fields
            bar.update(len(part))
    return LogProb(*map(torch.cat, zip(*batches, strict=True)))


@torch.no_grad()
def _batch(model, images):
    """The images as a batch (N, *image) of the model's type, on its device. Raises ValueError if they do not fit."""
    check_model(model)
    check_mode(model)
    check_weights(like := model.like)
    picture = model.mean(torch.zeros(1, model.latent_dim).to(like))
    if not picture.isfinite().all():
        raise ValueError("model: its decoder gives pixels that are no finite numbers")
    shape = tuple(picture.shape[1:])
    try:
        x = torch.as_tensor(images).detach().to(like, copy=True)  # of torch.inference_mode(), too
    except (TypeError, ValueError, RuntimeError):
        needed = "give one tensor or array, such as torch.stack(images); images.load_images reads files"
        raise ValueError(f"images: {needed}") from None
    of_one = {shape, shape[1:]} if len(shape) == 3 and shape[0] == 1 else {shape}
    if of_one.isdisjoint((x.shape, x.shape[1:])) or not len(x):
        many = f"(N, {', '.join(map(str, shape))})"
        raise ValueError(f"images of shape {tuple(x.shape)}: the model needs {shape} or {many}")
    if not x.isfinite().all():
        raise ValueError("images: pixels that are no finite numbers")
    if hasattr(model, "image_shape"):
        check_range(x)
    model.check(x)
    return x.reshape(-1, *shape)
