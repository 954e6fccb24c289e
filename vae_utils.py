"""Gaussian posteriors q(z), random numbers, the evidence lower bound (ELBO) and importance sampling, for any model.

Values are in nats per image; no constant is dropped. Shapes: B images, K samples, D latent dimensions, (K, B, D).
"""

import hashlib
import math
from dataclasses import dataclass
from typing import NamedTuple

import torch

DRAWN_AT_ONCE = 16  # samples of an image, by one call of its generator
LOADING = 0.3  # the unit of loadings, by factor / scale: a step of Adam moves a factor less than mean and scale


@dataclass(eq=False)
class GaussianPosterior:
    """q(z) = N(mean, diag(scale)^2 + factor factor'), or N(mean, scale scale') where scale is lower triangular.

    mean: (B, D); scale: (B, D) or (B, D, D); factor: of low rank, (B, D, r), beside a scale (B, D), or None. With
    W = factor / scale and the Cholesky factor L of I + W'W, z / scale has a covariance with root I + W (I + L)^-1 W',
    whose determinant is that of L (matrix determinant lemma), its inverse I - W (I + L')^-1 L^-1 W' (Woodbury).
    """

    mean: torch.Tensor
    scale: torch.Tensor
    factor: torch.Tensor | None = None

    @classmethod
    def from_log_var(cls, mean, log_var, loadings=None):
        """The q of mean and log-variance, (B, D) each; loadings: factor / (LOADING * scale), (B, D, r), or None."""
        scale = torch.exp(0.5 * log_var)
        return cls(mean, scale, None if loadings is None else LOADING * scale.unsqueeze(-1) * loadings)

    @classmethod
    def from_parameters(cls, parameters, rank=0):
        """The q whose `parameters()` these are, (B, (2 + rank) D)."""
        return cls.from_log_var(*split_parameters(parameters, rank))

    @classmethod
    def concatenate(cls, posteriors):
        """One q of the images of several, all of one form."""
        return cls(*map(torch.cat, zip(*(q.tensors().values() for q in posteriors), strict=True)))

    def tensors(self):
        """{"mean", "scale", and "factor" if there is one}: the arguments that make it."""
        return {"mean": self.mean, "scale": self.scale} | ({} if self.factor is None else {"factor": self.factor})

    def __len__(self):
        return len(self.mean)

    def __getitem__(self, rows):
        return GaussianPosterior(*(value[rows] for value in self.tensors().values()))

    def to(self, *target):
        return GaussianPosterior(*(value.to(*target) for value in self.tensors().values()))

    def parameters(self):
        """Mean, log-variance and loadings of a q that is not full, side by side, (B, (2 + r) D)."""
        loadings = () if self.factor is None else (self.factor / (LOADING * self.scale.unsqueeze(-1)),)
        return torch.cat((self.mean, 2 * self.scale.log(), *(part.flatten(-2) for part in loadings)), dim=-1)

    @property
    def is_full(self):
        return self.scale.dim() > self.mean.dim()

    @property
    def is_diagonal(self):
        return not self.is_full and self.factor is None

    def diagonal(self):
        """The diagonal q with the mean and the variances of this one."""
        if self.is_diagonal:
            return self
        parts = (self.scale,) if self.is_full else (self.scale.unsqueeze(-1), self.factor)
        return GaussianPosterior(self.mean, torch.cat(parts, dim=-1).norm(dim=-1))

    def _roots(self):
        """W, (B, D, r), and L, (B, r, r)."""
        w = self.factor / self.scale.unsqueeze(-1)
        return w, torch.linalg.cholesky_ex(_plus_identity(w.mT @ w)).L  # as a CUDA graph needs it: without a check

    def rsample(self, noise):
        """z = mean + root noise, of the noise's shape, (B, D) or (K, B, D) (Kingma & Welling 2014, Eq. 4)."""
        if self.is_full:
            return self.mean + torch.einsum("bij,...bj->...bi", self.scale, noise)
        if self.factor is not None:
            w, lower = self._roots()
            left = torch.linalg.solve_triangular(_plus_identity(lower), w, upper=False, left=False)  # W (I + L)^-1
            noise = noise + _product(left, w, noise)
        return self.mean + self.scale * noise

    def whiten(self, z):
        """The noise from which `rsample` makes z, (B, D) or (K, B, D)."""
        if self.is_full:
            columns = (z - self.mean).reshape(-1, *self.mean.shape).movedim(0, -1)  # (B, D, K)
            noise = torch.linalg.solve_triangular(self.scale, columns, upper=False)
            return noise.movedim(-1, 0).reshape(z.shape)
        noise = (z - self.mean) / self.scale
        if self.factor is None:
            return noise
        w, lower = self._roots()
        left = torch.linalg.solve_triangular(_plus_identity(lower.mT), w, upper=True, left=False)
        left = torch.linalg.solve_triangular(lower, left, upper=False, left=False)  # W (I + L')^-1 L^-1
        return noise - _product(left, w, noise)

    def log_prob(self, z):
        """log q(z), (B,) or (K, B), for z (B, D) or (K, B, D)."""
        return self.log_prob_of_noise(self.whiten(z))

    def log_prob_of_noise(self, noise):
        """log q(z) at z = rsample(noise)."""
        return -0.5 * noise.square().sum(-1) - self._log_det() - 0.5 * noise.shape[-1] * math.log(2 * math.pi)

    def kl(self):
        """KL(q || N(0, I)) in closed form, (B,); with correlations more than the sum of `kl_per_dimension`."""
        if self.is_diagonal:
            return self.kl_per_dimension().sum(-1)
        squares = sum(value.square().flatten(1).sum(-1) for value in self.tensors().values())
        return 0.5 * (squares - self.mean.shape[-1]) - self._log_det()

    def kl_per_dimension(self):
        """KL(q || N(0, I)) of each dimension alone, (B, D) (ibid., Appendix B). Raises ValueError for a full q."""
        if self.is_full:
            raise ValueError("a q of full covariance has no KL per dimension: kl() gives the whole")
        variance = self.diagonal().scale.square()
        return 0.5 * (variance + self.mean.square() - 1 - variance.log())

    def _log_det(self):
        """log of the determinant of the root of the covariance, (B,)."""
        scale = self.scale.diagonal(dim1=-2, dim2=-1) if self.is_full else self.scale
        log_det = scale.log().sum(-1)
        return log_det if self.factor is None else log_det + self._roots()[1].diagonal(dim1=-2, dim2=-1).log().sum(-1)


