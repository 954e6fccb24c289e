"""pythae's VAE around this project's encoder and decoder: its training and its estimate of log p(x).

pythae's Gaussian likelihood has unit variance. With pixels divided by sigma_p it is p(x|z) of this project but for the
volume of that change of scale, so both train the same loss (pythae takes its mean over a batch, not its sum: Adam does
not see the difference) and log p(x) differs by the constant P log(sigma_p).
"""

import logging
import tempfile

from pythae.data.datasets import BaseDataset
from pythae.models import VAE, VAEConfig
from pythae.models.base.base_utils import ModelOutput
from pythae.models.nn import BaseDecoder, BaseEncoder
from pythae.trainers import BaseTrainer, BaseTrainerConfig
from pythae.trainers.training_callbacks import CallbackHandler, TrainingCallback

logging.disable(logging.INFO)


class Encoder(BaseEncoder):
    """This project's encoder for pixels in units of sigma_p."""

    def __init__(self, encoder, sigma_p):
        super().__init__()
        self.encoder, self.sigma_p = encoder, sigma_p

    def forward(self, x):
        mean, log_var = self.encoder(self.sigma_p * x)
        return ModelOutput(embedding=mean, log_covariance=log_var)


class Decoder(BaseDecoder):
    """This project's decoder, its pixels in units of sigma_p."""

    def __init__(self, decoder, sigma_p):
        super().__init__()
        self.decoder, self.sigma_p = decoder, sigma_p

    def forward(self, z):
        return ModelOutput(reconstruction=self.decoder(z) / self.sigma_p)


def pythae_vae(*, vae, sigma_p):
    """pythae's VAE with the networks of a ConvVAE, for pixels in units of sigma_p."""
    config = VAEConfig(input_dim=(1, 28, 28), latent_dim=vae.decoder.latent_dim, reconstruction_loss="mse")
    return VAE(config, encoder=Encoder(vae.encoder, sigma_p), decoder=Decoder(vae.decoder, sigma_p))


def trainer(*, vae, sigma_p, train, test, batch_size, learning_rate):
    """pythae's trainer, as its TrainingPipeline makes it, ready for train_step(epoch) and eval_step(epoch).

    train, test: Splits. Those two calls are what its pipeline does in an epoch, but for copying the model
    and telling how far it is.
    """
    datasets = [BaseDataset(split.images / sigma_p, split.labels) for split in (train, test)]
    with tempfile.TemporaryDirectory() as folder:
        config = BaseTrainerConfig(
            output_dir=folder,
            per_device_train_batch_size=batch_size,
            per_device_eval_batch_size=1000,
            learning_rate=learning_rate,
            no_cuda=True,
        )
        model = pythae_vae(vae=vae, sigma_p=sigma_p)
        trainer = BaseTrainer(model, train_dataset=datasets[0], eval_dataset=datasets[1], training_config=config)
        trainer.prepare_training()
    # Its bars and messages cost time: here it runs without them.
    trainer.callback_handler = CallbackHandler(callbacks=[TrainingCallback()], model=model)
    return trainer
