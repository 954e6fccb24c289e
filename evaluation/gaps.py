"""The metrics of an image: METRICS, and the bounds whose differences are the gaps of inference (Cremer et al. 2018).

With q* the best diagonal q of an image, fitted from q to convergence,

    log_prob - fitted_elbo    approximation gap: no diagonal q comes nearer
    fitted_elbo - elbo        amortization gap; of a row of the latent table, how far it is from convergence
    log_prob - elbo           inference gap, their sum
"""

import torch

from evaluation.log_prob import fit_and_anneal, importance_columns


def squared_error(model, x, q):
    """The squared error of the reconstruction at the mean of q, summed over pixels, (B,)."""
    return (model.mean(q.mean) - x).square().flatten(1).sum(1)


# Metrics of an image beside its bounds: functions (model, x, q) -> (B,). A new one is a function and an entry here; its
# name is then a column of log_probabilities.csv and of the page, and a quantity in scores.csv.
METRICS = (squared_error,)
FROM_SAMPLES = "elbo", "importance_sampling", "effective_sample_size"


@torch.no_grad()
def measure_q(model, x, q, config, *, noise):
    """The columns that need neither a fit nor annealing, {name: (B,)}: of FROM_SAMPLES and of METRICS."""
    return importance_columns(model, x, q, config, noise) | {metric.__name__: metric(model, x, q) for metric in METRICS}


@torch.no_grad()
def measure(model, x, q, config, *, noise, fitted=False, batch_size=50):
    """The columns of `measure_q` and of `fit_and_anneal` from q, {name: (B,)} of the type of x.

    x: (B, *image); q: diagonal, (B, D); config: an EvalConfig, whose precision is that of the networks in gradients of
    annealing. fitted: q is q* already, as of unseen images under latent optimization; both then have the same numbers.
    """
    batches = []
    for rows in torch.arange(len(x), device=x.device).split(batch_size):
        part, part_noise = (model, x[rows], q[rows]), noise[rows]
        columns = measure_q(*part, config, noise=part_noise)
        if fitted:
            columns |= {f"fitted_{name}": columns[name] for name in FROM_SAMPLES}
        columns |= fit_and_anneal(*part, config=config, noise=part_noise, fitted=fitted, sampled=not fitted)[0]
        batches.append(columns)
    return {name: torch.cat([columns[name].to(x.dtype) for columns in batches]) for name in batches[0]}
