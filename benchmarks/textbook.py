"""What the program is measured against: training as textbooks and tutorials write it.

Float32, the default memory layout, a DataLoader that transforms every image anew, optim.Adam as it comes, the loss
fetched after every step.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, StackDataset, Subset
from torchvision import transforms
from torchvision.datasets import MNIST

from vae_utils import GaussianPosterior

SIGMA_P = 0.4
CONSTANT = 0.5 * 28 * 28 * math.log(2 * math.pi * SIGMA_P**2)  # nats per image; log p(x|z) has it, this loss has not


def in_default_layout(module):
    """A module of ours with its weights laid out as PyTorch does if nothing is said."""
    return module.to(memory_format=torch.contiguous_format)


def mnist_loader(*, data_dir, rows, batch_size, shuffle=True):
    """A DataLoader over the rows (N,) of MNIST's training part: (images in [-1, 1], labels), positions in `rows`."""
    transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize((0.5,), (0.5,))])
    images = Subset(MNIST(data_dir, train=True, transform=transform), rows.tolist())
    return DataLoader(StackDataset(images, range(len(images))), batch_size=batch_size, shuffle=shuffle)


def bound_loss(q, x, decode):
    """The negative ELBO without its constant, the mean over the batch in nats."""
    x_mean = decode(q.rsample(torch.randn_like(q.mean)))
    reconstruction = F.mse_loss(x_mean, x, reduction="sum") / (2 * SIGMA_P**2)
    divergence = -0.5 * (1 + 2 * q.scale.log() - q.mean.square() - q.scale.square()).sum()
    return (reconstruction + divergence) / len(x)


def train_epoch(posterior, decode, loader, optimizer):
    """One epoch. posterior: from images and their positions to q. Returns the mean of the batches' losses."""
    total = 0.0
    for (x, _), rows in loader:
        optimizer.zero_grad()
        loss = bound_loss(posterior(x, rows), x, decode)
        loss.backward()
        optimizer.step()
        total += loss.item()
    return total / len(loader)


@torch.no_grad()
def validate(posterior, decode, loader):
    """The mean ELBO of the loader's images, nats per image."""
    losses = [bound_loss(posterior(x, rows), x, decode).item() * len(x) for (x, _), rows in loader]
    return -sum(losses) / len(loader.dataset) - CONSTANT


class Latents(nn.Module):
    """Mean and log-variance of every image's q(z): what latent optimization has in place of an encoder."""

    def __init__(self, *, size, initial_log_var, latent_dim):
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(size, latent_dim))
        self.log_var = nn.Parameter(torch.full((size, latent_dim), initial_log_var))

    def forward(self, rows):
        """q of the images at `rows` (B,): diagonal, (B, D)."""
        return GaussianPosterior.from_log_var(self.mean[rows], self.log_var[rows])
