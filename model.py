"""The generative model p(x, z) with its likelihoods, the networks, and the classifier.

Shapes: B images, K samples, D latent dimensions; samples lead, (K, B, D). An image is (C, H, W), pixels in [-1, 1].
Only the VAE's last convolution has a bias: others gain no ELBO and are slow on a CPU, where oneDNN needs channels last.
"""

import copy
import math
from itertools import chain

import torch
import torch.nn.functional as F
from torch import nn

from vae_utils import GaussianPosterior, autocast, check_counts, check_images, check_pixels, check_range, seeded_weights

INITIAL_LOG_VAR = -2.0  # of a q before any fit
FAR = 10  # standard deviations: no pixel is drawn so far from [-1, 1]


class Likelihood(nn.Module):
    """p(x|z) of pixels that are independent given z; its parameters, if any, are trained with the decoder's.

    Shapes: x (B, C, H, W); the decoder's output (..., B or 1, channels * C, H, W). Nats; no constant is dropped.
    A subclass sets the class attributes below, and defines

        log_prob(x, output)         log p(x|z), (..., B)
        mean(output)                E[x|z], (..., B, C, H, W)
        sample(output, generator)   a draw of x, (..., B, C, H, W)
        curvature(output)           -d^2 log p(x|z) / d output^2 of each output alone, or its mean over x; >= 0, of the
                                    shape of output
    """

    name = None
    channels = 1  # of the decoder's output for each channel of x
    activation = nn.Identity  # the last layer of a decoder
    noise_variance = None  # of a pixel given z, if it is a constant
    units = "log-densities, which do not compare with results on binarized images"  # what the numbers are

    @property
    def label(self):  # in figures and tables of all methods: it names no learned value
        return f"{self.name.replace('_', ' ').capitalize()} p(x|z)"

    def split(self, output):
        """The parameters of each pixel, `channels` tensors of the shape of x."""
        return output.chunk(self.channels, dim=-3)

    def check(self, x):
        """Raises ValueError if x cannot be drawn from p(x|z)."""


def flat_pixels(values, x):
    """Values (..., B, *image) as (..., B, P), where x is (B, *image)."""
    return values.flatten(values.dim() - x.dim() + 1)


class Gaussian(Likelihood):
    """p(x|z) = N(x; output, sigma^2 I)."""

    name = "gaussian"
    activation = nn.Tanh  # the output is the mean of pixels in [-1, 1]

    def __init__(self, sigma=0.4):
        super().__init__()
        if not 0 < sigma < math.inf:
            raise ValueError(f"sigma {sigma}: not a number above 0")
        self.sigma, self.noise_variance = sigma, sigma**2

    @property
    def label(self):
        return f"Gaussian p(x|z), sigma {self.sigma:g}, pixels in [-1, 1]"

    def log_prob(self, x, output):
        squared_error = flat_pixels(output - x, x).square().sum(-1)
        return -squared_error / (2 * self.sigma**2) - 0.5 * x[0].numel() * math.log(2 * math.pi * self.sigma**2)

    def mean(self, output):
        return output

    def sample(self, output, generator):
        noise = torch.randn(output.shape, generator=generator, dtype=output.dtype, device=output.device)
        return output + self.sigma * noise

    def curvature(self, output):
        return torch.full_like(output, 1 / self.sigma**2)


class Bernoulli(Likelihood):
    """p(x|z) of binary pixels, -1 or 1; the output is the logit of a 1."""

    name, label = "bernoulli", "Bernoulli p(x|z), binarized pixels"
    units = "log-probabilities, never above 0"

    def log_prob(self, x, output):
        return flat_pixels(F.logsigmoid(x * output), x).sum(-1)

    def mean(self, output):
        return torch.tanh(0.5 * output)

    def sample(self, output, generator):
        uniform = torch.rand(output.shape, generator=generator, dtype=output.dtype, device=output.device)
        return torch.where(uniform < output.sigmoid(), 1.0, -1.0).to(output.dtype)

    def curvature(self, output):
        return output.sigmoid() * (-output).sigmoid()

    def check(self, x):
        if not (x.abs() == 1).all():
            raise ValueError("a Bernoulli likelihood needs pixels that are -1 or 1: data.binarized(127.5 * (x + 1), 0)")


def make_likelihood(config):
    return {Gaussian.name: Gaussian(config.sigma_p), Bernoulli.name: Bernoulli()}[config.likelihood]


