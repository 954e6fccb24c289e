"""log p(x) of models with one or two latent dimensions, by adaptive quadrature, whatever modes there are."""

import math

import torch

MOST_DIMENSIONS = 2
REACH = 8.0  # half the side of the first square of z; doubled where a posterior reaches its border
DOUBLINGS = {1: 4, 2: 2}
STEPS = {1: 1 / 512, 2: 1 / 10}  # sides of the first cells
BORDER = 20.0  # nats: a border with less than exp(-BORDER) of the mass is far enough
MARGINS = (45.0, 30.0, 25.0, 20.0)  # nats below the whole up to which a cell is divided, level by level
TOLERANCE = 1e-3  # nats
RESOLVED = 8.0  # nats by which neighbors may differ, where most of the mass is, once cells are small enough
MOST_LEVELS = 14
AT_ONCE, POINTS_AT_ONCE = 20_000, 2000  # pictures compared with images; pictures of one image


@torch.no_grad()
def integrate(model, x):
    """log p(x) = log of the integral of N(z; 0, I) p(x|z), and what its error is taken to be, (B,) each, nats.

    x: (B, *image); model: of at most MOST_DIMENSIONS dimensions. By the midpoint rule: on square cells that all images
    share, then, image by image, on cells of half the side wherever there may be mass: where a cell's value plus what
    neighbors differ by is near the whole, since a peak may lie between two centres. It ends when the result changes by
    less than TOLERANCE, and neighbors are alike. For an integrand like a Gaussian the error of the rule is below 1e-8
    once a cell is as wide as its standard deviation. The stated error is TOLERANCE, or how far the type of x resolves
    log p(x), if that is more; infinite, where the result is not finite or not settled.
    """
    model, pending = model.in_precision("float32"), torch.arange(len(x), device=x.device)
    log_prob, error = torch.full((2, len(x)), math.inf, dtype=torch.float64)
    doublings = DOUBLINGS[model.latent_dim]
    for doubling in range(doublings + 1):
        z, values, slopes, at_border = _shared_cells(model, x[pending], REACH * 2**doubling)
        for column, image in enumerate(pending.tolist()):
            if doubling == doublings or not at_border[column]:
                log_prob[image], error[image] = _refine(model, x[image], z, values[:, column], slopes[:, column])
        pending = pending[at_border.to(x.device)]
        if not len(pending):
            break
    error[pending.cpu()] = math.inf
    return log_prob.to(x), error.to(x)


def _shared_cells(model, x, reach):
    """Equal cells of [-reach, reach]^D, on the CPU: centres (M, D), the log of each image's mass, how much that of
    neighbors differs, (M, B) each, and whether an image has mass at the border, (B,).
    """
    step, dimensions = STEPS[model.latent_dim], model.latent_dim
    axis = torch.arange(-reach + step / 2, reach, step, dtype=x.dtype, device=x.device)
    z = torch.cartesian_prod(*[axis] * dimensions).reshape(-1, dimensions)
    values = _log_masses(model, x, z, step, max(1, AT_ONCE // len(x)))
    grid = values.view(*[len(axis)] * dimensions, len(x))
    slopes = torch.zeros_like(grid)
    for dimension in range(dimensions):
        first, last = (grid.narrow(dimension, place, 1) for place in (0, len(axis) - 1))
        steps = grid.diff(dim=dimension, prepend=first, append=last).abs().nan_to_num(0)  # between cells of mass 0: 0
        slopes += torch.maximum(*(steps.narrow(dimension, side, len(axis)) for side in (0, 1)))
    z = z.cpu()
    border = values[z.abs().amax(1) > reach - step].logsumexp(0)
    at_border = (border >= values.logsumexp(0) - BORDER) & values.isfinite().any(0)
    return z, values, slopes.view_as(values), at_border


def _log_masses(model, x, z, step, at_once):
    """The log of the masses (M, B) of cells with centres z (M, D) and this side; those that are no number are none."""
    blocks = [model.log_joint(x, block.unsqueeze(1).to(x)).cpu() for block in z.split(at_once)]
    values = torch.cat(blocks).double() + z.shape[1] * math.log(step)
    return values.nan_to_num(-math.inf, posinf=math.inf, neginf=-math.inf)


def _refine(model, image, z, values, slopes):
    """(log p(x), the error) of one image, from its cells: centres (M, D), log-masses and slopes (M,)."""
    dimensions, step = model.latent_dim, STEPS[model.latent_dim]
    corners = torch.cartesian_prod(*[torch.tensor([-0.25, 0.25])] * dimensions).reshape(-1, dimensions).to(z)
    settled, total = torch.tensor(-math.inf, dtype=torch.float64), values.logsumexp(0)
    for level in range(MOST_LEVELS):
        active = values + slopes.clamp(max=1e6) > total - MARGINS[min(level, len(MARGINS) - 1)]
        if not active.any():
            break
        settled = torch.logaddexp(settled, values[~active].logsumexp(0))
        z, step = (z[active].unsqueeze(1) + step * corners).reshape(-1, dimensions), step / 2
        values = _log_masses(model, image.unsqueeze(0), z, step, POINTS_AT_ONCE)[:, 0]
        siblings = values.view(-1, 2**dimensions)
        between = (siblings.amax(1) - siblings.amin(1)).nan_to_num(0)
        slopes = torch.maximum(between, 0.5 * slopes[active]).repeat_interleave(2**dimensions)
        before, total = total, torch.logaddexp(settled, values.logsumexp(0))
        resolved = (between.repeat_interleave(2**dimensions)[values > values.max() - 2] < RESOLVED).all()
        if resolved and abs(total - before) < TOLERANCE:
            return float(total), max(TOLERANCE, torch.finfo(image.dtype).eps * abs(float(total)))
    return float(total), math.inf
