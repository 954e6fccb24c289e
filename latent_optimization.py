"""Method 2, latent optimization: every image owns its q(z), learned by gradient descent beside the decoder."""

import math

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.decomposition import PCA
from torch import nn

import training
from latent_table import LatentTable
from model import INITIAL_LOG_VAR, ConvModel
from posterior_fit import Fit, PosteriorFit, fit_posterior
from vae_utils import GaussianPosterior, Noise, check_images, check_noise, elbo

VALIDATION_STEPS, VALIDATION_RATE = 30, 0.03  # of the q of validation images in an epoch
LEAST_NATS = 1.2  # that a principal component must carry to be used
LEAST_NOISE = 1e-4  # of the estimated noise variance of a pixel
MOST_PIXELS = 40_000_000  # of all images that the principal components are of
STARTED_AT_ONCE = 1000  # rows of the table
FACTOR_START = 0.01  # standard deviation of the entries of factor / scale, whose gradient at 0 is 0
PARTS = ("mean", "log_var", "loadings")  # of a q in a checkpoint; the last with a --latent-rank alone


class LinearPosterior(nn.Module):
    """q(z|x) = N(projection (x - center) + spread * noise, diag stddev^2), from which the q of an image is optimized.

    As made, the start "zero": the same q for all images, with mean 0 and log-variance INITIAL_LOG_VAR.
    """

    def __init__(self, latent_dim, pixels):
        super().__init__()
        self.register_buffer("center", torch.zeros(pixels))
        self.register_buffer("projection", torch.zeros(0, pixels))  # (K, P): of the first K dimensions, 0 of the others
        self.register_buffer("stddev", torch.full((latent_dim,), math.exp(0.5 * INITIAL_LOG_VAR)))
        self.register_buffer("spread", torch.zeros(()))  # 1: means are draws from the prior, the start "normal"

    def forward(self, x, noise=None):
        """q of images x (B, *image), diagonal, (B, D). noise: needed with a spread alone."""
        mean = (x.flatten(1) - self.center.to(x.dtype)) @ self.projection.T.to(x.dtype)  # (B, K)
        mean = F.pad(mean, (0, len(self.stddev) - len(self.projection)))
        if self.spread:
            if noise is None:
                raise ValueError("a start at draws from the prior needs a Noise: initial_posterior(x, noise)")
            mean = mean + self.spread * noise.normal((1, *mean.shape), like=mean)[0]
        return GaussianPosterior(mean, self.stddev.to(x.dtype).expand_as(mean))

    def _load_from_state_dict(self, state_dict, prefix, *others):
        if (saved := state_dict.get(f"{prefix}projection")) is not None:  # of any number of dimensions
            self.projection = self.projection.new_empty(saved.shape)
        super()._load_from_state_dict(state_dict, prefix, *others)


