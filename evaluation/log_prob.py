"""log p(x) of any images in one call, `log_prob`; its steps, `fit_and_anneal`, are those of the evaluation, too."""

import sys
from typing import NamedTuple

import torch
from tqdm import tqdm

from evaluation.ais import bidirectional_bounds
from evaluation.modes import estimate_log_prob
from evaluation.quadrature import MOST_DIMENSIONS, integrate
from images import warn_unlike_mnist
from posterior_fit import Fit, fit_posterior
from runtime.config import EvalConfig, choose_precision
from runtime.progress import bar_width
from vae_utils import GaussianPosterior, Noise, check_mode, check_model, check_range, check_weights, mean_and_error

AT_ONCE = 20  # images: more would save little time, and the bar would stand still for long


@torch.no_grad()
def fit_and_anneal(model, x, q=None, *, config, noise, fitted=False, z=None, progress=lambda step: None):
    """Fits q*, from there q*full, and anneals from there: (columns {name: (B,)}, q*, q*full), the q (B, D).

    x: (B, *image); q: where the fit starts, diagonal, by default the model's `initial_posterior`; config: an
    EvalConfig. The columns are `fit_converged` (of both fits) and those of `estimate_log_prob`; fitted: q is q*
    already. z (B, D): for simulated images, the z they were drawn from; then `lower` and `upper`, the bidirectional
    bounds, stand in place of the estimate. progress: called with the name of each step.
    """
    precision, fit_steps = choose_precision(config.precision, x.device), config.fit_steps
    fast = model.in_precision(precision)
    # Fit q* and q*full
    progress("fit of q")
    q = model.initial_posterior(x, noise) if q is None else q
    fit = Fit.given(q) if fitted else fit_posterior(model, x, q, noise=noise, fit_steps=fit_steps)
    full = fit_posterior(fast, x, fit.q, covariance="full", noise=noise, fit_steps=fit_steps)
    columns = {"fit_converged": fit.converged & full.converged}
    # Anneal
    progress("annealing")
    annealing = {"noise": noise, "chains": config.chains, "temperatures": config.temperatures}
    annealing["log_weight_std"] = config.log_weight_std
    if z is None:
        options = {"precision": precision, "fit_steps": fit_steps, **annealing}
        columns |= estimate_log_prob(model, x, fit.q, full.q, **options)
    elif model.latent_dim <= MOST_DIMENSIONS:  # log p(x) is integrated, and so are its bounds
        value, error = integrate(model, x)
        columns |= {"lower": value - error, "upper": value + error}
    else:
        columns |= bidirectional_bounds(fast, x, z, full.q, **annealing)._asdict()
    return columns, fit.q, full.q


class LogProb(NamedTuple):
    """log p(x) of each image, (B,) each, nats; as text, one line: of one image its numbers, of many their means."""

    log_prob: torch.Tensor  # a lower bound in expectation: not corrected by `bias`
    standard_error: torch.Tensor  # of the estimate, over the annealed chains
    bias: torch.Tensor  # an estimate, mostly negative
    log_weight_std: torch.Tensor  # standard deviation of the log-weights over the chains
    acceptance: torch.Tensor  # share of accepted transitions
    modes: torch.Tensor  # int64: modes of the posterior that were combined; 0: integrated, or annealed from the prior
    trusted: torch.Tensor  # bool: whether the stated errors can be relied on
    converged: torch.Tensor  # bool: the fits of q* and q*full
    q: GaussianPosterior  # the fitted q*, diagonal, (B, D)
    full: GaussianPosterior | None = None  # the fitted q*full, (B, D)

    def __repr__(self):
        value, count = mean_and_error(self.log_prob), len(self.log_prob)
        monte_carlo = float(self.standard_error.square().sum().sqrt()) / count
        if count == 1:
            error = f"± {monte_carlo:.2g} (standard error of the estimate)"
            fits = "fit converged" if self.converged else "fit not converged"
        else:
            error = f"± {value['standard_error']:.1f} (mean of {count:,} images, standard error over images)"
            error += f", Monte Carlo error {monte_carlo:.2g}"
            fits = f"{int(self.converged.sum()) / count:.0%} of the fits converged"
        bias = f"bias about {float(self.bias.mean()):.2f} (not corrected)"
        texts = [f"log p(x) = {value['mean']:.1f} nats, {error}, {bias}", fits]
        if self.q.mean.shape[-1] <= MOST_DIMENSIONS:
            return "; ".join([*texts, "integrated on a grid"])
        texts.append(f"acceptance {float(self.acceptance.min()):.2f}" + " or more" * (count > 1))
        if several := int((self.modes > 1).sum()):
            texts.append(f"several modes in {several:,} of {count:,}")
        if vague := int((~self.trusted).sum()):
            texts.append(f"may be wrong by more than that for {vague:,} of {count:,}: lower log_weight_std")
        return "; ".join(texts)


