"""What inference costs in nats: the approximation gap and the amortization gap (Cremer et al. 2018).

With q* the best diagonal Normal of an image, fitted from q to convergence,

    log p(x) - ELBO(q*)    approximation gap: no diagonal Normal comes nearer
    ELBO(q*) - ELBO(q)     amortization gap: what q leaves to be had; of a table's row, how far its visits are from
                           convergence
"""

from typing import NamedTuple

import torch

from annealing import CHAINS, TEMPERATURES, annealed_importance_sampling, linearized_posterior
from latent_optimization import FIT_STEPS, fit_posterior
from training import autocast
from vae_utils import SIGMA_P, importance_sampling, mean_and_error, select

NUM_SAMPLES = 1000


class Gaps(NamedTuple):
    """Three estimates of log p(x) and two bounds for each image, (B,) each; nats but for sizes and shares."""

    log_prob: torch.Tensor  # importance sampling from q
    elbo: torch.Tensor  # ELBO(q)
    effective_sample_size: torch.Tensor
    fitted_log_prob: torch.Tensor  # importance sampling from q*
    fitted_elbo: torch.Tensor  # ELBO(q*)
    fitted_effective_sample_size: torch.Tensor
    annealed_log_prob: torch.Tensor  # annealed importance sampling from q* with a full covariance
    annealed_standard_error: torch.Tensor  # of its chains alone
    annealed_spread: torch.Tensor  # standard deviation of its log-weights over the chains
    annealed_acceptance: torch.Tensor


def measure(
    *,
    q,
    x,
    decode,
    generator,
    sigma_p=SIGMA_P,
    num_samples=NUM_SAMPLES,
    chains=CHAINS,
    temperatures=TEMPERATURES,
    precision="float32",
    fit_steps=FIT_STEPS,
    fitted=False,
    batch_size=100,
    stage=None,
):
    """Gaps of images x (B, *image) under any decoder and any diagonal Normal q (B, D).

    The bounds are means over `num_samples` fresh draws from q and from q*, the same that importance sampling weighs.
    fitted: q is q* already, as of unseen images under latent optimization; then nothing is fitted, and both have the
    same numbers.
    Fits and the gradients of annealing run in `precision`, all that is reported in the type of x.
    """
    scene = {"decode": decode, "sigma_p": sigma_p, "generator": generator}
    parts = []
    for index in torch.arange(len(x), device=x.device).split(batch_size):
        images, own = x[index], select(q, index)
        best = own
        if not fitted:
            with torch.enable_grad(), autocast(precision, x.device):
                best = fit_posterior(x=images, initial=own, cycle=fit_steps, **scene).q
        start = linearized_posterior(q=best, x=images, precision=precision, **scene)
        annealed = annealed_importance_sampling(
            q=start, x=images, chains=chains, temperatures=temperatures, precision=precision, **scene
        )
        of_own = importance_sampling(q=own, x=images, num_samples=num_samples, **scene)
        of_best = of_own if fitted else importance_sampling(q=best, x=images, num_samples=num_samples, **scene)
        parts.append(
            Gaps(*of_own, *of_best, annealed.log_prob, annealed.standard_error, annealed.spread, annealed.acceptance)
        )
        if stage:
            stage.advance(len(images))
    return Gaps(*(torch.cat(part) for part in zip(*parts, strict=True)))


def summarize(gaps):
    """{"elbo", "fitted_elbo", "log_prob", "approximation_gap", "amortization_gap"}, as `mean_and_error` gives them.

    The gaps are differences on the same images, whose standard errors are smaller than those of what they part.
    gaps: Gaps; log_prob is the annealed one.
    """
    values = {
        "elbo": gaps.elbo,
        "fitted_elbo": gaps.fitted_elbo,
        "log_prob": gaps.annealed_log_prob,
        "approximation_gap": gaps.annealed_log_prob - gaps.fitted_elbo,
        "amortization_gap": gaps.fitted_elbo - gaps.elbo,
    }
    return {name: mean_and_error(value) for name, value in values.items()}
