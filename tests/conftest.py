"""Models with known answers, shared by the tests."""

import math
import os
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch.distributions import MultivariateNormal, Normal

ROOT = Path(__file__).resolve().parent.parent

if "PYTEST_XDIST_WORKER" in os.environ:
    # Files of tests run side by side, a core each: threads that wait for each other would cost more than they give.
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)


def pytest_collection_modifyitems(items):
    """The longest files first, so that no core waits for them at the end."""
    longest = ("test_scripts.py", "test_resume.py", "test_documents.py")
    items.sort(key=lambda item: longest.index(item.path.name) if item.path.name in longest else len(longest))


class LinearGaussian(NamedTuple):
    """x = W z + b + sigma_p * noise, z ~ N(0, I), in float64: everything about it has a closed form."""

    weight: torch.Tensor  # (P, D)
    bias: torch.Tensor  # (P,)
    sigma_p: float

    def decode(self, z):
        return z @ self.weight.T + self.bias

    def log_prob(self, x):
        """log p(x) = log N(x; b, W W' + sigma_p^2 I), (B,)."""
        covariance = self.weight @ self.weight.T + self.sigma_p**2 * torch.eye(len(self.bias), dtype=x.dtype)
        return MultivariateNormal(self.bias, covariance).log_prob(x)

    def posterior(self, x):
        """Mean (B, D) and precision (D, D) of p(z|x)."""
        precision = torch.eye(self.weight.shape[1], dtype=x.dtype) + self.weight.T @ self.weight / self.sigma_p**2
        mean = torch.linalg.solve(precision, self.weight.T @ (x - self.bias).T / self.sigma_p**2).T
        return mean, precision

    def best_diagonal(self, x):
        """The diagonal Normal nearest to p(z|x) in KL(q || p), (B, D), and its bound (B,)."""
        mean, precision = self.posterior(x)
        variance = 1 / precision.diagonal()
        gap = 0.5 * (precision.diagonal().log().sum() - torch.logdet(precision))
        return Normal(mean, variance.sqrt().expand_as(mean)), self.log_prob(x) - gap

    def elbo(self, q, x):
        """The bound of a diagonal Normal q, (B,): E_q log p(x|z) is quadratic in z."""
        residual = (x - self.decode(q.mean)).square().sum(-1) + q.variance @ self.weight.square().sum(0)
        constant = 0.5 * x.shape[1] * math.log(2 * math.pi * self.sigma_p**2)
        divergence = 0.5 * (q.mean.square() + q.variance - 1 - q.variance.log()).sum(-1)
        return -residual / (2 * self.sigma_p**2) - constant - divergence

    def sample(self, count, generator):
        z = torch.randn(count, self.weight.shape[1], generator=generator, dtype=torch.float64)
        noise = torch.randn(count, len(self.bias), generator=generator, dtype=torch.float64)
        return self.decode(z) + self.sigma_p * noise


def linear_gaussian(*, pixels, latent_dim, sigma_p=0.4, orthogonal=False, nearly_singular=False, seed=0):
    """A LinearGaussian; with orthogonal columns of W its posterior is diagonal.

    nearly_singular: two columns of W are all but equal, so that along their difference the posterior is the prior and
    along their sum it is far narrower.
    """
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(pixels, latent_dim, generator=generator, dtype=torch.float64) / math.sqrt(latent_dim)
    if orthogonal:
        weight = torch.linalg.qr(weight)[0] * torch.linspace(0.3, 2, latent_dim, dtype=torch.float64)
    if nearly_singular:
        weight[:, 1] = weight[:, 0] + 1e-3 * weight[:, 1]
    return LinearGaussian(weight, torch.randn(pixels, generator=generator, dtype=torch.float64), sigma_p)


@pytest.fixture(scope="session")
def mnist():
    from data import load_mnist

    return load_mnist(data_dir=ROOT / "data")
