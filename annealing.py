"""log p(x) by annealed importance sampling, and a certificate for it by running the annealing backwards.

Everything happens in the coordinates of q, e with z = mean + scale * e: there q is N(0, I), and with the log-weight
l(e) = log p(x, z) - log q(z) the path from q to the posterior is

    pi_beta(e) ~ N(e; 0, I) exp(beta l(e)),    beta from 0 to 1,

so q's scale preconditions the Hamiltonian moves, and one function, `vae_utils.log_weight`, is all that is asked of
the model. q may be diagonal, or have the full covariance that `linearized_posterior` finds around a diagonal one: a
posterior is correlated, and where its axes are q's own, few moves and few temperatures suffice. K counts chains, B
images, D latent dimensions.
"""

import math
import warnings
from typing import NamedTuple

import numpy as np
import torch
from torch.distributions import MultivariateNormal

from training import autocast
from vae_utils import SIGMA_P, from_noise, log_weight, select, to_noise

CHAINS = 4
TEMPERATURES = 140
LEAPFROG_STEPS = 5
LINEARIZATIONS = 8
PILOT_CHAINS = 4
PILOT_SHARE = 8  # as many temperatures in the weighted run as one in the pilot run
TARGET_ACCEPTANCE = 0.65
LONGEST_PATH = math.pi / 2  # a quarter turn: on N(0, I) it ends at a draw that is independent of the start
JITTER = 0.2  # the share by which the length of every path varies: at a fixed one some directions would come back
CHUNK = 500


class Annealed(NamedTuple):
    """What annealing says of each image, (B,) each; nats but for the acceptance, a share."""

    log_prob: torch.Tensor
    standard_error: torch.Tensor  # of log_prob, over the chains, to first order; not a number for one chain
    spread: torch.Tensor  # standard deviation of the log-weights over the chains; not a number for one chain
    acceptance: torch.Tensor  # mean over transitions and chains
    log_weights: torch.Tensor  # (K, B)


class Bounds(NamedTuple):
    """Bounds on log p(x), each in expectation, (B,) each, nats."""

    lower: torch.Tensor
    upper: torch.Tensor


class Schedule(NamedTuple):
    """What a pilot run settles for the weighted run."""

    betas: list  # from 0 to 1
    step_sizes: torch.Tensor  # (temperatures + 1, B)


class State(NamedTuple):
    """Where chains are, with the log-weight and its gradient there."""

    noise: torch.Tensor  # (K, B, D): e
    log_weight: torch.Tensor  # (K, B): l(e)
    gradient: torch.Tensor  # (K, B, D): of l with respect to e


class Target:
    """l(e) of some images, in the type of x, and its gradient, in `precision`."""

    def __init__(self, *, q, x, decode, sigma_p=SIGMA_P, precision="float32"):
        self.q, self.precision = q, precision
        self.scene = {"q": q, "x": x, "decode": decode, "sigma_p": sigma_p}

    def draw(self, chains, generator):
        """e of `chains` draws from q, (K, B, D)."""
        mean = self.q.mean
        return torch.randn((chains, *mean.shape), generator=generator, dtype=mean.dtype, device=mean.device)

    def gradient(self, noise):
        """(l(e), its gradient): (K, B) and (K, B, D). With respect to e alone, not to the decoder's weights."""
        noise = noise.detach().requires_grad_()
        with torch.enable_grad(), autocast(self.precision, noise.device):
            values = log_weight(noise=noise, **self.scene)
            (gradient,) = torch.autograd.grad(values.sum(), noise)
        return values.detach(), gradient

    def state(self, noise):
        """The State of chains at e."""
        values, gradient = self.gradient(noise)
        if self.precision != "float32":
            values = self.value(noise)
        return State(noise, values, gradient)

    @torch.no_grad()
    def value(self, noise):
        """l(e), (K, B)."""
        return log_weight(noise=noise, **self.scene)


