"""log p(x) of images whose posterior may have several modes: the one recipe from a fitted q to an estimate.

Annealing that starts at one q sees the modes that its chains reach. So:
- with one or two latent dimensions, log p(x) is integrated on a grid;
- else q is fitted from further places, and where that ends in other modes, annealing starts in each of them. The share
  of mode m is the integral of p(x, z) q_m(z) / sum_k q_k(z), and these shares add up to p(x) exactly;
- with few dimensions and several modes, chains also start at the prior, from where they reach all of them.
"""

import math
from typing import NamedTuple

import torch
from torch.distributions import Normal

from evaluation.ais import TRUSTED_STD, AISEstimate, Mixture, annealed_importance_sampling, gauss_newton_posterior
from evaluation.quadrature import MOST_DIMENSIONS, integrate
from posterior_fit import PosteriorFit, bounds, fit_posterior
from vae_utils import check_inputs, concatenate, diagonal_normal, draw, generators_of, random_generator, select

FEW_DIMENSIONS = 10  # from the prior, chains find their way in so many
STARTS, STARTS_IN_FEW = 2, 8  # further places: draws from the prior
SEARCH_STEPS, SEARCH_RATES = 100, (0.1, 0.02)  # of the fits from there: how many, and the first and the last rate
RELEVANT = 10.0  # nats: a mode whose bound is lower by more has no share that counts
BARRIER = 1.0  # nats by which log p(x, z) falls between two modes, on the straight line from one to the other
MOST_MODES = 8


class Estimate(NamedTuple):
    """log p(x) of each image, (B,) each: an AISEstimate, in which an integrated value has no chains, and its modes."""

    ais: AISEstimate
    modes: torch.Tensor  # int64: how many were combined; 0: integrated, or found from the prior

    @property
    def trusted(self):
        """Whether the stated errors can be relied on, (B,) bool."""
        return self.ais.trusted


def estimate_log_prob(model, x, q, *, generator, precision="float32", fit_steps=300, **annealing):
    """log p(x) of images x (B, *image) under any LatentVariableModel, an Estimate.

    q: a fitted diagonal Normal (B, D); generator: one, or one for each image; precision: of the networks in gradients
    of annealing; annealing: arguments of `annealed_importance_sampling`.
    """
    check_inputs(model, x, q, generator)
    if model.latent_dim <= MOST_DIMENSIONS:
        return _integrated(model, x)
    fast = model.in_precision(precision)
    owner, modes, generators = find_modes(model, x, q, generator=generator, fit_steps=fit_steps)
    full = gauss_newton_posterior(fast, x[owner], modes, generator=generators)
    alone = owner.bincount(minlength=len(x))[owner] == 1
    order, parts = [], []
    for rows, mixture in ((alone, None), (~alone, _mixtures(full, owner))):
        rows = rows.nonzero().flatten()
        if len(rows):
            options = {"generator": generators_of(generators, rows), "mixture": mixture and mixture.select(rows)}
            order.append(rows)
            parts.append(annealed_importance_sampling(fast, x[owner[rows]], select(full, rows), **options, **annealing))
    order = torch.cat(order).argsort()
    found = AISEstimate(*(torch.cat(values, dim=-1)[..., order] for values in zip(*parts, strict=True)))
    counts = owner.bincount(minlength=len(x))
    found = _combine(found, owner, len(x))
    several = (counts > 1).nonzero().flatten()
    if model.latent_dim <= FEW_DIMENSIONS and len(several):
        mean = torch.zeros_like(q.mean[several])
        prior = Normal(mean, torch.ones_like(mean), validate_args=False)
        own = generators_of(generator, several)
        from_prior = annealed_importance_sampling(fast, x[several], prior, generator=own, **annealing)
        found, taken = _better(found, from_prior, several)
        counts[taken] = 0
    return Estimate(found, counts)


