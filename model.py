"""The networks: an encoder that gives q(z|x) and a decoder that gives the mean of p(x|z).

Only the last convolution has a bias: on a CPU its gradient takes almost as long as those of the weights and the input
together, and the bound does not miss it. Weights lie channels last, as oneDNN wants them.
"""

import contextlib

import torch
from torch import nn
from torch.distributions import Normal

LATENT_DIM = 200


class Encoder(nn.Module):
    """x (B, 1, 28, 28) in [-1, 1] -> mean and log-variance of q(z|x), (B, D) each."""

    def __init__(self, latent_dim=LATENT_DIM, hidden=512):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 32, 4, stride=2, padding=1, bias=False),  # (B, 32, 14, 14)
            nn.SiLU(),
            nn.Conv2d(32, 32, 4, stride=2, padding=1, bias=False),  # (B, 32, 7, 7)
            nn.SiLU(),
            nn.Flatten(),
            nn.Linear(32 * 7 * 7, hidden),
            nn.LayerNorm(hidden),
            nn.SiLU(),
            nn.Linear(hidden, 2 * latent_dim),
        )
        self.to(memory_format=torch.channels_last)

    def forward(self, x):
        # The bound is computed in the type of x, whatever the network runs in.
        return self.layers(x).to(x.dtype).chunk(2, dim=-1)


class Decoder(nn.Module):
    """z (..., D) -> mean of p(x|z), (..., 1, 28, 28) in [-1, 1]."""

    def __init__(self, latent_dim=LATENT_DIM, hidden=512):
        super().__init__()
        self.latent_dim = latent_dim
        self.layers = nn.Sequential(
            nn.Linear(latent_dim, hidden),
            nn.LayerNorm(hidden),
            nn.SiLU(),
            nn.Linear(hidden, 32 * 7 * 7),
            nn.SiLU(),
            nn.Unflatten(1, (32, 7, 7)),
            nn.ConvTranspose2d(32, 32, 4, stride=2, padding=1, bias=False),  # (B, 32, 14, 14)
            nn.SiLU(),
            # A sub-pixel convolution (Shi et al. 2016): to one channel, a transposed one takes three times as long.
            nn.Conv2d(32, 4, 3, padding=1),
            nn.PixelShuffle(2),  # (B, 1, 28, 28)
            nn.Tanh(),
        )
        # As a transposed convolution's would begin; at PyTorch's third of it the first epochs go into growing them.
        nn.init.uniform_(self.layers[8].weight, -0.25, 0.25)
        self.to(memory_format=torch.channels_last)

    def forward(self, z):
        x_mean = self.layers(z.reshape(-1, self.latent_dim)).to(z.dtype)
        return x_mean.reshape(*z.shape[:-1], 1, 28, 28)


class ConvVAE(nn.Module):
    """The amortized VAE (Kingma & Welling 2014): `encode` gives q(z|x), `decode` the mean of p(x|z)."""

    def __init__(self, latent_dim=LATENT_DIM, *, seed=None):
        """With a seed, the weights are a function of it alone, the decoder's those of `seeded_decoder`."""
        super().__init__()
        with _seeded(seed):
            self.decoder = Decoder(latent_dim)
            self.encoder = Encoder(latent_dim)

    def encode(self, x):
        """q(z|x) of x (B, 1, 28, 28): a diagonal Normal (B, D)."""
        mean, log_var = self.encoder(x)
        return Normal(mean, torch.exp(0.5 * log_var), validate_args=False)

    def decode(self, z):
        """The mean of p(x|z), (..., 1, 28, 28), for z (..., D)."""
        return self.decoder(z)


def seeded_decoder(latent_dim=LATENT_DIM, *, seed):
    """A Decoder with the weights that ConvVAE's has under the same seed."""
    with _seeded(seed):
        return Decoder(latent_dim)


@contextlib.contextmanager
def _seeded(seed):
    """Seeds the global generator, which initializes weights, and gives it back as it was."""
    with torch.random.fork_rng(devices=[], enabled=seed is not None):
        if seed is not None:
            torch.random.default_generator.manual_seed(seed)
        yield


class Classifier(nn.Module):
    """x (B, 1, 28, 28) -> logits of the ten digits, (B, 10); `features` gives what the last layer sees, (B, 128)."""

    def __init__(self, *, seed=None):
        super().__init__()
        with _seeded(seed):
            # The convolutions have no bias: batch normalization would subtract it again.
            self.features = nn.Sequential(
                nn.Conv2d(1, 32, 5, stride=2, padding=2, bias=False),  # (B, 32, 14, 14)
                nn.BatchNorm2d(32),
                nn.ReLU(),
                nn.Conv2d(32, 32, 3, padding=1, bias=False),
                nn.BatchNorm2d(32),
                nn.ReLU(),
                nn.MaxPool2d(2),  # (B, 32, 7, 7)
                nn.Conv2d(32, 64, 3, padding=1, bias=False),  # (B, 64, 7, 7)
                nn.BatchNorm2d(64),
                nn.ReLU(),
                nn.Flatten(),
                nn.Linear(64 * 7 * 7, 128),
                nn.ReLU(),
            )
            self.logits = nn.Linear(128, 10)

    def forward(self, x):
        return self.logits(self.features(x)).to(x.dtype)
