"""q* and q*full, the best diagonal and the best full Gaussian of any image, decoder frozen (Cremer et al. 2018)."""

import math
import threading
import warnings
from typing import NamedTuple

import torch
from torch.distributions import MultivariateNormal

from vae_utils import GaussianPosterior, check_counts, check_inputs, elbo, random_generator

SCORED_PAIRS, SCORED_PAIRS_FULL = 8, 32  # antithetic pairs of samples for which two q are compared
DIFFERENCE = 0.01  # of z, to either side, where a decoder cannot be differentiated forward
FIT_STEPS = 300  # of shorter cycles, which gain less at a time, the tolerance is lower in proportion
FORWARD_DIFFERENTIATION = threading.Lock()  # PyTorch's has one level for all threads
SCORED_AT_ONCE = 500  # samples of z that are decoded at once when q are compared
# With so few dimensions an image may have several modes; a fit also begins at the best of so many draws of the prior.
FEW_DIMENSIONS, PRIOR_DRAWS, SEARCH_STEPS = 10, 1000, 100

unpack = GaussianPosterior.from_parameters


class Fit(NamedTuple):
    """A q of images, and the cost of finding it."""

    q: GaussianPosterior
    trace: torch.Tensor  # (cycles + 1, B): the bound of the best q after each cycle, biased upwards by the selection
    converged: torch.Tensor  # (B,) bool
    gradients: torch.Tensor  # (B,): evaluations of the gradient of an image's bound

    @classmethod
    def given(cls, q, gradients=0):
        """The Fit, without a trace, of a q that took so many gradients: none if it is an encoder's."""
        counts = torch.full((len(q),), gradients, device=q.mean.device)
        return cls(q, torch.empty(0, len(q)), torch.ones_like(counts, dtype=torch.bool), counts)


class PosteriorFit:
    """The q of images during its optimization: gradient ascent on the bound, decoder frozen."""

    def __init__(self, q):
        """q: where to start, (B, D); diagonal, or with a factor, whose rank stays."""
        self.rank = 0 if q.factor is None else q.factor.shape[-1]
        self.parameters = q.parameters().detach().requires_grad_()
        self.optimizer = torch.optim.Adam([self.parameters])

    def q(self):
        """The q as it is now, (B, D)."""
        return unpack(self.parameters, self.rank)

    @torch.enable_grad()
    def run(self, model, x, *, noise, learning_rates, rows=slice(None)):
        """One step of Adam for each learning rate, with standard normal noise (steps, B, D), for the images at `rows`.

        Returns the mean of the parameters over the steps, (B, (2 + rank) D).
        """
        total = torch.zeros_like(self.parameters)
        for learning_rate, step_noise in zip(learning_rates, noise, strict=True):
            self.optimizer.param_groups[0]["lr"] = learning_rate
            loss = -elbo(model, x, self.q()[rows], step_noise).elbo.sum()
            # torch.autograd.grad, unlike backward, does not compute the gradients of the decoder's weights.
            (self.parameters.grad,) = torch.autograd.grad(loss, self.parameters)
            self.optimizer.step()
            total += self.parameters.detach()
        return (total / len(learning_rates))[rows]

    def state_dict(self):
        return {"parameters": self.parameters.detach(), "adam": self.optimizer.state_dict()}

    def load_state_dict(self, state):
        with torch.no_grad():
            self.parameters.copy_(state["parameters"])
        self.optimizer.load_state_dict(state["adam"])


def cosine(first, last, steps):
    """Learning rates that fall from `first` to `last` along a cosine."""
    return [last + (first - last) * (0.5 + 0.5 * math.cos(math.pi * step / steps)) for step in range(steps)]


def balanced_noise(count, q, *, noise):
    """Standard normal draws (count, B, D), count > D, whose mean is 0 and whose second moment is I for every image.

    Moments are matched by a linear map (Barraquand 1995): the mean over the draws of what is quadratic in z, hence of
    the gradient of a quadratic log p(x, z), is exact. All images share one set of draws; each has it in an order of its
    own, its dimensions in another order and with other signs.
    """
    images, latent_dim = q.mean.shape
    draws = torch.randn(count, latent_dim, generator=random_generator(0, "balanced noise"), dtype=torch.float64)
    draws = math.sqrt(count) * torch.linalg.qr(draws - draws.mean(0)).Q
    order = noise.uniform((count, images), like=q.mean).argsort(0)
    dimensions = noise.uniform((1, images, latent_dim), like=q.mean).argsort(-1)
    signs = (noise.uniform((1, images, latent_dim), like=q.mean) - 0.5).sign()
    draws = draws.to(q.mean.dtype).to(q.mean.device)[order]  # (count, B, D)
    return draws.gather(2, dimensions.expand(count, -1, -1)) * signs


