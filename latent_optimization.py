"""Method 2, latent optimization: every image owns its q(z), learned by gradient descent beside the decoder."""

import math

import torch
from torch.distributions import Normal

import training
from data import stratified_subset
from latent_table import INITIAL_LOG_VAR, LatentTable
from model import ConvModel, make_likelihood
from vae_utils import Fit, check_inputs, concatenate, diagonal_normal, elbo, random_generator

VALIDATION_IMAGES = 100  # followed through training, warm-started from epoch to epoch
VALIDATION_STEPS = 30
VALIDATION_RATE = 0.03
SCORED_AT_ONCE = 500  # samples of z in memory when the bound is measured after a cycle


def initial_posterior(count, latent_dim, *, device="cpu", dtype=torch.float32):
    """The q that every row of a LatentTable and every fit without a better guess starts from, (count, D)."""
    mean = torch.zeros(count, latent_dim, device=device, dtype=dtype)
    return diagonal_normal(mean, torch.full_like(mean, INITIAL_LOG_VAR))


class PosteriorFit:
    """q of images outside the training set, during its optimization: gradient ascent on the bound, decoder frozen."""

    def __init__(self, q, *, learning_rate):
        """q: where to start, diagonal Normal (B, D)."""
        self.parameters = torch.cat((q.mean, 2 * q.stddev.log()), dim=-1).detach().requires_grad_()
        self.optimizer = torch.optim.Adam([self.parameters], lr=learning_rate)

    def q(self):
        """The diagonal Normal as it is now, (B, D)."""
        return diagonal_normal(*self.parameters.chunk(2, dim=-1))

    @torch.enable_grad()
    def run(self, model, x, *, generator, learning_rates, draws=1):
        """One step of Adam for each of the learning rates, each with `draws` fresh samples of z per image."""
        for learning_rate in learning_rates:
            self.optimizer.param_groups[0]["lr"] = learning_rate
            q = self.q()
            noise = torch.randn(draws, *q.mean.shape, generator=generator, dtype=q.mean.dtype, device=q.mean.device)
            loss = -elbo(model, x, q, noise).elbo.sum()
            # torch.autograd.grad, unlike backward, does not compute the gradients of the decoder's weights.
            (self.parameters.grad,) = torch.autograd.grad(loss, self.parameters)
            self.optimizer.step()

    def state_dict(self):
        """What `run` needs to continue."""
        return {"parameters": self.parameters.detach(), "adam": self.optimizer.state_dict()}

    def load_state_dict(self, state):
        """Takes over what `state_dict` gave."""
        with torch.no_grad():
            self.parameters.copy_(state["parameters"])
        self.optimizer.load_state_dict(state["adam"])


