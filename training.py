"""What a method is; the one epoch loop, which also trains the classifier; its checkpoints, written and read."""

import hashlib
import math
import time
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from model import LatentVariableModel, make_likelihood
from runtime.checkpoint import InputError, RunError, invalid_contents, load_checkpoint, save_checkpoint
from runtime.config import TrainConfig, differences
from runtime.cuda_graph import CUDAGraphStep
from runtime.distributed import add, add_gradients, barrier, gather_rows, rank
from runtime.progress import ProgressBar, resume_hint
from runtime.resume import restore, save_state
from vae_utils import Bound, elbo, mean_and_error, random_generator

SAVED_EPOCHS = (1, 5, 10, 20, 30)
TIMES = ("training_seconds", "seconds")  # the columns of the history in which two equal runs differ


class Learner:
    """What the epoch loop trains: a Method, or the classifier of sup_classification.py.

    A subclass sets the attributes below and defines draw_noise, train_step, validate and describe. Of several `ranks`,
    each has its own images; all draw the same batches and the same noise. A learner of whole Data is every rank's own.
    """

    name = None  # in tables, histories and checkpoints
    prefix = None  # the beginning of the names of its files
    metrics = ()  # names of what train_step and validate return; if the first is not finite, training stops
    model: nn.Module
    optimizers: list
    also_resumed = ()  # what else has a state that the next epoch depends on, such as a schedule

    def __init__(self, config, data):
        """config: a TrainConfig or ClassifierConfig; data: a Data, on whose device everything lies."""
        self.config, self.images, self.train_index = config, data.train.images, data.train.index
        self.ranks = data.ranks
        self.count = len(self.images) if self.ranks == 1 else config.train_size  # of all ranks

    def weights(self):
        """What a checkpoint holds, a dict of tensors."""
        return self.model.state_dict()

    def load_weights(self, weights):
        """Takes over what `weights` gave."""
        self.model.load_state_dict(weights)

    def state_dict(self):
        """All that the next epoch depends on, but for the data and `own_state`; the same on all ranks."""
        others = [each.state_dict() for each in (*self.optimizers, *self.also_resumed)]
        return {"model": self.model.state_dict(), "others": others}

    def own_state(self):
        """{name: tensor}, a row for each image of this rank, on which the next epoch depends, too."""
        return {}

    def load_state_dict(self, state, rows):
        """Takes over what `state_dict` and `own_state` gave."""
        self.model.load_state_dict(state["model"])
        for each, saved in zip((*self.optimizers, *self.also_resumed), state["others"], strict=True):
            each.load_state_dict(saved)

    def checkpoint_name(self, epoch):
        """The name of the checkpoint after that epoch, or None."""
        return f"{self.prefix}_epoch_{epoch}.pt" if epoch in saved_epochs(self.config.epochs) else None


class Method(Learner):
    """A source of q with a model: all that the evaluation and the figures know of a method.

    A new method is a subclass with names, `model`, `optimizers`, `posterior`, `infer` and `validate`, and an entry in
    main_vae.METHODS.
    """

    label = color = None  # in figures and tables
    reconstruction_prefix = None  # the beginning of the names of its figures of reconstructions
    metrics = Bound._fields
    shared_inference = True  # whether the gradient of one image changes the q of the others
    gradients_per_visit = 1  # of q, in a step on an image
    model: LatentVariableModel

    def posterior(self, x, rows):
        """q of the training images x (B, *image) at `rows` (B,): a diagonal Normal (B, D)."""
        raise NotImplementedError

    def infer(self, x, *, generator, fit_steps=300):
        """q of images x (B, *image) outside the training set, as a Fit: by a forward pass, or by an optimization.

        generator: one, or a list of one for each image.
        """
        raise NotImplementedError

    def validate(self, epoch):
        """The Bound of validation images under the present weights, (M,) each."""
        raise NotImplementedError

    def draw_noise(self, count, generator):
        """What is random in a step on `count` images: standard normal, (count, D)."""
        return torch.randn(count, self.model.latent_dim, generator=generator, device=generator.device)

    def backward(self, rows, noise, *, beta=None):
        """Leaves the gradients of the loss of the training images at `rows` (B,), with the noise (B, D), at parameters.

        beta weighs the KL in the loss alone; None: config.beta. Returns ELBO, log-likelihood and KL, each summed over
        this rank's images, (3,). The loss is a sum over images, not a mean: Adam ignores the scale, a short last batch
        counts by its images, and the gradients of the latent table stay far above Adam's eps.
        """
        beta = self.config.beta if beta is None else beta
        if self.ranks > 1:
            own = rows % self.ranks == rank()
            rows, noise = rows[own] // self.ranks, noise[own]
        if not len(rows):  # a rank may have none
            return torch.zeros(len(Bound._fields), device=noise.device)
        x = self.images[rows]
        bound = elbo(self.model, x, self.posterior(x, rows), noise)
        (beta * bound.kl - bound.log_likelihood).sum().backward()
        return torch.stack([part.detach().sum() for part in bound])

    def train_step(self, rows, noise, *, beta=None):
        """One step of every optimizer; arguments and result are those of `backward`, before the step."""
        for optimizer in self.optimizers:
            optimizer.zero_grad()  # first, so that an interrupted step leaves no gradients
        sums = self.backward(rows, noise, beta=beta)
        if self.ranks > 1:
            add_gradients(self.model.parameters())
        for optimizer in self.optimizers:
            optimizer.step()
        return sums

    def describe(self, row):
        """A row of the history in words."""
        return f"ELBO {row['train_elbo']:.2f} train, {row['validation_elbo']:.2f} validation"


