"""What a method is, and the training loop of one epoch, which also trains the classifier."""

import copy
import inspect
import math
import operator
import time
from dataclasses import replace

import torch
from torch import nn

from data import stratified_subset
from model import make_likelihood
from runtime.checkpoint import invalid_contents
from runtime.config import InputError, LearnerConfig, TrainConfig, choose_precision
from runtime.distributed import WHOLE
from runtime.learners import read_checkpoint, saved_epochs
from vae_utils import Bound, Noise, elbo, evaluate_bound, mean_and_error, random_generator


class Learner(nn.Module):
    """What `train_epoch` trains: a Method, or the classifier of sup_classification.py.

    `state_dict` holds all that the next epoch depends on, optimizers included, but for the data. A subclass sets the
    names, `model` and `optimizers`, and defines draw_noise, train_step, validate, describe and checkpoint_name(epoch):
    None without one. Of several ranks each has its Shard of the training images; all draw the same batches and noise.
    """

    name = None  # in tables, histories and checkpoints
    prefix = None  # the beginning of the names of its files
    metrics = ()  # names of what train_step and validate return
    # Names in `state_dict` of tensors with a row for each training image of this rank, also of their optimizer's state:
    # it is a Module, as LatentTable, since of other optimizers rank 0's state is saved.
    sharded = ()
    digest = None  # Data.digest of the images
    most_validated = None  # validation images, or one of each class if that is more; None: all
    recordable = False  # whether train_step can be recorded as a CUDA graph: it reads no value of a tensor

    def __init__(self, config, data):
        """config: a TrainConfig or ClassifierConfig; data: a Data, on whose device everything lies."""
        super().__init__()
        if not isinstance(config, LearnerConfig):
            raise ValueError(f"{type(self).__name__}(config, data): settings come first, as TrainConfig(epochs=3)")
        if data.shard == WHOLE and len(data.train.labels) != config.train_size:
            needed = f"dataclasses.replace(config, train_size={len(data.train.labels)})"
            raise ValueError(f"train_size={config.train_size}, not that of the data: {needed}")
        if config.binarize and not (data.train.images.abs() == 1).all():
            raise ValueError("binarize=True, but the training images are not binarized: data = load_data(config)")
        config = replace(config, precision=choose_precision(config.precision, data.device))
        self.config, self.shard, self.train_index, self.digest = config, data.shard, data.train.index, data.digest
        self.register_buffer("images", data.train.images, persistent=False)
        self.validation = data.validation
        if self.most_validated:
            size = min(max(self.most_validated, self.validation.num_classes), len(self.validation.labels))
            self.validation = stratified_subset(self.validation, size=size, seed=config.seed)
        self.count = config.train_size  # training images of all ranks
        self.optimizers = []
        self.also_saved = []  # what else has a state that the next epoch depends on, such as a schedule

    def step(self, rows, noise):
        """`train_step`, which `runtime.cuda_graph.record_step` replaces by its recording."""
        return self.train_step(rows, noise)

    def get_extra_state(self):
        """The states of `optimizers` and `also_saved` that are no Modules; PyTorch adds them to `state_dict`."""
        return [part.state_dict() for part in self._stateful()]

    def set_extra_state(self, state):
        for part, saved in zip(self._stateful(), state, strict=True):
            part.load_state_dict(copy.deepcopy(saved))  # an optimizer would share the tensors

    def _stateful(self):
        return [part for part in (*self.optimizers, *self.also_saved) if not isinstance(part, nn.Module)]

    def learned(self):
        """The parameters that torch optimizers have, a list."""
        groups = [group for optimizer in self.optimizers for group in getattr(optimizer, "param_groups", ())]
        return [weight for group in groups for weight in group["params"]]

    def weights(self):
        """What a checkpoint holds, a dict of tensors; on rank 0 alone that of all ranks."""
        return self.model.state_dict()

    def load_weights(self, weights):
        self.model.load_state_dict(weights)