def log_prob(
    model,
    images,
    *,
    seed=0,
    chains=EvalConfig.chains,
    log_weight_std=EvalConfig.log_weight_std,
    fit_steps=EvalConfig.fit_steps,
):
    """log p(x) of images under a LatentVariableModel, by `fit_and_anneal`: a LogProb.

    images: one, (C, H, W), or many, (N, C, H, W), pixels in [-1, 1]; of a single channel, C may be left out. The other
    arguments are EvalConfig's. What is random about an image is a function of the seed and its pixels: its result does
    not depend on the other images. Warns of images that cannot be like MNIST's. Raises ValueError for images that the
    model cannot have been made for, and for settings out of range.
    """
    config = EvalConfig(
        seed=seed, precision="float32", chains=chains, log_weight_std=log_weight_std, fit_steps=fit_steps
    )
    x, batches = _batch(model, images), []
    trained_on = getattr(getattr(model, "config", None), "dataset", "mnist")  # as far as is known
    if hasattr(model, "image_shape") and not trained_on.startswith("folder:"):  # a decoder of model.py
        warn_unlike_mnist(x)
    with tqdm(total=len(x), desc="log p(x)", unit="img", disable=not sys.stderr, **bar_width()) as bar:
        for part in x.split(AT_ONCE):
            pixels = [image.cpu().numpy().tobytes() for image in part]
            noise = Noise.of_images(seed, "log p(x)", index=pixels, device=x.device)
            batches.append(fit_and_anneal(model, part, config=config, noise=noise, progress=bar.set_postfix_str))
            bar.update(len(part))
    of_batches, q, full = zip(*batches, strict=True)
    columns = {name: torch.cat([part[name] for part in of_batches]) for name in of_batches[0]}
    renamed = {"standard_error": "log_prob_standard_error", "bias": "log_prob_bias", "converged": "fit_converged"}
    values = {name: columns[renamed.get(name, name)] for name in LogProb._fields if name not in ("q", "full")}
    return LogProb(**values, q=GaussianPosterior.concatenate(q), full=GaussianPosterior.concatenate(full))


@torch.no_grad()
def _batch(model, images):
    """The images as a batch (N, *image) of the model's type, on its device. Raises ValueError if they do not fit."""
    check_model(model)
    check_mode(model)
    like = model.like
    check_weights(like)
    shape = tuple(model.mean(torch.zeros(1, model.latent_dim).to(like)).shape[1:])
    try:
        x = torch.as_tensor(images).detach().to(like)
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(
            "images: give one tensor or array, such as torch.stack(images); images.load_images reads files"
        ) from None
    shapes = (shape, shape[1:]) if len(shape) == 3 and shape[0] == 1 else (shape,)
    fitting = any(x.shape in (shape_of_one, (*x.shape[:1], *shape_of_one)) for shape_of_one in shapes)
    if not fitting or not len(x):
        raise ValueError(f"images of shape {tuple(x.shape)}: the model needs {shape} or (N, {str(shape)[1:]}")
    if not x.isfinite().all():
        raise ValueError("images: pixels that are no finite numbers")
    if hasattr(model, "image_shape"):
        check_range(x)
    model.check(x)
    return x.reshape(-1, *shape)
