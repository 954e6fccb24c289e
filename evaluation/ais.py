"""log p(x) by annealed importance sampling (AIS), and bounds on it by bidirectional Monte Carlo (BDMC).

The chains work in the whitened coordinates e of q, z = mean + scale * e: there q is N(0, I), and with the log-weight
l(e) = log p(x, z) - log q(z) the path from q to the posterior is

    pi_beta(e) ~ N(e; 0, I) exp(beta l(e)),    beta from 0 to 1,

so q's scale preconditions the Hamiltonian transitions. A posterior is correlated: with the full covariance of
`gauss_newton_posterior`, few temperatures are enough. Shapes: K chains, B images, D latent dimensions.

Gradients are in the model's precision, values in float32 or the type of x: a gradient of low precision lowers the
acceptance, but leaves the estimate correct.
"""

import math
import warnings
from typing import NamedTuple

import numpy as np
import torch
from torch.distributions import MultivariateNormal

from vae_utils import check_inputs, log_weight, reparameterize, select, whiten

PILOT_CHAINS = 4
PILOT_SHARE = 8  # temperatures of the weighted run for each one of the pilot run
TARGET_ACCEPTANCE = 0.65
LONGEST_PATH = math.pi / 2  # a quarter turn: on N(0, I) it ends at a draw that is independent of the start
JITTER = 0.2  # the share by which the length of a path varies: at a fixed length some directions would be periodic


class AISEstimate(NamedTuple):
    """What annealing finds for each image, (B,) each, in nats; the acceptance is a share."""

    log_prob: torch.Tensor
    standard_error: torch.Tensor  # of log_prob, over the chains, to first order; NaN for one chain
    log_weight_std: torch.Tensor  # standard deviation of the log-weights over the chains
    acceptance: torch.Tensor  # mean over transitions and chains
    log_weights: torch.Tensor  # (K, B)


class Bounds(NamedTuple):
    """Bounds on log p(x), each in expectation, (B,) each, nats."""

    lower: torch.Tensor
    upper: torch.Tensor


class Schedule(NamedTuple):
    """What a pilot run fixes for the weighted run."""

    betas: list  # from 0 to 1
    step_sizes: torch.Tensor  # (temperatures + 1, B)
    leapfrog_steps: int  # of every transition


class ChainState(NamedTuple):
    """The positions of chains, with the log-weight and its gradient there."""

    noise: torch.Tensor  # (K, B, D): e
    log_weight: torch.Tensor  # (K, B): l(e)
    gradient: torch.Tensor  # (K, B, D): of l with respect to e


class AISTarget:
    """l(e) of some images in full precision, and its gradient in the model's precision."""

    def __init__(self, model, x, q):
        self.model, self.x, self.q = model, x, q
        self.full_precision = model.in_precision("float32")

    def draw(self, chains, generator):
        """e of `chains` draws from q, (K, B, D)."""
        mean = self.q.mean
        return torch.randn((chains, *mean.shape), generator=generator, dtype=mean.dtype, device=mean.device)

    def gradient(self, noise):
        """(l(e), its gradient): (K, B) and (K, B, D). With respect to e alone, not to the decoder's weights."""
        noise = noise.detach().requires_grad_()
        with torch.enable_grad():
            values = log_weight(self.model, self.x, self.q, noise)
            (gradient,) = torch.autograd.grad(values.sum(), noise)
        return values.detach(), gradient

    @torch.no_grad()
    def value(self, noise):
        """l(e), (K, B)."""
        return log_weight(self.full_precision, self.x, self.q, noise)

    def value_and_gradient(self, noise):
        """(l(e) in full precision, its gradient): (K, B) and (K, B, D)."""
        values, gradient = self.gradient(noise)
        return (values if self.model.precision == "float32" else self.value(noise)), gradient


