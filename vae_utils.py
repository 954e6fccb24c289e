"""The bound, its two parts and log p(x): whatever holds for any diagonal Normal q and any decoder.

The model is p(z) = N(0, I) and p(x|z) = N(decode(z), sigma_p^2 I). No constant is ever dropped: every value is a
true log-density in nats per image. `decode` is any callable from z (..., D) to the mean of p(x|z), (..., *image).
K counts samples, B images, D latent dimensions; samples lead.
"""

import hashlib
import math
from typing import NamedTuple

import torch
from torch.distributions import MultivariateNormal, Normal, kl_divergence

SIGMA_P = 0.4  # the standard deviation of p(x|z), in units of pixels scaled to [-1, 1]


class Bound(NamedTuple):
    """The evidence lower bound and its two parts, nats per image: elbo = log_likelihood - kl."""

    elbo: torch.Tensor
    log_likelihood: torch.Tensor
    kl: torch.Tensor


class Estimate(NamedTuple):
    """What importance sampling says of each image, (B,) each, in nats but for the sample size."""

    log_prob: torch.Tensor
    elbo: torch.Tensor
    effective_sample_size: torch.Tensor


def random_generator(seed, *purpose, device="cpu"):
    """A generator that is a function of (seed, purpose) alone: a resumed run draws what an uninterrupted one draws."""
    digest = hashlib.sha256(repr((seed, *purpose)).encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:7], "big"))


def diagonal_normal(mean, log_var):
    """q(z) = N(mean, diag exp(log_var)), both (B, D)."""
    return Normal(mean, torch.exp(0.5 * log_var), validate_args=False)


def prior_like(q):
    """p(z) = N(0, I) in the shape, type and device of q."""
    return Normal(torch.zeros_like(q.mean), torch.ones_like(q.mean), validate_args=False)


def log_likelihood(*, x, x_mean, sigma_p=SIGMA_P):
    """log p(x|z) = -||x - x_mean||^2 / (2 sigma_p^2) - P/2 log(2 pi sigma_p^2), P pixels per image.

    x: (B, *image); x_mean: (B, *image) or (K, B, *image). Returns (B,) or (K, B).
    """
    pixels = x[0].numel()
    squared_error = (x_mean - x).flatten(x_mean.dim() - x.dim() + 1).square().sum(-1)
    return -squared_error / (2 * sigma_p**2) - 0.5 * pixels * math.log(2 * math.pi * sigma_p**2)


def kl(q):
    """KL(q || N(0, I)) of every image, (B,), in closed form (Kingma & Welling 2014, Appendix B)."""
    return kl_divergence(q, prior_like(q)).sum(-1)


def elbo(*, q, x, decode, noise, sigma_p=SIGMA_P):
    """The bound of every image with z = mean + stddev * noise (Kingma & Welling 2014, Eq. 7).

    q: diagonal Normal (B, D); x: (B, *image); noise: (B, D) or (K, B, D), standard normal.
    Returns a Bound of (B,) each, averaged over K; gradients flow to q and to the decoder.
    """
    z = q.mean + q.stddev * noise
    expected = log_likelihood(x=x, x_mean=decode(z), sigma_p=sigma_p)
    if noise.dim() > q.mean.dim():
        expected = expected.mean(0)
    divergence = kl(q)
    return Bound(expected - divergence, expected, divergence)


def from_noise(q, noise):
    """z = mean + scale * noise, (K, B, D) like the noise; q: diagonal Normal (B, D), or MultivariateNormal (B, D)."""
    if isinstance(q, Normal):
        return q.mean + q.stddev * noise
    with torch.autocast(noise.device.type, enabled=False):  # which would round z to bfloat16
        return q.mean + torch.einsum("bij,kbj->kbi", q.scale_tril, noise)


def to_noise(q, z):
    """The noise (B, D) from which `from_noise` makes z (B, D)."""
    if isinstance(q, Normal):
        return (z - q.mean) / q.stddev
    return torch.linalg.solve_triangular(q.scale_tril, (z - q.mean).unsqueeze(-1), upper=False).squeeze(-1)


