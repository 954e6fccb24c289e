"""What inference costs in nats: the approximation gap and the amortization gap (Cremer et al. 2018).

With q* the best diagonal Normal of an image, fitted from q to convergence,

    log p(x) - ELBO(q*)    approximation gap: no diagonal Normal comes nearer
    ELBO(q*) - ELBO(q)     amortization gap; of a row of the latent table, how far it is from convergence
"""

from typing import NamedTuple

import torch

from evaluation.ais import annealed_importance_sampling, gauss_newton_posterior
from latent_optimization import fit_posterior
from vae_utils import importance_sampling, mean_and_error, select


class Gaps(NamedTuple):
    """Three estimates of log p(x) and two bounds for each image, (B,) each; nats but for sizes and shares."""

    is_log_prob: torch.Tensor  # importance sampling from q
    elbo: torch.Tensor  # ELBO(q)
    effective_sample_size: torch.Tensor
    fitted_is_log_prob: torch.Tensor  # importance sampling from q*
    fitted_elbo: torch.Tensor  # ELBO(q*)
    fitted_effective_sample_size: torch.Tensor
    ais_log_prob: torch.Tensor  # annealed importance sampling from q* with a full covariance
    ais_standard_error: torch.Tensor  # over its chains
    ais_log_weight_std: torch.Tensor  # over its chains
    ais_acceptance: torch.Tensor


def measure(model, x, q, config, *, generator, fitted=False, batch_size=50, on_batch=None):
    """Gaps of images x (B, *image) under any model and any diagonal Normal q (B, D).

    config: an EvalConfig, whose precision is that of the networks in the gradients of annealing; all values are in
    float32. The bounds are means over the draws of importance sampling. fitted: q is q* already, as of unseen images
    under latent optimization; both then have the same numbers. on_batch: called with the number of images of a batch.
    """
    fast, parts = model.in_precision(config.precision), []
    counts = {"chains": config.chains, "temperatures": config.temperatures}
    for rows in torch.arange(len(x), device=x.device).split(batch_size):
        images, own = x[rows], select(q, rows)
        of_own = importance_sampling(model, images, own, generator=generator, num_samples=config.num_samples)
        best, of_best = own, of_own
        if not fitted:
            best = fit_posterior(model, images, own, generator=generator, fit_steps=config.fit_steps).q
            of_best = importance_sampling(model, images, best, generator=generator, num_samples=config.num_samples)
        start = gauss_newton_posterior(fast, images, best, generator=generator)
        ais = annealed_importance_sampling(fast, images, start, generator=generator, **counts)
        parts.append(Gaps(*of_own, *of_best, *ais[:4]))
        if on_batch:
            on_batch(len(images))
    return Gaps(*(torch.cat(part) for part in zip(*parts, strict=True)))


def summarize(gaps):
    """{"elbo", "fitted_elbo", "log_prob", "approximation_gap", "amortization_gap"}, as `mean_and_error` gives them.

    gaps: Gaps of any shape; log_prob is the annealed one. The two gaps are paired differences on the same images.
    """
    values = {
        "elbo": gaps.elbo,
        "fitted_elbo": gaps.fitted_elbo,
        "log_prob": gaps.ais_log_prob,
        "approximation_gap": gaps.ais_log_prob - gaps.fitted_elbo,
        "amortization_gap": gaps.fitted_elbo - gaps.elbo,
    }
    return {name: mean_and_error(value) for name, value in values.items()}