def hmc_step(state, target, beta, step_size, leapfrog_steps, *, generator):
    """One Hamiltonian transition that leaves pi_beta invariant (Neal 2011). Returns (ChainState, acceptance (K, B)).

    The Gaussian part of pi_beta is followed exactly, by rotating (e, momentum) by the angle `step_size` (B,); beta l(e)
    changes the momentum (Shahbaba et al. 2014). Both maps preserve volume and are reversible for any gradients.
    """
    noise, gradient = state.noise, state.gradient
    momentum = torch.randn(noise.shape, generator=generator, dtype=noise.dtype, device=noise.device)
    draw = torch.rand(step_size.shape, generator=generator, dtype=noise.dtype, device=noise.device)
    step_size = step_size * (1 + JITTER * (2 * draw - 1))
    cos, sin, kick = (part.unsqueeze(-1) for part in (step_size.cos(), step_size.sin(), beta * step_size))  # (B, 1)
    before = _log_density(noise, momentum, beta * state.log_weight)
    momentum = momentum + 0.5 * kick * gradient
    for step in range(1, leapfrog_steps + 1):
        noise, momentum = cos * noise + sin * momentum, cos * momentum - sin * noise
        last = step == leapfrog_steps
        values, gradient = target.value_and_gradient(noise) if last else target.gradient(noise)
        momentum = momentum + (0.5 * kick if last else kick) * gradient
    # A path whose values overflow is refused.
    log_ratio = (_log_density(noise, momentum, beta * values) - before).nan_to_num(nan=-math.inf)
    acceptance = log_ratio.clamp(max=0).exp()  # (K, B)
    uniform = torch.rand(acceptance.shape, generator=generator, dtype=acceptance.dtype, device=acceptance.device)
    accepted = uniform < acceptance
    wide = accepted.unsqueeze(-1)
    noise, gradient = torch.where(wide, noise, state.noise), torch.where(wide, gradient, state.gradient)
    return ChainState(noise, torch.where(accepted, values, state.log_weight), gradient), acceptance


def _log_density(noise, momentum, tempered):
    """log of pi_beta(e) N(momentum; 0, I) up to a constant, (K, B)."""
    return tempered - 0.5 * (noise.square() + momentum.square()).sum(-1)


