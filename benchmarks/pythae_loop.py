"""pythae's VAE around this project's encoder and decoder: its training and its estimate of log p(x).

pythae's Gaussian likelihood has unit variance. With pixels divided by sigma it is this project's p(x|z) but for the
volume of that change of scale: log p(x) differs by the constant P log(sigma), and both train the same loss. pythae
takes the mean over a batch, not the sum; Adam does not see the difference.
"""

import logging
import tempfile

import torch
from pythae.data.datasets import BaseDataset
from pythae.models import VAE, VAEConfig
from pythae.models.base.base_utils import ModelOutput
from pythae.models.nn import BaseDecoder, BaseEncoder
from pythae.trainers import BaseTrainer, BaseTrainerConfig
from pythae.trainers.training_callbacks import CallbackHandler, TrainingCallback

logging.disable(logging.INFO)


class Encoder(BaseEncoder):
    """This project's encoder for pixels in units of sigma."""

    def __init__(self, encoder, sigma):
        super().__init__()
        self.encoder, self.sigma = encoder, sigma

    def forward(self, x):
        mean, log_var = self.encoder(self.sigma * x).chunk(2, dim=-1)
        return ModelOutput(embedding=mean, log_covariance=log_var)


class Decoder(BaseDecoder):
    """This project's decoder, its pixels in units of sigma."""

    def __init__(self, decoder, sigma):
        super().__init__()
        self.decoder, self.sigma = decoder, sigma

    def forward(self, z):
        return ModelOutput(reconstruction=self.decoder(z) / self.sigma)


def pythae_vae(model):
    """pythae's VAE with the networks of a ConvVAE, for pixels in units of its sigma, in the default memory layout."""
    sigma, model = model.likelihood.sigma, model.to(memory_format=torch.contiguous_format)
    config = VAEConfig(
        input_dim=tuple(model.mean(torch.zeros(1, model.latent_dim)).shape[1:]),
        latent_dim=model.latent_dim,
        reconstruction_loss="mse",
    )
    return VAE(config, encoder=Encoder(model.encoder, sigma), decoder=Decoder(model.decoder, sigma))


def make_trainer(model, data, config):
    """pythae's trainer of a ConvVAE, as its TrainingPipeline makes it; data: a Data, config: a TrainConfig.

    train_step(epoch) and eval_step(epoch) are what its pipeline does in an epoch, but for messages and copies.
    """
    vae = pythae_vae(model)
    parts = [BaseDataset(part.images / model.likelihood.sigma, part.labels) for part in (data.train, data.validation)]
    sizes = {"per_device_train_batch_size": config.batch_size, "per_device_eval_batch_size": 1000}
    with tempfile.TemporaryDirectory() as folder:
        settings = BaseTrainerConfig(output_dir=folder, learning_rate=config.learning_rate, no_cuda=True, **sizes)
        trainer = BaseTrainer(vae, train_dataset=parts[0], eval_dataset=parts[1], training_config=settings)
        trainer.prepare_training()
    # Without bars and messages, which cost time.
    trainer.callback_handler = CallbackHandler(callbacks=[TrainingCallback()], model=vae)
    return trainer
