"""log p(x) by annealed importance sampling (AIS), and bounds on it by bidirectional Monte Carlo (BDMC).

In the whitened coordinates e of q, z = mean + scale e, q is N(0, I). With the log-weight l(e) = log p(x, z) - log q(z)

    pi_beta(e) ~ N(e; 0, I) exp(beta l(e)),    beta from 0 to 1,

is the path from q to the posterior, so that q's scale preconditions the Hamiltonian transitions. Gradients are in the
model's precision, which lowers the acceptance alone; values are in float32 or the type of x.
Shapes: K chains, B images, D latent dimensions, T temperatures.
"""

import math
from collections import namedtuple
from typing import NamedTuple

import numpy as np
import torch

from evaluation.hmc import LEAPFROG_STEPS, AISTarget, ChainState, hmc_step
from evaluation.statistics import rounded
from vae_utils import check_counts, check_inputs, mean_and_error, random_generator

FEWEST, MOST = 16, 1024  # temperatures
DEPENDENCE = 1.7  # by which successive temperatures raise the standard deviation: 1.5 to 1.9, measured
PILOT_CHAINS, PILOT_TEMPERATURES = 4, 16
TRUSTED_STD, TRUSTED_ACCEPTANCE = 1.5, 0.3  # beyond: log-weights hardly normal, chains that hardly move
SIMULATED = 30_000  # log-weights, from which the errors of an estimate follow
TARGET_ACCEPTANCE, ACCEPTABLE = 0.65, (0.4, 0.95)
MOST_ADAPTATIONS = 12  # of the step size, at one temperature of the pilot run
UNKNOWN_DEVIATION = 1e4  # nats, where log-weights are not finite
LONGEST_PATH = math.pi / 2  # a quarter turn: on N(0, I) it ends at a draw that is independent of the start


class LogProb(NamedTuple):
    """log p(x) of each image, (B,) each, nats; as text, one line: of one image its numbers, of many their means.

    Both errors are those of normal log-weights (`log_mean_errors`) whose standard deviation is the larger of that over
    the chains and the pilot's prediction, so that a few chains that agree by chance do not make an error small.
    """

    log_prob: torch.Tensor  # a lower bound in expectation: not corrected by `bias`
    standard_error: torch.Tensor  # of log_prob, over draws of the chains; NaN for one chain
    bias: torch.Tensor  # of log_prob, an estimate, mostly negative; NaN for one chain
    log_weight_std: torch.Tensor  # standard deviation of the log-weights over the chains; infinite if one is
    acceptance: torch.Tensor  # share of accepted transitions
    temperatures: torch.Tensor  # int64; 0: log p(x) was integrated
    trusted: torch.Tensor  # bool: log-weights vary little and chains move; they see no other mode than that of q

    def __repr__(self):
        value, count = mean_and_error(self.log_prob), len(self.log_prob)
        monte_carlo = float(self.standard_error.square().sum().sqrt()) / count
        errors = f"± {monte_carlo:.2g} (standard error of the estimate)"
        if count > 1:
            errors = f"± {value['standard_error']:.1f} (mean of {count:,} images, standard error over images)"
            errors += f", Monte Carlo error {monte_carlo:.2g}"
        errors += f", bias about {rounded(float(self.bias.mean()))} (not corrected)"
        text = f"log p(x) = {value['mean']:.1f} nats, {errors}"
        if not self.temperatures.any():
            return f"{text}; integrated on a grid"
        text += f"; acceptance {float(self.acceptance.min()):.2f}{' or more' if count > 1 else ''}"
        if vague := int((~self.trusted).sum()):
            text += f"; may be wrong by more than that for {vague:,} of {count:,}: lower log_weight_std"
        return text


Bounds = namedtuple("Bounds", ("lower", "upper"))  # on log p(x), each in expectation, (B,) each, nats


