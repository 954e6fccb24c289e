"""Gaussian posteriors q(z): diagonal, with a part of low rank beside the diagonal, or of full covariance.

Values are in nats per image; no constant is dropped. Shapes: B images, K samples, D latent dimensions, (K, B, D).
"""

import math
from dataclasses import dataclass

import torch

LOADING = 0.3  # loadings are factor / (LOADING scale): a step of Adam moves a factor less than mean and scale


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

    def __post_init__(self):
        """Raises ValueError for shapes that do not fit: they would broadcast to wrong numbers."""
        shape, shapes = self.mean.shape, [tuple(value.shape) for value in self.tensors().values()]
        has_factor = self.factor is not None
        fits = self.scale.shape == shape or (not has_factor and self.scale.shape == (*shape, *shape[-1:]))
        if not fits or (has_factor and (self.factor.dim() != len(shape) + 1 or shapes[-1][:-1] != shape)):
            raise ValueError(f"{shapes}: a q has mean (B, D), scale (B, D) or (B, D, D), and factor (B, D, r) or none")

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

    def _check(self, values):
        """Raises ValueError for noise or z of another shape: they would broadcast to wrong numbers."""
        if values.shape[-self.mean.dim() :] != self.mean.shape:
            shapes = f"{tuple(values.shape)} for a q {tuple(self.mean.shape)}"
            raise ValueError(f"noise or z {shapes}: it must be of the shape (B, D) of q, or (K, B, D)")

    def rsample(self, noise):
        """z = mean + root noise, of the noise's shape, (B, D) or (K, B, D) (Kingma & Welling 2014, Eq. 4)."""
        self._check(noise)
        if self.is_full:
            return self.mean + torch.einsum("bij,...bj->...bi", self.scale, noise)
        if self.factor is not None:
            w, lower = self._roots()
            left = torch.linalg.solve_triangular(_plus_identity(lower), w, upper=False, left=False)  # W (I + L)^-1
            noise = noise + _product(left, w, noise)
        return self.mean + self.scale * noise

    def whiten(self, z):
        """The noise from which `rsample` makes z, (B, D) or (K, B, D)."""
        self._check(z)
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
        self._check(noise)
        return -0.5 * noise.square().sum(-1) - self._log_det() - 0.5 * noise.shape[-1] * math.log(2 * math.pi)

    def kl(self):
        """KL(q || N(0, I)) in closed form, (B,); with correlations more than the sum of `kl_per_dimension`."""
        if self.is_diagonal:
            return self.kl_per_dimension().sum(-1)
        squares = sum(value.square().flatten(1).sum(-1) for value in self.tensors().values())
        return 0.5 * (squares - self.mean.shape[-1]) - self._log_det()

    def kl_per_dimension(self):
        """KL(q || N(0, I)) of each dimension alone, (B, D) (ibid., Appendix B)."""
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
