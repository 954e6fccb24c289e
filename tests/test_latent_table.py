"""The latent table against torch.optim.Adam on all of it."""

import pytest
import torch
from conftest import seeded

from latent_table import LOADING_RATE, LatentTable

ROWS, LATENT_DIM, BATCH, STEPS = 120, 3, 10, 500


def visits(width):
    """The rows and the noise of every step."""
    generator = seeded(0)
    for _ in range(STEPS):
        yield torch.randperm(ROWS, generator=generator)[:BATCH], torch.randn(BATCH, width, generator=generator)


def current(table):
    return torch.cat([part.flatten(1) for part in table.current()], dim=1).double()


def test_a_row_takes_one_step_at_a_time():
    table = LatentTable(size=5, latent_dim=3)
    with pytest.raises(ValueError, match="rows: an image stands there twice"):
        table.posterior(torch.tensor([1, 1]))
    assert table.posterior(torch.ones(5, dtype=torch.bool)).mean.shape == (5, 3)
    with torch.no_grad():
        assert table.posterior(torch.tensor([1, 1])).mean.shape == (2, 3)


@pytest.mark.parametrize("rank", [0, 2])
@pytest.mark.parametrize("betas", [(0.8, 0.99), (0.9, 0.999), (0.8, 0.9)])  # sums of the last are constant after 380
@pytest.mark.parametrize(
    ("scale", "tolerance"),
    [(10, 1e-4), (0.001, 1e-4), (1e-5, 1e-3)],  # the last is within three powers of ten of eps
)
def test_the_table_follows_dense_adam(scale, tolerance, betas, rank):
    """The gradients, of the given scale, are functions of the row's present value, so that an error would feed back."""
    table = LatentTable(size=ROWS, latent_dim=LATENT_DIM, rank=rank, learning_rate=0.02, betas=betas)
    start, goal = current(table), 3 * torch.randn(table.rows[:, 0].shape, generator=seeded(9))
    value, loadings = (part.clone().requires_grad_() for part in start.tensor_split([2 * LATENT_DIM], dim=1))
    groups = [{"params": [value], "lr": 0.02}, {"params": [loadings], "lr": 0.02 * LOADING_RATE}]
    adam = torch.optim.Adam(groups, betas=betas)
    for rows, noise in visits(goal.shape[1]):
        dense = torch.cat((value, loadings), dim=1).detach()
        gradient = torch.zeros_like(dense)
        gradient[rows] = scale * (dense[rows] - goal[rows] + noise)
        value.grad, loadings.grad = gradient.tensor_split([2 * LATENT_DIM], dim=1)
        adam.step()
        own = table.posterior(rows).parameters()
        (scale * (0.5 * (own - goal[rows]).square() + noise * own)).sum().backward()
        table.step()
    dense = torch.cat((value, loadings), dim=1)
    moved = (dense - start).abs().max()
    assert moved > 0.5
    assert (current(table) - dense).abs().max() / moved < tolerance