def _integrated(model, x):
    """The Estimate of `integrate`."""
    log_prob, error = integrate(model, x)
    # Where it has not settled, it is trusted no more than chains that do not agree.
    none, one = torch.where(error.isfinite(), 0.0, error), torch.ones_like(log_prob)
    counts = torch.zeros(len(x), dtype=torch.int64, device=x.device)
    return Estimate(AISEstimate(log_prob, error, none, none, one, counts, none, log_prob.new_empty(0, len(x))), counts)


@torch.no_grad()
def find_modes(model, x, q, *, generator, fit_steps=300):
    """(the image of each mode (P,), a q of each, diagonal Normal (P, D), their generators): `q` first, then others.

    Short fits from draws of the prior end in other modes if log p(x, z) falls by more than BARRIER on the way from
    there to each mode known already. Those whose bound is within RELEVANT of the best of them are fitted to the end,
    and kept if they are then still apart, and within RELEVANT of the best of all.
    """
    images, starts = len(x), STARTS_IN_FEW if model.latent_dim <= FEW_DIMENSIONS else STARTS
    searched = _search(model, x, starts, generator)  # (starts * B, 2D)
    candidates = torch.stack([_parameters(q), *searched.chunk(starts)])  # (1 + starts, B, 2D)
    found = bounds(model, x, candidates, generator).nan_to_num(-math.inf, neginf=-math.inf)  # (1 + starts, B)
    owners, parameters = [], []
    for image in range(images):
        # Short fits are compared with short fits: q is fitted to the end.
        order = 1 + found[1:, image].argsort(descending=True, stable=True)
        best, kept = found[order[0], image], [0]
        for number in order[found[order, image] > best - RELEVANT].tolist():
            if len(kept) < MOST_MODES and _apart(model, x[image], candidates[number, image], candidates[kept, image]):
                kept.append(number)
        owners += [image] * (len(kept) - 1)
        parameters += [candidates[number, image] for number in kept[1:]]
    if not owners:
        return torch.arange(images, device=x.device), q, generator
    further, own = torch.tensor(owners, device=x.device), generator
    if not isinstance(generator, torch.Generator):
        numbers = [owners[:position].count(image) for position, image in enumerate(owners)]
        seeds = [generator[image].initial_seed() for image in owners]
        own = [random_generator(s, "mode", n, device=x.device) for s, n in zip(seeds, numbers, strict=True)]
    start = diagonal_normal(*torch.stack(parameters).chunk(2, dim=-1))
    fitted = fit_posterior(model, x[further], start, generator=own, fit_steps=fit_steps).q
    # Fitted to the end, some have come to a mode that is known, or are of no account.
    ends = _parameters(fitted)
    height = bounds(model, x[further], ends[None], own)[0].nan_to_num(-math.inf)
    highest, kept = found[0].tolist(), []
    for image, reached in zip(owners, height.tolist(), strict=True):
        highest[image] = max(highest[image], reached)
    for number in height.argsort(descending=True, stable=True).tolist():
        image = owners[number]
        known = torch.stack([candidates[0, image], *(ends[other] for other in kept if owners[other] == image)])
        if height[number] > highest[image] - RELEVANT and _apart(model, x[image], ends[number], known):
            kept.append(number)
    kept = torch.tensor(sorted(kept), dtype=torch.int64, device=x.device)
    owner = torch.cat((torch.arange(images, device=x.device), further[kept]))
    generators = generator if own is generator else [*generator, *generators_of(own, kept)]
    return owner, concatenate([q, select(fitted, kept)]), generators