class Method(Learner):
    """A way to find q(z), with the decoder that it trains: all that evaluation and figures know of a method.

    A new method is one file and an entry in main_vae.METHODS. Its subclass sets `name` and `prefix` of a Learner and
    the attributes below, and defines `posterior` and `infer`; its file has load_model = TheClass.load_model. The base
    class makes the model and an Adam of its weights, takes the steps, validates, saves all that `weights` returns, and
    loads it into a new model_class; LatentModel shows how to load buffers whose sizes depend on the data. Figures of
    reconstructions are called {reconstruction_prefix}_epoch_{N}.png.
    """

    label = color = None  # in tables and figures; colors that nothing else has: #56B4E9, #F0E442
    model_class = None  # a LatentVariableModel, made with the arguments of ConvModel; `hidden` only with --hidden
    # Whether one network infers every q. Then each gradient shapes all of them, and all test images have an ELBO.
    shared_inference = True
    # Whether a diagonal q of `infer` is q*: then unseen images have no amortization gap. Else q* is fitted.
    infers_best = False
    # Gradients of its bound that a training step takes for the q of an image, whatever the samples of each. A network
    # that infers every q learns by one of them.
    gradients_per_visit = 1
    noise_draws = 1  # standard normal draws that a training step takes for an image, see `draw_noise`
    by_default = True  # whether it is trained without --methods
    metrics = Bound._fields
    recordable = True

    def __init_subclass__(cls, **options):
        super().__init_subclass__(**options)
        cls.reconstruction_prefix = cls.__dict__.get("reconstruction_prefix", f"{cls.prefix}_recon")

    def __init__(self, config, data):
        super().__init__(config, data)
        options = {"image_shape": data.image_shape, "seed": config.seed, "precision": self.config.precision}
        self.model = make_model(self.model_class, config, **options).to(data.device)
        self.model.config = config
        self.optimizers.append(torch.optim.Adam(self.model.parameters(), lr=config.learning_rate, fused=True))

    @property
    def caption(self):
        """What the numbers are of, small in every figure: p(x|z), and the weight of the KL if that is not 1."""
        beta = self.config.beta
        return self.model.likelihood.label + ("" if beta == 1 else f", trained with beta {beta:g}")

    @classmethod
    def load_model(cls, path, *, device="cpu"):
        """The trained model in a checkpoint of this class, on the device, in evaluation mode.

        It gets the attributes config (a TrainConfig), epoch, and train_index (N,), the training images' rows in the
        data set. Weights in half precision become float32. Raises InputError for any other file.
        """
        checkpoint = read_checkpoint(path, cls.name, device=device)
        with invalid_contents(path):
            model = make_model(cls.model_class, checkpoint["config"], image_shape=checkpoint["image_shape"])
            model.load_state_dict(checkpoint["weights"])
            model.to(device, torch.float32)
        model.config, model.epoch, model.train_index = (checkpoint[key] for key in ("config", "epoch", "train_index"))
        return model.eval()

    def weights(self):
        """See Learner. A method that learns more than `model` overrides it, and `load_weights`."""
        learned = {name for name, _ in self.named_parameters()} | {*self.sharded}
        others = sorted(name for name in learned if not name.startswith("model."))
        if others and type(self).weights is Method.weights:
            raise ValueError(f"{type(self).__name__}: define weights and load_weights, model does not hold {others[0]}")
        return super().weights()

    def frozen(self):
        """This method with its model alone: it infers, but cannot train; small enough to be kept for every epoch."""
        frozen = object.__new__(type(self))
        nn.Module.__init__(frozen)
        frozen.config, frozen.model = self.config, self.model
        return frozen

    def posterior(self, x, rows):
        """q of the training images x (B, *image) at `rows` (B,) of this rank, all different: (B, D).

        Gradients flow through it in a training step, unless `training_posterior` finds q in another way. What is random
        about it is a function of the seed and the image alone.
        """
        raise NotImplementedError

    def training_posterior(self, x, rows, noise):
        """The q of a training step, through which gradients flow, and the noise of its bound, (B, D).

        A method overrides it that needs noise or further gradients to find q: `noise` is then all that `draw_noise`
        gives. One whose training bound is not the ELBO overrides `backward`.
        """
        return self.posterior(x, rows), noise

    def infer(self, x, *, noise, fit_steps=300):
        """q of any images x (B, *image) that were not trained on, as a Fit: by a forward pass, or by an optimization.

        B is up to 10,000: work in batches. It may use `config` and `model` alone, see `frozen`, and changes neither:
        threads share them. noise: a Noise, one for all images or one for each; with the latter the q of an image may
        depend on no other image. fit_steps: of an optimization.
        """
        raise NotImplementedError

    def validate(self, epoch):
        """The Bound of validation images under the present weights, (M,) each: by default at the q of `infer`."""
        x, noise = self.validation.images, Noise(self.config.seed, epoch, "validation", device=self.images.device)
        return evaluate_bound(self.model, x, self.infer(x, noise=noise).q, noise=noise)

    def draw_noise(self, count, generator):
        """What is random in a step on `count` images: standard normal, (count, D) or (noise_draws, count, D)."""
        draws = () if self.noise_draws == 1 else (self.noise_draws,)
        return torch.randn(*draws, count, self.model.latent_dim, generator=generator, device=generator.device)

    def backward(self, rows, noise):
        """Adds the gradients of the loss of the training images at `rows` (B,), with the noise (B, D), to `.grad`.

        config.beta weighs the KL in the loss alone. Returns ELBO, log-likelihood and KL, each summed over this rank's
        images, (3,); so does a method with another loss, at its q. The loss is a sum over images, not a mean: Adam
        ignores the scale, a short batch counts by its images, and gradients of the latent table stay far above its eps.
        """
        rows, noise = self.shard.local(rows, noise)
        if not len(rows):  # a rank may have none
            return torch.zeros(len(Bound._fields), device=noise.device)
        x = self.images[rows]
        bound = elbo(self.model, x, *self.training_posterior(x, rows, noise))
        (self.config.beta * bound.kl - bound.log_likelihood).sum().backward()
        return torch.stack([part.detach().sum() for part in bound])

    def train_step(self, rows, noise):
        """One step of every optimizer; arguments and result are those of `backward`, before the step."""
        for optimizer in self.optimizers:
            optimizer.zero_grad()  # first, so that an interrupted step leaves no gradients
        sums = self.backward(rows, noise)
        self.shard.add_gradients(self.learned())
        for optimizer in self.optimizers:
            optimizer.step()
        return sums

    def checkpoint_name(self, epoch):
        return f"{self.prefix}_epoch_{epoch}.pt" if epoch in saved_epochs(self.config.epochs) else None

    def describe(self, row):
        return f"ELBO {row['train_elbo']:.2f} train, {row['validation_elbo']:.2f} validation"


