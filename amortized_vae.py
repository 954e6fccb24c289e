"""The amortized VAE: an encoder gives q(z|x) for every image."""

import torch

import training
from files import InputError, load_checkpoint
from model import LATENT_DIM, ConvVAE
from vae_utils import SIGMA_P, evaluate, random_generator

LEARNING_RATE = 0.001
NAME = "amortized"


class AmortizedVAE:
    """The regime whose q comes from the encoder; see training.py for what a regime is."""

    name, prefix = NAME, "vae"

    def __init__(self, *, test_images, latent_dim=LATENT_DIM, sigma_p=SIGMA_P, seed=0, learning_rate=LEARNING_RATE):
        """Networks on the device of `test_images` (M, 1, 28, 28), which are scored whole after every epoch."""
        self.model = ConvVAE(latent_dim=latent_dim, seed=seed).to(test_images.device)
        self.decoder = self.model.decoder
        self.test_images, self.sigma_p, self.seed = test_images, sigma_p, seed
        on_cuda = test_images.device.type == "cuda"
        self.optimizers = [torch.optim.Adam(self.model.parameters(), lr=learning_rate, fused=True, capturable=on_cuda)]

    def posterior(self, x, index):
        """q(z|x); the index is ignored."""
        return self.model.encode(x)

    def held_out(self, epoch):
        """The Bound of every test image."""
        generator = random_generator(self.seed, epoch, "test", device=self.test_images.device)
        return evaluate(
            posterior=self.posterior,
            decode=self.decoder,
            images=self.test_images,
            generator=generator,
            sigma_p=self.sigma_p,
        )

    def weights(self):
        """Encoder and decoder."""
        return self.model.state_dict()

    def state_dict(self):
        """What a run needs to continue."""
        return {"model": self.model.state_dict(), "adam": self.optimizers[0].state_dict()}

    def load_state_dict(self, state):
        """Takes over what `state_dict` gave."""
        self.model.load_state_dict(state["model"])
        self.optimizers[0].load_state_dict(state["adam"])


def train(*, train, test, config, checkpoint_dir, latent_dim=LATENT_DIM, sigma_p=SIGMA_P, seed=0, **loop):
    """Trains on the Split `train`, validates on the Split `test`. Returns (ConvVAE, history).

    loop: epochs, batch_size, precision and run of training.train.
    """
    regime = AmortizedVAE(test_images=test.images, latent_dim=latent_dim, sigma_p=sigma_p, seed=seed)
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
    return regime.model, history


def load_model(path, *, device="cpu"):
    """The ConvVAE of a checkpoint `vae_epoch_{N}.pt`, on the device. Raises InputError for any other file."""
    checkpoint = load_checkpoint(path, device=device)
    if checkpoint.get("regime") != NAME:
        raise InputError(f"{path}: not a checkpoint of the amortized VAE")
    try:
        model = ConvVAE(latent_dim=checkpoint["config"]["latent_dim"]).to(device)
        model.load_state_dict(checkpoint["weights"])
    except (KeyError, RuntimeError, TypeError):
        raise InputError(f"{path}: its contents do not fit this program") from None
    return model
