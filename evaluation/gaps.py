"""The metrics of an image: METRICS, and the bounds whose differences are the gaps of inference (Cremer et al. 2018).

q* is the best diagonal q of an image, q*full the best one of full covariance, both fitted to convergence; fitted_elbo
and full_elbo are their bounds. Of an image whose posterior has several modes, q*full is that of the mode of q*;
annealing from there sees no other, unless log p(x) is integrated, as with one or two dimensions.
"""

import torch

from evaluation.log_prob import estimate_log_prob
from evaluation.quadrature import MOST_DIMENSIONS
from posterior_fit import Fit, fit_posterior
from runtime.config import choose_precision
from vae_utils import GaussianPosterior, evaluate_bound, importance_sampling

BOUND_DRAWS = 100  # of z, for the bounds of an image; where its log p(x) is exact, ten times as many
GAP_BOUNDS = {  # the bounds whose differences the gaps are
    "amortization_gap": ("fitted_elbo", "elbo"),  # of a row of the latent table, how far it is from convergence
    "mean_field_gap": ("full_elbo", "fitted_elbo"),  # what correlations in q would gain
    "non_gaussian_gap": ("log_prob", "full_elbo"),  # no Gaussian comes nearer
    "approximation_gap": ("log_prob", "fitted_elbo"),  # the two above together
    "inference_gap": ("log_prob", "elbo"),  # the first three together
}


def squared_error(model, x, q):
    """The squared error of the reconstruction at the mean of q, summed over pixels, (B,)."""
    return (model.mean(q.mean) - x).square().flatten(1).sum(1)


# Metrics of an image beside its bounds: functions (model, x, q) -> (B,). A new one is a function and an entry here; its
# name is then a column of log_probabilities.csv and of the page, and a quantity in scores.csv.
METRICS = (squared_error,)


def gap_columns(columns):
    """The GAP_BOUNDS as columns, as far as their bounds are there."""
    return {gap: columns[high] - columns[low] for gap, (high, low) in GAP_BOUNDS.items() if high in columns}


def bound_at(model, x, q, *, noise):
    """The bound of each image x (B, *image) at q, (B,), always at the same draws of this noise."""
    draws = BOUND_DRAWS if model.latent_dim > MOST_DIMENSIONS else 10 * BOUND_DRAWS
    return evaluate_bound(model, x, q, noise=noise.spawn("bound", 0), draws=draws).elbo


@torch.no_grad()
def measure(model, x, q, config, *, noise, annealed, fitted=False):
    """The columns of images x (B, *image) under a model, {name: (B,)} of the type of x.

    q: of a method, (B, D); config: an EvalConfig; annealed: q*full and log p(x) are found of the first so many images,
    the others have NaN there; None: no fits, the columns are only the bound at q and METRICS. fitted: q is q* already.
    Raises FloatingPointError if the bound at q is not finite.
    """
    # Of all images
    columns = {"elbo": bound_at(model, x, q, noise=noise)}
    if not columns["elbo"].isfinite().all():
        raise FloatingPointError("the ELBO of an image is not finite: the training has diverged")
    for metric in METRICS:
        own_q = GaussianPosterior(*(value.clone() for value in q.tensors().values()))  # which a metric may change
        values = torch.as_tensor(metric(model, x.clone(), own_q))
        if values.shape != (len(x),):
            raise ValueError(f"METRICS: {metric.__name__} gives {tuple(values.shape)}, where {(len(x),)} is needed")
        columns[metric.__name__] = values
    if annealed is None:
        return columns
    fit = Fit.given(q) if fitted else fit_posterior(model, x, q, noise=noise, fit_steps=config.fit_steps)
    columns["fitted_elbo"] = columns["elbo"] if fitted else bound_at(model, x, fit.q, noise=noise)
    columns["fit_converged"] = fit.converged
    # Of the annealed ones
    if annealed:
        part, start, same = x[:annealed], fit.q[:annealed], {"noise": noise[:annealed]}
        fast = model.in_precision(choose_precision(config.precision, x.device))
        full = fit_posterior(fast, part, start, covariance="full", fit_steps=config.fit_steps, **same)
        more = estimate_log_prob(model, part, full.q, config=config, **same)
        more["fit_converged"] = fit.converged[:annealed] & full.converged
        for prefix, sampled in (("", q[:annealed]), ("full_", full.q)):
            estimate = importance_sampling(model, part, sampled, num_samples=config.num_samples, **same)
            more[f"{prefix}importance_sampling"] = estimate.log_prob
            more[f"{prefix}effective_sample_size"] = estimate.effective_sample_size
        more["full_elbo"] = bound_at(model, part, full.q, **same)
        for name, values in more.items():
            column = columns.get(name, torch.full((len(x),), torch.nan)).to(x)
            columns[name] = torch.cat((values.to(x), column[annealed:]))
    return {name: values.to(x) for name, values in columns.items()}