def train_epoch(learner, epoch, *, progress=None):
    """One pass over the training images in an order that depends on (seed, epoch) alone.

    epoch: from 1 to config.epochs; progress: called with the number of images after each step. Returns {"train_images",
    a "train_..." for each metric, "training_seconds"}, means over images. Raises ValueError for an epoch beyond those,
    FloatingPointError if the loss is not finite.
    """
    started, device, seed = time.perf_counter(), learner.images.device, learner.config.seed
    if (epoch := operator.index(epoch)) not in range(1, learner.config.epochs + 1):
        raise ValueError(f"epoch {epoch}: not from 1 to {learner.config.epochs}, the epochs in the settings")
    if not torch.is_grad_enabled():
        raise ValueError("train_epoch needs gradients: call it outside of torch.no_grad() and torch.inference_mode()")
    learner.train()  # log_prob needs evaluation mode, in which the user may have left the model
    weights, learned = {*learner.parameters()}, {*learner.learned()}
    others = [optimizer for optimizer in learner.optimizers if isinstance(optimizer, nn.Module)]  # such as a table
    learned |= {weight for other in others for weight in other.parameters()}
    if weights and not others and not any(weight.requires_grad for weight in weights):
        raise ValueError("the model's weights are frozen: method.model.requires_grad_(True)")
    if any(weight.requires_grad for weight in weights - learned):
        advice = "method.optimizers[0] = torch.optim.Adam(method.model.parameters(), lr=method.config.learning_rate), "
        advice += "of a new layer method.optimizers[0].add_param_group({'params': layer.parameters()}), or freeze them"
        raise ValueError(f"no optimizer has all of the method's weights: {advice}")
    order = torch.randperm(learner.count, generator=random_generator(seed, epoch, "order")).to(device)
    generator = random_generator(seed, epoch, "noise", device=device)
    sums = []
    for rows in order.split(learner.config.batch_size):
        sums.append(learner.step(rows, learner.draw_noise(len(rows), generator)))
        if progress:
            progress(len(rows))
    sums = learner.shard.add(torch.stack(sums))  # (steps, metrics)
    losses = sums[:, 0].tolist()  # the first wait for the device
    if bad := [number for number, loss in enumerate(losses, 1) if not math.isfinite(loss)]:
        raise FloatingPointError(f"{learner.name}: the loss is not finite at epoch {epoch}, step {bad[0]}")
    means = (sums.sum(0) / learner.count).tolist()
    metrics = {f"train_{name}": mean for name, mean in zip(learner.metrics, means, strict=True)}
    return {"train_images": learner.count, **metrics, "training_seconds": time.perf_counter() - started}


def validate(learner, epoch):
    """{"validation_images", "validation_..." and its standard error for each metric}: means over validation images."""
    learner.eval()
    validated = learner.validate(epoch)
    learner.train()
    row = {"validation_images": len(validated[0])}
    for name, values in validated._asdict().items():
        score = mean_and_error(values)
        row |= {f"validation_{name}": score["mean"], f"validation_{name}_standard_error": score["standard_error"]}
    if not math.isfinite(row[f"validation_{learner.metrics[0]}"]):
        raise FloatingPointError(f"{learner.name}: the validation loss is not finite after epoch {epoch}")
    return row


def make_model(model_class, config, **options):
    """The model of a TrainConfig, untrained; options: of a ConvModel. Raises InputError if it has no `hidden`."""
    if config.hidden != TrainConfig.hidden:  # only then need a class know the argument
        options["hidden"] = config.hidden
        try:
            inspect.signature(model_class).bind_partial(**options)
        except TypeError as error:
            raise InputError(f"--hidden {config.hidden}: {model_class.__name__} {error}") from None
    return model_class(config.latent_dim, make_likelihood(config), **options)
