"""Trains the supervised baseline, a small convolutional classifier, on the same stratified images."""

import contextlib
import math
from collections import namedtuple
from dataclasses import asdict, replace
from pathlib import Path

from runtime.process import prepare_process

if __name__ == "__main__":
    prepare_process("evaluation/figures.mplstyle")

import torch
import torch.nn.functional as F

from data import load_data
from evaluation import figures, statistics
from model import Classifier
from runtime.checkpoint import invalid_contents
from runtime.cli import Parser, add_flags, make_config, prepare_run, run_script
from runtime.config import ClassifierConfig, InputError, RunConfig, image_differences, versions
from runtime.distributed import broadcast
from runtime.learners import read_checkpoint
from runtime.plan import Owned
from runtime.run import open_run
from training import Learner, train_epoch, validate
from vae_utils import autocast

ROTATION, SHIFT, SCALE = 12.0, 2.0, 0.1  # of the augmentation, at most: degrees, pixels, share
ImageErrors = namedtuple("ImageErrors", ("loss", "error"))  # of each image, (M,): nats; 0 or 1


class ClassifierTraining(Learner):
    """The classifier's training: Adam with one cycle of the learning rate (Smith & Topin 2019)."""

    name = prefix = "classifier"
    file = "classifier.pt"
    metrics = ImageErrors._fields

    def __init__(self, config, data):
        super().__init__(config, data)
        self.labels = data.train.labels
        model = Classifier(data.train.num_classes, image_shape=data.image_shape, seed=config.seed)
        self.model = model.to(data.device, memory_format=torch.channels_last)
        adam = torch.optim.Adam(self.model.parameters(), lr=config.learning_rate, fused=True)
        steps = config.epochs * math.ceil(len(self.images) / config.batch_size)
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(adam, config.learning_rate, total_steps=steps + 1)
        self.optimizers, self.also_saved = [adam], [self.schedule]

    @property
    def most_validated(self):
        """As many images as it learns from: a short training would spend most of its time on others."""
        return self.config.train_size

    def draw_noise(self, count, generator):
        """Uniform in [-1, 1], (4, count): what `augment` makes of each image."""
        return 2 * torch.rand(4, count, generator=generator, device=generator.device) - 1

    def train_step(self, rows, noise):
        """One step on the augmented training images at `rows` (B,). Returns loss and errors summed over them, (2,)."""
        (adam,), labels = self.optimizers, self.labels[rows]
        adam.zero_grad()
        with autocast(self.config.precision, self.images.device):
            logits = self.model(augment(self.images[rows], noise))
        loss = F.cross_entropy(logits, labels)
        loss.backward()
        adam.step()
        self.schedule.step()
        return torch.stack((loss.detach() * len(rows), (logits.argmax(-1) != labels).sum()))

    def validate(self, epoch):
        """The ImageErrors of the validation images."""
        log_prob, labels = predict(self.model, self.validation.images), self.validation.labels
        return ImageErrors(F.nll_loss(log_prob, labels, reduction="none"), (log_prob.argmax(-1) != labels).float())

    def checkpoint_name(self, epoch):
        """The one checkpoint, after the last epoch."""
        return self.file if epoch == self.config.epochs else None

    def describe(self, row):
        """A row of the history in words."""
        return f"error {row['train_error']:.2%} train, {row['validation_error']:.2%} validation"


SUMMARY, FIGURE, JUDGE = "classification.json", "classification.png", "classifier_of_samples.pt"
OWNED = Owned((ClassifierTraining,), (SUMMARY, FIGURE), SUMMARY, FIGURE, ClassifierTraining.file, evaluates=False)


def augment(x, noise):
    """Every image (B, C, H, W) rotated, shifted and scaled by `noise` (4, B) times ROTATION, SHIFT and SCALE."""
    angle, right, down, scale = noise.unbind()
    angle, scale = angle * math.radians(ROTATION), 1 + SCALE * scale
    cos, sin = scale * angle.cos(), scale * angle.sin()
    height, width = x.shape[-2:]  # along both affine_grid's coordinates run from -1 to 1
    across = torch.stack((cos, -sin * (height / width), SHIFT * (2 / width) * right), dim=-1)
    along = torch.stack((sin * (width / height), cos, SHIFT * (2 / height) * down), dim=-1)
    grid = F.affine_grid(torch.stack((across, along), dim=1), x.shape, align_corners=False)
    # grid_sample takes pixels outside the image as 0, but the background is -1.
    return F.grid_sample(x + 1, grid, align_corners=False) - 1


@torch.no_grad()
def predict(model, images, *, batch_size=100):
    """Log-probabilities of the classes, (N, classes), with the model in evaluation mode."""
    training = model.training
    model.eval()
    log_prob = torch.cat([model(batch).log_softmax(-1) for batch in images.split(batch_size)])
    model.train(training)
    return log_prob


def load_classifier(path, data):
    """The Classifier in a file, on the device of the Data, frozen; InputError for another file, or other images."""
    checkpoint = read_checkpoint(path, ClassifierTraining.name, config_class=ClassifierConfig, device=data.device)
    with invalid_contents(path):
        model = Classifier(data.train.num_classes, image_shape=checkpoint["image_shape"])
        model = model.to(data.device, memory_format=torch.channels_last)
        model.load_state_dict(checkpoint["weights"])
    if not torch.equal(checkpoint["train_index"], data.train.index):
        raise InputError(f"{path}: trained on other images")
    if text := image_differences(checkpoint.get("images"), data.digest):
        raise InputError(f"{path}: trained on other images ({text})")
    model.config = checkpoint["config"]
    return model.eval().requires_grad_(False)