def fit_posterior(model, x, q, *, noise=None, covariance="diagonal", **options):
    """The Gaussian that maximizes the bound of each image, the decoder frozen (Cremer et al. 2018): a Fit.

    x: (B, *image); q: where to start, (B, D), see `better_start`. covariance: "diagonal", for q*; "low rank", for the
    best q with a factor of the rank of q's; or "full", for q*full, which starts best from q*, or goes on from a full q.
    options: of `fit_diagonal`, for the first two, or `fit_full`; they say when an image converges and is left alone.
    q is selected on few samples: evaluate it with fresh ones. Raises ValueError if x, q and the model do not fit.
    """
    check_inputs(model, x, q, noise, "fit_posterior")
    if torch.is_inference_mode_enabled():
        raise ValueError("fit_posterior needs gradients: torch.no_grad() in place of torch.inference_mode()")
    check_counts(**{name: value for name, value in options.items() if name in ("fit_steps", "max_cycles", "pairs")})
    if wrong := [f"{name} {value}" for name, value in options.items() if not value > 0]:
        raise ValueError(f"{wrong[0]}: not above 0")
    if covariance not in ("diagonal", "low rank", "full"):
        raise ValueError(f"covariance {covariance!r}: diagonal, low rank or full")
    if q.is_full and covariance == "low rank":
        raise ValueError("covariance 'low rank': starts from a q with a factor, not from a full one")
    if covariance == "full":
        return fit_full(model, x, q if q.is_full else q.diagonal(), noise=noise, **options)
    q = q if covariance == "low rank" else q.diagonal()
    if model.latent_dim > FEW_DIMENSIONS:
        return fit_diagonal(model, x, q, noise=noise, **options)
    fit = fit_diagonal(model, x, better_start(model, x, q, noise=noise), noise=noise, **options)
    return fit._replace(gradients=fit.gradients + 2 * SEARCH_STEPS)


