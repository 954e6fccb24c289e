"""The latent table against torch.optim.Adam on all of it."""

import pytest
import torch
from conftest import seeded

from latent_table import LatentTable

ROWS, LATENT_DIM, BATCH, STEPS = 120, 3, 10, 500
GOAL = 3 * torch.randn(ROWS, 2 * LATENT_DIM, generator=seeded(9))
SETTINGS = {"learning_rate": 0.02, "betas": (0.8, 0.99)}


def visits(steps=STEPS):
    """The rows and the noise of every step."""
    generator = seeded(0)
    for _ in range(steps):
        yield torch.randperm(ROWS, generator=generator)[:BATCH], torch.randn(BATCH, 2 * LATENT_DIM, generator=generator)


@pytest.mark.parametrize("betas", [(0.8, 0.99), (0.9, 0.999), (0.8, 0.9)])  # sums of the last are constant after 380
@pytest.mark.parametrize(
    ("scale", "tolerance"),
    [(10, 1e-4), (0.001, 1e-4), (1e-5, 1e-3)],  # the last is within three powers of ten of eps
)
def test_the_table_follows_dense_adam(scale, tolerance, betas):
    """The gradients, of the given scale, are functions of the row's present value, so that an error would feed back."""
    table = LatentTable(size=ROWS, latent_dim=LATENT_DIM, learning_rate=0.02, betas=betas)
    start = torch.cat(table.current(), dim=1).double()
    value = start.clone().requires_grad_()
    adam = torch.optim.Adam([value], lr=0.02, betas=betas)
    for rows, noise in visits():
        value.grad = torch.zeros_like(value)
        value.grad[rows] = scale * (value.detach()[rows] - GOAL[rows] + noise)
        adam.step()
        q = table.posterior(rows)
        own = torch.cat((q.mean, 2 * q.scale.log()), dim=1)
        (scale * (0.5 * (own - GOAL[rows]).square() + noise * own)).sum().backward()
        table.step()
    moved = (value - start).abs().max()
    assert moved > 0.5
    assert (torch.cat(table.current(), dim=1) - value).abs().max() / moved < tolerance
