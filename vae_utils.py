"""Random numbers of images, the evidence lower bound (ELBO) and importance sampling, for any model.

Values are in nats per image; no constant is dropped. Shapes: B images, K samples, D latent dimensions, (K, B, D).
"""

import contextlib
import hashlib
import math
import threading
from numbers import Integral
from typing import NamedTuple

import torch
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd

from gaussian_posterior import GaussianPosterior

PRECISE = (torch.float32, torch.float64)
SEEDING = threading.RLock()  # all threads share the global generator
DRAWN_AT_ONCE = 16  # samples of an image, by one call of its generator


def random_generator(seed, *purpose, device="cpu"):
    """A generator that is a function of (seed, purpose) alone: a resumed run draws what an uninterrupted one draws."""
    parts = tuple(part.item() if hasattr(part, "item") else part for part in (seed, *purpose))  # of NumPy, of tensors
    digest = hashlib.sha256(repr(parts).encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:7], "big"))


@contextlib.contextmanager
def seeded_weights(seed):
    """Seeds the global generator, which initializes weights, and restores it afterwards; None changes nothing."""
    with SEEDING, torch.random.fork_rng(devices=[], enabled=seed is not None):
        if seed is not None:
            torch.random.default_generator.manual_seed(seed)
        yield


def autocast(precision, device):
    """The context in which networks run in `precision`."""
    if precision not in ("float32", "bfloat16"):
        raise ValueError(f"precision {precision!r}: a model takes float32 or bfloat16")
    if precision == "bfloat16":
        return torch.autocast(device.type, torch.bfloat16)
    # An autocast around a call would change what the networks compute.
    is_on = device.type != "meta" and torch.is_autocast_enabled(device.type)
    return torch.autocast(device.type, enabled=False) if is_on else contextlib.nullcontext()


class Noise:
    """The random numbers of images: from one generator for all, or one for each, then the same in any batch."""

    def __init__(self, seed, *purpose, device="cpu", generators=None):  # generators: in place of the seed's
        if generators is None and not isinstance(seed, Integral):
            raise ValueError(f"Noise({seed!r}): takes a seed, a whole number")
        self._generators = random_generator(seed, *purpose, device=device) if generators is None else generators

    @classmethod
    def of_images(cls, seed, *purpose, index, device="cpu"):
        """A generator for each image, seeded by (seed, purpose, its entry of `index`): rows (B,), or any list."""
        index = index.tolist() if isinstance(index, torch.Tensor) else index
        return cls(None, generators=[random_generator(seed, *purpose, entry, device=device) for entry in index])

    @property
    def images(self):
        """How many images have a generator of their own; None if one serves all."""
        return None if isinstance(self._generators, torch.Generator) else len(self._generators)

    def __getitem__(self, rows):
        """The Noise of the images at `rows`, (M,), or whatever indexes a tensor. The generators are the same."""
        if self.images is None:
            return self
        rows = torch.arange(self.images)[rows.cpu() if isinstance(rows, torch.Tensor) else rows].reshape(-1)
        return Noise(None, generators=[self._generators[row] for row in rows.tolist()])

    def spawn(self, *purpose):
        """New generators of the same images, whatever these have drawn; one that serves all images stays."""
        if self.images is None:
            return self
        children = (random_generator(one.initial_seed(), *purpose, device=one.device) for one in self._generators)
        return Noise(None, generators=list(children))

    def normal(self, shape, *, like):
        """Standard normal draws of shape (K, B, ...), of the type of `like` on its device."""
        return self._draw(torch.randn, shape, like)

    def uniform(self, shape, *, like):
        """Draws from [0, 1) of shape (K, B, ...), of the type of `like` on its device."""
        return self._draw(torch.rand, shape, like)

    def _draw(self, draw, shape, like):
        options = {"dtype": like.dtype, "device": like.device}
        if self.images is None:
            return draw(shape, generator=self._generators, **options)
        return torch.stack([draw((shape[0], *shape[2:]), generator=one, **options) for one in self._generators], dim=1)


class Bound(NamedTuple):
    """The evidence lower bound and its two parts, (B,) each: elbo = log_likelihood - kl."""

    elbo: torch.Tensor
    log_likelihood: torch.Tensor
    kl: torch.Tensor


class ISEstimate(NamedTuple):
    """Estimates by importance sampling, (B,) each, in nats except the sample size."""

    log_prob: torch.Tensor
    effective_sample_size: torch.Tensor


# Each check raises ValueError, with a text that shows what is needed instead; call: as it should be.