def split_parameters(parameters, rank=0):
    """[mean (B, D), log-variance (B, D)], and if there is a rank the loadings (B, D, rank), of `parameters()`."""
    latent_dim = parameters.shape[-1] // (2 + rank)
    mean, log_var, *loadings = parameters.split([latent_dim] * 2 + [rank * latent_dim] * (rank > 0), dim=-1)
    return [mean, log_var, *(part.unflatten(-1, (latent_dim, rank)) for part in loadings)]


def _plus_identity(matrix):
    return matrix + torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)


def _product(left, right, values):
    """left right' values, (..., B, D), for factors (B, D, r)."""
    return torch.einsum("bdr,...br->...bd", left, torch.einsum("bdr,...bd->...br", right, values))


def random_generator(seed, *purpose, device="cpu"):
    """A generator that is a function of (seed, purpose) alone: a resumed run draws what an uninterrupted one draws."""
    digest = hashlib.sha256(repr((seed, *purpose)).encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:7], "big"))


class Noise:
    """The random numbers of images: from one generator, or from one for each, then independent of other images."""

    def __init__(self, seed, *purpose, device="cpu", generators=None):  # generators: in place of the seed's
        self._generators = random_generator(seed, *purpose, device=device) if generators is None else generators

    @classmethod
    def of_images(cls, seed, *purpose, index, device="cpu"):
        """A generator for each image, seeded by (seed, purpose, its entry of `index`): rows (B,), or any list."""
        index = index.tolist() if isinstance(index, torch.Tensor) else index
        return cls(None, generators=[random_generator(seed, *purpose, entry, device=device) for entry in index])

    @classmethod
    def concatenate(cls, parts):
        """The Noise of the images of several, in their order. One generator for all images stays alone."""
        shared = parts[0].images is None
        return parts[0] if shared else cls(None, generators=[one for noise in parts for one in noise._generators])

    @property
    def images(self):
        """How many images have a generator of their own; None if one serves all."""
        return None if isinstance(self._generators, torch.Generator) else len(self._generators)

    def __getitem__(self, rows):
        """The Noise of the images at `rows`, (M,) int64. The generators are the same, not copies."""
        return self if self.images is None else Noise(None, generators=[self._generators[row] for row in rows.tolist()])

    def spawn(self, rows, *purpose):
        """New generators, for the images at `rows`, a list which may name a row several times."""
        if self.images is None:
            return self
        parents = [(self._generators[row], rows[:place].count(row)) for place, row in enumerate(rows)]
        children = (random_generator(one.initial_seed(), *purpose, n, device=one.device) for one, n in parents)
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


