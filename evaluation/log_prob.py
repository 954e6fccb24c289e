"""log p(x) of any images in one call, for notebooks and scripts."""

from typing import NamedTuple

import torch
from torch.distributions import Normal
from tqdm import tqdm

from data import warn_unlike_mnist
from evaluation.gaps import annealing
from evaluation.modes import estimate_log_prob
from evaluation.quadrature import MOST_DIMENSIONS
from posterior_fit import fit_posterior
from runtime.config import EvalConfig
from vae_utils import concatenate, mean_and_error, random_generator

AT_ONCE = 10  # images: more would save little time, and the bar would stand still for long


class LogProb(NamedTuple):
    """log p(x) of each image, (B,) each, nats; as text, one line: of one image its own numbers, of many their means."""

    log_prob: torch.Tensor  # a lower bound in expectation: not corrected by `bias`
    standard_error: torch.Tensor  # of the estimate, over the annealed chains
    bias: torch.Tensor  # an estimate, mostly negative
    log_weight_std: torch.Tensor  # standard deviation of the log-weights over the chains
    acceptance: torch.Tensor  # share of accepted transitions
    modes: torch.Tensor  # int64: modes of the posterior that were combined; 0: integrated, or annealed from the prior
    trusted: torch.Tensor  # bool: whether the stated errors can be relied on
    converged: torch.Tensor  # bool: the fit of q
    q: Normal  # the fitted diagonal Normal, (B, D)

    def __repr__(self):
        value, count = mean_and_error(self.log_prob), len(self.log_prob)
        bias, vague = float(self.bias.mean()), int((~self.trusted).sum())
        if count == 1:
            error = f"± {float(self.standard_error):.2g} (standard error of the estimate)"
            text = f"log p(x) = {value['mean']:.1f} nats, {error}, bias about {bias:.2f} (not corrected); "
            text += "fit converged" if self.converged else "fit not converged"
        else:
            over_images = f"± {value['standard_error']:.1f} (mean of {count:,} images, standard error over images)"
            own = float(self.standard_error.square().sum().sqrt()) / count
            text = f"log p(x) = {value['mean']:.1f} nats, {over_images}, Monte Carlo error {own:.2g}, "
            text += f"bias about {bias:.2f} (not corrected); "
            text += f"{float(self.converged.double().mean()):.0%} of the fits converged"
        if self.q.mean.shape[-1] <= MOST_DIMENSIONS:
            return f"{text}; integrated on a grid"
        text += f"; acceptance {float(self.acceptance.min()):.2f}" + (" or more" if count > 1 else "")
        if several := int((self.modes > 1).sum()):
            text += f"; several modes in {several:,} of {count:,}"
        if vague:
            text += f"; may be wrong by more than that for {vague:,} of {count:,}: lower log_weight_std"
        return text

    __str__ = __repr__


def log_prob(
    model,
    images,
    *,
    seed=0,
    chains=EvalConfig.chains,
    log_weight_std=EvalConfig.log_weight_std,
    fit_steps=EvalConfig.fit_steps,
):
    """log p(x) of images under a LatentVariableModel: a LogProb. By `estimate_log_prob`, which says how.

    images: one, (C, H, W), or many, (N, C, H, W), pixels in [-1, 1]; of a single channel, C may be left out. A diagonal
    q is fitted to each, from the model's `initial_posterior`; its covariance is made full, and annealing begins there.
    The other arguments are EvalConfig's. What is random about an image is a function of the seed and its pixels: its
    result does not depend on the other images. Warns of images that cannot be like MNIST's. Raises ValueError for
    images that the model cannot have been made for, and for settings out of range.
    """
    config = EvalConfig(seed=seed, chains=chains, log_weight_std=log_weight_std, fit_steps=fit_steps)
    x, parts = _batch(model, images), []
    if x.dim() == 4:
        warn_unlike_mnist(x)
    with tqdm(total=len(x), desc="log p(x)", unit="img") as bar:
        for part in x.split(AT_ONCE):
            parts.append(_log_prob(model, part, config, bar.set_postfix_str))
            bar.update(len(part))
    *values, qs = zip(*parts, strict=True)
    return LogProb(*(torch.cat(value) for value in values), concatenate(qs))


@torch.no_grad()
def _log_prob(model, x, config, say):
    """The fields of LogProb of images x (B, *image); say: shows what is being done."""
    pixels = [image.cpu().numpy().tobytes() for image in x]
    generators = [random_generator(config.seed, "log p(x)", own, device=x.device) for own in pixels]
    say("fit of q")
    start = model.initial_posterior(x, generators)
    fit = fit_posterior(model, x, start, generator=generators, fit_steps=config.fit_steps)
    say("annealing")
    options = {"generator": generators, "fit_steps": config.fit_steps}
    found = estimate_log_prob(model, x, fit.q, **options, **annealing(config))
    of_weights = (found.ais.log_weight_std, found.ais.acceptance, found.modes, found.trusted)
    return found.ais.log_prob, found.ais.standard_error, found.ais.bias, *of_weights, fit.converged, fit.q


@torch.no_grad()
def _batch(model, images):
    """The images as a batch (N, *image) of the model's type, on its device. Raises ValueError if they do not fit."""
    like = next(model.parameters())
    shape = tuple(model.mean(torch.zeros(1, model.latent_dim).to(like)).shape[1:])
    try:
        x = torch.as_tensor(images).to(like)
    except TypeError:
        raise ValueError("images: give a tensor or an array; data.load_images reads files") from None
    shapes = (shape, shape[1:]) if len(shape) == 3 and shape[0] == 1 else (shape,)
    fitting = any(x.shape in (each, (*x.shape[:1], *each)) for each in shapes)
    if not fitting or not len(x):
        raise ValueError(f"images of shape {tuple(x.shape)}: the model needs {shape} or (N, {str(shape)[1:]}")
    low, high = float(x.min()), float(x.max())
    if not (low >= -1 and high <= 1):  # of NaN, neither is true
        scaled = "pixels must be scaled to [-1, 1], as data.load_images does it"
        raise ValueError(f"pixels from {low:g} to {high:g}: {scaled}")
    model.likelihood.check(x)
    return x.reshape(-1, *shape)