def check_counts(**counts):
    if wrong := [f"{name} {value!r}" for name, value in counts.items() if not isinstance(value, Integral) or value < 1]:
        raise ValueError(f"{wrong[0]}: not a whole number above 0")


def check_noise(noise, images, call):
    if not isinstance(noise, Noise) or noise.images not in (None, images):
        raise ValueError(f"noise: {call}, or Noise.of_images(seed, index=...) with an entry for each image")


def check_weights(like):
    """like: of the type of a model's weights."""
    if like.dtype not in PRECISE:
        raise ValueError(f"the model's weights are of {like.dtype}, too coarse for sums over pixels: model.float()")


def check_pixels(x, like):
    """like: of the type of a model's weights, which that of x must be."""
    check_weights(like)
    if not (isinstance(x, torch.Tensor) and x.dtype in PRECISE):
        needed = "a tensor of floats (32 or 64 bits) in [-1, 1], as images.load_images and load_data give it"
        raise ValueError(f"x: {needed}")
    if x.dtype != like.dtype:
        raise ValueError(f"x: of {x.dtype}, where the model's weights are of {like.dtype}: x.to(model.like)")


def check_images(x, image_shape, like, call):
    check_pixels(x, like)
    if x.shape[1:] != torch.Size(image_shape):
        shape = ", ".join(map(str, image_shape))
        is_one = x.numel() == math.prod(image_shape)
        one = f"; of one image {call.replace('(x', f'(x.reshape(1, {shape})')}" if is_one else ""
        raise ValueError(f"x {tuple(x.shape)}: {call} takes x (B, {shape}){one}")


def check_range(x, beyond=0.0):
    """beyond: how far from [-1, 1] pixels may be."""
    low, high = (float(x.min()), float(x.max())) if x.numel() else (0.0, 0.0)
    if not (low >= -1 - beyond and high <= 1 + beyond):  # NaN, too
        scaled = "they must be scaled to [-1, 1], as images.load_images does it: grey values x by x / 127.5 - 1"
        raise ValueError(f"pixels from {low:g} to {high:g}: {scaled}")


def check_model(model):
    if not hasattr(model, "log_likelihood"):
        raise ValueError(f"model: a LatentVariableModel, such as method.model, not {type(model).__name__}")


def check_mode(model):
    if any(isinstance(layer, _NormBase | _DropoutNd) and layer.training for layer in model.modules()):
        raise ValueError("the model is in training mode, where its layers are random or mix images: model.eval()")


def check_posterior(q):
    if not isinstance(q, GaussianPosterior):
        raise ValueError("q: a GaussianPosterior, as model.encode(x) or GaussianPosterior(mean, scale) gives it")


def check_scale(q):
    """No scale below 0, no full covariance in its place; of one that has diverged the loss will tell."""
    if not q.is_full and (q.scale < 0).any():
        raise ValueError("q: its scale must be above 0")
    if q.is_full and (q.scale.triu(1).abs() > 0).any():
        raise ValueError("q: its scale must be lower triangular: of a covariance take torch.linalg.cholesky")


def check_shapes(model, x, q, noise, function):
    check_model(model)
    check_pixels(x, model.like)
    check_posterior(q)
    check_noise(noise, len(x), f"{function}(model, x, q, noise=Noise(seed))")
    if not len(x):
        raise ValueError("no images")
    model.check(x)
    if q.mean.shape != (needed := (len(x), model.latent_dim)):
        shapes = f"x {tuple(x.shape)} and q {tuple(q.mean.shape)}"
        raise ValueError(f"{shapes} do not fit: q needs {needed}, images by latent dimensions")
    check_scale(q)
    check_mode(model)


def check_inputs(model, x, q, noise, function="annealed_importance_sampling"):
    """`check_shapes`, and that q has not diverged."""
    check_shapes(model, x, q, noise, function)
    scale = q.scale.diagonal(dim1=-2, dim2=-1) if q.is_full else q.scale
    if not (scale.gt(0).all() and q.mean.isfinite().all()):
        raise ValueError("q: its scale must be above 0, its mean finite")


