"""Both regimes, trained under one configuration on the same images: by a run, or found as checkpoints."""

import contextlib
from pathlib import Path
from typing import NamedTuple

import torch

import amortized_vae
import figures
import latent_optimization
from files import InputError, load_checkpoint, load_json, save_csv, save_figure
from progress import standing
from runs import other_flags
from training import saved_epochs

REGIMES = {"vae": amortized_vae, "latent_opt": latent_optimization}  # {how its files begin: module}, in order
PREFIXES = tuple(REGIMES)
SECONDS = ("amortized_training", "latent_training")  # what the summary calls the training of either, in that order
CONFIG = ("latent_dim", "sigma_p", "seed", "epochs", "batch_size", "precision", "train_size")


class Trained(NamedTuple):
    """What a training of both regimes has left."""

    config: dict  # {name in CONFIG: value}, all that it depended on
    epochs: list  # the epochs of which both checkpoints are there, rising
    train_index: torch.Tensor  # (N,): the training images' rows in MNIST
    models: tuple  # (ConvVAE, LatentModel) after the last of these epochs
    seconds: dict  # {name in SECONDS: of that training}, as far as they are known


def train_regimes(*, train, test, config, run, checkpoint_dir, results_dir):
    """Trains the amortized VAE, then latent optimization; writes checkpoints, history.csv, and the curves.

    train, test: Splits; config: {name in CONFIG: value}; run: a Run. Returns a Trained.
    """
    # The number of images is that of the Split.
    settings = {name: value for name, value in config.items() if name != "train_size"}
    results_dir, epochs = Path(results_dir), config["epochs"]
    history, models, seconds = [], [], {}
    with standing(lambda: f"after {len(history)} of {2 * epochs} epochs" if history else None):
        for name, regime in zip(SECONDS, REGIMES.values(), strict=True):
            model, rows = regime.train(
                train=train, test=test, config=config, checkpoint_dir=checkpoint_dir, run=run, **settings
            )
            models.append(model)
            history += rows
            seconds[name] = sum(row["seconds"] for row in rows)
            save_csv(results_dir / "history.csv", history)
        save_figure(results_dir / "training_curves.png", figures.training_curves(history=history))
    return Trained(config, saved_epochs(epochs), train.index, tuple(models), seconds)


def find_trained(checkpoint_dir, *, device="cpu"):
    """The Trained whose checkpoints lie in the directory, its models on the device, its seconds not known.

    Raises InputError if there is no epoch of which both regimes' checkpoints are there, if one of those cannot be
    read, or if they are not all of one training.
    """
    checkpoint_dir = Path(checkpoint_dir)
    found = [_epochs(checkpoint_dir, prefix) for prefix in PREFIXES]
    epochs = sorted(found[0] & found[1])
    if not epochs:
        raise InputError(f"{checkpoint_dir}: no checkpoints vae_epoch_N.pt and latent_opt_epoch_N.pt of the same epoch")
    last = checkpoint_dir / f"vae_epoch_{epochs[-1]}.pt"
    config, train_index = _training(last, regime=amortized_vae.NAME, epoch=epochs[-1])
    for epoch in epochs:
        for prefix, regime in REGIMES.items():
            path = checkpoint_dir / f"{prefix}_epoch_{epoch}.pt"
            its_config, its_index = _training(path, regime=regime.NAME, epoch=epoch)
            if others := other_flags(its_config, config, here=f"in {last.name}"):
                raise InputError(f"{path}: of another training than {last.name}: {others}")
            if not torch.equal(its_index, train_index):
                raise InputError(f"{path}: of another training than {last.name}: its training images are others")
    return Trained(config, epochs, train_index, load_models(checkpoint_dir, epoch=epochs[-1], device=device), {})


def load_models(checkpoint_dir, *, epoch, device="cpu"):
    """(ConvVAE, LatentModel) from the checkpoints of one epoch. Raises InputError if one cannot be read."""
    paths = {prefix: Path(checkpoint_dir) / f"{prefix}_epoch_{epoch}.pt" for prefix in REGIMES}
    return tuple(regime.load_model(paths[prefix], device=device) for prefix, regime in REGIMES.items())


def _epochs(checkpoint_dir, prefix):
    """The epochs of which a regime's checkpoint is there, a set."""
    ends = (path.stem.removeprefix(f"{prefix}_epoch_") for path in checkpoint_dir.glob(f"{prefix}_epoch_*.pt"))
    return {int(end) for end in ends if end.isdecimal()}


def _training(path, *, regime, epoch):
    """The configuration and the training images' rows that a checkpoint of this regime and epoch gives."""
    checkpoint = load_checkpoint(path)
    config, train_index = checkpoint.get("config"), checkpoint.get("train_index")
    if (
        (checkpoint.get("regime"), checkpoint.get("epoch")) != (regime, epoch)
        or not isinstance(config, dict)
        or not set(CONFIG) <= set(config)
        or not isinstance(train_index, torch.Tensor)
        or train_index.shape != (config["train_size"],)
    ):
        raise InputError(f"{path}: not a checkpoint of main_vae.py, or not of this regime and epoch")
    return {name: config[name] for name in CONFIG}, train_index


def training_seconds(summary, config):
    """{name in SECONDS: seconds} of the training under `config`, if an earlier summary, a path, is of that training.

    Says so if it is of another.
    """
    with contextlib.suppress(InputError):  # nothing there, or nothing that can be read
        earlier = load_json(summary)
        if others := other_flags(earlier.get("config", {}), config):
            print(f"{summary}: of another run ({others}), whose files stay until replaced", flush=True)
        else:
            return {name: value for name, value in earlier.get("seconds", {}).items() if name in SECONDS}
    return {}


def description(trained):
    """A Trained in words."""
    config, epoch = trained.config, trained.epochs[-1]
    return f"epoch {epoch} of {config['epochs']}, {config['train_size']:,} training images, seed {config['seed']}"
