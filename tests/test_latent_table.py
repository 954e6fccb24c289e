"""The latent table against torch.optim.Adam on all of it."""

import pytest
import torch
from conftest import seeded

from latent_table import LatentTable, deferred_step_sums

ROWS, LATENT_DIM, BATCH, STEPS = 120, 3, 10, 500
GOAL = 3 * torch.randn(ROWS, 2 * LATENT_DIM, generator=seeded(9))
SETTINGS = {"learning_rate": 0.02, "betas": (0.8, 0.99)}


def visits(steps=STEPS):
    """The rows and the noise of every step."""
    generator = seeded(0)
    for _ in range(steps):
        yield torch.randperm(ROWS, generator=generator)[:BATCH], torch.randn(BATCH, 2 * LATENT_DIM, generator=generator)


def follow_dense_adam(*, scale, settings):
    """torch.optim.Adam on the whole table through the visits: the table before and after them.

    The gradients, of the given scale, are functions of the row's present value, so that an error would feed back.
    """
    start = torch.cat(LatentTable(size=ROWS, latent_dim=LATENT_DIM, max_steps=1).current(), dim=1).double()
    value = start.clone().requires_grad_()
    adam = torch.optim.Adam([value], lr=settings["learning_rate"], betas=settings["betas"])
    for rows, noise in visits():
        value.grad = torch.zeros_like(value)
        value.grad[rows] = scale * (value.detach()[rows] - GOAL[rows] + noise)
        adam.step()
    return start, value.detach()


def follow_with_table(*, scale, settings):
    """The same with a LatentTable: the table after the visits."""
    table = LatentTable(size=ROWS, latent_dim=LATENT_DIM, max_steps=STEPS, **settings)
    for rows, noise in visits():
        q = table.posterior(rows)
        value = torch.cat((q.mean, 2 * q.scale.log()), dim=1)
        (scale * (0.5 * (value - GOAL[rows]).square() + noise * value)).sum().backward()
        table.step()
    return torch.cat(table.current(), dim=1).double()


@pytest.mark.parametrize("settings", [SETTINGS, {"learning_rate": 0.01, "betas": (0.9, 0.999)}])
@pytest.mark.parametrize(
    ("scale", "tolerance"),
    [(10, 1e-4), (0.001, 1e-4), (1e-5, 1e-3)],  # the last is within three powers of ten of eps
)
def test_the_table_follows_dense_adam(scale, tolerance, settings):
    start, dense = follow_dense_adam(scale=scale, settings=settings)
    moved = (dense - start).abs().max()
    assert moved > 0.5
    assert (follow_with_table(scale=scale, settings=settings) - dense).abs().max() / moved < tolerance


def test_deferred_step_sums_are_the_sums_that_they_stand_for():
    sums = deferred_step_sums(max_steps=50, betas=(0.8, 0.99))
    c = 0.8 / 0.99**0.5
    for n in (0, 1, 7, 50):
        terms = [c**j * (1 - 0.99 ** (n + j)) ** 0.5 / (1 - 0.8 ** (n + j)) for j in range(1, 600)]
        assert sums[n].item() == pytest.approx(sum(terms), rel=1e-12)


def short_table(*, reads=0):
    """A LatentTable after 50 steps, read by others in between."""
    table = LatentTable(size=ROWS, latent_dim=LATENT_DIM, max_steps=50, **SETTINGS)
    for rows, _ in visits(50):
        for _ in range(reads):
            table.current()
        q = table.posterior(rows)
        (q.mean.square() + q.mean + q.scale).sum().backward()
        table.step()
    return table


def test_reading_the_table_changes_nothing_and_gives_rows_in_the_order_of_asking():
    """Whether and how often it is read, the path is the same to the bit."""
    mean, log_var = short_table().current()
    assert all(map(torch.equal, (mean, log_var), short_table(reads=2).current()))
    table = LatentTable(size=ROWS, latent_dim=LATENT_DIM, max_steps=1)
    table.load_parameters(mean, log_var)
    q = table.posterior(torch.tensor([7, 110, 3]))
    assert torch.equal(q.mean, mean[[7, 110, 3]])
    torch.testing.assert_close(2 * q.scale.log(), log_var[[7, 110, 3]])


def test_rows_never_visited_stay_where_they_began():
    table = LatentTable(size=4, latent_dim=2, max_steps=20, **SETTINGS)
    before = table.rows[:, 0].clone()
    for _ in range(20):
        (table.posterior(torch.tensor([1, 2])).mean - 1).square().sum().backward()
        table.step()
    after = torch.cat(table.current(), dim=1)
    assert torch.equal(after[[0, 3]], before[[0, 3]])
    assert (after[[1, 2], :2] > 0.1).all()
