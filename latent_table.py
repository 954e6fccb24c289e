"""The latent table: q(z) of every image, and an Adam whose step costs a batch and not the table."""

import math
from itertools import accumulate

import torch
from torch import nn

from gaussian_posterior import GaussianPosterior, split_parameters
from model import INITIAL_LOG_VAR

EPS = 1e-8  # Adam's
LOADING_RATE = 1 / 3  # Adam's rate of loadings over that of means; with 1, gradient noise costs rank 8 two nats


class LatentTable(nn.Module):
    """q_i(z) = N(mean_i, diag exp(log_var_i) + factor_i factor_i') for every image i, with the Adam that learns it.

    The trajectory is that of torch.optim.Adam on the whole table; the cost of a step is that of a batch. Adam also
    changes a row that is not in the batch, but the gradient is then zero and its path has a closed form: after a visit
    at step s, the following k steps change it by

        -lr * m_s / sqrt(v_s) * S(s, k),   S(s, k) = H(s) - c^k H(s + k),   c = beta1 / sqrt(beta2),
        H(n) = sum_{j>=1} c^j g(n + j),    g(n) = sqrt(1 - beta2^n) / (1 - beta1^n).

    m_s and v_s are Adam's moments. These deferred steps are applied when the row is next in a batch. They take the
    learning rate lr, and eps between two visits, as constant: gradients must be far above eps, so let the loss be a sum
    over images, not a mean. Of factors the rate is LOADING_RATE lr.
    """

    def __init__(self, *, size, latent_dim, rank=0, learning_rate=0.01, betas=(0.9, 0.999), device="cpu"):
        """size: images; rank: of factors; a row has (2 + rank) latent_dim numbers."""
        super().__init__()
        self.betas, self.rank = betas, rank
        self._learning_rate = learning_rate  # constant: another one would also rescale the deferred steps
        self._visit = None
        # Value, first and second moment side by side, so that a batch is one gather and one scatter.
        self.register_buffer("rows", torch.zeros(size, 3, (2 + rank) * latent_dim, device=device))
        self.rows[:, 0, latent_dim : 2 * latent_dim] = INITIAL_LOG_VAR
        rates = torch.ones(self.rows.shape[2], device=device)
        rates[2 * latent_dim :] = LOADING_RATE
        self.register_buffer("rates", rates, persistent=False)  # of the columns, by `learning_rate`
        self.register_buffer("last_visit", torch.zeros(size, dtype=torch.int64, device=device))  # (N,)
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64, device=device))
        self.exact = torch.float32 if torch.device(device).type == "mps" else torch.float64  # MPS has no float64
        sums = deferred_step_sums(betas).to(self.exact).to(device)
        self.register_buffer("deferred_sums", sums, persistent=False)  # H(0), H(1), ..., from the last one on constant

    def posterior(self, rows):
        """q of the images at `rows` (B,), all different: (B, D). With gradients on, the next `step` learns them."""
        value, first, second = self.apply_deferred_steps(rows)
        if torch.is_grad_enabled():
            indices = rows.device.type == "cpu" and rows.dtype != torch.bool  # elsewhere it would wait for the device
            if indices and len(rows.unique()) < len(rows):
                raise ValueError("rows: an image stands there twice, whose row would take one of its steps alone")
            value.requires_grad_()
            self._visit = rows, value, first, second
        return GaussianPosterior.from_parameters(value, self.rank)

    @torch.no_grad()
    def step(self):
        """One step of Adam (Kingma & Ba 2015, Algorithm 1) on the rows of the last call of `posterior`."""
        self.steps += 1
        if self._visit is None:
            return
        rows, value, first, second = self._visit
        beta1, beta2 = self.betas
        first = first.lerp(value.grad, 1 - beta1)
        second = second * beta2 + (1 - beta2) * value.grad.square()
        now = self.steps.to(self.exact)
        rate = (self._learning_rate / (1 - beta1**now)).float() * self.rates
        correction = torch.sqrt(1 - beta2**now).float()
        value = value.detach() - rate * first / (second.sqrt() / correction + EPS)
        self.rows[rows] = torch.stack((value, first, second), dim=1)
        self.last_visit[rows] = self.steps
        self._visit = None

    def current(self):
        """As dense Adam has every row now: mean and log-variance, (N, D), and with a rank loadings, (N, D, rank)."""
        value, _, _ = self.apply_deferred_steps(slice(None))
        return tuple(part.contiguous() for part in split_parameters(value, self.rank))

    @torch.no_grad()
    def apply_deferred_steps(self, rows):
        """Values and moments of `rows` after the steps that they were not in, (B, (2 + rank) D) each."""
        value, first, second = self.rows[rows].unbind(1)
        beta1, beta2 = self.betas
        last = self.last_visit[rows].unsqueeze(1)
        idle = (self.steps - last).to(self.exact)  # (B, 1)
        decay = (beta1 / beta2**0.5) ** idle
        now = self.steps.reshape(1)  # an index without a dimension would be read by the host, and wait for the device
        before, after = (self.deferred_sums[at.clamp(max=len(self.deferred_sums) - 1)] for at in (last, now))
        moved = before - decay * after  # S(last, idle)
        eps = (EPS * torch.sqrt(1 - beta2 ** last.to(self.exact))).float()
        direction = first / (second.sqrt() + eps).clamp_min(torch.finfo(torch.float32).tiny)
        value = value - (self._learning_rate * moved).float() * self.rates * direction
        return value, (beta1**idle).float() * first, (beta2**idle).float() * second

    def load_parameters(self, *parts):
        """Sets every row, parts as `current` gives them, and its moments to 0; for a table that has made no step."""
        self.rows.zero_()
        self.rows[:, 0] = torch.cat([part.flatten(1) for part in parts], dim=1)


def deferred_step_sums(betas):
    """H(0), H(1), ... of LatentTable until g is 1 in float64, by H(n) = c (g(n + 1) + H(n + 1)) backwards."""
    beta1, beta2 = betas
    c, count = beta1 / beta2**0.5, math.ceil(-40 / math.log(beta2))  # beta2^count = exp(-40)
    n = torch.arange(count + 1002, dtype=torch.float64)  # beyond, c^1000 is far below float64's resolution
    g = (torch.sqrt(1 - beta2**n) / (1 - beta1**n))[1:].tolist()  # g(1), g(2), ...
    sums = [*accumulate(reversed(g), lambda total, term: c * (term + total), initial=0.0)]
    return torch.tensor(sums[::-1][: count + 1], dtype=torch.float64)