def check_noise(noise, images, call):
    """Raises ValueError, which shows the call as it should be, if noise is not a Noise of so many images."""
    if not isinstance(noise, Noise) or noise.images not in (None, images):
        raise ValueError(f"noise: {call}, or Noise.of_images(seed, index=...) with an entry for each image")


def check_pixels(x):
    """Raises ValueError if x is no tensor of floats."""
    if not (isinstance(x, torch.Tensor) and x.is_floating_point()):
        raise ValueError("x: a tensor of floats in [-1, 1], as images.load_images and load_data give it")


def check_inputs(model, x, q, noise, function="annealed_importance_sampling"):
    """Raises ValueError for shapes that do not fit, a missing Noise, or pixels without a probability."""
    check_pixels(x)
    check_noise(noise, len(x), f"{function}(model, x, q, noise=Noise(seed))")
    if q.mean.shape != (needed := (len(x), model.latent_dim)):
        shapes = f"x {tuple(x.shape)} and q {tuple(q.mean.shape)}"
        raise ValueError(f"{shapes} do not fit: q needs {needed}, images by latent dimensions")
    model.likelihood.check(x)


def elbo(model, x, q, noise=None):
    """The bound of every image at z = q.rsample(noise) (Kingma & Welling 2014, Eq. 7).

    x: (B, *image); q: GaussianPosterior (B, D); noise: a standard normal tensor, (B, D) or (K, B, D). Returns a Bound
    of (B,) each, averaged over K. Gradients flow to q and to the model. Raises ValueError for shapes that do not fit.
    """
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
    if num_samples < 1 or not len(x):
        raise ValueError(f"{num_samples} samples of {len(x)} images: importance_sampling needs one at least")
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
def evaluate_bound(model, images, posterior, *, noise=None, draws=1, batch_size=1000):
    """The bound of every image, the mean over `draws` samples of z: a Bound of (N,) each.

    posterior(x, rows): q of the images x (B, *image) at `rows` (B,) of `images` (N, *image).
    """
    check_noise(noise, len(images), "evaluate_bound(model, images, posterior, noise=Noise(seed))")
    model.likelihood.check(images)
    batches = []
    for rows in torch.arange(len(images), device=images.device).split(batch_size):
        q, part_noise = posterior(images[rows], rows), noise[rows]
        normals = torch.cat([part_noise.normal((1, *q.mean.shape), like=q.mean) for _ in range(draws)])
        parts = normals.split(max(1, batch_size // len(rows)))
        batches.append(sum(len(part) * torch.stack(elbo(model, images[rows], q, part)) for part in parts) / draws)
    return Bound(*torch.cat(batches, dim=1))


def mean_and_error(values):
    """{"mean", "standard_error", "images"} of a tensor of one value per image; the error is None for one image."""
    values = values.cpu().double().flatten()  # MPS has no float64
    error = float(values.std() / math.sqrt(len(values))) if len(values) > 1 else None
    return {"mean": float(values.mean()), "standard_error": error, "images": len(values)}