def _search(model, x, starts, generator):
    """Parameters (starts * B, 2D) of q that short fits find from draws of the prior."""
    shape = (starts, len(x), model.latent_dim)
    mean = draw(torch.randn, generator, shape, like=x).flatten(0, 1)
    fit = PosteriorFit(Normal(mean, torch.full_like(mean, math.exp(-1)), validate_args=False))
    noise = draw(torch.randn, generator, (SEARCH_STEPS * starts, *shape[1:]), like=x)
    first, last = SEARCH_RATES
    cosine = (0.5 + 0.5 * math.cos(math.pi * step / SEARCH_STEPS) for step in range(SEARCH_STEPS))
    rates = [last + (first - last) * share for share in cosine]
    copies = x.repeat(starts, *[1] * (x.dim() - 1))
    fit.run(model, copies, noise=noise.view(SEARCH_STEPS, len(mean), -1), learning_rates=rates)
    return _parameters(fit.q())


def _parameters(q):
    """Mean and log-variance of a diagonal Normal side by side, (B, 2D)."""
    return torch.cat((q.mean, 2 * q.stddev.log()), dim=-1).detach()


def _apart(model, image, candidate, known):
    """Whether a barrier lies between the mean of a candidate (2D,) and that of every known mode (M, 2D)."""
    dimensions = model.latent_dim
    share = torch.linspace(0, 1, 9, dtype=image.dtype, device=image.device)[:, None, None]
    z = candidate[:dimensions] + share * (known[:, :dimensions] - candidate[:dimensions])  # (9, M, D)
    heights = model.log_joint(image.unsqueeze(0), z.flatten(0, 1).unsqueeze(1)).view(z.shape[:2])
    lower_end = torch.minimum(heights[0], heights[-1])
    return bool((heights.amin(0) < lower_end - BARRIER).all())


def _mixtures(full, owner):
    """The Mixture of all modes of the image of each mode; full: MultivariateNormal (P, D)."""
    same = owner[:, None] == owner[None, :]  # (P, P)
    most = int(same.sum(1).max())
    present, rows = same.long().sort(dim=1, descending=True, stable=True)
    present, rows = present[:, :most].bool(), rows[:, :most]
    return Mixture(full.mean[rows], full.scale_tril[rows], present)


def _combine(found, owner, images):
    """The AISEstimate of each image from those of its modes: p(x) is the sum of their shares."""
    if len(owner) == images:
        return found
    columns = []
    for image in range(images):
        own = AISEstimate(*(value[..., owner == image] for value in found))
        share = own.log_prob.softmax(0).nan_to_num(0)
        std = torch.maximum(own.log_weight_std, own.predicted_std)
        # What a mode may be worth: log-weights that vary much are likely too low.
        large = (own.log_prob + 0.5 * std.square()).nan_to_num(math.inf).clamp(max=1e6).softmax(0) > 0.01
        large |= std == math.inf
        error = torch.where(large, share * own.standard_error, 0).square().sum().sqrt()
        broken = bool((std == math.inf).any())
        columns.append(
            (
                own.log_prob.logsumexp(0),
                torch.full_like(error, math.inf) if broken else error,
                torch.full_like(error, -math.inf) if broken else (share * own.bias).sum(),
                own.log_weight_std[large].max(),
                own.acceptance[large].min(),
                own.temperatures.sum(),
                own.predicted_std[large].max(),
                # The mean of exp over these chains is p(x) in expectation, as of a single mode.
                own.log_weights.logsumexp(1),
            )
        )
    return AISEstimate(*(torch.stack(values, dim=-1) for values in zip(*columns, strict=True)))


def _better(found, from_prior, rows):
    """(the AISEstimate of all images, the rows whose estimate is new), from_prior: of the images at `rows` (M,).

    From the prior chains reach every mode. The pilot run, not the result, decides where that is taken: a choice of the
    higher one would be too high in the mean. Where it is not taken but higher, modes are missing, and the error is no
    smaller than the difference.
    """
    take = from_prior.predicted_std <= TRUSTED_STD
    short = (from_prior.log_prob - found.log_prob[rows]).clamp(min=0)
    found.standard_error[rows] = torch.maximum(found.standard_error[rows], short)
    for whole, new in zip(found, from_prior, strict=True):
        whole[..., rows[take]] = new[..., take]
    return found, rows[take]