def fit_posterior(model, x, q, *, generator, learning_rate=0.1, fit_steps=200, tolerance=0.5, max_cycles=20, draws=1):
    """The diagonal Normal q*(z) that maximizes the bound of each image, the decoder frozen (Cremer et al. 2018).

    x: (B, *image); q: where to start, diagonal Normal (B, D), for example the encoder's q or `initial_posterior`. A
    cycle is `fit_steps` steps of Adam whose learning rate falls along a cosine to zero (Loshchilov & Hutter 2017), each
    with `draws` samples of z per image. After each cycle the bound is measured with the same 16 samples per image; the
    fit has converged when a cycle gains less than `tolerance` nats in the mean over images, and stops unconverged after
    `max_cycles`. More draws and longer cycles reduce the noise of the gradients and come nearer to the optimum. Returns
    a Fit; score its q with fresh samples. Raises ValueError if x, q and the model do not fit.
    """
    check_inputs(model, x, q, generator)
    fit = PosteriorFit(q, learning_rate=learning_rate)
    rates = [learning_rate * (0.5 + 0.5 * math.cos(math.pi * step / fit_steps)) for step in range(fit_steps)]
    noise = torch.randn(16, *q.mean.shape, generator=generator, dtype=x.dtype, device=x.device)

    @torch.no_grad()
    def score():
        parts = noise.split(max(1, SCORED_AT_ONCE // len(x)))
        return torch.stack([len(part) * elbo(model, x, fit.q(), part).elbo for part in parts]).sum(0) / len(noise)

    trace, converged = [score()], False
    while not converged and len(trace) <= max_cycles:
        fit.run(model, x, generator=generator, learning_rates=rates, draws=draws)
        trace.append(score())
        converged = bool((trace[-1] - trace[-2]).mean() < tolerance)
    q = fit.q()
    return Fit(
        q=Normal(q.mean.detach(), q.stddev.detach(), validate_args=False),
        trace=torch.stack(trace),
        converged=converged,
        gradients=draws * fit_steps * (len(trace) - 1),
    )


class LatentModel(ConvModel):
    """A trained decoder with the q of every training image."""

    def load_state_dict(self, weights):
        """Takes over what `LatentOptimization.weights` gave: the decoder, and mean and log-variance (N, D) of q."""
        self.decoder.load_state_dict(weights["decoder"])
        self.mean_of_q, self.log_var_of_q = weights["mean"], weights["log_var"]

    def posterior(self, rows):
        """q of the training images at `rows` (B,), a diagonal Normal (B, D)."""
        return diagonal_normal(self.mean_of_q[rows], self.log_var_of_q[rows])


class LatentOptimization(training.Method):
    """The method whose q comes from a table, a row for each training image."""

    name, label, color = "latent_optimization", "Latent optimization", "#D55E00"
    prefix, reconstruction_prefix = "latent_opt", "latent_opt_recon"
    shared_inference = False

    def __init__(self, config, data):
        super().__init__(config, data)
        options = {"image_shape": data.image_shape, "seed": config.seed, "precision": config.precision}
        self.model = ConvModel(config.latent_dim, make_likelihood(config), **options).to(data.device)
        self.table = LatentTable(
            size=len(self.images),
            latent_dim=config.latent_dim,
            max_steps=config.steps,
            learning_rate=config.latent_learning_rate,
            device=data.device,
        )
        adam = torch.optim.Adam(self.model.parameters(), lr=config.learning_rate, fused=True)
        self.optimizers = [adam, self.table]
        count = min(VALIDATION_IMAGES, len(data.validation.labels))
        self.validation_images = stratified_subset(data.validation, size=count, seed=config.seed).images
        start = initial_posterior(count, config.latent_dim, device=data.device)
        self.validation_fit = PosteriorFit(start, learning_rate=VALIDATION_RATE)
        self.also_resumed = [self.validation_fit]

    def posterior(self, x, rows):
        """The table's q of the training images at `rows`; x is ignored."""
        return self.table.posterior(rows)

    def infer(self, x, *, generator, fit_steps=200, batch_size=250):
        """q of images outside the training set, fitted from `initial_posterior`, `batch_size` at a time: a Fit."""
        fits = []
        for part in x.split(batch_size):
            start = initial_posterior(len(part), self.model.latent_dim, device=x.device, dtype=x.dtype)
            fits.append(fit_posterior(self.model, part, start, generator=generator, fit_steps=fit_steps))
        return Fit(
            q=concatenate([fit.q for fit in fits]),
            trace=torch.empty(0, len(x)),
            converged=all(fit.converged for fit in fits),
            gradients=round(sum(fit.gradients * len(fit.q.mean) for fit in fits) / len(x)),
        )

    def validate(self, epoch):
        """The Bound of VALIDATION_IMAGES images, after VALIDATION_STEPS steps from their q of the epoch before."""
        x = self.validation_images
        generator = random_generator(self.config.seed, epoch, "validation", device=x.device)
        self.validation_fit.run(self.model, x, generator=generator, learning_rates=[VALIDATION_RATE] * VALIDATION_STEPS)
        with torch.no_grad():
            q = self.validation_fit.q()
            noise = torch.randn(10, *q.mean.shape, generator=generator, device=q.mean.device)
            return elbo(self.model, x, q, noise)

    def weights(self):
        """The decoder, and mean and log-variance of every row, brought up to date."""
        mean, log_var = self.table.parameters()
        return {"decoder": self.model.decoder.state_dict(), "mean": mean, "log_var": log_var}

    def load_weights(self, weights):
        """Takes over what `weights` gave."""
        self.model.decoder.load_state_dict(weights["decoder"])
        self.table.load_parameters(weights["mean"], weights["log_var"])


def load_model(path, *, device="cpu"):
    """The LatentModel of a checkpoint `latent_opt_epoch_{N}.pt`; see training.load_model."""
    return training.load_model(path, LatentOptimization.name, LatentModel, device=device)