def saved_epochs(epochs):
    """The epochs whose checkpoints and figures a run of `epochs` keeps: 1, 5, 10, 20, 30 and the last."""
    return sorted({epoch for epoch in SAVED_EPOCHS if epoch < epochs} | {epochs})


def train_epoch(learner, epoch, *, bar=None, train_step=None):
    """One pass over the training images in an order that depends on (seed, epoch) alone. Returns (steps, metrics).

    train_step: called in place of the learner's own.
    """
    train_step = train_step or learner.train_step
    device, seed = learner.images.device, learner.config.seed
    order = torch.randperm(learner.count, generator=random_generator(seed, epoch, "order")).to(device)
    generator = random_generator(seed, epoch, "noise", device=device)
    sums = []
    for rows in order.split(learner.config.batch_size):
        sums.append(train_step(rows, learner.draw_noise(len(rows), generator)))
        if bar:
            bar.advance(len(rows))
    sums = torch.stack(sums)
    return add(sums) if learner.ranks > 1 else sums


def train(learner, *, checkpoint_dir, run=None, cuda_graph=False):
    """Trains a Learner for the configured epochs and writes checkpoints. Returns the history, one dict per epoch.

    With a Run it continues that run, and writes a state file after every epoch. Raises RunError if the loss is not
    finite or a file cannot be written.
    """
    config = learner.config
    count, history = learner.count, []
    if run:
        restored = {"count": count, "load_state_dict": learner.load_state_dict}
        history = restore(run=run, prefix=learner.prefix, **restored)
    if history:  # the run may have been killed between the writes of its state and of its checkpoint
        _save_epoch(learner, checkpoint_dir, history[-1])
    step = graph_step(learner) if cuda_graph else learner.train_step
    with (
        resume_hint(lambda: f"after epoch {len(history)} of {config.epochs}, {learner.name}" if history else None),
        ProgressBar(learner.name, total=config.epochs * count, unit="img", done=len(history) * count) as bar,
    ):
        for epoch in range(len(history) + 1, config.epochs + 1):
            started = time.perf_counter()
            sums = train_epoch(learner, epoch, bar=bar, train_step=step)
            values = sums[:, 0].tolist()  # the first wait for the device after the steps
            if bad := [number for number, value in enumerate(values, 1) if not math.isfinite(value)]:
                raise RunError(f"{learner.name}: the loss is not finite at epoch {epoch}, step {bad[0]}")
            trained = time.perf_counter() - started
            row = {"method": learner.name, "epoch": epoch, "train_images": count}
            means = (sums.sum(0) / count).tolist()
            row |= {f"train_{name}": mean for name, mean in zip(learner.metrics, means, strict=True)}
            for name, of_images in learner.validate(epoch)._asdict().items():
                score = mean_and_error(of_images)
                row["validation_images"] = score["images"]
                row[f"validation_{name}"] = score["mean"]
                row[f"validation_{name}_standard_error"] = score["standard_error"]
            if not math.isfinite(row[f"validation_{learner.metrics[0]}"]):
                raise RunError(f"{learner.name}: the validation loss is not finite after epoch {epoch}")
            row |= {"training_seconds": trained, "seconds": time.perf_counter() - started}
            if run:
                # State first, checkpoint second: a checkpoint that is missing is written again by the next process.
                known = {"history": [*history, row], "run": run, "prefix": learner.prefix}
                save_state(learner.state_dict(), learner.own_state(), **known)
            history.append(row)
            _save_epoch(learner, checkpoint_dir, row)
            short = f"{epoch}/{config.epochs}, {learner.describe(row)}"
            bar.line(f"epoch {short} ({row['validation_images']:,} images), {row['seconds']:.1f} s", short=short)
    barrier()  # no rank reads a checkpoint that is not there yet
    return history


def graph_step(learner):
    """The learner's train_step as a CUDA graph."""
    for optimizer in learner.optimizers:
        for group in getattr(optimizer, "param_groups", ()):
            group["capturable"] = True
    return CUDAGraphStep(learner.train_step, device=learner.images.device)


def _save_epoch(learner, checkpoint_dir, row):
    """Writes the epoch's checkpoint if it has one, without the times: two runs with the same seed hold the same."""
    if name := learner.checkpoint_name(row["epoch"]):
        index = learner.train_index
        weights = learner.weights()
        if learner.ranks > 1:
            index = gather_rows(index, learner.count)
        if rank():
            return
        checkpoint = {
            "method": learner.name,
            "config": asdict(learner.config),
            "epoch": row["epoch"],
            "weights": weights,
            "image_shape": list(learner.images.shape[1:]),
            "train_index": index.cpu(),
            "metrics": {key: value for key, value in row.items() if key not in TIMES},
        }
        save_checkpoint(Path(checkpoint_dir) / name, checkpoint)