def move(*, state, beta, step_size, target, leapfrog_steps, generator):
    """One Hamiltonian transition that leaves pi_beta as it is (Neal 2011). Returns (State, acceptance (K, B)).

    The Gaussian part of pi_beta is followed exactly, by turning (e, momentum) through the angle `step_size` (B,), and
    only beta l(e) kicks (Shahbaba et al. 2014). Turns and kicks keep volume and can be reversed whatever the
    kicks are, so a gradient of low precision costs acceptance, not correctness.
    """
    noise, gradient = state.noise, state.gradient
    momentum = torch.randn(noise.shape, generator=generator, dtype=noise.dtype, device=noise.device)
    draw = torch.rand(step_size.shape, generator=generator, dtype=noise.dtype, device=noise.device)
    step_size = step_size * (1 + JITTER * (2 * draw - 1))
    cos, sin, kick = (
        part.unsqueeze(-1) for part in (step_size.cos(), step_size.sin(), beta * step_size)
    )  # (B, 1) each
    before = _log_density(noise, momentum, beta * state.log_weight)
    momentum = momentum + 0.5 * kick * gradient
    for step in range(1, leapfrog_steps + 1):
        noise, momentum = cos * noise + sin * momentum, cos * momentum - sin * noise
        values, gradient = target.gradient(noise)
        momentum = momentum + (kick if step < leapfrog_steps else 0.5 * kick) * gradient
    if target.precision != "float32":
        values = target.value(noise)
    # A path that has left the range of numbers is refused.
    log_ratio = (_log_density(noise, momentum, beta * values) - before).nan_to_num(nan=-math.inf)
    acceptance = log_ratio.clamp(max=0).exp()  # (K, B)
    uniform = torch.rand(acceptance.shape, generator=generator, dtype=acceptance.dtype, device=acceptance.device)
    accepted = uniform < acceptance
    wide = accepted.unsqueeze(-1)
    moved = State(
        noise=torch.where(wide, noise, state.noise),
        log_weight=torch.where(accepted, values, state.log_weight),
        gradient=torch.where(wide, gradient, state.gradient),
    )
    return moved, acceptance


def _log_density(noise, momentum, tempered):
    """log of pi_beta(e) N(momentum; 0, I) up to a constant, (K, B)."""
    return tempered - 0.5 * (noise.square() + momentum.square()).sum(-1)