def elbo(model, x, q, noise=None):
    """The bound of every image at z = q.rsample(noise) (Kingma & Welling 2014, Eq. 7).

    x: (B, *image); q: GaussianPosterior (B, D); noise: a standard normal tensor, (B, D) or (K, B, D). Returns a Bound
    of (B,) each, averaged over K. Gradients flow to q and to the model. Raises ValueError for shapes that do not fit.
    """
    check_model(model)
    check_posterior(q)
    if q.mean.device.type == "cpu":  # elsewhere this would wait for the device
        check_scale(q)
    if not isinstance(noise, torch.Tensor):
        raise ValueError("noise: elbo(model, x, q, torch.randn_like(q.mean)), or torch.randn(K, *q.mean.shape)")
    if noise.shape[-2:] != q.mean.shape or noise.dim() > 3 or not noise.numel() or len(x) != len(q.mean):
        shapes = f"x {tuple(x.shape)}, q {tuple(q.mean.shape)} and noise {tuple(noise.shape)}"
        raise ValueError(f"{shapes} are of different images")
    log_likelihood, kl = model.log_likelihood(x, q.rsample(noise)), q.kl()
    if noise.dim() > q.mean.dim():
        log_likelihood = log_likelihood.mean(0)
    return Bound(log_likelihood - kl, log_likelihood, kl)


def log_weight(model, x, q, noise):
    """log p(x, z) - log q(z) at z = q.rsample(noise), (K, B), for noise (K, B, D)."""
    return model.log_joint(x, q.rsample(noise)) - q.log_prob_of_noise(noise)


@torch.no_grad()
def importance_sampling(model, x, q, *, noise=None, num_samples=1000, chunk=500):
    """log p(x) ~ log 1/K sum_k p(x, z_k) / q(z_k), z_k ~ q, K = num_samples (Burda et al. 2016, Eq. 8).

    A lower bound in expectation; too low by an unknown amount if the effective sample size (sum w)^2 / sum w^2 is below
    about ten. x: (B, *image); q: GaussianPosterior (B, D); at most max(chunk, DRAWN_AT_ONCE) samples are held at once.
    Returns an ISEstimate. Raises ValueError if x, q and the model do not fit.
    """
    check_inputs(model, x, q, noise, "importance_sampling")
    check_counts(num_samples=num_samples, chunk=chunk)
    exact = torch.float32 if x.device.type == "mps" else torch.float64  # MPS has no float64
    # What a generator draws depends on the sizes of its calls: they are the same for any number of images.
    calls = [min(DRAWN_AT_ONCE, num_samples - start) for start in range(0, num_samples, DRAWN_AT_ONCE)]
    estimates = []
    for rows in torch.arange(len(x), device=x.device).split(max(1, chunk // DRAWN_AT_ONCE)):
        part, part_noise = q[rows], noise[rows]
        log_sum = torch.full((len(rows),), -math.inf, dtype=exact, device=x.device)
        log_sum_squares = log_sum.clone()
        together = max(1, chunk // (DRAWN_AT_ONCE * len(rows)))
        for first in range(0, len(calls), together):
            shapes = ((count, *part.mean.shape) for count in calls[first : first + together])
            draws = torch.cat([part_noise.normal(shape, like=part.mean) for shape in shapes])
            log_w = log_weight(model, x[rows], part, draws).to(exact)  # (K, B)
            log_sum = torch.logaddexp(log_sum, log_w.logsumexp(0))
            log_sum_squares = torch.logaddexp(log_sum_squares, (2 * log_w).logsumexp(0))
        estimates.append((log_sum - math.log(num_samples), torch.exp(2 * log_sum - log_sum_squares)))
    return ISEstimate(*(torch.cat(values).to(x.dtype) for values in zip(*estimates, strict=True)))


@torch.no_grad()
def evaluate_bound(model, x, q, *, noise=None, draws=1, batch_size=1000):
    """The `elbo` of all images of a split, x (N, *image), at q (N, D), the mean over `draws` samples: a Bound."""
    check_shapes(model, x, q, noise, "evaluate_bound")
    check_counts(draws=draws, batch_size=batch_size)
    batches = []
    for rows in torch.arange(len(x), device=x.device).split(batch_size):
        part, part_noise = q[rows], noise[rows]
        normals = torch.cat([part_noise.normal((1, *part.mean.shape), like=part.mean) for _ in range(draws)])
        parts = normals.split(max(1, batch_size // len(rows)))
        batches.append(sum(len(some) * torch.stack(elbo(model, x[rows], part, some)) for some in parts) / draws)
    return Bound(*torch.cat(batches, dim=1))


def mean_and_error(values):
    """{"mean", "standard_error", "images"} of a tensor of one value per image; the error is None for one image."""
    values = values.cpu().double().flatten()  # MPS has no float64
    error = float(values.std() / math.sqrt(len(values))) if len(values) > 1 else None
    return {"mean": float(values.mean()), "standard_error": error, "images": len(values)}