def read_checkpoint(path, name, *, config_class=TrainConfig, device="cpu"):
    """The dict of a checkpoint of the learner called `name`, its "config" a config_class. Else raises InputError."""
    checkpoint = load_checkpoint(path, device=device)
    if checkpoint.get("method") != name:
        raise InputError(f"{path}: not a checkpoint of {name}, but of {checkpoint.get('method')}")
    with invalid_contents(path):
        config = config_class(**checkpoint["config"])
        if checkpoint["train_index"].shape != (config.train_size,) or len(checkpoint["image_shape"]) != 3:
            raise ValueError
    return {**checkpoint, "config": config, "train_index": checkpoint["train_index"].long()}


def load_model(path, name, model_class, *, device="cpu"):
    """The trained model, a ConvModel, in a checkpoint of the method called `name`; on the device, in evaluation mode.

    It knows its likelihood, and gets the attributes config (a TrainConfig), epoch, and train_index (N,), the training
    images' rows in the data set. Weights in half precision become float32. Raises InputError for any other file.
    """
    checkpoint = read_checkpoint(path, name, device=device)
    config = checkpoint["config"]
    with invalid_contents(path):
        model = model_class(config.latent_dim, make_likelihood(config), image_shape=checkpoint["image_shape"])
        model.load_state_dict(checkpoint["weights"])
        model.to(device)
    model.config, model.epoch, model.train_index = (checkpoint[key] for key in ("config", "epoch", "train_index"))
    return model.eval()


def lengthen(methods, run_config, config):
    """Makes the checkpoints of a shorter run those of one with the TrainConfig `config`.

    Of the epochs that the longer run does not keep, it removes checkpoints and figures, and the page of the shorter
    run. May be done twice.
    """
    for method in methods:
        for path in Path(run_config.checkpoint_dir).glob(f"{method.prefix}_epoch_*.pt"):
            checkpoint = load_checkpoint(path)
            if checkpoint["epoch"] in saved_epochs(config.epochs):
                save_checkpoint(path, {**checkpoint, "config": asdict(config)})
                continue
            path.unlink()
            for figure in Path(run_config.results_dir).glob(f"*_epoch_{checkpoint['epoch']}.png"):
                figure.unlink()
    (Path(run_config.results_dir) / "report.html").unlink(missing_ok=True)


class Checkpoints(NamedTuple):
    """The checkpoints that one training of several methods has left in a directory."""

    methods: tuple  # their classes
    directory: str
    config: TrainConfig
    epochs: list  # those of which every method's checkpoint is there, rising
    train_index: torch.Tensor  # (N,), the training images' rows in the data set

    def digests(self):
        """{name of a checkpoint: its SHA-256}."""
        paths = [self.path(method, epoch) for epoch, method in product(self.epochs, self.methods)]
        return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}

    def path(self, method, epoch):
        """The path of a checkpoint."""
        return Path(self.directory) / f"{method.prefix}_epoch_{epoch}.pt"

    def load(self, epoch, data):
        """Every method as it was after the epoch, its networks in float32. Raises InputError for a bad file."""
        loaded = []
        for method_class in self.methods:
            path = self.path(method_class, epoch)
            checkpoint = read_checkpoint(path, method_class.name, device=data.device)
            with invalid_contents(path):
                method = method_class(checkpoint["config"], data)
                method.load_weights(checkpoint["weights"])
            method.model.precision = "float32"
            loaded.append(method)
        return loaded


def find_checkpoints(methods, directory):
    """The Checkpoints of these methods in the directory.

    Raises InputError if no epoch has checkpoints of all methods, or if one is unreadable or of another training.
    """
    found = []
    for method in methods:
        ends = (path.stem.rpartition("_")[2] for path in Path(directory).glob(f"{method.prefix}_epoch_*.pt"))
        found.append({int(end) for end in ends if end.isdecimal()})
    epochs, first = sorted(set.intersection(*found)), None
    if not epochs:
        names = " and ".join(f"{method.prefix}_epoch_N.pt" for method in methods)
        raise InputError(f"{directory}: no checkpoints {names} of the same epoch")
    for epoch, method in product(reversed(epochs), methods):
        path = Path(directory) / f"{method.prefix}_epoch_{epoch}.pt"
        checkpoint = read_checkpoint(path, method.name)
        if checkpoint["epoch"] != epoch:
            raise InputError(f"{path}: of epoch {checkpoint['epoch']}")
        if first is None:
            first, config, index = path.name, checkpoint["config"], checkpoint["train_index"]
        others = differences(asdict(checkpoint["config"]), asdict(config)).replace(" here", f" in {first}")
        if not (others or torch.equal(checkpoint["train_index"], index)):
            others = "its training images are others"
        if others:
            raise InputError(f"{path}: of another training than {first}: {others}")
    return Checkpoints(methods, directory, config, epochs, index)
