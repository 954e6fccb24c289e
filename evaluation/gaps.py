"""The metrics of an image: METRICS, and the bounds whose differences are the gaps of inference (Cremer et al. 2018).

With q* the best diagonal q of an image and q*full the best one of full covariance, both fitted to convergence,

    fitted_elbo - elbo        amortization gap; of a row of the latent table, how far it is from convergence
    full_elbo - fitted_elbo   mean-field gap: what correlations in q would gain
    log_prob - full_elbo      non-Gaussian gap: no Gaussian comes nearer
    log_prob - elbo           inference gap, their sum

The second and third together are the approximation gap. Of an image whose posterior has several modes, q*full is that
of the mode of q*; the other modes are in the non-Gaussian gap.
"""

import torch

from evaluation.log_prob import fit_and_anneal
from posterior_fit import fit_posterior
from vae_utils import evaluate_bound, importance_sampling

BOUND_DRAWS = 100  # of z, for the bounds of an image


def squared_error(model, x, q):
    """The squared error of the reconstruction at the mean of q, summed over pixels, (B,)."""
    return (model.mean(q.mean) - x).square().flatten(1).sum(1)


# Metrics of an image beside its bounds: functions (model, x, q) -> (B,). A new one is a function and an entry here; its
# name is then a column of log_probabilities.csv and of the page, and a quantity in scores.csv.
METRICS = (squared_error,)


@torch.no_grad()
def measure(model, x, q, config, *, noise, fitted=False, annealed=True):
    """The columns of images x (B, *image) under a model, {name: (B,)} of the type of x, and q*, (B, D).

    q: of a method, (B, D); config: an EvalConfig, whose precision is that of the networks in gradients of q*full and of
    annealing. fitted: q is q* already, as of unseen images under latent optimization. annealed: False leaves out all
    that needs q*full. The three bounds of an image are at the same noise.
    """

    def bound(q, draws=BOUND_DRAWS):
        same = noise.spawn(list(range(len(x))), "bound")
        return evaluate_bound(model, x, lambda x, rows: q[rows], noise=same, draws=draws).elbo

    def sampled(q, prefix=""):
        estimate = importance_sampling(model, x, q, noise=noise, num_samples=config.num_samples)
        size = {f"{prefix}effective_sample_size": estimate.effective_sample_size}
        return {f"{prefix}importance_sampling": estimate.log_prob, **size}

    columns = {"elbo": bound(q), **{metric.__name__: metric(model, x, q) for metric in METRICS}}
    if annealed:
        more, q_star, full = fit_and_anneal(model, x, q, config=config, noise=noise, fitted=fitted)
        columns |= more | sampled(q) | sampled(full, "full_") | {"full_elbo": bound(full)}
    elif fitted:
        q_star = q
    else:
        q_star, _, columns["fit_converged"], _ = fit_posterior(model, x, q, noise=noise, fit_steps=config.fit_steps)
    columns["fitted_elbo"] = columns["elbo"] if fitted else bound(q_star)
    return {name: values.to(x.dtype) for name, values in columns.items()}, q_star
