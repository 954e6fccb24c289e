"""What inference costs in nats: the approximation gap and the amortization gap (Cremer et al. 2018).

With q* the best diagonal Normal of an image, fitted from q to convergence,

    log p(x) - ELBO(q*)    approximation gap: no diagonal Normal comes nearer
    ELBO(q*) - ELBO(q)     amortization gap; of a row of the latent table, how far it is from convergence
    log p(x) - ELBO(q)     inference gap, their sum
"""

from typing import NamedTuple

import torch

from evaluation.modes import estimate_log_prob
from evaluation.statistics import stratified_mean
from posterior_fit import fit_posterior
from vae_utils import generators_of, importance_sampling, select


class Gaps(NamedTuple):
    """Three estimates of log p(x) and two bounds for each image, (B,) each; nats but for sizes, counts and shares."""

    is_log_prob: torch.Tensor  # importance sampling from q
    elbo: torch.Tensor  # ELBO(q)
    effective_sample_size: torch.Tensor
    squared_error: torch.Tensor  # of the reconstruction at the mean of q, summed over pixels
    fitted_is_log_prob: torch.Tensor  # importance sampling from q*
    fitted_elbo: torch.Tensor  # ELBO(q*)
    fitted_effective_sample_size: torch.Tensor
    fit_converged: torch.Tensor  # 1 or 0; 1 where q is q* already
    ais_log_prob: torch.Tensor  # the best estimate: annealed, or integrated with one or two latent dimensions
    ais_standard_error: torch.Tensor  # over its chains
    ais_bias: torch.Tensor  # an estimate, mostly negative; ais_log_prob is not corrected by it
    ais_log_weight_std: torch.Tensor  # over its chains
    ais_acceptance: torch.Tensor
    ais_temperatures: torch.Tensor
    ais_modes: torch.Tensor  # how many modes of the posterior were combined; 0: integrated, or annealed from the prior


OF_Q = 4  # the first fields, which need neither a fit nor annealing


@torch.no_grad()
def measure_q(model, x, q, config, *, generator):
    """The first OF_Q fields of Gaps, (B,) each."""
    estimate = importance_sampling(model, x, q, generator=generator, num_samples=config.num_samples)
    return *estimate, (model.mean(q.mean) - x).square().flatten(1).sum(1)


def measure(model, x, q, config, *, generator, fitted=False, batch_size=50):
    """Gaps of images x (B, *image) under any model and any diagonal Normal q (B, D).

    config: an EvalConfig, whose precision is that of the networks in the gradients of annealing; all else is in
    float32. The bounds are means over the draws of importance sampling. generator: one, or one for each image. fitted:
    q is q* already, as of unseen images under latent optimization; both then have the same numbers.
    """
    parts = []
    for rows in torch.arange(len(x), device=x.device).split(batch_size):
        images, own, generators = x[rows], select(q, rows), generators_of(generator, rows)
        of_own = measure_q(model, images, own, config, generator=generators)
        best, of_best, converged = own, of_own[:3], torch.ones_like(of_own[0])
        if not fitted:
            fit = fit_posterior(model, images, own, generator=generators, fit_steps=config.fit_steps)
            best, converged = fit.q, fit.converged.to(x.dtype)
            of_best = importance_sampling(model, images, best, generator=generators, num_samples=config.num_samples)
        options = {"generator": generators, "precision": config.precision, "fit_steps": config.fit_steps}
        found = estimate_log_prob(model, images, best, **options, **annealing(config))
        parts.append(Gaps(*of_own, *of_best, converged, *found.ais[:6], found.modes.to(x.dtype)))
    return Gaps(*(torch.cat(part) for part in zip(*parts, strict=True)))


def annealing(config):
    """The arguments of annealing that an EvalConfig sets."""
    return {name: getattr(config, name) for name in ("chains", "temperatures", "log_weight_std")}


def summarize(gaps):
    """{"elbo", "fitted_elbo", "log_prob" and three gaps}, as `stratified_mean` gives them.

    gaps: Gaps (classes, images per class); log_prob is the annealed one. The gaps are paired differences on the same
    images; the inference gap is the sum of the two others.
    """
    values = {
        "elbo": gaps.elbo,
        "fitted_elbo": gaps.fitted_elbo,
        "log_prob": gaps.ais_log_prob,
        "approximation_gap": gaps.ais_log_prob - gaps.fitted_elbo,
        "amortization_gap": gaps.fitted_elbo - gaps.elbo,
        "inference_gap": gaps.ais_log_prob - gaps.elbo,
    }
    return {name: stratified_mean(value) for name, value in values.items()}


def differences(one, other):
    """{"elbo", "fitted_elbo", "log_prob", "squared_error", "inference_gap"} of one method less those of another.

    Gaps (classes, images per class) of the same images each; every difference as `stratified_mean` gives it.
    """
    names = {"elbo": "elbo", "fitted_elbo": "fitted_elbo", "log_prob": "ais_log_prob", "squared_error": "squared_error"}
    values = {name: getattr(one, field) - getattr(other, field) for name, field in names.items()}
    values["inference_gap"] = values["log_prob"] - values["elbo"]
    return {name: stratified_mean(value) for name, value in values.items()}
