"""What the programs are measured against: training as textbooks and tutorials write it, and a reference network.

Float32, the default memory layout, a DataLoader that transforms every image anew, optim.Adam as it comes, the loss
fetched after every step.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn, optim
from torch.distributions import Normal
from torch.utils.data import DataLoader, Dataset, Subset
from torchvision import transforms
from torchvision.datasets import MNIST

from model import LATENT_DIM
from training import BATCH_SIZE
from vae_utils import SIGMA_P

# log p(x|z) has it, a textbook's loss does not: nats per image.
CONSTANT = 0.5 * 28 * 28 * math.log(2 * math.pi * SIGMA_P**2)


class ReferenceVAE(nn.Module):
    """A usual convolutional VAE, with the methods of model.ConvVAE."""

    def __init__(self, latent_dim=LATENT_DIM):
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(1, 32, 3, stride=2, padding=1),  # (B, 32, 14, 14)
            nn.ReLU(),
            nn.Conv2d(32, 64, 3, stride=2, padding=1),  # (B, 64, 7, 7)
            nn.ReLU(),
            nn.Conv2d(64, 128, 3, stride=2, padding=1),  # (B, 128, 4, 4)
            nn.ReLU(),
            nn.Conv2d(128, 128, 2),  # (B, 128, 3, 3)
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(128, 2 * latent_dim),
        )
        self.decoder = nn.Sequential(
            # Pooling has no inverse: in its place the linear layer gives all of the 3 x 3 positions.
            nn.Linear(latent_dim, 128 * 3 * 3),
            nn.Unflatten(1, (128, 3, 3)),
            nn.ReLU(),
            nn.ConvTranspose2d(128, 128, 2),  # (B, 128, 4, 4)
            nn.ReLU(),
            nn.ConvTranspose2d(128, 64, 3, stride=2, padding=1),  # (B, 64, 7, 7)
            nn.ReLU(),
            nn.ConvTranspose2d(64, 32, 3, stride=2, padding=1, output_padding=1),  # (B, 32, 14, 14)
            nn.ReLU(),
            nn.ConvTranspose2d(32, 1, 3, stride=2, padding=1, output_padding=1),  # (B, 1, 28, 28)
        )

    def encode(self, x):
        """q(z|x) of x (B, 1, 28, 28): a diagonal Normal (B, D)."""
        mean, log_var = self.encoder(x).chunk(2, dim=-1)
        return Normal(mean, torch.exp(0.5 * log_var), validate_args=False)

    def decode(self, z):
        """The mean of p(x|z), (B, 1, 28, 28), for z (B, D)."""
        return self.decoder(z)


def in_default_layout(module):
    """A module of ours with its weights laid out as PyTorch does if nothing is said."""
    return module.to(memory_format=torch.contiguous_format)


class Numbered(Dataset):
    """Another data set's images, each with its number."""

    def __init__(self, dataset):
        self.dataset = dataset

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, number):
        image, _ = self.dataset[number]
        return image, number


def mnist_loader(*, data_dir, rows, train, batch_size=BATCH_SIZE, numbered=False):
    """A DataLoader over the rows `rows` of one part of MNIST, shuffled if it is the training part.

    Its batches are images in [-1, 1] and labels, or, numbered, images and their places in `rows`.
    """
    transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize((0.5,), (0.5,))])
    images = Subset(MNIST(data_dir, train=train, transform=transform), rows)
    return DataLoader(Numbered(images) if numbered else images, batch_size=batch_size, shuffle=train)


def bound_loss(*, q, x, decode):
    """The negative ELBO without its constant, the mean over the batch in nats."""
    x_mean = decode(q.rsample())
    reconstruction = F.mse_loss(x_mean, x, reduction="sum") / (2 * SIGMA_P**2)
    divergence = -0.5 * (1 + 2 * q.stddev.log() - q.mean.square() - q.stddev.square()).sum()
    return (reconstruction + divergence) / len(x)


def train_epoch(*, model, loader, optimizer):
    """One epoch of an amortized VAE. Returns the mean of its batches' losses."""
    model.train()
    total = 0.0
    for x, _ in loader:
        optimizer.zero_grad()
        loss = bound_loss(q=model.encode(x), x=x, decode=model.decode)
        loss.backward()
        optimizer.step()
        total += loss.item()
    return total / len(loader)


@torch.no_grad()
def validate(*, model, loader):
    """The mean ELBO of the loader's images, nats per image."""
    model.eval()
    total = 0.0
    for x, _ in loader:
        total += bound_loss(q=model.encode(x), x=x, decode=model.decode).item() * len(x)
    return -total / len(loader.dataset) - CONSTANT


class Latents(nn.Module):
    """Mean and log-variance of every image's q(z): what latent optimization has in place of an encoder."""

    def __init__(self, *, size, initial_log_var, latent_dim=LATENT_DIM):
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(size, latent_dim))
        self.log_var = nn.Parameter(torch.full((size, latent_dim), initial_log_var))

    def forward(self, index):
        """q of the images `index` (B,): a diagonal Normal (B, D)."""
        return Normal(self.mean[index], torch.exp(0.5 * self.log_var[index]), validate_args=False)


def latent_optimizer(*, decoder, latents, decoder_rate, table_rate):
    """The textbook's optimizer of decoder and table: one Adam, over every row at every step."""
    return optim.Adam(
        [
            {"params": decoder.parameters(), "lr": decoder_rate},
            {"params": latents.parameters(), "lr": table_rate},
        ]
    )


def train_latent_epoch(*, decoder, latents, loader, optimizer):
    """One epoch of latent optimization; the loader is numbered. Returns the mean of its batches' losses."""
    total = 0.0
    for x, index in loader:
        optimizer.zero_grad()
        loss = bound_loss(q=latents(index), x=x, decode=decoder)
        loss.backward()
        optimizer.step()
        total += loss.item()
    return total / len(loader)
