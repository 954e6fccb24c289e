"""Latent optimization: every image owns its q(z), learned by gradient descent beside the decoder."""

import math
from typing import NamedTuple

import torch
from torch.distributions import Normal

import training
from data import stratified_subset
from files import InputError, load_checkpoint
from latent_table import INITIAL_LOG_VAR, LatentTable
from model import LATENT_DIM, Decoder, seeded_decoder
from vae_utils import SIGMA_P, diagonal_normal, elbo, random_generator

NAME = "latent_optimization"
LEARNING_RATE = 0.001
HELD_OUT_IMAGES = 100  # followed through training, warm-started from epoch to epoch
HELD_OUT_STEPS = 30
HELD_OUT_RATE = 0.03
FIT_STEPS = 200  # of one cycle of a fit
SCORED_AT_ONCE = 500  # samples of z, where the bound is taken after a cycle


class Fit(NamedTuple):
    """What `fit_posterior` found."""

    q: Normal  # diagonal, (B, D)
    trace: torch.Tensor  # (cycles + 1, B): the bound before, and after every cycle, nats
    converged: bool
    gradients: int  # evaluated for each image on the way


def initial_posterior(*, count, latent_dim, device="cpu"):
    """The q that every row of a LatentTable and every fit without a better guess starts from."""
    mean = torch.zeros(count, latent_dim, device=device)
    return diagonal_normal(mean, torch.full_like(mean, INITIAL_LOG_VAR))


class PosteriorFit:
    """q of images that were never trained on, on its way: gradient ascent on the bound, decoder frozen."""

    def __init__(self, *, initial, learning_rate):
        """initial: diagonal Normal (B, D)."""
        self.parameters = torch.cat((initial.mean, 2 * initial.stddev.log()), dim=-1).detach().requires_grad_()
        self.optimizer = torch.optim.Adam([self.parameters], lr=learning_rate)

    def q(self):
        """The diagonal Normal as it is now, (B, D)."""
        return diagonal_normal(*self.parameters.chunk(2, dim=-1))

    def run(self, *, x, decode, generator, learning_rates, sigma_p=SIGMA_P, draws=1):
        """One step of Adam for each of the learning rates, each with `draws` fresh samples of z per image."""
        for learning_rate in learning_rates:
            self.optimizer.param_groups[0]["lr"] = learning_rate
            q = self.q()
            noise = torch.randn(draws, *q.mean.shape, generator=generator, dtype=q.mean.dtype, device=q.mean.device)
            loss = -elbo(q=q, x=x, decode=decode, noise=noise, sigma_p=sigma_p).elbo.sum()
            # torch.autograd.grad, unlike backward, spends nothing on the gradients of the decoder's weights.
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