def select(q, index):
    """The rows `index` (M,) of a q (B, D), diagonal Normal or MultivariateNormal."""
    if isinstance(q, Normal):
        return Normal(q.mean[index], q.stddev[index], validate_args=False)
    return MultivariateNormal(q.mean[index], scale_tril=q.scale_tril[index], validate_args=False)


def log_weight(*, q, x, decode, noise, sigma_p=SIGMA_P):
    """log p(x, z) - log q(z) at z = from_noise(q, noise), noise (K, B, D). Returns (K, B)."""
    z = from_noise(q, noise)  # (K, B, D)
    scale = q.stddev if isinstance(q, Normal) else q.scale_tril.diagonal(dim1=-2, dim2=-1)
    # The two normalizing constants of log p(z) - log q(z) cancel but for q's scale.
    log_ratio = 0.5 * (noise.square() - z.square()).sum(-1) + scale.log().sum(-1)
    return log_likelihood(x=x, x_mean=decode(z), sigma_p=sigma_p) + log_ratio


@torch.no_grad()
def importance_sampling(*, q, x, decode, generator, sigma_p=SIGMA_P, num_samples=1000, chunk=500):
    """log p(x) ~ log 1/K sum_k p(x, z_k) / q(z_k), z_k ~ q, K = num_samples (Burda et al. 2016, Eq. 8).

    q: diagonal Normal (B, D), or MultivariateNormal (B, D); x: (B, *image); decode: z (..., D) -> the mean of p(x|z).
    A lower bound in expectation. The effective sample size (sum w)^2 / sum w^2 lies between 1 and K; where it is
    below ten or so, log_prob is too low by an amount that the weights cannot tell. At most `chunk` samples are held
    at once, whatever num_samples. Returns an Estimate; its elbo is the mean of the log-weights.
    """
    images, latent_dim = q.mean.shape
    total = torch.full((images,), -math.inf, dtype=q.mean.dtype, device=q.mean.device)  # log sum w
    total_squares = total.clone()  # log sum w^2
    log_sum = torch.zeros_like(total)
    step = max(1, chunk // images)
    for start in range(0, num_samples, step):
        shape = (min(step, num_samples - start), images, latent_dim)
        noise = torch.randn(shape, generator=generator, dtype=q.mean.dtype, device=q.mean.device)
        log_w = log_weight(q=q, x=x, decode=decode, noise=noise, sigma_p=sigma_p)  # (K, B)
        total = torch.logaddexp(total, log_w.logsumexp(0))
        total_squares = torch.logaddexp(total_squares, (2 * log_w).logsumexp(0))
        log_sum += log_w.sum(0)
    return Estimate(
        log_prob=total - math.log(num_samples),
        elbo=log_sum / num_samples,
        effective_sample_size=torch.exp(2 * total - total_squares),
    )


@torch.no_grad()
def evaluate(*, posterior, decode, images, generator, sigma_p=SIGMA_P, batch_size=1000):
    """The bound of every image with one sample each: a Bound of (N,), on the device of the images."""
    parts = []
    for rows in torch.arange(len(images), device=images.device).split(batch_size):
        q = posterior(images[rows], rows)
        noise = torch.randn(q.mean.shape, generator=generator, dtype=q.mean.dtype, device=q.mean.device)
        parts.append(elbo(q=q, x=images[rows], decode=decode, noise=noise, sigma_p=sigma_p))
    return Bound(*(torch.cat(part) for part in zip(*parts, strict=True)))


def mean_and_error(values):
    """{"mean", "standard_error", "images"} of a tensor of one value per image; the error is None for one image."""
    values = values.cpu().double().flatten()  # MPS has no float64
    count = len(values)
    error = float(values.std() / math.sqrt(count)) if count > 1 else None
    return {"mean": float(values.mean()), "standard_error": error, "images": count}