def find_classifier(data, config, run):
    """The Classifier of these training images and this ClassifierConfig: loaded if it is there, else trained.

    Beside a `classifier.pt` of another training, such as the user's, it is called JUDGE. An evaluation only reads the
    checkpoints' directory.
    """
    found, names = None, (ClassifierTraining.file, JUDGE)
    for there in (folder / name for name in names for folder in (Path(run.config.checkpoint_dir), run.directory)):
        with contextlib.suppress(InputError):  # nothing there, or nothing of use
            if replace(load_classifier(there, data).config, precision=config.precision) == config:
                found = there
                break
    if not (found := broadcast(found)):  # all ranks do the same
        learner = ClassifierTraining(config, data)
        learner.file = broadcast(JUDGE if (run.directory / learner.file).exists() else learner.file)
        found = run.directory / learner.file
        with run.timed("supervised baseline"):
            for epoch in run.epochs(learner, resumable=False):
                run.record(train_epoch(learner, epoch, progress=run.progress), validate(learner, epoch))
    return load_classifier(found, data)


def main():
    """Checks all input; then, in locked directories, trains, and writes the figure and the numbers."""
    parser = Parser(prog="sup_classification.py", description=__doc__)
    add_flags(parser, ClassifierConfig, "experiment")
    add_flags(parser, RunConfig, "run", skip=("eager",))
    given = parser.parse_args()
    run_config, config = make_config(RunConfig, given), make_config(ClassifierConfig, given)
    device, config = prepare_run(run_config, config)
    data = load_data(config, data_dir=run_config.data_dir, device=device, at_most="train_size" not in given)
    config = replace(config, train_size=len(data.train.labels))
    config = config if "epochs" in given else config.with_enough_epochs()
    settings = {**asdict(config), "device": device.type, "images": data.digest}
    path = Path(run_config.checkpoint_dir) / ClassifierTraining.file
    if path.exists() and not path.with_name("classifier_state.json").exists() and not run_config.overwrite:
        try:
            read_checkpoint(path, ClassifierTraining.name, config_class=ClassifierConfig)
        except InputError as error:  # the user's own, perhaps
            raise InputError(f"{error}; another --checkpoint-dir keeps it, --overwrite replaces it") from None
    with open_run(run_config, settings, owned=OWNED) as run:
        if run.finished:
            return
        start = f"{len(data.train.labels):,} training images on {device}, network in {config.precision}"
        print(*data.said, start, sep="\n", flush=True)
        learner = ClassifierTraining(config, data)
        for epoch in run.epochs(learner):
            run.record(train_epoch(learner, epoch, progress=run.progress), validate(learner, epoch))
        run.write(report(learner.model, data.test, run, settings))


def report(model, test, run, settings):
    """Yields the figure and the numbers, the numbers last, see `save_file`; then prints the table."""
    count, log_prob = test.num_classes, predict(model, test.images)
    predicted = log_prob.argmax(-1)
    correct = predicted == test.labels
    overall = statistics.accuracy(correct)
    classes = {name: statistics.accuracy(correct[test.labels == label]) for label, name in enumerate(test.classes)}
    confusion = torch.bincount(test.labels * count + predicted, minlength=count**2).reshape(count, count)
    shown = {"confusion": confusion.cpu().numpy(), "wrong": most_confidently_wrong(log_prob, test, count=10)}
    shown |= {"history": run.history, "per_class": [*classes.values()], "classes": test.classes}
    yield FIGURE, figures.classification(**shown)
    numbers = {"test": overall, "classes": classes, "confusion": confusion.tolist(), "history": run.history}
    yield SUMMARY, {"settings": settings, "versions": versions(), **numbers, "seconds": run.seconds()}
    width = min(40, max(8, 1 + max(map(len, classes))))
    print(f"{'class':>{width}}{'accuracy':>10}{'95% interval':>18}{'images':>8}")
    for name, score in (*classes.items(), ("all", overall)):
        low, high = score["interval_95"]
        print(f"{name:>{width}}{score['accuracy']:>10.2%}{f'{low:.2%} to {high:.2%}':>18}{score['images']:>8,}")
    print(f"{run.seconds():.0f} seconds")
    print(f"{run.results / FIGURE}: open it; numbers: {SUMMARY} beside it; {run.directory / ClassifierTraining.file}")


def most_confidently_wrong(log_prob, test, *, count):
    """The wrongly classified test images with the highest probability of the wrong class, highest first.

    A list of at most `count` tuples (image (C, H, W), label, prediction, its probability).
    """
    confidence, predicted = log_prob.exp().max(-1)
    wrong = torch.nonzero(predicted != test.labels).flatten()
    order = wrong[confidence[wrong].argsort(descending=True)][:count]
    return [(test.images[row], int(test.labels[row]), int(predicted[row]), float(confidence[row])) for row in order]


if __name__ == "__main__":
    run_script(main)
