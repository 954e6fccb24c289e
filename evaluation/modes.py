"""log p(x) from a fitted q, also where the posterior has several modes: the step of log_prob.py after the fit.

With one or two latent dimensions log p(x) is integrated on a grid. Else q is fitted from further places, too, and
annealing starts in every mode found: the share of mode m is the integral of p(x, z) q_m(z) / sum_k q_k(z), and these
shares add up to p(x) exactly. With few dimensions and several modes, chains also start at the prior.
"""

import math

import torch

from evaluation.ais import TRUSTED_STD, AISEstimate, annealed_importance_sampling
from evaluation.hmc import Mixture
from evaluation.quadrature import MOST_DIMENSIONS, integrate
from posterior_fit import PosteriorFit, bounds, cosine, fit_posterior, unpack
from vae_utils import GaussianPosterior, Noise, check_inputs

FEW_DIMENSIONS = 10  # from the prior, chains find their way in so many
STARTS, STARTS_IN_FEW = 2, 8  # draws from the prior at which further fits start; the second in FEW_DIMENSIONS
SEARCH_STEPS, SEARCH_RATES = 100, (0.1, 0.02)  # of the fits from there: how many, and the first and the last rate
RELEVANT = 10.0  # nats: a mode whose bound is lower by more has no share that counts
BARRIER = 1.0  # nats by which log p(x, z) falls between two modes, on the straight line from one to the other
MOST_MODES = 8


def estimate_log_prob(model, x, q, full, *, noise, precision="float32", fit_steps=300, **annealing):
    """log p(x) of images x (B, *image) under any LatentVariableModel: columns {name: (B,)}, nats.

    q, full: q* and q*full of `fit_posterior`, (B, D); precision: of the networks in gradients; annealing: settings of
    `annealed_importance_sampling`. In at most MOST_DIMENSIONS dimensions log p(x) is integrated, without them. Columns:
    log_prob, log_prob_standard_error, log_prob_bias, log_weight_std, acceptance, temperatures and trusted, see
    AISEstimate; modes, how many were combined (0: integrated, or annealed from the prior).
    """
    check_inputs(model, x, q, noise, "estimate_log_prob")
    if model.latent_dim <= MOST_DIMENSIONS:
        return _integrated(model, x)
    fast = model.in_precision(precision)
    # Full covariance at every mode
    owner, modes, mode_noise = find_modes(model, x, q, noise=noise, fit_steps=fit_steps)
    rest = torch.arange(len(x), len(owner))
    if len(rest):
        options = {"covariance": "full", "noise": mode_noise[rest], "fit_steps": fit_steps}
        full = GaussianPosterior.concatenate([full, fit_posterior(fast, x[owner[rest]], modes[rest], **options).q])
    # Annealing from every mode: of the images with one, and of the others, whose modes share a Mixture
    counts, estimates = owner.bincount(minlength=len(x)), []
    alone = counts[owner] == 1
    order = [part.nonzero().flatten() for part in (alone, ~alone)]
    for rows, mixture in zip(order, (None, _mixtures(full, owner)), strict=True):
        if len(rows):
            options = {"noise": mode_noise[rows], "mixture": mixture and mixture.of_rows(rows), **annealing}
            estimates.append(annealed_importance_sampling(fast, x[owner[rows]], full[rows], **options))
    order = torch.cat(order).argsort()
    estimate = AISEstimate(*(torch.cat(values)[order] for values in zip(*estimates, strict=True)))
    estimate = _combine(estimate, owner, len(x))
    # Few dimensions and several modes: annealing from the prior, too
    several = (counts > 1).nonzero().flatten()
    if model.latent_dim <= FEW_DIMENSIONS and len(several):
        mean = torch.zeros_like(q.mean[several])
        prior = GaussianPosterior(mean, torch.ones_like(mean))
        from_prior = annealed_importance_sampling(fast, x[several], prior, noise=noise[several], **annealing)
        counts[_take_better(estimate, from_prior, several)] = 0
    errors = {"log_prob_standard_error": estimate.standard_error, "log_prob_bias": estimate.bias}
    chains = {name: getattr(estimate, name) for name in ("log_weight_std", "acceptance", "temperatures", "trusted")}
    return {"log_prob": estimate.log_prob, **errors, **chains, "modes": counts}


def _integrated(model, x):
    """The columns of `estimate_log_prob` by `integrate`. Without chains, their log-weights do not vary."""
    log_prob, error = integrate(model, x)
    std, count = torch.where(error.isfinite(), 0.0, error), torch.zeros(len(x), dtype=torch.int64, device=x.device)
    columns = {"log_prob": log_prob, "log_prob_standard_error": error, "log_prob_bias": std, "log_weight_std": std}
    # An integral that has not settled is trusted as little as chains that disagree.
    columns |= {"acceptance": torch.ones_like(log_prob), "temperatures": count, "trusted": error.isfinite()}
    return columns | {"modes": count}


