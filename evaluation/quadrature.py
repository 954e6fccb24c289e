"""log p(x) of models with one or two latent dimensions, by adaptive quadrature: exact, whatever modes there are."""

import math

import torch

MOST_DIMENSIONS = 2
REACH, FARTHEST = 8.0, 128.0  # half the side of the square of z: at first, and where posteriors reach its border
STEPS = {1: 1 / 512, 2: 1 / 10}  # sides of the first cells
BORDER = 20.0  # nats: a border with less than exp(-BORDER) of the mass is far enough
MARGINS = (60.0, 45.0, 30.0, 25.0, 20.0)  # nats below the whole up to which a cell is divided, level by level
TOLERANCE = 1e-3  # nats
MOST_LEVELS = 12
AT_ONCE = 20_000  # pictures compared with images


@torch.no_grad()
def integrate(model, x):
    """log p(x) = log of the integral of N(z; 0, I) p(x|z), and a bound on its error, (B,) each, nats.

    x: (B, *image); model: a LatentVariableModel of at most MOST_DIMENSIONS dimensions. By the midpoint rule: on square
    cells that all images share, then, image by image, on cells of half the side wherever there is mass, until the
    result changes by less than TOLERANCE. For an integrand like a Gaussian the error of the rule is below 1e-8 once a
    cell is as wide as its standard deviation. The stated error is the last change, but at least TOLERANCE: the networks
    compute in float32.
    """
    model, reach = model.in_precision("float32"), REACH
    while True:
        z, values = _shared_cells(model, x, reach)
        total = values.logsumexp(0)
        border = values[(z.abs().amax(1) > reach - STEPS[model.latent_dim])].logsumexp(0)
        if (border < total - BORDER).all() or reach >= FARTHEST:
            break
        reach *= 2
    found = [_refine(model, image, z, own, STEPS[model.latent_dim]) for image, own in zip(x, values.T, strict=True)]
    log_prob, error = (torch.tensor(values, dtype=torch.float64) for values in zip(*found, strict=True))
    return log_prob.to(x), error.to(x)


def _shared_cells(model, x, reach):
    """Centres (M, D) of equal cells of [-reach, reach]^D, and the log of each image's mass in them, (M, B), float64."""
    step, dimensions = STEPS[model.latent_dim], model.latent_dim
    axis = torch.arange(-reach + step / 2, reach, step, dtype=x.dtype, device=x.device)
    z = torch.cartesian_prod(*[axis] * dimensions).reshape(-1, dimensions)
    parts = [model.log_joint(x, part.unsqueeze(1)).cpu() for part in z.split(max(1, AT_ONCE // len(x)))]
    return z.cpu(), torch.cat(parts).double() + dimensions * math.log(step)


def _refine(model, image, z, values, step):
    """(log p(x), its last change) of one image, from the centres (M, D) of its cells and their log-masses (M,)."""
    dimensions, device = model.latent_dim, image.device
    corners = torch.cartesian_prod(*[torch.tensor([-0.25, 0.25])] * dimensions).reshape(-1, dimensions)
    settled, total = torch.tensor(-math.inf, dtype=torch.float64), values.logsumexp(0)
    for level in range(MOST_LEVELS):
        active = values > total - MARGINS[min(level, len(MARGINS) - 1)]
        settled = torch.logaddexp(settled, values[~active].logsumexp(0))
        z = (z[active].unsqueeze(1) + step * corners.to(z)).reshape(-1, dimensions)
        step /= 2
        parts = [model.log_joint(image.unsqueeze(0), part.unsqueeze(1).to(device)) for part in z.split(AT_ONCE // 10)]
        values = torch.cat(parts)[:, 0].cpu().double() + dimensions * math.log(step)
        before, total = total, torch.logaddexp(settled, values.logsumexp(0))
        if level and abs(total - before) < TOLERANCE:
            break
    return float(total), max(TOLERANCE, float(abs(total - before)))
