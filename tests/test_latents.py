"""The table against torch.optim.Adam on all of it, and fitted posteriors against the closed form."""

import pytest
import torch
from conftest import linear_gaussian
from torch.distributions import Normal

import latent_optimization
from latent_optimization import fit_posterior, initial_posterior
from latent_table import LatentTable, idle_sums
from vae_utils import random_generator

ROWS, LATENT_DIM, BATCH, STEPS = 120, 3, 10, 500


def follow(*, scale, steps=STEPS):
    """A LatentTable and dense Adam through the same random visits: both final tables and the dense one's start.

    The gradients, of the given scale, are functions of the row's present value, so that an error would feed back.
    """
    generator = torch.Generator().manual_seed(0)
    table = LatentTable(size=ROWS, latent_dim=LATENT_DIM, max_steps=steps)
    dense = torch.cat(table.parameters(), dim=1).double().requires_grad_()
    start = dense.detach().clone()
    adam = torch.optim.Adam([dense], lr=table.learning_rate)
    target = 3 * torch.randn(ROWS, 2 * LATENT_DIM, generator=generator)
    for _ in range(steps):
        index = torch.randperm(ROWS, generator=generator)[:BATCH]
        noise = torch.randn(BATCH, 2 * LATENT_DIM, generator=generator)
        q = table.posterior(None, index)
        value = torch.cat((q.mean, 2 * q.stddev.log()), dim=1)
        (scale * (0.5 * (value - target[index]).square() + noise * value)).sum().backward()
        table.step()
        dense.grad = torch.zeros_like(dense)
        dense.grad[index] = scale * (dense.detach()[index] - target[index] + noise)
        adam.step()
    return torch.cat(table.parameters(), dim=1).double(), dense.detach(), start


@pytest.mark.parametrize(
    ("scale", "tolerance"),
    [(10, 1e-4), (0.1, 1e-4), (0.001, 1e-4), (1e-5, 1e-3)],  # the last is within three powers of ten of eps
)
def test_the_table_follows_dense_adam(scale, tolerance):
    table, dense, start = follow(scale=scale)
    moved = (dense - start).abs().max()
    assert moved > 0.5
    assert ((table - dense).abs().max() / moved).item() < tolerance


def test_sparse_adam_would_not_pass():
    """The comparison can tell the two algorithms apart: without idle movement a row is far off."""
    _, dense, start = follow(scale=1)
    generator = torch.Generator().manual_seed(0)
    weight = start.float().clone().requires_grad_()
    sparse = torch.optim.SparseAdam([weight], lr=0.01)
    target = 3 * torch.randn(ROWS, 2 * LATENT_DIM, generator=generator)
    for _ in range(STEPS):
        index = torch.randperm(ROWS, generator=generator)[:BATCH]
        noise = torch.randn(BATCH, 2 * LATENT_DIM, generator=generator)
        gradient = weight.detach()[index] - target[index] + noise
        weight.grad = torch.sparse_coo_tensor(index.unsqueeze(0), gradient, weight.shape, check_invariants=True)
        sparse.step()
    assert ((weight.detach() - dense).abs().max() / (dense - start).abs().max()).item() > 0.1


def test_idle_sums_are_the_sums_that_they_stand_for():
    sums = idle_sums(max_steps=50)
    c = 0.9 / 0.999**0.5
    for n in (0, 1, 7, 50):
        terms = [c**j * (1 - 0.999 ** (n + j)) ** 0.5 / (1 - 0.9 ** (n + j)) for j in range(1, 600)]
        assert sums[n].item() == pytest.approx(sum(terms), rel=1e-12)


def test_reading_the_table_changes_nothing():
    """Whether and how often it is read, the path is the same to the bit."""
    tables = []
    for reads in (0, 2):
        generator = torch.Generator().manual_seed(0)
        table = LatentTable(size=ROWS, latent_dim=LATENT_DIM, max_steps=50)
        for _ in range(50):
            for _ in range(reads):
                table.parameters()
            q = table.posterior(None, torch.randperm(ROWS, generator=generator)[:BATCH])
            (q.mean.square() + q.stddev).sum().backward()
            table.step()
        tables.append(table.parameters())
    assert all(torch.equal(one, other) for one, other in zip(*tables, strict=True))


def test_rows_never_visited_stay_where_they_began():
    table = LatentTable(size=4, latent_dim=2, max_steps=20)
    before = [part.clone() for part in table.parameters()]
    for _ in range(20):
        q = table.posterior(None, torch.tensor([1, 2]))
        (q.mean - 1).square().sum().backward()
        table.step()
    mean, log_var = table.parameters()
    assert torch.equal(mean[[0, 3]], before[0][[0, 3]])
    assert torch.equal(log_var[[0, 3]], before[1][[0, 3]])
    assert (mean[[1, 2]] > 0.1).all()


@pytest.mark.parametrize("latent_dim", [2, 20])
def test_fit_finds_the_best_diagonal_normal(latent_dim):
    model = linear_gaussian(pixels=30, latent_dim=latent_dim)
    generator = random_generator(0)
    x = model.sample(10, generator)
    best, bound = model.best_diagonal(x)
    assert torch.allclose(model.elbo(best, x), bound)
    start = initial_posterior(count=10, latent_dim=latent_dim)
    fit = fit_posterior(
        x=x,
        decode=model.decode,
        initial=Normal(start.mean.double(), start.stddev.double()),
        generator=generator,
        sigma_p=model.sigma_p,
        learning_rate=0.03,
        cycle=1000,
        tolerance=0.001,
    )
    assert fit.converged
    gap = bound - model.elbo(fit.q, x)
    assert (gap > 0).all()
    assert (gap < 0.01 * latent_dim).all()


def test_fit_says_when_it_has_not_converged():
    model = linear_gaussian(pixels=30, latent_dim=4)
    x = model.sample(3, random_generator(0)).float()
    model = model._replace(weight=model.weight.float(), bias=model.bias.float())
    fit = fit_posterior(
        x=x,
        decode=model.decode,
        initial=initial_posterior(count=3, latent_dim=4),
        generator=random_generator(0),
        sigma_p=model.sigma_p,
        cycle=5,
        max_cycles=1,
    )
    assert not fit.converged
    assert fit.trace.shape == (2, 3)
    assert (fit.trace[1] > fit.trace[0]).all()


def test_a_fits_trace_is_the_bound_however_many_samples_are_taken_at_once(monkeypatch):
    model = linear_gaussian(pixels=30, latent_dim=4)
    x = model.sample(3, random_generator(0))
    traces = []
    for at_once in (500, 15):  # all 16 draws together; five, and one that is left
        monkeypatch.setattr(latent_optimization, "SCORED_AT_ONCE", at_once)
        start = Normal(torch.zeros(3, 4, dtype=torch.float64), torch.full((3, 4), 0.1, dtype=torch.float64))
        case = {"decode": model.decode, "generator": random_generator(1), "sigma_p": model.sigma_p}
        fit = fit_posterior(x=x, initial=start, **case)
        traces.append(fit.trace)
    torch.testing.assert_close(traces[0], traces[1])
    torch.testing.assert_close(traces[0][0], model.elbo(start, x), rtol=0.02, atol=0)
    torch.testing.assert_close(traces[0][-1], model.elbo(fit.q, x), rtol=0, atol=1.5)