@torch.no_grad()
def better_start(model, x, q, *, noise):
    """The q (B, D), not full, but of images where it lies at a worse mode the end of a short fit from elsewhere.

    It starts where p(x, z) is highest of PRIOR_DRAWS draws of the prior, and is compared with as short a fit from q.
    """
    generator = random_generator(0, "draws of the prior")
    z = torch.randn(PRIOR_DRAWS, model.latent_dim, generator=generator, dtype=x.dtype).to(x.device)
    heights = [model.log_joint(x, part.unsqueeze(1)) for part in z.split(max(1, SCORED_AT_ONCE // len(x)))]
    best = torch.cat(heights).nan_to_num(-math.inf).argmax(0)
    fits = [PosteriorFit(q), PosteriorFit(GaussianPosterior(z[best], q.scale, q.factor))]
    for fit in fits:
        draws = noise.normal((SEARCH_STEPS, *q.mean.shape), like=x)
        fit.run(model, x, noise=draws, learning_rates=cosine(0.1, 0.02, SEARCH_STEPS))
    here, there = bounds(model, x, [fit.q() for fit in fits], noise).nan_to_num(-math.inf)
    is_better = (there > here + 1).unsqueeze(-1)  # by a nat: not by chance
    return unpack(torch.where(is_better, fits[1].q().parameters(), q.parameters()), fits[0].rank)


@torch.no_grad()
def fit_diagonal(
    model, x, q, *, noise, learning_rate=0.1, averaged_rate=0.02, fit_steps=FIT_STEPS, tolerance=0.4, max_cycles=20
):
    """See `fit_posterior`. Adam takes `fit_steps` steps, whose rate falls from `learning_rate` to `averaged_rate`.

    Cycles at that rate follow, whose iterates are averaged (Polyak & Juditsky 1992); each passes once over a set of
    `balanced_noise`, which cancels most of the gradients' noise. Of the average over the last two cycles and the best q
    so far an image keeps the better, on shared noise; it has converged when they differ by less than `tolerance` nats,
    in shorter cycles than the default's by less in proportion.
    """
    fit, best = PosteriorFit(q), q.parameters().detach()
    images, latent_dim = q.mean.shape
    # Adam at a falling rate
    balanced = balanced_noise(max(fit_steps, latent_dim + 1), q, noise=noise)[:fit_steps]
    previous = fit.run(model, x, noise=balanced, learning_rates=cosine(learning_rate, averaged_rate, fit_steps))
    trace = [bounds(model, x, [unpack(best, fit.rank)], noise)[0]]
    rows = torch.arange(images, device=x.device)  # that have not converged
    gradients = torch.full_like(rows, fit_steps)
    converged = torch.zeros_like(rows, dtype=torch.bool)
    cycle = max(2 * fit_steps // 3, latent_dim + 1)
    tolerance *= min(1, cycle / (2 * FIT_STEPS // 3))
    for number in range(max_cycles):
        # A cycle at a constant rate, averaged
        part, part_noise = x[rows], noise[rows]
        balanced = balanced_noise(cycle, q[rows], noise=part_noise)
        average = fit.run(model, part, noise=balanced, learning_rates=[averaged_rate] * cycle, rows=rows)
        candidate = (average + previous[rows]) / 2 if number else average
        previous[rows] = average
        # Keep the better q
        both = [unpack(parameters, fit.rank) for parameters in (best[rows], candidate)]
        before, after = bounds(model, part, both, part_noise)
        gain = after - before
        best[rows] = torch.where((gain > 0).unsqueeze(-1), candidate, best[rows])
        trace.append(trace[-1].index_add(0, rows, gain.clamp(min=0)))
        gradients[rows] += cycle
        # Stop the images that have converged
        if number:
            converged[rows] = gain.abs() < tolerance
            rows = rows[gain.abs() >= tolerance]
        if not len(rows):
            break
    return Fit(unpack(best, fit.rank), torch.stack(trace), converged, gradients)


@torch.no_grad()
def fit_full(
    model, x, q, *, noise, fit_steps=FIT_STEPS, pairs=8, rate=0.05, longest_step=0.3, tolerance=0.5, max_cycles=4
):
    """See `fit_posterior`. Gradients are in the model's precision, q is chosen in float32 or the type of x.

    An image starts at the better of two: its diagonal q, or the Gauss-Newton posterior around that. Cycles of
    fit_steps / 2 natural gradient steps (Amari 1998) follow. With z = m + L e, e ~ N(0, I), and the path gradient
    u = L' grad_z (log p(x, z) - log q(z)) (Roeder et al. 2017), whose noise vanishes where q is the posterior,

        m <- m + rate L E[u],    L <- L + rate L (lower triangle of E[u e'], its diagonal halved),

    each no longer than `longest_step`, in units of q itself; expectations are over antithetic pairs, and the rate falls
    along a cosine. The last third of the iterates is averaged. On shared noise the better of this q and the best so far
    is kept; an image has converged when the averages of the last two thirds differ by less than `tolerance` nats, in
    shorter cycles than the default's by less in proportion.
    """
    exact, best = model.in_precision("float32"), GaussianPosterior(q.mean.clone(), q.scale.clone())
    tolerance *= min(1, fit_steps / FIT_STEPS)
    if q.is_diagonal:
        best.scale, start = torch.diag_embed(q.scale), gauss_newton_posterior(model, x, q, noise=noise, draws=2)
        of_diagonal, of_start = bounds(exact, x, [best, start], noise, SCORED_PAIRS_FULL)
        best.scale[of_start > of_diagonal] = start.scale[of_start > of_diagonal]
    third = max(1, fit_steps // 6)
    steps, rows = 3 * third, torch.arange(len(x), device=x.device)
    trace = [bounds(exact, x, [best], noise, SCORED_PAIRS_FULL)[0]]
    gradients, converged = torch.zeros_like(rows), torch.zeros_like(rows, dtype=torch.bool)
    for _ in range(max_cycles):
        part, part_noise, mean, scale = x[rows], noise[rows], best.mean[rows], best.scale[rows]
        averages = [GaussianPosterior(torch.zeros_like(mean), torch.zeros_like(scale)) for _ in range(2)]
        for step, step_rate in enumerate(cosine(rate, 0, steps)):
            # Path gradients in whitened coordinates
            e = part_noise.normal((pairs, *mean.shape), like=x)
            e = torch.cat((e, -e))
            z = (mean + torch.einsum("bij,kbj->kbi", scale, e)).requires_grad_()
            with torch.enable_grad():
                (slope,) = torch.autograd.grad(model.log_joint(part, z).sum(), z)
            u = torch.einsum("bji,kbj->kbi", scale, slope) + e
            # A natural gradient step
            shift, stretch = step_rate * u.mean(0), step_rate * torch.einsum("kbi,kbj->bij", u, e).tril() / len(e)
            stretch.diagonal(dim1=1, dim2=2).mul_(0.5)
            shift *= (longest_step / shift.norm(dim=1, keepdim=True)).clamp(max=1)
            stretch *= (longest_step / stretch.norm(dim=(1, 2), keepdim=True)).clamp(max=1)
            mean, scale = mean + torch.einsum("bij,bj->bi", scale, shift), scale + scale @ stretch
            if (number := (step - steps) // third + 2) >= 0:
                averages[number].mean.add_(mean, alpha=1 / third)
                averages[number].scale.add_(scale, alpha=1 / third)
        # Keep the better q, and stop the images that have converged
        before, middle, last = bounds(exact, part, [best[rows], *averages], part_noise, SCORED_PAIRS_FULL)
        is_better = last > before  # never where the steps have diverged
        better, taken = rows[is_better], averages[1][is_better]
        best.mean[better], best.scale[better] = taken.mean, taken.scale
        trace.append(trace[-1].index_add(0, better, (last - before)[is_better]))
        gradients[rows] += 2 * pairs * steps
        converged[rows] = (last - middle).abs() < tolerance
        rows = rows[~converged[rows]]
        if not len(rows):
            break
    return Fit(best, torch.stack(trace), converged, gradients)


@torch.no_grad()
def bounds(model, x, candidates, noise, pairs=SCORED_PAIRS):
    """The bound of each candidate, a GaussianPosterior (B, D), at the same antithetic noise: (candidates, B)."""
    total = torch.zeros(len(candidates), len(x), dtype=x.dtype, device=x.device)
    draws = noise.normal((pairs, *candidates[0].mean.shape), like=x)
    for part in torch.cat((draws, -draws)).split(max(1, SCORED_AT_ONCE // len(x))):
        for number, q in enumerate(candidates):
            total[number] += len(part) * elbo(model, x, q, part).elbo
    return total / (2 * pairs)


@torch.no_grad()
def gauss_newton_posterior(model, x, q, *, noise=None, draws=4, images=5):
    """The full q with the mean of a diagonal q and the precision I + E_q[J' C J], J the decoder's Jacobian at z.

    C is the likelihood's curvature. This is the fixed point of variational inference with a full covariance, without
    the decoder's own curvature (Khan & Rue 2023); it is exact for a linear decoder with a Gaussian likelihood. The
    expectation is over `draws` of z, for `images` at a time. Raises ValueError if x, q and the model do not fit.
    """
    check_inputs(model, x, q, noise, "gauss_newton_posterior")
    check_counts(draws=draws, images=images)
    precision = torch.eye(q.mean.shape[-1], dtype=x.dtype, device=x.device).repeat(len(x), 1, 1)  # (B, D, D)
    for z in q.rsample(noise.normal((draws, *q.mean.shape), like=x)):
        for rows in torch.arange(len(x), device=x.device).split(images):
            slopes, output = decoder_jacobian(model, z[rows])
            weighted = model.likelihood.curvature(output).flatten(1).unsqueeze(-1) * slopes
            precision[rows] += weighted.mT @ slopes / draws
    best = MultivariateNormal(q.mean, precision_matrix=precision, validate_args=False)
    return GaussianPosterior(q.mean, best.scale_tril)


def decoder_jacobian(model, z):
    """The slopes of the decoder's outputs at z (B, D), (B, P, D), and the outputs, (B, *output)."""

    def output_twice(z):
        output = model.decode(z)
        return output.flatten(), output

    try:
        with FORWARD_DIFFERENTIATION, warnings.catch_warnings():
            # PyTorch's own code gives this warning at the first forward differentiation.
            warnings.filterwarnings("ignore", message=".*torch.jit.script. is deprecated")
            return torch.func.vmap(torch.func.jacfwd(output_twice, has_aux=True), chunk_size=len(z))(z)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError:  # of layers without forward differentiation, as nn.LSTM, and of changes in place
        steps, exact = DIFFERENCE * torch.eye(z.shape[-1]).to(z), model.in_precision("float32")
        above, below = (exact.decode(z.unsqueeze(1) + step).flatten(2) for step in (steps, -steps))  # (B, D, P)
        return (above - below).mT / (2 * DIFFERENCE), exact.decode(z)
