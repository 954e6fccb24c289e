"""Method 1, the amortized VAE: an encoder gives q(z|x) of every image (Kingma & Welling 2014)."""

import torch

import training
from model import ConvVAE
from posterior_fit import Fit
from vae_utils import Bound, Noise, evaluate_bound


class AmortizedVAE(training.Method):
    """The method whose q comes from an encoder."""

    name, label, color = "amortized", "Amortized VAE", "#0072B2"
    prefix, reconstruction_prefix = "vae", "recon"
    model_class = ConvVAE

    def posterior(self, x, rows):
        return self.model.encode(x)

    @torch.no_grad()
    def infer(self, x, *, noise=None, fit_steps=None):
        return Fit.given(self.model.encode(x))

    def validate(self, epoch):
        """The Bound of every validation image; each rank computes some of the batches."""
        x, seed = self.validation.images, self.config.seed
        values = torch.zeros(len(Bound._fields), len(x), device=x.device)
        batches = list(enumerate(torch.arange(len(x), device=x.device).split(1000)))
        for number, rows in batches[self.shard.rank :: self.shard.size]:
            noise = Noise(seed, epoch, "validation", number, device=x.device)
            values[:, rows] = torch.stack(evaluate_bound(self.model, x[rows], self.posterior, noise=noise))
        return Bound(*self.shard.add(values))


load_model = AmortizedVAE.load_model  # the ConvVAE of vae_epoch_{N}.pt or pretrained/vae.pt