class Pilot(NamedTuple):
    """The result of a pilot run at P evenly spaced temperatures."""

    deviations: torch.Tensor  # (P, B): standard deviation of l(e) over the chains
    step_sizes: torch.Tensor  # (P, B)

    def log_weight_std(self, temperatures):
        """The predicted standard deviation of the log-weights for this number of temperatures, (B,), nats.

        If l(e) varies independently between T temperatures, the variance of the log-weight is (integral of the
        deviation over beta)^2 / T (Gelman & Meng 1998). DEPENDENCE corrects for their dependence.
        """
        return DEPENDENCE * self.deviations.mean(0) / temperatures**0.5

    def temperatures(self, log_weight_std):
        """The number of temperatures for that standard deviation, (B,) int64, rounded up to powers of sqrt(2)."""
        needed = (self.log_weight_std(1).cpu().double() / log_weight_std) ** 2
        power = torch.ceil(2 * torch.log2(needed.clamp(FEWEST, MOST)) - 1e-9)
        return torch.round(2 ** (power / 2)).long().to(self.deviations.device)

    def schedule(self, rows, temperatures):
        """Betas from 0 to 1, close where l(e) varies most, and step sizes, (T + 1, B) each, of the images at `rows`.

        temperatures: (B,), of which T is the largest; beyond an image's own, beta is 1.
        """
        deviations, step_sizes = self.deviations[:, rows], self.step_sizes[:, rows]
        count, columns = len(deviations), []
        even, wanted = np.linspace(0, 1, count + 1), np.arange(int(temperatures.max()) + 1)
        for number, deviation in zip(temperatures.tolist(), deviations.T.cpu().double().numpy(), strict=True):
            length = np.cumsum([0.0, *np.maximum(deviation, max(0.1 * deviation.mean(), 1e-6))])
            columns.append(np.interp(wanted / number, length / length[-1], even))
        betas = torch.from_numpy(np.stack(columns, axis=1)).to(deviations.dtype).to(deviations.device)  # (T + 1, B)
        nearest = (betas * count).ceil().long().clamp(1, count) - 1
        return betas, step_sizes.gather(0, nearest)


def run_pilot(target, *, noise):
    """The Pilot of some images, by PILOT_CHAINS chains that pass evenly spaced temperatures and are then thrown away.

    At each, step sizes are adapted until the acceptance lies in ACCEPTABLE. So transitions are fixed before the
    weighted run begins: a step size that depends on a chain's past would not leave pi_beta invariant.
    """
    state = target.at(noise.normal((PILOT_CHAINS, *target.q.mean.shape), like=target.q.mean))
    longest = math.log(LONGEST_PATH / LEAPFROG_STEPS)
    log_step = torch.full_like(state.log_weight[0], longest)  # (B,)
    deviations, log_steps = [], []
    for temperature in range(1, PILOT_TEMPERATURES + 1):
        # Log-weights that are not finite vary more than any that are.
        deviations.append(state.log_weight.std(0).nan_to_num(UNKNOWN_DEVIATION, posinf=UNKNOWN_DEVIATION))
        beta, rows = temperature / PILOT_TEMPERATURES, torch.arange(len(log_step), device=log_step.device)
        for _ in range(MOST_ADAPTATIONS):
            # A transition of the images whose acceptance is out of range
            part = ChainState(*(value[:, rows] for value in state))
            part, acceptance = hmc_step(part, target[rows], beta, log_step[rows].exp(), noise=noise[rows])
            for whole, new in zip(state, part, strict=True):
                whole[:, rows] = new
            # Adapt the step size
            acceptance, (low, high) = acceptance.mean(0), ACCEPTABLE
            in_range = (acceptance > low) & ((acceptance < high) | (log_step[rows] >= longest))
            gain = torch.where(in_range, 0.5, 1.5)
            log_step[rows] = (log_step[rows] + gain * (acceptance - TARGET_ACCEPTANCE)).clamp(max=longest)
            rows = rows[~in_range]
            if not len(rows):
                break
        log_steps.append(log_step.clone())
    return Pilot(torch.stack(deviations), torch.stack(log_steps).exp())


def anneal(e, temperatures, betas, step_sizes, *, target, noise):
    """Takes chains from e (K, B, D) through betas (T + 1, B) that rise from 0 to 1, or fall from 1 to 0.

    Rising they start at draws of q, and the mean of exp(w) is p(x) (Neal 2001). Falling they start at draws of the
    posterior, and the mean of exp(-w) is 1 / p(x) (Grosse et al. 2015). Returns the log-weights w and the acceptances,
    (K, B) each. temperatures: (B,), falling from T: an image that is through leaves the batch.
    """
    counts, state = temperatures.tolist(), target.at(e)
    total, accepted = torch.zeros_like(state.log_weight), torch.zeros_like(state.log_weight)
    for step in range(counts[0]):
        running = sum(count > step for count in counts)
        if running < state.log_weight.shape[1]:
            state = ChainState(*(part[:, :running] for part in state))
            target, noise = target[:running], noise[:running]
            betas, step_sizes = betas[:, :running], step_sizes[:, :running]
        # A transition, then the weight of the interval up to the next temperature
        if step:
            state, acceptance = hmc_step(state, target, betas[step], step_sizes[step], noise=noise)
            accepted[:, :running] += acceptance
        total[:, :running] += (betas[step + 1] - betas[step]).abs() * state.log_weight
    transitions = temperatures - 1
    return total, torch.where(transitions > 0, accepted / transitions.clamp(min=1), 1)