def fit_posterior(
    *,
    x,
    decode,
    initial,
    generator,
    sigma_p=SIGMA_P,
    learning_rate=0.1,
    cycle=FIT_STEPS,
    tolerance=0.5,
    max_cycles=20,
    draws=1,
):
    """The diagonal Normal q*(z) that maximizes the bound of each image, the decoder frozen (Cremer et al. 2018).

    x: (B, *image); initial: where to start, diagonal Normal (B, D), for example the encoder's q or
    `initial_posterior`. A cycle is `cycle` steps of Adam whose learning rate falls along a cosine to zero
    (Loshchilov & Hutter 2017), each with `draws` samples of z per image. After each, the bound is taken with the same
    16 draws of noise per image; the fit has converged when a cycle has gained less than `tolerance` nats in the mean
    over images, and gives up, not converged, after `max_cycles`. What it stays short of the best is the noise of its
    gradients: more draws and longer cycles come nearer. Returns a Fit; score its q with fresh samples.
    """
    fit = PosteriorFit(initial=initial, learning_rate=learning_rate)
    fall = [0.5 + 0.5 * math.cos(math.pi * step / cycle) for step in range(cycle)]
    noise = torch.randn(16, *initial.mean.shape, generator=generator, dtype=x.dtype, device=x.device)

    @torch.no_grad()
    def score():
        parts = noise.split(max(1, SCORED_AT_ONCE // len(x)))
        sums = [len(part) * elbo(q=fit.q(), x=x, decode=decode, noise=part, sigma_p=sigma_p).elbo for part in parts]
        return torch.stack(sums).sum(0) / len(noise)

    trace, converged = [score()], False
    while not converged and len(trace) <= max_cycles:
        rates = [learning_rate * share for share in fall]
        fit.run(x=x, decode=decode, generator=generator, learning_rates=rates, sigma_p=sigma_p, draws=draws)
        trace.append(score())
        converged = bool((trace[-1] - trace[-2]).mean() < tolerance)
    q = fit.q()
    q = Normal(q.mean.detach(), q.stddev.detach(), validate_args=False)
    return Fit(q=q, trace=torch.stack(trace), converged=converged, gradients=draws * cycle * (len(trace) - 1))


class LatentOptimization:
    """The regime whose q comes from a table; see training.py for what a regime is."""

    name, prefix = NAME, "latent_opt"

    def __init__(
        self,
        *,
        train_size,
        test,
        max_steps,
        latent_dim=LATENT_DIM,
        sigma_p=SIGMA_P,
        seed=0,
        learning_rate=LEARNING_RATE,
    ):
        """Everything on the device of the Split `test`, of which a fixed sample is followed through training."""
        device = test.images.device
        self.decoder = seeded_decoder(latent_dim, seed=seed).to(device)
        self.table = LatentTable(
            size=train_size,
            latent_dim=latent_dim,
            max_steps=max_steps,
            device=device,
        )
        on_cuda = device.type == "cuda"
        adam = torch.optim.Adam(self.decoder.parameters(), lr=learning_rate, fused=True, capturable=on_cuda)
        self.optimizers = [adam, self.table]
        self.sigma_p, self.seed = sigma_p, seed
        self.sample = stratified_subset(test, size=HELD_OUT_IMAGES, seed=seed).images
        start = initial_posterior(count=HELD_OUT_IMAGES, latent_dim=latent_dim, device=device)
        self.fit = PosteriorFit(initial=start, learning_rate=HELD_OUT_RATE)

    def posterior(self, x, index):
        """The table's q of the training images `index`; x is ignored."""
        return self.table.posterior(x, index)

    def held_out(self, epoch):
        """The Bound of the sample of test images after some steps from where the epoch before left them."""
        generator = random_generator(self.seed, epoch, "held out", device=self.sample.device)
        scene = {"x": self.sample, "decode": self.decoder, "sigma_p": self.sigma_p}
        self.fit.run(generator=generator, learning_rates=[HELD_OUT_RATE] * HELD_OUT_STEPS, **scene)
        with torch.no_grad():
            q = self.fit.q()
            noise = torch.randn(10, *q.mean.shape, generator=generator, device=q.mean.device)
            return elbo(q=q, noise=noise, **scene)

    def weights(self):
        """The decoder and the table, every row brought up to date."""
        mean, log_var = self.table.parameters()
        return {"decoder": self.decoder.state_dict(), "mean": mean, "log_var": log_var}

    def state_dict(self):
        """What a run needs to continue."""
        parts = {"adam": self.optimizers[0], "decoder": self.decoder, "table": self.table, "fit": self.fit}
        return {name: part.state_dict() for name, part in parts.items()}

    def load_state_dict(self, state):
        """Takes over what `state_dict` gave."""
        parts = {"adam": self.optimizers[0], "decoder": self.decoder, "table": self.table, "fit": self.fit}
        for name, part in parts.items():
            part.load_state_dict(state[name])


class LatentModel(NamedTuple):
    """A trained decoder with the q of every training image."""

    decoder: Decoder
    mean: torch.Tensor  # (N, D)
    log_var: torch.Tensor  # (N, D)

    def posterior(self, x, index):
        """q of the training images `index`; x is ignored."""
        return diagonal_normal(self.mean[index], self.log_var[index])

    def decode(self, z):
        """The mean of p(x|z), (..., 1, 28, 28), for z (..., D)."""
        return self.decoder(z)


def train(*, train, test, config, checkpoint_dir, latent_dim=LATENT_DIM, sigma_p=SIGMA_P, seed=0, **loop):
    """Trains on the Split `train`; a sample of the Split `test` is followed. Returns (LatentModel, history).

    loop: epochs, batch_size, precision and run of training.train.
    """
    steps_per_epoch = -(-len(train.images) // loop.get("batch_size", training.BATCH_SIZE))
    regime = LatentOptimization(
        train_size=len(train.images),
        test=test,
        max_steps=steps_per_epoch * loop.get("epochs", training.EPOCHS),
        latent_dim=latent_dim,
        sigma_p=sigma_p,
        seed=seed,
    )
    history = training.train(
        regime=regime,
        images=train.images,
        image_index=train.index,
        config=config,
        checkpoint_dir=checkpoint_dir,
        sigma_p=sigma_p,
        seed=seed,
        **loop,
    )
    return LatentModel(regime.decoder, *regime.table.parameters()), history


def load_model(path, *, device="cpu"):
    """The LatentModel of a checkpoint `latent_opt_epoch_{N}.pt`. Raises InputError for any other file."""
    checkpoint = load_checkpoint(path, device=device)
    if checkpoint.get("regime") != NAME:
        raise InputError(f"{path}: not a checkpoint of latent optimization")
    try:
        weights = checkpoint["weights"]
        decoder = Decoder(checkpoint["config"]["latent_dim"]).to(device)
        decoder.load_state_dict(weights["decoder"])
        return LatentModel(decoder, weights["mean"], weights["log_var"])
    except (KeyError, RuntimeError, TypeError):
        raise InputError(f"{path}: its contents do not fit this program") from None


def unseen_fits(
    *,
    images,
    decoder,
    seed,
    sigma_p=SIGMA_P,
    precision="float32",
    fit_steps=FIT_STEPS,
    batch_size=250,
    stage=None,
):
    """A Fit for each batch of images (N, 1, 28, 28) that were never trained on, from `initial_posterior`."""
    generator = random_generator(seed, "unseen", device=images.device)
    fits = []
    for x in images.split(batch_size):
        start = initial_posterior(count=len(x), latent_dim=decoder.latent_dim, device=x.device)
        with training.autocast(precision, x.device):
            fits.append(
                fit_posterior(x=x, decode=decoder, initial=start, generator=generator, sigma_p=sigma_p, cycle=fit_steps)
            )
        if stage:
            stage.advance(len(x))
    return fits


def unseen_posterior(**case):
    """q of images (N, 1, 28, 28) that were never trained on, fitted to convergence; case: what `unseen_fits` takes.

    Returns (q, converged): a diagonal Normal (N, D) and whether every batch converged, as `fit_posterior` judges it.
    """
    return joined(unseen_fits(**case))


def joined(fits):
    """q of all images of several Fits, a diagonal Normal (N, D), and whether all have converged."""
    mean, stddev = (torch.cat([getattr(fit.q, name) for fit in fits]) for name in ("mean", "stddev"))
    return Normal(mean, stddev, validate_args=False), all(fit.converged for fit in fits)
