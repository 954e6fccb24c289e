"""q* of any image under a frozen decoder: the diagonal Normal that maximizes the bound (Cremer et al. 2018)."""

import math

import torch

from vae_utils import Fit, check_inputs, diagonal_normal, draw, elbo, generators_of, random_generator, select

SCORED_PAIRS = 8  # antithetic pairs of samples for which two q are compared
SCORED_AT_ONCE = 500  # samples of z in memory meanwhile


class PosteriorFit:
    """q of images outside the training set, during its optimization: gradient ascent on the bound, decoder frozen."""

    def __init__(self, q):
        """q: where to start, diagonal Normal (B, D)."""
        self.parameters = torch.cat((q.mean, 2 * q.stddev.log()), dim=-1).detach().requires_grad_()
        self.optimizer = torch.optim.Adam([self.parameters])

    def q(self):
        """The diagonal Normal as it is now, (B, D)."""
        return diagonal_normal(*self.parameters.chunk(2, dim=-1))

    @torch.enable_grad()
    def run(self, model, x, *, noise, learning_rates, rows=slice(None)):
        """One step of Adam for each learning rate, with noise (B, D) of its own; x, noise: of the images at `rows`.

        Returns the mean of the parameters over the steps, (B, 2D).
        """
        total = torch.zeros_like(self.parameters)
        for learning_rate, e in zip(learning_rates, noise, strict=True):
            self.optimizer.param_groups[0]["lr"] = learning_rate
            q = diagonal_normal(*self.parameters[rows].chunk(2, dim=-1))
            loss = -elbo(model, x, q, e).elbo.sum()
            # torch.autograd.grad, unlike backward, does not compute the gradients of the decoder's weights.
            (self.parameters.grad,) = torch.autograd.grad(loss, self.parameters)
            self.optimizer.step()
            total += self.parameters.detach()
        return (total / len(learning_rates))[rows]

    def state_dict(self):
        """What `run` needs to continue."""
        return {"parameters": self.parameters.detach(), "adam": self.optimizer.state_dict()}

    def load_state_dict(self, state):
        """Takes over what `state_dict` gave."""
        with torch.no_grad():
            self.parameters.copy_(state["parameters"])
        self.optimizer.load_state_dict(state["adam"])


def balanced_noise(count, q, *, generator):
    """Standard normal noise (count, B, D), count > D, whose mean is 0 and whose second moment is I for every image.

    Moments are matched by a linear map (Barraquand 1995); if count = D + 1, the draws are the corners of a regular
    simplex. The mean over them of a function that is quadratic in z, hence of the gradient of a quadratic log p(x, z),
    is exact. All images share the draws, but for their order, and the order and the signs of their dimensions.
    """
    images, latent_dim = q.mean.shape
    drawn = torch.randn(count, latent_dim, generator=random_generator(0, "balanced noise"), dtype=torch.float64)
    drawn = math.sqrt(count) * torch.linalg.qr(drawn - drawn.mean(0)).Q
    order = draw(torch.rand, generator, (count, images), like=q.mean).argsort(0)
    dimensions = draw(torch.rand, generator, (1, images, latent_dim), like=q.mean).argsort(-1)
    signs = (draw(torch.rand, generator, (1, images, latent_dim), like=q.mean) - 0.5).sign()
    drawn = drawn.to(q.mean.dtype).to(q.mean.device)[order]  # (count, B, D)
    return drawn.gather(2, dimensions.expand(count, -1, -1)) * signs


@torch.no_grad()
def fit_posterior(
    model, x, q, *, generator, learning_rate=0.1, averaged_rate=0.02, fit_steps=300, tolerance=0.4, max_cycles=20
):
    """The diagonal Normal q*(z) that maximizes the bound of each image, the decoder frozen (Cremer et al. 2018).

    x: (B, *image); q: where to start, diagonal Normal (B, D), for example the encoder's q or `initial_posterior`;
    generator: one, or one for each image. Adam takes `fit_steps` steps whose rate falls from `learning_rate` to
    `averaged_rate` along a cosine. Cycles at that rate follow, whose iterates are averaged (Polyak & Juditsky 1992):
    each passes once over a set of `balanced_noise`, so that most of the noise of the gradients cancels in the average.
    After every cycle the average over the last two is compared with the best q so far, on fresh noise that both share;
    each image keeps the better one. An image has converged when a cycle changes its bound by less than `tolerance` nats
    in that comparison: then it stops. Returns a Fit; score its q with fresh samples. Raises ValueError if x, q and the
    model do not fit.
    """
    check_inputs(model, x, q, generator)
    images, latent_dim = q.mean.shape
    cycle = max(2 * fit_steps // 3, latent_dim + 1)
    falling = [0.5 + 0.5 * math.cos(math.pi * step / fit_steps) for step in range(fit_steps)]
    rates = [averaged_rate + (learning_rate - averaged_rate) * share for share in falling]
    fit, rows = PosteriorFit(q), torch.arange(images, device=x.device)  # of the images that have not converged
    best = fit.parameters.detach().clone()
    noise = balanced_noise(max(fit_steps, latent_dim + 1), q, generator=generator)[:fit_steps]
    previous = fit.run(model, x, noise=noise, learning_rates=rates)
    trace = [bounds(model, x, (best,), generator)[0]]
    gradients = torch.full((images,), fit_steps, device=x.device)
    converged = torch.zeros(images, dtype=torch.bool, device=x.device)
    for number in range(max_cycles):
        own = generators_of(generator, rows)
        noise = balanced_noise(cycle, select(q, rows), generator=own)
        average = fit.run(model, x[rows], noise=noise, learning_rates=[averaged_rate] * cycle, rows=rows)
        candidate = (average + previous[rows]) / 2 if number else average
        previous[rows] = average
        before, after = bounds(model, x[rows], (best[rows], candidate), own)
        gain = after - before
        best[rows] = torch.where((gain > 0).unsqueeze(-1), candidate, best[rows])
        trace.append(trace[-1].index_add(0, rows, gain.clamp(min=0)))
        gradients[rows] += cycle
        if number:
            converged[rows] = gain.abs() < tolerance
            rows = rows[gain.abs() >= tolerance]
        if not len(rows):
            break
    return Fit(diagonal_normal(*best.chunk(2, dim=-1)), torch.stack(trace), converged, gradients)


@torch.no_grad()
def bounds(model, x, candidates, generator):
    """The bound of each candidate, parameters (B, 2D), at the same antithetic noise: (candidates, B)."""
    found = torch.zeros(len(candidates), len(x), dtype=x.dtype, device=x.device)
    noise = draw(torch.randn, generator, (SCORED_PAIRS, len(x), candidates[0].shape[1] // 2), like=x)
    for part in torch.cat((noise, -noise)).split(max(1, SCORED_AT_ONCE // len(x))):
        for number, parameters in enumerate(candidates):
            found[number] += len(part) * elbo(model, x, diagonal_normal(*parameters.chunk(2, dim=-1)), part).elbo
    return found / (2 * SCORED_PAIRS)
