"""The evidence lower bound (ELBO), importance-sampled log p(x), helpers of q: for any q and LatentVariableModel.

q is a diagonal Normal (B, D) or a MultivariateNormal (B, D). Every value is in nats per image, and no constant is ever
dropped. Shapes: B images, K samples, D latent dimensions; samples lead, (K, B, D).
"""

import hashlib
import math
from typing import NamedTuple

import torch
from torch.distributions import MultivariateNormal, Normal, kl_divergence

DRAWN_AT_ONCE = 16  # samples of an image, by one call of its generator


class Bound(NamedTuple):
    """The evidence lower bound and its two parts, (B,) each: elbo = log_likelihood - kl."""

    elbo: torch.Tensor
    log_likelihood: torch.Tensor
    kl: torch.Tensor


class ISEstimate(NamedTuple):
    """Estimates by importance sampling for each image, (B,) each, in nats except the sample size."""

    log_prob: torch.Tensor
    elbo: torch.Tensor
    effective_sample_size: torch.Tensor


class Fit(NamedTuple):
    """A q of images, and the cost of finding it."""

    q: Normal  # diagonal, (B, D)
    trace: torch.Tensor  # (cycles + 1, B): of the q kept after each cycle its bound, a little high, since it was chosen
    converged: torch.Tensor  # (B,) bool
    gradients: torch.Tensor  # (B,): of the bound, evaluated for each image


def forward_pass(q):
    """The Fit of a q that an encoder gave: nothing was optimized."""
    none = torch.zeros(len(q.mean), dtype=torch.int64, device=q.mean.device)
    return Fit(q, trace=torch.empty(0, len(none)), converged=none == 0, gradients=none)


def random_generator(seed, *purpose, device="cpu"):
    """A generator that is a function of (seed, purpose) alone: a resumed run draws what an uninterrupted one draws."""
    digest = hashlib.sha256(repr((seed, *purpose)).encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:7], "big"))


def image_generators(seed, *purpose, index, device="cpu"):
    """A generator for each image: what is random about one is a function of (seed, purpose, index), its own.

    index: (B,), the images' rows in the data set. Every function here that takes `generator` takes such a list, too:
    then what it finds for an image does not depend on the other images in the batch.
    """
    return [random_generator(seed, *purpose, row, device=device) for row in index.tolist()]


def draw(distribution, generator, shape, *, like):
    """Draws of torch.randn or torch.rand, (K, B, ...), of one generator or of a list of one for each image."""
    options = {"dtype": like.dtype, "device": like.device}
    if isinstance(generator, torch.Generator):
        return distribution(shape, generator=generator, **options)
    of_one = (shape[0], *shape[2:])
    return torch.stack([distribution(of_one, generator=own, **options) for own in generator], dim=1)


def generators_of(generator, rows):
    """What `draw` needs for the images at `rows` (M,) alone."""
    return generator if isinstance(generator, torch.Generator) else [generator[row] for row in rows.tolist()]


def diagonal_normal(mean, log_var):
    """q(z) = N(mean, diag exp(log_var)), both (B, D)."""
    return Normal(mean, torch.exp(0.5 * log_var), validate_args=False)


def kl_per_dimension(q):
    """KL(q || N(0, I)) of a diagonal Normal in closed form, (B, D) (Kingma & Welling 2014, Appendix B)."""
    prior = Normal(torch.zeros_like(q.mean), torch.ones_like(q.mean), validate_args=False)
    return kl_divergence(q, prior)


def reparameterize(q, noise):
    """z = mean + scale * noise, of the noise's shape, (B, D) or (K, B, D)."""
    if isinstance(q, Normal):
        return q.mean + q.stddev * noise
    return q.mean + torch.einsum("bij,...bj->...bi", q.scale_tril, noise)


def whiten(q, z):
    """The noise (B, D) from which `reparameterize` makes z (B, D)."""
    if isinstance(q, Normal):
        return (z - q.mean) / q.stddev
    return torch.linalg.solve_triangular(q.scale_tril, (z - q.mean).unsqueeze(-1), upper=False).squeeze(-1)


def select(q, rows):
    """The rows (M,) of q (B, D)."""
    if isinstance(q, Normal):
        return Normal(q.mean[rows], q.stddev[rows], validate_args=False)
    return MultivariateNormal(q.mean[rows], scale_tril=q.scale_tril[rows], validate_args=False)


def concatenate(qs):
    """One diagonal Normal (B, D) of several, in their order."""
    return Normal(torch.cat([q.mean for q in qs]), torch.cat([q.stddev for q in qs]), validate_args=False)


def check_inputs(model, x, q, generator):
    """Raises ValueError for shapes that do not fit, a missing generator, or pixels without a probability."""
    if q.mean.shape != (len(x), model.latent_dim):
        shapes = f"x {tuple(x.shape)} and q {tuple(q.mean.shape)} do not fit"
        raise ValueError(f"{shapes}: q needs ({len(x)}, {model.latent_dim}), images by latent dimensions")
    if not isinstance(generator, torch.Generator) and (generator is None or len(generator) != len(x)):
        raise ValueError("generator: give a torch.Generator, such as random_generator(seed), or a list, one per image")
    model.likelihood.check(x)


