"""Method 3, the semi-amortized VAE: q(z|x) from an encoder, then improved by a few gradient steps on its own bound."""

import torch

import training
from model import ConvVAE
from posterior_fit import Fit
from vae_utils import GaussianPosterior, Noise, check_noise


class SemiAmortizedVAE(training.Method):
    """The method whose q starts at an encoder's and takes `refinement_steps` steps.

    The decoder learns at the q that the steps reach, the encoder by the ELBO of its own q (Krishnan et al. 2018).
    Through the steps (Kim et al. 2018) the encoder learns more in an update, but an update takes about five times as
    long: the ELBO of 500 validation images, 4,000 training images, seed 0, is -190.4 after 8 epochs and 91 s, through
    the steps -268.8 after 2 epochs and 109 s and -169.1 after 8 and 464 s (amortized VAE: -214.1 after 8).
    """

    name, label, color, prefix = "semi_amortized", "Semi-amortized VAE", "#E69F00", "semi_amortized_vae"
    model_class = ConvVAE
    by_default = False
    most_validated = 1000  # each takes the steps of a training image

    def __init__(self, config, data):
        super().__init__(config, data)
        self.gradients_per_visit = config.refinement_steps  # the encoder learns by the first one
        self.noise_draws = config.refinement_steps + 1  # of each step, and of the bound that they reach

    @torch.enable_grad()
    def refine(self, x, q, noise, *, beta=1.0):
        """The q that natural-gradient steps on the ELBO reach from a diagonal q (B, D); noise: (k, B, D) for k steps.

        The gradient is that of the path alone, without the score of q, whose noise vanishes at the optimum (Roeder et
        al. 2017). For means it is the natural one (Amari 1998), for log-variances half of it; a step changes these by
        the rate at most. The rate falls to 0 linearly. Also returns the gradient for `q.parameters()` (B, 2D) that the
        first step takes, its KL weighted by beta. Neither has a graph.
        """
        mean, log_var, first = q.mean.detach(), 2 * q.scale.detach().log(), None
        for number, e in enumerate(noise):
            # With respect to z, times the scale: d/dz log q(z) = -e / scale
            scale = torch.exp(0.5 * log_var)
            z = (mean + scale * e).requires_grad_()
            (gradient,) = torch.autograd.grad(self.model.log_likelihood(x, z).sum(), z)
            gradient, kl = scale * gradient, scale * z.detach() - e
            if first is None:
                weighted = gradient - beta * kl
                first = torch.cat((weighted / scale, 0.5 * e * weighted), dim=-1)
            # A step
            gradient = gradient - kl
            rate = self.config.refinement_rate * (1 - number / len(noise))
            mean = mean + rate * scale * gradient
            log_var = log_var + rate * (0.5 * e * gradient).clamp(-1, 1)
        return GaussianPosterior.from_log_var(mean, log_var), first

    def training_posterior(self, x, rows, noise):
        """The refined q; the encoder's gradients are left here, by that of the first step."""
        q = self.model.encode(x)
        refined, gradient = self.refine(x, q, noise[:-1], beta=self.config.beta)
        q.parameters().backward(-gradient)
        return refined, noise[-1]

    def posterior(self, x, rows):
        """The refined q of training images; the noise of its steps is a function of the seed and the image."""
        noise = Noise.of_images(self.config.seed, "refinement", index=self.train_index[rows], device=x.device)
        return self.infer(x, noise=noise).q

    @torch.no_grad()
    def infer(self, x, *, noise=None, fit_steps=None):
        """q of any images: the encoder's, and the steps of training. Returns a Fit without a trace."""
        check_noise(noise, len(x), "infer(x, noise=Noise(seed))")
        parts, steps = [], self.config.refinement_steps
        for rows in torch.arange(len(x), device=x.device).split(1000):
            q = self.model.encode(x[rows])
            parts.append(self.refine(x[rows], q, noise[rows].normal((steps, *q.mean.shape), like=q.mean))[0])
        return Fit.given(GaussianPosterior.concatenate(parts), gradients=steps)


load_model = SemiAmortizedVAE.load_model  # the ConvVAE of a checkpoint; its `encode` gives q before the steps