class LatentVariableModel(nn.Module):
    """p(x, z) = N(z; 0, I) p(x|z), where the decoder maps z (M, D) to outputs (M, channels * C, H, W).

    precision: of the networks, "float32" (the format of their inputs) or "bfloat16"; results have their inputs' type.
    """

    reach = math.inf  # how far beyond [-1, 1] pixels may be

    def __init__(self, decoder, likelihood, *, latent_dim, precision="float32"):
        super().__init__()
        if not isinstance(likelihood, Likelihood):
            raise ValueError(f"likelihood: one such as Gaussian(0.4), not {likelihood!r}")
        self.decoder, self.likelihood, self.latent_dim, self.precision = decoder, likelihood, latent_dim, precision

    def in_precision(self, precision):
        """The same model, weights shared, whose networks run in `precision`."""
        view = copy.copy(self)
        view.precision = precision
        return view

    @property
    def like(self):
        """An empty tensor with the type and the device of the weights; without weights, PyTorch's default ones."""
        tensors = chain(self.parameters(), self.buffers(), [torch.empty(0)])
        return next(tensor.new_empty(0) for tensor in tensors if tensor.is_floating_point())

    def check(self, x):
        """Raises ValueError if images x are no draws from p(x|z), whatever z."""
        check_pixels(x, self.like)
        check_range(x, beyond=self.reach)
        self.likelihood.check(x)

    def decode(self, z):
        """The parameters of p(x|z), (..., channels * C, H, W), for z (..., D)."""
        like = next(self.parameters(), z)
        if z.shape[-1] != self.latent_dim or (z.dtype, z.device) != (like.dtype, like.device):
            needed = f"z (..., {self.latent_dim}) of {like.dtype} on {like.device}"
            raise ValueError(f"z {tuple(z.shape)} of {z.dtype} on {z.device}: this model takes {needed}")
        rows = z.reshape(-1, z.shape[-1]).clone()  # a decoder may change them in place
        with autocast(self.precision, z.device):
            output = self.decoder(rows)
        given = tuple(output.shape) if isinstance(output, torch.Tensor) else (type(output).__name__,)
        if given[:1] != (len(rows),):
            raise ValueError(f"decoder: z {tuple(rows.shape)} into {given}: not a row for each z")
        if torch.is_grad_enabled() and z.requires_grad and not output.requires_grad:
            raise ValueError("decoder: its output has no gradient, as under torch.no_grad() or after detach()")
        return output.reshape(*z.shape[:-1], *output.shape[1:]).to(z.dtype)

    def mean(self, z):
        """E[x|z], the picture, (..., *image), for z (..., D)."""
        output = self.decode(z)
        picture = self.likelihood.mean(output)
        if picture.numel() * self.likelihood.channels != output.numel():
            raise ValueError(f"likelihood: mean gives {tuple(picture.shape)} of outputs {tuple(output.shape)}")
        return picture

    def log_likelihood(self, x, z):
        """log p(x|z), (..., B), for x (B, *image) and z (..., B, D). Raises ValueError if x does not fit."""
        output, channels = self.decode(z), self.likelihood.channels
        given = output.shape[z.dim() - 1 :]
        if given[0] % channels:
            raise ValueError(f"the decoder gives {tuple(given)} for an image: not {channels} channels for each of x")
        check_images(x, (given[0] // channels, *given[1:]), self.like, "log_likelihood(x, z)")
        if z.dim() < 2 or (len(x) > 1 and z.shape[-2] not in (1, len(x))):
            raise ValueError(f"x {tuple(x.shape)} and z {tuple(z.shape)} are of different images: z (..., B, D)")
        if x.device.type == "cpu":  # elsewhere this would wait for the device
            self.check(x)
        log_likelihood = self.likelihood.log_prob(x, output)
        if log_likelihood.shape != (needed := (*z.shape[:-2], z.shape[-2] if len(x) == 1 else len(x))):
            raise ValueError(f"likelihood: log_prob gives {tuple(log_likelihood.shape)}, where {needed} is needed")
        return log_likelihood

    def log_joint(self, x, z):
        """log p(x, z) = log p(x|z) + log N(z; 0, I), (..., B), for x (B, *image) and z (..., B, D)."""
        log_prior = -0.5 * z.square().sum(-1) - 0.5 * self.latent_dim * math.log(2 * math.pi)
        return self.log_likelihood(x, z) + log_prior

    def initial_posterior(self, x, noise=None):
        """A diagonal q (B, D) from which that of images x (B, *image) is fitted: the encoder's, if there is one."""
        if hasattr(self, "encode"):
            return self.encode(x)
        mean = torch.zeros(len(x), self.latent_dim, dtype=x.dtype, device=x.device)
        return GaussianPosterior(mean, torch.full_like(mean, math.exp(0.5 * INITIAL_LOG_VAR)))

    @torch.no_grad()
    def sample(self, count, generator=None):
        """(x, z) from p(x, z): x (count, *image) with the noise of p(x|z), and z (count, D)."""
        like = self.like
        if not isinstance(generator, torch.Generator) or generator.device.type != like.device.type:
            raise ValueError(f"generator: sample({count}, torch.Generator({like.device.type!r}).manual_seed(0))")
        check_counts(count=count)
        z = torch.randn(count, self.latent_dim, generator=generator, dtype=like.dtype, device=like.device)
        return self.likelihood.sample(self.decode(z), generator), z


class ConvModel(LatentVariableModel):
    """A LatentVariableModel with a convolutional decoder for images of `image_shape`, (C, H, W).

    likelihood: by default a Gaussian; seed: decides the initial weights; options: of LatentVariableModel.
    """

    def __init__(self, latent_dim=200, likelihood=None, *, image_shape=(1, 28, 28), hidden=512, seed=None, **options):
        likelihood = likelihood or Gaussian()
        with seeded_weights(seed):
            decoder = Decoder(latent_dim, likelihood, image_shape=image_shape, hidden=hidden)
        super().__init__(decoder, likelihood, latent_dim=latent_dim, **options)
        self.image_shape, self.reach = tuple(image_shape), FAR * math.sqrt(likelihood.noise_variance or math.inf)


class ConvVAE(ConvModel):
    """A ConvModel with an encoder (Kingma & Welling 2014); its decoder's initial weights are those of a ConvModel."""

    def __init__(self, latent_dim=200, likelihood=None, *, image_shape=(1, 28, 28), hidden=512, seed=None, **options):
        with seeded_weights(seed):
            super().__init__(latent_dim, likelihood, image_shape=image_shape, hidden=hidden, **options)
            self.encoder = Encoder(latent_dim, image_shape=image_shape, hidden=hidden)

    def encode(self, x):
        """q(z|x) of x (B, *image), diagonal, (B, D). Raises ValueError if x does not fit."""
        check_images(x, self.image_shape, self.like, "encode(x)")
        if x.device.type == "cpu":  # elsewhere this would wait for the device
            check_range(x, self.reach)
        with autocast(self.precision, x.device):
            output = self.encoder(x)
        return GaussianPosterior.from_log_var(*output.to(x.dtype).chunk(2, dim=-1))


class Encoder(nn.Module):
    """x (B, C, H, W) -> mean and log-variance of q(z|x), side by side, (B, 2D). H and W are multiples of four."""

    def __init__(self, latent_dim, *, image_shape=(1, 28, 28), hidden=512):
        super().__init__()
        channels, height, width = _quartered(image_shape)
        self.layers = nn.Sequential(
            nn.Conv2d(channels, 32, 4, stride=2, padding=1, bias=False),  # (B, 32, H/2, W/2)
            nn.SiLU(),
            nn.Conv2d(32, 32, 4, stride=2, padding=1, bias=False),  # (B, 32, H/4, W/4)
            nn.SiLU(),
            nn.Flatten(),
            nn.Linear(32 * height * width, hidden),
            nn.LayerNorm(hidden),
            nn.SiLU(),
            nn.Linear(hidden, 2 * latent_dim),
        )
        self.to(memory_format=torch.channels_last)

    def forward(self, x):
        return self.layers(x)


class Decoder(nn.Module):
    """z (B, D) -> the parameters of p(x|z), (B, channels * C, H, W). H and W are multiples of four."""

    def __init__(self, latent_dim, likelihood=Gaussian, *, image_shape=(1, 28, 28), hidden=512):
        super().__init__()
        channels, height, width = _quartered(image_shape)
        # A sub-pixel convolution (Shi et al. 2016): a transposed convolution to one channel takes three times as long.
        self.layers = nn.Sequential(
            nn.Linear(latent_dim, hidden),
            nn.LayerNorm(hidden),
            nn.SiLU(),
            nn.Linear(hidden, 32 * height * width),
            nn.SiLU(),
            nn.Unflatten(1, (32, height, width)),
            nn.ConvTranspose2d(32, 32, 4, stride=2, padding=1, bias=False),  # (B, 32, H/2, W/2)
            nn.SiLU(),
            nn.Conv2d(32, 4 * likelihood.channels * channels, 3, padding=1),
            nn.PixelShuffle(2),  # (B, channels * C, H, W)
            likelihood.activation(),
        )
        # The initial range of a transposed convolution; PyTorch's for this one is a quarter of it, and slow to train.
        nn.init.uniform_(self.layers[8].weight, -0.25, 0.25)
        self.to(memory_format=torch.channels_last)

    def forward(self, z):
        return self.layers(z)


def _quartered(image_shape):
    """Channels, and a quarter of height and width. Raises ValueError if these are not whole."""
    channels, height, width = image_shape
    if height % 4 or width % 4:
        raise ValueError(f"images of {height} x {width} pixels: the networks need multiples of four")
    return channels, height // 4, width // 4


class Classifier(nn.Module):
    """x (B, C, H, W) -> logits of the classes; `features` gives the input of the last layer, (B, 128)."""

    def __init__(self, num_classes=10, *, image_shape=(1, 28, 28), seed=None):
        super().__init__()
        channels, height, width = _quartered(image_shape)
        with seeded_weights(seed):
            # The convolutions have no bias: batch normalization would subtract it again.
            self.features = nn.Sequential(
                nn.Conv2d(channels, 32, 5, stride=2, padding=2, bias=False),  # (B, 32, H/2, W/2)
                nn.BatchNorm2d(32),
                nn.ReLU(),
                nn.Conv2d(32, 32, 3, padding=1, bias=False),
                nn.BatchNorm2d(32),
                nn.ReLU(),
                nn.MaxPool2d(2),  # (B, 32, H/4, W/4)
                nn.Conv2d(32, 64, 3, padding=1, bias=False),
                nn.BatchNorm2d(64),
                nn.ReLU(),
                nn.Flatten(),
                nn.Linear(64 * height * width, 128),
                nn.ReLU(),
            )
            self.logits = nn.Linear(128, num_classes)

    def forward(self, x):
        return self.logits(self.features(x)).to(x.dtype)