def elbo(model, x, q, noise):
    """The bound of every image with z = mean + stddev * noise (Kingma & Welling 2014, Eq. 7).

    q: diagonal Normal (B, D); x: (B, *image); noise: (B, D) or (K, B, D), standard normal.
    Returns a Bound of (B,) each, averaged over K; gradients flow to q and to the model.
    """
    if noise.shape[-2:] != q.mean.shape or len(x) != len(q.mean):
        shapes = f"x {tuple(x.shape)}, q {tuple(q.mean.shape)} and noise {tuple(noise.shape)}"
        raise ValueError(f"{shapes} are of different images")
    log_likelihood = model.log_likelihood(x, reparameterize(q, noise))
    if noise.dim() > q.mean.dim():
        log_likelihood = log_likelihood.mean(0)
    kl = kl_per_dimension(q).sum(-1)
    return Bound(log_likelihood - kl, log_likelihood, kl)


def log_weight(model, x, q, noise):
    """log p(x, z) - log q(z) at z = reparameterize(q, noise), noise (K, B, D). Returns (K, B)."""
    z = reparameterize(q, noise)
    scale = q.stddev if isinstance(q, Normal) else q.scale_tril.diagonal(dim1=-2, dim2=-1)
    log_q = -0.5 * noise.square().sum(-1) - scale.log().sum(-1) - 0.5 * noise.shape[-1] * math.log(2 * math.pi)
    return model.log_joint(x, z) - log_q


@torch.no_grad()
def importance_sampling(model, x, q, *, generator, num_samples=1000, chunk=500):
    """log p(x) ~ log 1/K sum_k p(x, z_k) / q(z_k), z_k ~ q, K = num_samples (Burda et al. 2016, Eq. 8).

    x: (B, *image); q: (B, D). A lower bound in expectation. The effective sample size (sum w)^2 / sum w^2 is from 1 to
    K; below about ten, log_prob is too low by an unknown amount. At most `chunk` samples are in memory at once, or
    DRAWN_AT_ONCE. The weights are added in float64 where the device has it. Returns an ISEstimate; its elbo is the mean
    of the log-weights. Raises ValueError if x, q and the model do not fit.
    """
    check_inputs(model, x, q, generator)
    exact = torch.float32 if x.device.type == "mps" else torch.float64  # MPS has no float64
    parts = []
    for rows in torch.arange(len(x), device=x.device).split(max(1, chunk // DRAWN_AT_ONCE)):
        own, own_q = generators_of(generator, rows), select(q, rows)
        log_sum_w = torch.full((len(rows),), -math.inf, dtype=exact, device=x.device)
        log_sum_w2, sum_log_w = log_sum_w.clone(), torch.zeros_like(log_sum_w)
        # Equal calls of the generator, whatever the number of images: what it draws depends on the sizes of its calls.
        calls = [min(DRAWN_AT_ONCE, num_samples - start) for start in range(0, num_samples, DRAWN_AT_ONCE)]
        together = max(1, chunk // (DRAWN_AT_ONCE * len(rows)))
        for first in range(0, len(calls), together):
            shapes = ((count, *own_q.mean.shape) for count in calls[first : first + together])
            noise = torch.cat([draw(torch.randn, own, shape, like=q.mean) for shape in shapes])
            log_w = log_weight(model, x[rows], own_q, noise).to(exact)  # (K, B)
            log_sum_w = torch.logaddexp(log_sum_w, log_w.logsumexp(0))
            log_sum_w2 = torch.logaddexp(log_sum_w2, (2 * log_w).logsumexp(0))
            sum_log_w += log_w.sum(0)
        effective = torch.exp(2 * log_sum_w - log_sum_w2)
        parts.append((log_sum_w - math.log(num_samples), sum_log_w / num_samples, effective))
    return ISEstimate(*(torch.cat(part).to(x.dtype) for part in zip(*parts, strict=True)))


@torch.no_grad()
def evaluate_bound(model, images, posterior, *, generator, draws=1, batch_size=1000):
    """The bound of every image, the mean over `draws` samples of z: a Bound of (N,) each.

    posterior(x, rows): q of the images x (B, *image) at `rows` (B,) of `images` (N, *image).
    """
    parts = []
    for rows in torch.arange(len(images), device=images.device).split(batch_size):
        q = posterior(images[rows], rows)
        bounds = []
        for _ in range(draws):
            noise = torch.randn(q.mean.shape, generator=generator, dtype=q.mean.dtype, device=q.mean.device)
            bounds.append(torch.stack(elbo(model, images[rows], q, noise)))
        parts.append(torch.stack(bounds).mean(0))
    return Bound(*(torch.cat(part) for part in zip(*parts, strict=True)))


def mean_and_error(values):
    """{"mean", "standard_error", "images"} of a tensor of one value per image; the error is None for one image."""
    values = values.cpu().double().flatten()  # MPS has no float64
    count = len(values)
    error = float(values.std() / math.sqrt(count)) if count > 1 else None
    return {"mean": float(values.mean()), "standard_error": error, "images": count}
