"""Method 1, the amortized VAE: an encoder gives q(z|x) of every image (Kingma & Welling 2014)."""

import torch

import training
from model import ConvVAE
from posterior_fit import Fit


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


load_model = AmortizedVAE.load_model  # the ConvVAE of vae_epoch_{N}.pt or pretrained/vae.pt