@torch.no_grad()
def find_modes(model, x, q, *, noise, fit_steps=300):
    """(the image of each mode (P,), a diagonal q of each (P, D), their Noise): `q` first, then further modes.

    A short fit from a draw of the prior counts as another mode if a barrier lies on the straight line from it to every
    mode known already. Those whose bound is within RELEVANT of the best of them, at most MOST_MODES, are fitted to the
    end, and kept if they are then still apart, and within RELEVANT of the best.
    """
    starts = STARTS_IN_FEW if model.latent_dim <= FEW_DIMENSIONS else STARTS
    # Short fits
    candidates = torch.stack([q.parameters(), *_search(model, x, starts, noise).chunk(starts)])  # (1 + starts, B, 2D)
    heights = bounds(model, x, [unpack(parameters) for parameters in candidates], noise)  # (1 + starts, B)
    heights = heights.nan_to_num(-math.inf, neginf=-math.inf)
    owners, parameters = [], []
    for image in range(len(x)):
        # Short fits are compared with short fits: q is fitted to the end.
        order = 1 + heights[1:, image].argsort(descending=True, stable=True)
        best, kept = heights[order[0], image], [0]
        for number in order[heights[order, image] > best - RELEVANT].tolist():
            if len(kept) < MOST_MODES and _apart(model, x[image], candidates[number, image], candidates[kept, image]):
                kept.append(number)
        owners += [image] * (len(kept) - 1)
        parameters += [candidates[number, image] for number in kept[1:]]
    everyone = torch.arange(len(x), device=x.device)
    if not owners:
        return everyone, q, noise
    # Fits to the end
    further, further_noise = torch.tensor(owners, device=x.device), noise.spawn(owners, "mode")
    start = unpack(torch.stack(parameters))
    fitted = fit_posterior(model, x[further], start, noise=further_noise, fit_steps=fit_steps).q
    # Some have come to a mode that is known, or lie too low
    ends = fitted.parameters()
    height = bounds(model, x[further], [fitted], further_noise)[0].nan_to_num(-math.inf)
    highest, kept = heights[0].scatter_reduce(0, further, height, "amax").tolist(), []
    for number in height.argsort(descending=True, stable=True).tolist():
        image = owners[number]
        known = torch.stack([candidates[0, image], *(ends[other] for other in kept if owners[other] == image)])
        if height[number] > highest[image] - RELEVANT and _apart(model, x[image], ends[number], known):
            kept.append(number)
    kept = torch.tensor(sorted(kept), dtype=torch.int64, device=x.device)
    q, noise = GaussianPosterior.concatenate([q, fitted[kept]]), Noise.concatenate([noise, further_noise[kept]])
    return torch.cat((everyone, further[kept])), q, noise


def _search(model, x, starts, noise):
    """Parameters (starts * B, 2D) of the q to which short fits lead from draws of the prior."""
    shape = (starts, len(x), model.latent_dim)
    mean = noise.normal(shape, like=x).flatten(0, 1)
    fit = PosteriorFit(GaussianPosterior(mean, torch.full_like(mean, math.exp(-1))))
    draws = noise.normal((SEARCH_STEPS * starts, *shape[1:]), like=x).view(SEARCH_STEPS, *mean.shape)
    copies = x.repeat(starts, *[1] * (x.dim() - 1))
    fit.run(model, copies, noise=draws, learning_rates=cosine(*SEARCH_RATES, SEARCH_STEPS))
    return fit.q().parameters().detach()


def _apart(model, image, candidate, known):
    """Whether a barrier lies between the mean of a candidate (2D,) and that of every known mode (M, 2D)."""
    start, ends = candidate[: model.latent_dim], known[:, : model.latent_dim]
    share = torch.linspace(0, 1, 9, dtype=image.dtype, device=image.device)[:, None, None]
    z = start + share * (ends - start)  # (9, M, D)
    heights = model.log_joint(image.unsqueeze(0), z.flatten(0, 1).unsqueeze(1)).view(z.shape[:2])
    return bool((heights.amin(0) < torch.minimum(heights[0], heights[-1]) - BARRIER).all())


def _mixtures(full, owner):
    """The Mixture, for each of the modes of `full` (P, D), of all modes of its image."""
    same = owner[:, None] == owner[None, :]  # (P, P)
    most = int(same.sum(1).max())
    present, rows = same.long().sort(dim=1, descending=True, stable=True)
    return Mixture(full[rows[:, :most]], present[:, :most].bool())


def _combine(estimate, owner, images):
    """The AISEstimate of each image from those of its modes: p(x) is the sum of their shares."""
    if len(owner) == images:
        return estimate
    combined = []
    for image in range(images):
        modes = AISEstimate(*(value[owner == image] for value in estimate))
        share = modes.log_prob.softmax(0).nan_to_num(0)
        std = torch.maximum(modes.log_weight_std, modes.predicted_std)
        # The modes that may matter: where log-weights vary much, the estimate is likely too low.
        large = (modes.log_prob + 0.5 * std.square()).nan_to_num(math.inf).clamp(max=1e6).softmax(0) > 0.01
        large |= std == math.inf
        error, bias = torch.where(large, share * modes.standard_error, 0).square().sum().sqrt(), share * modes.bias
        broken = (std == math.inf).any()
        estimate_of_image = AISEstimate(
            log_prob=modes.log_prob.logsumexp(0),
            standard_error=error.masked_fill(broken, math.inf),
            bias=bias.sum().masked_fill(broken, -math.inf),
            log_weight_std=modes.log_weight_std[large].max(),
            acceptance=modes.acceptance[large].min(),
            temperatures=modes.temperatures.sum(),
            predicted_std=modes.predicted_std[large].max(),
        )
        combined.append(estimate_of_image)
    return AISEstimate(*(torch.stack(values) for values in zip(*combined, strict=True)))


def _take_better(estimate, from_prior, rows):
    """Replaces estimates by better ones from the prior, of the images at `rows` (M,). Returns the rows that it took."""
    # The pilot run decides, not the result: a choice of the higher one would be too high in the mean.
    take = from_prior.predicted_std <= TRUSTED_STD
    # From the prior chains reach every mode: where that is higher, modes are missing, and the error is at least that.
    short = (from_prior.log_prob - estimate.log_prob[rows]).clamp(min=0)
    estimate.standard_error[rows] = torch.maximum(estimate.standard_error[rows], short)
    for whole, new in zip(estimate, from_prior, strict=True):
        whole[rows[take]] = new[take]
    return rows[take]