def settle(*, target, temperatures, leapfrog_steps, generator, chains=PILOT_CHAINS):
    """The Schedule of a weighted run, from a pilot run whose chains are then thrown away.

    The pilot passes `pilot` evenly spaced temperatures and moves the logarithm of every image's step size towards an
    acceptance of TARGET_ACCEPTANCE; on the way it measures how much l(e) varies over the chains, by which the
    temperatures of the weighted run are spaced: where l varies most, they stand closest. Nothing of the weighted
    run enters, so its transitions are fixed before it begins and its estimate stays unbiased. Adapting within
    it would not: a step size that depends on where the chain has been does not leave pi_beta as it is.
    """
    pilot = max(1, temperatures // PILOT_SHARE)
    state = target.state(target.draw(chains, generator))
    longest = math.log(LONGEST_PATH / leapfrog_steps)
    log_step = torch.full_like(state.log_weight[0], longest)  # (B,)
    deviations, log_steps = [], []
    for temperature in range(1, pilot + 1):
        deviations.append(state.log_weight.std(0).nan_to_num(0, posinf=0).median())
        state, acceptance = move(
            state=state,
            beta=temperature / pilot,
            step_size=log_step.exp(),
            target=target,
            leapfrog_steps=leapfrog_steps,
            generator=generator,
        )
        log_step = (log_step + 0.5 * (acceptance.mean(0) - TARGET_ACCEPTANCE)).clamp(max=longest)
        log_steps.append(log_step)
    # The temperatures part the integral of that deviation over beta into equal shares.
    length = np.cumsum([0.0, *np.maximum(torch.stack(deviations).tolist(), 1e-6)])
    betas = np.interp(np.linspace(0, length[-1], temperatures + 1), length, np.linspace(0, 1, pilot + 1))
    nearest = np.ceil(betas * pilot).astype(int).clip(1) - 1
    return Schedule(betas=betas.tolist(), step_sizes=torch.stack(log_steps).exp()[nearest.tolist()])


def anneal(*, noise, schedule, target, leapfrog_steps, generator, backwards=False):
    """Leads chains from e (K, B, D) along the schedule. Returns their log-weights (K, B) and acceptances (K, B).

    Forwards from draws of q, where p(x) is the mean of exp(w) (Neal 2001), or backwards from draws of the posterior,
    the same transitions in the opposite order, where 1 / p(x) is the mean of exp(-w) (Grosse et al. 2015).
    """
    betas = schedule.betas
    state = target.state(noise)
    total, accepted = torch.zeros_like(state.log_weight), []
    gaps = range(1, len(betas))  # gap i lies between betas[i - 1] and betas[i]
    for gap in reversed(gaps) if backwards else gaps:
        total = total + (betas[gap] - betas[gap - 1]) * state.log_weight
        beyond = gap - 1 if backwards else gap
        if 0 < beyond < len(betas) - 1:
            state, acceptance = move(
                state=state,
                beta=betas[beyond],
                step_size=schedule.step_sizes[beyond],
                target=target,
                leapfrog_steps=leapfrog_steps,
                generator=generator,
            )
            accepted.append(acceptance)
    return total, torch.stack(accepted).mean(0) if accepted else torch.ones_like(total)


@torch.no_grad()
def linearized_posterior(
    *, q, x, decode, generator, sigma_p=SIGMA_P, precision="float32", draws=LINEARIZATIONS, images=5
):
    """The Gaussian around q's mean whose precision is I + E_q[J' J] / sigma_p^2, J the decoder's Jacobian at z.

    It is the fixed point of variational inference with a full covariance, the decoder's curvature neglected (Khan &
    Rue 2023, Gauss-Newton); of a linear decoder it is the posterior's own precision. q: diagonal Normal (B, D); the
    expectation is taken over `draws` of z, for `images` at a time, the Jacobian in `precision`. Returns a
    MultivariateNormal (B, D).
    """
    jacobian = torch.func.vmap(torch.func.jacfwd(lambda z: decode(z).flatten()), chunk_size=images)
    inverse_covariance = torch.eye(q.mean.shape[-1], dtype=x.dtype, device=x.device).repeat(len(x), 1, 1)  # (B, D, D)
    noise = torch.randn((draws, *q.mean.shape), generator=generator, dtype=x.dtype, device=x.device)
    with warnings.catch_warnings():
        # PyTorch warns of a part of its own that it uses when it first differentiates forwards.
        warnings.filterwarnings("ignore", message=".*torch.jit.script. is deprecated")
        for z in from_noise(q, noise):
            for index in torch.arange(len(x), device=x.device).split(images):
                with autocast(precision, x.device):
                    slopes = jacobian(z[index]).to(x.dtype)  # (images, P, D)
                inverse_covariance[index] += slopes.mT @ slopes / (draws * sigma_p**2)
    return MultivariateNormal(q.mean, precision_matrix=inverse_covariance, validate_args=False)


def annealed_importance_sampling(
    *,
    q,
    x,
    decode,
    generator,
    sigma_p=SIGMA_P,
    chains=CHAINS,
    temperatures=TEMPERATURES,
    leapfrog_steps=LEAPFROG_STEPS,
    precision="float32",
    chunk=CHUNK,
):
    """log p(x) by annealed importance sampling from q to the posterior (Neal 2001; Wu et al. 2017).

    q: any diagonal Normal or MultivariateNormal (B, D); x: (B, *image); decode: z (..., D) -> the mean of p(x|z). Each
    chain passes `temperatures` intervals, with a transition of `leapfrog_steps` gradients between one and the next. At
    most `chunk` chains are held at once, whatever B and `chains`. Returns an Annealed; its log_prob is a lower bound
    in expectation, and p(x) is exactly the mean of exp(log_weights).
    """
    weights, acceptances = [], []
    for index in torch.arange(len(x), device=x.device).split(max(1, chunk // chains)):
        target = Target(q=select(q, index), x=x[index], decode=decode, sigma_p=sigma_p, precision=precision)
        schedule = settle(target=target, temperatures=temperatures, leapfrog_steps=leapfrog_steps, generator=generator)
        log_w, acceptance = (torch.empty(chains, len(index), dtype=x.dtype, device=x.device) for _ in range(2))
        for start in range(0, chains, chunk):
            block = slice(start, start + chunk)
            log_w[block], acceptance[block] = anneal(
                noise=target.draw(len(log_w[block]), generator),
                schedule=schedule,
                target=target,
                leapfrog_steps=leapfrog_steps,
                generator=generator,
            )
        weights.append(log_w)
        acceptances.append(acceptance.mean(0))
    log_w = torch.cat(weights, dim=1)  # (K, B)
    log_prob = log_w.logsumexp(0) - math.log(chains)
    return Annealed(
        log_prob=log_prob,
        standard_error=(log_w - log_prob).exp().std(0) / math.sqrt(chains),
        spread=log_w.std(0),
        acceptance=torch.cat(acceptances),
        log_weights=log_w,
    )


def bidirectional_bounds(
    *,
    q,
    x,
    z,
    decode,
    generator,
    sigma_p=SIGMA_P,
    chains=CHAINS,
    temperatures=TEMPERATURES,
    leapfrog_steps=LEAPFROG_STEPS,
    precision="float32",
    chunk=CHUNK,
):
    """Bounds on log p(x) of simulated images, by annealing forwards and backwards (Grosse et al. 2015).

    (x, z) must be draws of the model's own p(x, z), as `simulate` gives them: then z (B, D) is a draw of the posterior,
    from which the backward chains start. q, as in `annealed_importance_sampling`, may depend on x but not on z. Returns
    Bounds; what lies between them bounds the error of `annealed_importance_sampling` in either direction.
    """
    lower, upper = [], []
    for index in torch.arange(len(x), device=x.device).split(max(1, chunk // chains)):
        own = select(q, index)
        target = Target(q=own, x=x[index], decode=decode, sigma_p=sigma_p, precision=precision)
        run = {"target": target, "leapfrog_steps": leapfrog_steps, "generator": generator}
        run["schedule"] = settle(temperatures=temperatures, **run)
        exact = to_noise(own, z[index])  # (B, D)
        forwards, backwards = (torch.empty(chains, len(index), dtype=x.dtype, device=x.device) for _ in range(2))
        for start in range(0, chains, chunk):
            block = slice(start, start + chunk)
            count = len(forwards[block])
            forwards[block], _ = anneal(noise=target.draw(count, generator), **run)
            backwards[block], _ = anneal(noise=exact.expand(count, -1, -1), backwards=True, **run)
        lower.append(forwards.logsumexp(0) - math.log(chains))
        upper.append(math.log(chains) - backwards.neg().logsumexp(0))
    return Bounds(torch.cat(lower), torch.cat(upper))


@torch.no_grad()
def simulate(*, decode, count, latent_dim, generator, sigma_p=SIGMA_P, device="cpu", dtype=torch.float32):
    """(x, z) drawn from the model: z (count, D) from the prior, x (count, *image) from p(x|z), its noise included."""
    place = {"generator": generator, "device": device, "dtype": dtype}
    z = torch.randn(count, latent_dim, **place)
    x_mean = decode(z)
    return x_mean + sigma_p * torch.randn(x_mean.shape, **place), z