def probabilistic_pca(images, latent_dim, noise_variance=None, *, least_nats=LEAST_NATS):
    """The posterior of a linear decoder that is fitted to images (N, *image), a LinearPosterior on the CPU.

    Probabilistic PCA: x = W z + center + noise (Tipping & Bishop 1999), the optimum of a linear VAE (Lucas et al.
    2019). With the eigenvalue l of the images' covariance and the noise variance s2 of a pixel, a dimension has the
    posterior mean sqrt(l - s2) / l times the principal component of x, and the variance s2 / l; it carries
    0.5 log(l / s2) nats. Components that carry less than `least_nats`, or might be noise of few images (Marchenko &
    Pastur 1967), are dropped; dimensions of z without a component begin at the prior. noise_variance: s2, that of the
    likelihood; None: its maximum-likelihood estimate, the mean of the eigenvalues that are dropped (Tipping & Bishop,
    Eq. 8), with as many components as each carry enough. Beyond MOST_PIXELS an even part of the images is used.
    """
    most = max(1, MOST_PIXELS // images[0].numel())
    x = images[:: math.ceil(len(images) / most)].flatten(1).cpu().double().numpy()
    pca = PCA(min(latent_dim, *x.shape), random_state=0).fit(x)
    values, pixels = pca.explained_variance_, x.shape[1]
    numbers, most_noise = np.arange(1, len(values) + 1), noise_variance  # of dimensions that might be kept
    if noise_variance is None:
        left_out, total = np.maximum(pixels - numbers, 1), x.var(0, ddof=1).sum()
        noise_variance, most_noise = np.maximum((total - values.cumsum()) / left_out, LEAST_NOISE), total / pixels
        numbers = numbers[: max(1, min(len(x) - 1, pixels) // 10)]  # so that enough are left out for the estimate
    carried = 0.5 * np.log(np.maximum(values, np.finfo(float).tiny) / noise_variance)  # (components,), nats
    # Noise alone has eigenvalues up to about this, of few images with many pixels.
    of_noise = 1.1 * (1 + math.sqrt(pixels / len(x))) ** 2 * most_noise
    enough = (carried >= least_nats) & (values >= of_noise)
    kept = int(numbers[enough[: len(numbers)]].max(initial=0))
    values, noise_variance = values[:kept], np.broadcast_to(noise_variance, carried.shape)[max(kept - 1, 0)]
    start = LinearPosterior(latent_dim, pixels)
    start.center.copy_(torch.from_numpy(pca.mean_))
    scale = np.sqrt(values - noise_variance) / values
    projection = torch.from_numpy(scale[:, None] * pca.components_[:kept]).float()
    start.projection = projection.contiguous()  # as it comes back from a file, to the same bits
    start.stddev.fill_(1)
    start.stddev[:kept] = torch.from_numpy(np.sqrt(noise_variance / values)).float()
    return start


class LatentModel(ConvModel):
    """A decoder, the start of every fit, and q of every training image if its checkpoint has it (pretrained/: not)."""

    def __init__(self, latent_dim=200, likelihood=None, **options):
        super().__init__(latent_dim, likelihood, **options)
        self.start = LinearPosterior(latent_dim, math.prod(self.image_shape))
        for name in PARTS:  # of the q of every training image, if the weights hold them: (N, D), or (N, D, latent_rank)
            self.register_buffer(f"{name}_of_q", None)

    def initial_posterior(self, x, noise=None):
        """Where the q of images x (B, *image) begins, in the table and in any fit: (B, D), without a factor.

        noise: a Noise, which only a start at draws from the prior needs.
        """
        check_images(x, self.image_shape, self.like, "initial_posterior(x)")
        return self.start(x, noise)

    def _load_from_state_dict(self, state_dict, prefix, *others):
        for name in PARTS:  # so called in a checkpoint
            if f"{prefix}{name}" in state_dict:
                state_dict[f"{prefix}{name}_of_q"] = state_dict.pop(f"{prefix}{name}")
            saved = state_dict.get(f"{prefix}{name}_of_q")
            setattr(self, f"{name}_of_q", None if saved is None else torch.empty_like(saved))
        super()._load_from_state_dict(state_dict, prefix, *others)

    def posterior(self, rows):
        """q of the training images at `rows` (B,), (B, D). Raises ValueError if it has none."""
        if self.mean_of_q is None:
            raise ValueError("this checkpoint holds no q of training images: fit_posterior finds the q of any image")
        parts = (getattr(self, f"{name}_of_q") for name in PARTS)
        return GaussianPosterior.from_log_var(*(part[rows] for part in parts if part is not None))


class LatentOptimization(training.Method):
    """The method whose q comes from a table, a row for each training image."""

    name, label, color = "latent_optimization", "Latent optimization", "#D55E00"
    prefix = "latent_opt"
    shared_inference, infers_best = False, True
    model_class = LatentModel
    sharded = ("table.rows", "table.last_visit")
    most_validated = 100  # followed through training, warm-started from epoch to epoch

    def __init__(self, config, data):
        super().__init__(config, data)
        self.gradients_per_visit = self.noise_draws = config.latent_steps
        self.recordable = not config.latent_rank  # not tried with CUDA's Cholesky decomposition
        self.model.start = self._make_start().to(data.device)
        options = {"rank": config.latent_rank, "learning_rate": config.latent_learning_rate, "device": data.device}
        self.table = LatentTable(size=len(self.images), latent_dim=config.latent_dim, **options)
        batches = zip(self.images.split(STARTED_AT_ONCE), self.train_index.split(STARTED_AT_ONCE), strict=True)
        self.table.load_parameters(torch.cat([self._started(x, index).parameters() for x, index in batches]))
        self.optimizers.append(self.table)
        self.validation_fit = PosteriorFit(self._started(self.validation.images, self.validation.index))
        self.also_saved.append(self.validation_fit)

    def _make_start(self):
        """The LinearPosterior of the configured start; rank 0 makes it of the images of all ranks."""
        start = self.model.start
        if self.config.latent_start == "normal":
            start.spread.fill_(1)
        if self.config.latent_start != "pca":
            return start
        if (images := self.shard.gather(self.images, self.count)) is not None:
            start = probabilistic_pca(images, self.config.latent_dim, self.model.likelihood.noise_variance)
        return self.shard.broadcast(start)

    def _started(self, x, index):
        """The start of images x (B, *image) at the rows `index` (B,) of the data set."""
        is_random = self.config.latent_start == "normal" or self.config.latent_rank
        noise = Noise.of_images(self.config.seed, "start", index=index, device=x.device) if is_random else None
        return self._initial_posterior(x, noise)

    def _initial_posterior(self, x, noise):
        """The model's, with a small random factor of the configured rank if that is above 0."""
        q, rank = self.model.initial_posterior(x, noise), self.config.latent_rank
        if not rank:
            return q
        draws = noise.normal((1, *q.mean.shape, rank), like=q.mean)[0]
        return GaussianPosterior(q.mean, q.scale, FACTOR_START * q.scale.unsqueeze(-1) * draws)

    def posterior(self, x, rows):
        return self.table.posterior(rows)

    def infer(self, x, *, noise=None, fit_steps=300, batch_size=100):
        """q of images outside the training set, fitted from model.initial_posterior, `batch_size` at a time: a Fit."""
        check_noise(noise, len(x), "infer(x, noise=Noise(seed))")
        fits = []
        for rows in torch.arange(len(x), device=x.device).split(batch_size):
            options = {"covariance": "low rank", "noise": noise[rows], "fit_steps": fit_steps}
            fits.append(fit_posterior(self.model, x[rows], self._initial_posterior(x[rows], noise[rows]), **options))
        q, _, converged, gradients = zip(*fits, strict=True)
        return Fit(GaussianPosterior.concatenate(q), torch.empty(0, len(x)), torch.cat(converged), torch.cat(gradients))

    def train_step(self, rows, noise):
        """See Method.train_step. Of several steps of the table all but the last are the table's alone."""
        *before, last = noise if noise.dim() == 3 else [noise]
        if before:
            learned = [weight for weight in self.model.parameters() if weight.requires_grad]
            for weight in learned:
                weight.requires_grad_(False)
            try:
                for of_step in before:
                    self.backward(rows, of_step)
                    self.table.step()
            finally:  # an interrupted step leaves no weight frozen
                for weight in learned:
                    weight.requires_grad_(True)
        return super().train_step(rows, last)

    def validate(self, epoch):
        """The Bound of the validation images, after VALIDATION_STEPS steps from their q of the epoch before."""
        x, noise = self.validation.images, Noise(self.config.seed, epoch, "validation", device=self.images.device)
        shape, rates = (len(x), self.config.latent_dim), [VALIDATION_RATE] * VALIDATION_STEPS
        draws = noise.normal((VALIDATION_STEPS, *shape), like=x)
        self.validation_fit.run(self.model, x, noise=draws, learning_rates=rates)
        with torch.no_grad():
            return elbo(self.model, x, self.validation_fit.q(), noise.normal((10, *shape), like=x))

    def weights(self):
        """The decoder, and the q of every row in its parts, brought up to date: the rows on rank 0 alone."""
        parts = (self.shard.gather(part, self.count) for part in self.table.current())
        return {**self.model.state_dict(), **dict(zip(PARTS, parts, strict=False))}

    def load_weights(self, weights):
        if PARTS[0] not in weights:  # as in pretrained/
            raise ValueError("no q of training images: load_model takes it, a run and --evaluate-only do not")
        self.model.load_state_dict({name: value for name, value in weights.items() if name not in PARTS})
        self.table.load_parameters(*(weights[name] for name in PARTS if name in weights))


load_model = LatentOptimization.load_model  # the LatentModel of latent_opt_epoch_{N}.pt or pretrained/latent_opt.pt