def log_mean_errors(log_weight_std, chains):
    """Standard error and bias of log(mean exp(w)) over so many chains, for normal w of this deviation: (B,) each, nats.

    By a parametric bootstrap (Efron 1982): with many temperatures log-weights are normal (Neal 2001). The intervals of
    a jackknife are too narrow: with 8 normal log-weights of 1 nat they hold the truth in 91 of 100 cases, not in 95.
    """
    draws = max(100, SIMULATED // (2 * chains))
    normal = torch.randn(draws, chains, generator=random_generator(0, "errors of a log mean"), dtype=torch.float64)
    normal, results = torch.cat((normal, -normal)), []
    for std in log_weight_std.tolist():
        estimates_of_0 = (std * normal - std**2 / 2).logsumexp(1) - math.log(chains)
        finite = float(estimates_of_0.std()), float(estimates_of_0.mean())
        results.append((math.inf, -math.inf) if std == math.inf else finite)
    return torch.tensor(results).to(log_weight_std).T


def weighted_runs(model, x, q, z=None, *, noise, chains=8, temperatures=None, log_weight_std=0.8, chunk=500):
    """(forward log-weights from q (K, B), backward ones from z, acceptance, temperatures, predicted_std) of all images.

    x: (B, *image); q: GaussianPosterior (B, D); z: draws of the posterior, (B, D); None: no backward ones.
    temperatures: of every image; None: from FEWEST to MOST, as many as the pilot run predicts for log-weights whose
    standard deviation over chains is `log_weight_std`. chunk: chains at once. Raises ValueError if inputs do not fit.
    """
    check_inputs(model, x, q, noise)
    check_counts(chains=chains, temperatures=temperatures or 1, chunk=chunk)
    if not log_weight_std > 0:
        raise ValueError(f"log_weight_std {log_weight_std}: not above 0")
    target, rows = AISTarget(model, x, q), torch.arange(len(x), device=x.device)
    # Pilot runs
    pilots = [run_pilot(target[part], noise=noise[part]) for part in rows.split(max(1, chunk // PILOT_CHAINS))]
    pilot = Pilot(*(torch.cat(values, dim=1) for values in zip(*pilots, strict=True)))
    counts = torch.full_like(rows, temperatures) if temperatures else pilot.temperatures(log_weight_std)
    # Weighted runs; images with many temperatures run together, so that batches stay large
    forwards, backwards, acceptance = torch.empty(3, chains, len(x), dtype=x.dtype, device=x.device)
    for part in counts.argsort(descending=True, stable=True).split(max(1, chunk // chains)):
        rising = pilot.schedule(part, counts[part])
        steps = torch.arange(len(rising[0]), device=x.device).unsqueeze(1)
        falling = [values.gather(0, (counts[part] - steps).clamp(min=0)) for values in rising]
        options = {"target": target[part], "noise": noise[part]}
        for block in torch.arange(chains, device=x.device).split(chunk):
            at, shape = (block[:, None], part), (len(block), *q[part].mean.shape)
            start = noise[part].normal(shape, like=q.mean)
            forwards[at], acceptance[at] = anneal(start, counts[part], *rising, **options)
            if z is not None:
                start = q[part].whiten(z[part]).expand(shape)
                backwards[at], _ = anneal(start, counts[part], *falling, **options)
    return forwards, backwards, acceptance.mean(0), counts, pilot.log_weight_std(counts)


def annealed_importance_sampling(model, x, q, *, noise, **options):
    """log p(x) by annealed importance sampling from q to the posterior (Neal 2001; Wu et al. 2017): a LogProb.

    Arguments, errors: see `weighted_runs`. p(x) is exactly the expectation of exp(log-weight). Chains stay in q's mode.
    """
    log_w, _, acceptance, temperatures, predicted_std = weighted_runs(model, x, q, noise=noise, **options)
    # A weight of 0, or without a value, is a sign that the others cannot be relied on.
    std = log_w.std(0).masked_fill(~log_w.isfinite().all(0), math.inf)
    log_prob = log_w.nan_to_num(-math.inf, neginf=-math.inf).logsumexp(0) - math.log(len(log_w))
    largest = torch.maximum(std, predicted_std)
    trusted = (largest <= TRUSTED_STD) & (acceptance >= TRUSTED_ACCEPTANCE)
    return LogProb(log_prob, *log_mean_errors(largest, len(log_w)), std, acceptance, temperatures, trusted)


def bidirectional_bounds(model, x, z, q, *, noise, **options):
    """Bounds on log p(x) of simulated images, by annealing forwards and backwards (Grosse et al. 2015).

    (x, z) must be draws of the model's own p(x, z), as model.sample gives them; q may depend on x but not on z. The
    distance between the Bounds limits the error of `annealed_importance_sampling` in either direction.
    """
    if z.shape != q.mean.shape:
        raise ValueError(f"z {tuple(z.shape)} and q {tuple(q.mean.shape)} are of different images")
    forwards, backwards, *_ = weighted_runs(model, x, q, z, noise=noise, **options)
    log_chains = math.log(len(forwards))
    return Bounds(lower=forwards.logsumexp(0) - log_chains, upper=log_chains - backwards.neg().logsumexp(0))