def adapt_schedule(target, *, temperatures, leapfrog_steps, generator, chains=PILOT_CHAINS):
    """The Schedule of a weighted run, from a pilot run whose chains are then thrown away.

    The pilot run passes fewer, evenly spaced temperatures and adapts the logarithm of every image's step size towards
    an acceptance of TARGET_ACCEPTANCE. Where l(e) varies most over its chains, the temperatures of the weighted run are
    closest. That run's transitions are thus fixed before it begins, and its estimate stays unbiased: a step size that
    depends on the chain's own past would not leave pi_beta invariant.
    """
    pilot = max(1, temperatures // PILOT_SHARE)
    noise = target.draw(chains, generator)
    state = ChainState(noise, *target.value_and_gradient(noise))
    longest = math.log(LONGEST_PATH / leapfrog_steps)
    log_step = torch.full_like(state.log_weight[0], longest)  # (B,)
    deviations, log_steps = [], []
    for temperature in range(1, pilot + 1):
        deviations.append(state.log_weight.std(0).nan_to_num(0, posinf=0).median())
        beta, step_size = temperature / pilot, log_step.exp()
        state, acceptance = hmc_step(state, target, beta, step_size, leapfrog_steps, generator=generator)
        log_step = (log_step + 0.5 * (acceptance.mean(0) - TARGET_ACCEPTANCE)).clamp(max=longest)
        log_steps.append(log_step)
    # The temperatures divide the integral of that deviation over beta into equal parts.
    length = np.cumsum([0.0, *np.maximum(torch.stack(deviations).tolist(), 1e-6)])
    betas = np.interp(np.linspace(0, length[-1], temperatures + 1), length, np.linspace(0, 1, pilot + 1))
    nearest = np.ceil(betas * pilot).astype(int).clip(1) - 1
    return Schedule(betas.tolist(), torch.stack(log_steps).exp()[nearest.tolist()], leapfrog_steps)


def anneal(noise, *, schedule, target, generator, backwards=False):
    """Takes chains from e (K, B, D) along the schedule. Returns their log-weights (K, B) and acceptances (K, B).

    Forwards they start at draws of q, and the mean of exp(w) is p(x) (Neal 2001). Backwards they start at draws of the
    posterior, in the opposite order, and the mean of exp(-w) is 1 / p(x) (Grosse et al. 2015).
    """
    betas = schedule.betas
    state = ChainState(noise, *target.value_and_gradient(noise))
    total, accepted = torch.zeros_like(state.log_weight), []
    intervals = range(1, len(betas))  # interval i lies between betas[i - 1] and betas[i]
    for interval in reversed(intervals) if backwards else intervals:
        total = total + (betas[interval] - betas[interval - 1]) * state.log_weight
        following = interval - 1 if backwards else interval
        if 0 < following < len(betas) - 1:
            beta, step_size = betas[following], schedule.step_sizes[following]
            state, acceptance = hmc_step(state, target, beta, step_size, schedule.leapfrog_steps, generator=generator)
            accepted.append(acceptance)
    return total, torch.stack(accepted).mean(0) if accepted else torch.ones_like(total)


@torch.no_grad()
def gauss_newton_posterior(model, x, q, *, generator, draws=8, images=5):
    """The Gaussian around q's mean whose precision is I + E_q[J' C J], J the decoder's Jacobian at z.

    C is the curvature of -log p(x|z) with respect to the decoder's output, 1 / sigma^2 of a Gaussian. This is the fixed
    point of variational inference with a full covariance, without the decoder's own curvature (Khan & Rue 2023); it is
    exact for a linear decoder with a Gaussian likelihood. q: diagonal Normal (B, D); the expectation is over `draws`
    of z, for `images` at a time. Returns a MultivariateNormal (B, D).
    """
    check_inputs(model, x, q, generator)

    def output_twice(z):
        output = model.decode(z).flatten()
        return output, output

    jacobian = torch.func.vmap(torch.func.jacfwd(output_twice, has_aux=True), chunk_size=images)
    precision = torch.eye(q.mean.shape[-1], dtype=x.dtype, device=x.device).repeat(len(x), 1, 1)  # (B, D, D)
    noise = torch.randn((draws, *q.mean.shape), generator=generator, dtype=x.dtype, device=x.device)
    with warnings.catch_warnings():
        # PyTorch's own code gives this warning at the first forward differentiation.
        warnings.filterwarnings("ignore", message=".*torch.jit.script. is deprecated")
        for z in reparameterize(q, noise):
            for rows in torch.arange(len(x), device=x.device).split(images):
                slopes, output = jacobian(z[rows])  # (images, P, D) and (images, P)
                weighted = model.likelihood.curvature(output).unsqueeze(-1) * slopes
                precision[rows] += weighted.mT @ slopes / draws
    return MultivariateNormal(q.mean, precision_matrix=precision, validate_args=False)


def _weighted_runs(model, x, q, exact, generator, chains, temperatures, leapfrog_steps, chunk):
    """Log-weights of forward chains and of backward chains, and acceptances of the forward ones, (K, B) each.

    exact: draws of the posterior (B, D), at which the backward chains start; None for no backward chains.
    """
    check_inputs(model, x, q, generator)
    forwards, backwards, acceptance = (torch.empty(chains, len(x), dtype=x.dtype, device=x.device) for _ in range(3))
    for rows in torch.arange(len(x), device=x.device).split(max(1, chunk // chains)):
        own = select(q, rows)
        target = AISTarget(model, x[rows], own)
        schedule = adapt_schedule(target, temperatures=temperatures, leapfrog_steps=leapfrog_steps, generator=generator)
        for block in torch.arange(chains, device=x.device).split(chunk):
            at, start = (block[:, None], rows), target.draw(len(block), generator)
            forwards[at], acceptance[at] = anneal(start, schedule=schedule, target=target, generator=generator)
            if exact is not None:
                start = whiten(own, exact[rows]).expand(len(block), -1, -1)
                backwards[at], _ = anneal(start, schedule=schedule, target=target, generator=generator, backwards=True)
    return forwards, backwards, acceptance


def annealed_importance_sampling(model, x, q, *, generator, chains=4, temperatures=140, leapfrog_steps=5, chunk=500):
    """log p(x) by annealed importance sampling from q to the posterior (Neal 2001; Wu et al. 2017).

    x: (B, *image); q: diagonal Normal or MultivariateNormal (B, D). Each chain passes `temperatures` intervals, with a
    transition of `leapfrog_steps` gradients between two of them. At most `chunk` chains are held at once. Returns an
    AISEstimate; its log_prob is a lower bound in expectation, and p(x) is exactly the expectation of exp(log_weights).
    Raises ValueError if x, q and the model do not fit.
    """
    log_w, _, acceptance = _weighted_runs(model, x, q, None, generator, chains, temperatures, leapfrog_steps, chunk)
    log_prob = log_w.logsumexp(0) - math.log(chains)
    standard_error = (log_w - log_prob).exp().std(0) / math.sqrt(chains)
    return AISEstimate(log_prob, standard_error, log_w.std(0), acceptance.mean(0), log_w)


def bidirectional_bounds(model, x, z, q, *, generator, chains=4, temperatures=140, leapfrog_steps=5, chunk=500):
    """Bounds on log p(x) of simulated images, by annealing forwards and backwards (Grosse et al. 2015).

    (x, z) must be draws of the model's own p(x, z), as model.sample gives them: then z (B, D) is a draw of the
    posterior, at which the backward chains start. q may depend on x but not on z. Returns Bounds; the distance between
    them bounds the error of `annealed_importance_sampling` in either direction.
    """
    if z.shape != q.mean.shape:
        raise ValueError(f"z {tuple(z.shape)} and q {tuple(q.mean.shape)} are of different images")
    forwards, backwards, _ = _weighted_runs(model, x, q, z, generator, chains, temperatures, leapfrog_steps, chunk)
    lower = forwards.logsumexp(0) - math.log(chains)
    return Bounds(lower, upper=math.log(chains) - backwards.neg().logsumexp(0))
