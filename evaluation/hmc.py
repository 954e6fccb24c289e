"""Hamiltonian Monte Carlo: the transitions between the temperatures of ais.py, in the whitened coordinates e of q.

Shapes: K chains, B images, D latent dimensions.
"""

import math
from typing import NamedTuple

import torch

from vae_utils import log_weight

LEAPFROG_STEPS = 5  # gradients of a transition
JITTER = 0.2  # the share by which the length of a path varies: at a fixed length some directions would be periodic


class ChainState(NamedTuple):
    """Positions of chains, and the log-weight l(e) there."""

    e: torch.Tensor  # (K, B, D)
    log_weight: torch.Tensor  # (K, B)
    gradient: torch.Tensor  # (K, B, D), with respect to e


class AISTarget:
    """l(e) of images in full precision, and its gradient in the model's precision."""

    def __init__(self, model, x, q):
        self.model, self.x, self.q = model, x, q
        self.full_precision = model.in_precision("float32")

    def __getitem__(self, rows):
        return AISTarget(self.model, self.x[rows], self.q[rows])

    def at(self, e, *, exact=True):
        """The ChainState at e (K, B, D): gradients in the model's precision; so is l(e), if it need not be exact."""
        position = e.detach().requires_grad_()
        with torch.enable_grad():
            values = log_weight(self.model, self.x, self.q, position)
            (gradient,) = torch.autograd.grad(values.sum(), position)
        if exact and self.model.precision != "float32":
            with torch.no_grad():
                values = log_weight(self.full_precision, self.x, self.q, e)
        return ChainState(e, values.detach(), gradient)


def hmc_step(state, target, beta, step_size, *, noise):
    """One Hamiltonian transition that leaves pi_beta invariant (Neal 2011). Returns (ChainState, acceptance (K, B)).

    The Gaussian part of pi_beta is followed exactly, by rotating (e, momentum) by the angle `step_size` (B,); beta l(e)
    changes the momentum (Shahbaba et al. 2014). Both maps preserve volume and are reversible for any gradients.
    """

    def log_density(e, momentum, log_weight):  # of pi_beta(e) N(momentum; 0, I), up to a constant: (K, B)
        return beta * log_weight - 0.5 * (e.square() + momentum.square()).sum(-1)

    e, gradient = state.e, state.gradient
    momentum = noise.normal(e.shape, like=e)
    (uniform,) = noise.uniform((1, *step_size.shape), like=e)
    step_size = step_size * (1 + JITTER * (2 * uniform - 1))
    cos, sin, kick = (part.unsqueeze(-1) for part in (step_size.cos(), step_size.sin(), beta * step_size))  # (B, 1)
    before = log_density(e, momentum, state.log_weight)
    # Leapfrog
    momentum = momentum + 0.5 * kick * gradient
    for step in range(1, LEAPFROG_STEPS + 1):
        last = step == LEAPFROG_STEPS
        e, momentum = cos * e + sin * momentum, cos * momentum - sin * e
        _, log_weight, gradient = target.at(e, exact=last)
        momentum = momentum + (0.5 * kick if last else kick) * gradient
    # Accept or refuse; a path whose values overflow is refused
    log_ratio = (log_density(e, momentum, log_weight) - before).nan_to_num(nan=-math.inf)
    acceptance = log_ratio.clamp(max=0).exp()  # (K, B)
    accepted = noise.uniform(acceptance.shape, like=acceptance) < acceptance
    wide = accepted.unsqueeze(-1)
    e, gradient = torch.where(wide, e, state.e), torch.where(wide, gradient, state.gradient)
    return ChainState(e, torch.where(accepted, log_weight, state.log_weight), gradient), acceptance
