"""Settings: frozen dataclasses, whose fields become command-line flags and are saved with every result."""

import hashlib
import math
import os
import platform
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from importlib.metadata import version
from numbers import Integral, Real
from pathlib import Path

import torch

MANY = 10**9  # no limit of ours; the data and the memory have theirs
_ROOT = Path(__file__).parents[1]
_SOURCES = [path for room in ("", "evaluation/**/", "runtime/") for path in sorted(_ROOT.glob(f"{room}*.py"))]
# At import, as what runs: somebody may edit the files meanwhile. An editor's lock may be a link to nothing.
PROGRAM = hashlib.sha256(b"".join(path.read_bytes() for path in _SOURCES if path.is_file())).hexdigest()[:12]


class InputError(ValueError):
    """Something that the user can correct. Its text is the one line that a script prints."""


class RunError(InputError):
    """An InputError that arises after the work has begun."""


@contextmanager
def about(subject):
    """Puts before the text of an InputError or OSError what it is about; it becomes an InputError."""
    try:
        yield
    except (InputError, OSError) as error:
        raise InputError(f"{subject}: {getattr(error, 'strerror', None) or error}") from None


def setting(default, meaning, *, low=None, high=MANY, choices=None, least=None):
    """A field with its help text and, if it is a number, its range, both ends included.

    least: marks a count that shrinks in proportion to a training shorter than the default one, but not below this.
    """
    metadata = {"help": meaning, "low": low, "high": high, "choices": choices, "least": least}
    return field(default=default, metadata=metadata)


def flag(name):
    """The flag of the command line that sets the field called `name`."""
    return f"--{name.replace('_', '-')}"


SEED = "seed of all that is random but the split of a folder and the binarization"
EPOCHS = "passes over the training images; without this flag more, if these are under 100 steps"
PRECISIONS = ("auto", "float32", "bfloat16")
PRECISION_HELP = "number format; auto takes bfloat16 where the hardware is faster in it"
PRECISION_OF_GRADIENTS = "number format of the networks in gradients of annealing and of fits of q*full"
PORTABLE = ("device", "precision")  # settings with which a run may continue elsewhere: the same up to rounding
TRAIN_SIZE = (
    "training images, stratified; without this flag at most 7/8 of those there are, so that others validate. If fewer "
    "than 20 are left, the test images validate"
)
DATASET = (
    "mnist, fashion-mnist, kmnist, or folder:PATH, a folder with a folder of images for each class, of which a fifth "
    "are test images, or with such folders in train, test and val"
)
EVALUATION = (
    "none draws pictures, for which q of few images is found; quick has ELBOs and q*, too; full log p(x), what latents "
    "represent, and the page"
)
REFINEMENT_RATE = "semi-amortized: rate of the first step, then falling; 1: a natural gradient of means"
RESUME = "continue the run in these directories, if it was interrupted; main_vae.py lengthens it, too"
START = "where the latent table begins: at the posteriors of probabilistic PCA, at mean 0, or at draws from the prior"


@dataclass(frozen=True)
class Config:
    """The base class of the settings."""

    def __post_init__(self):
        """Raises InputError for the first field whose value is out of its range."""
        for entry in fields(self):
            value, bounds, kind = getattr(self, entry.name), entry.metadata, type(entry.default)
            value = os.fspath(value) if isinstance(value, os.PathLike) else value
            allowed = {int: Integral, float: Real}.get(kind, kind)
            if not isinstance(value, allowed) or (isinstance(value, bool) and kind is not bool):
                raise InputError(f"{flag(entry.name)} {value!r}: not of the type {kind.__name__}")
            if type(value) not in (bool, int, float, str):  # such as NumPy's; a checkpoint holds plain values
                value = kind(value)
            if entry.name.endswith("_dir"):  # no shell expands ~ in --results-dir=~/results
                value = os.path.expanduser(value)
            object.__setattr__(self, entry.name, value)
            if value == "":
                raise InputError(f"{flag(entry.name)}: the name is empty")
            if bounds["choices"] and value not in bounds["choices"]:
                raise InputError(f"{flag(entry.name)} {value!r}: not one of {', '.join(bounds['choices'])}")
            if bounds["low"] is not None and not bounds["low"] <= value <= bounds["high"]:  # NaN fails here, too
                raise InputError(f"{flag(entry.name)} {value!r}: not from {bounds['low']:,} to {bounds['high']:,}")


@dataclass(frozen=True)
class LearnerConfig(Config):
    """The settings that methods and the classifier share; the defaults are those of methods."""

    epochs: int = setting(30, "passes over the training images", low=1, high=100_000)
    train_size: int = setting(20_000, TRAIN_SIZE, low=1)
    dataset: str = setting("mnist", DATASET)
    resize: bool = setting(False, "resize the images of a folder to 28 x 28, padded to squares with their background")
    binarize: bool = setting(False, "binarize the pixels once, by a fixed seed; bernoulli implies it")
    batch_size: int = setting(64, "images per step", low=1)
    seed: int = setting(0, SEED, low=0, high=2**32 - 1)
    precision: str = setting("auto", PRECISION_HELP, choices=PRECISIONS)
    learning_rate: float = setting(0.001, "learning rate of Adam for encoder and decoder", low=0.0, high=1e3)

    def __post_init__(self):
        super().__post_init__()
        kind, _, path = self.dataset.partition(":")
        if kind == "folder" and path and ".." not in Path(path).parts:  # "d/" is "d", but of a link "l/.." is not "."
            object.__setattr__(self, "dataset", f"folder:{os.path.normpath(path)}")


@dataclass(frozen=True)
class TrainConfig(LearnerConfig):
    """All that the trained weights depend on, but for the data and the device."""

    latent_dim: int = setting(200, "dimensions of z", low=1, high=10_000)
    hidden: int = setting(512, "units of the hidden layer of encoder and decoder", low=2, high=100_000)
    likelihood: str = setting("gaussian", "p(x|z): a density, or bernoulli", choices=("gaussian", "bernoulli"))
    sigma_p: float = setting(0.4, "standard deviation of a gaussian p(x|z), pixels in [-1, 1]", low=1e-3, high=1e3)
    beta: float = setting(1.0, "weight of the KL in the training loss", low=0.0, high=1e6)
    latent_learning_rate: float = setting(0.01, "learning rate of Adam for the latent table", low=0.0, high=1e3)
    latent_start: str = setting("pca", START, choices=("pca", "zero", "normal"))
    latent_steps: int = setting(1, "steps of the latent table for each step of the decoder", low=1, high=1000)
    latent_rank: int = setting(0, "rank of a term beside the diagonal covariance of a row", low=0, high=1000)
    refinement_steps: int = setting(4, "semi-amortized: gradient steps from the encoder's q", low=1, high=1000)
    refinement_rate: float = setting(0.2, REFINEMENT_RATE, low=0.0, high=1e3)

    def __post_init__(self):
        super().__post_init__()
        if self.latent_rank > self.latent_dim:
            raise InputError(f"--latent-rank {self.latent_rank}: more than --latent-dim {self.latent_dim}")
        if self.likelihood == "bernoulli":
            object.__setattr__(self, "binarize", True)


@dataclass(frozen=True)
class EvalConfig(Config):
    """How much is scored, and how exactly."""

    seed: int = setting(0, SEED, low=0, high=2**32 - 1)
    precision: str = setting("auto", PRECISION_OF_GRADIENTS, choices=PRECISIONS)
    num_samples: int = setting(1000, "importance samples per image", low=1, least=100)
    images_per_digit: int = setting(3, "annealed images of each class and split", low=1, least=1)
    chains: int = setting(4, "annealed chains per image", low=2)
    log_weight_std: float = setting(0.8, "standard deviation of an image's log-weights to aim at", low=0.01, high=100.0)
    temperatures: int = setting(0, "temperatures of a chain; 0 takes what --log-weight-std needs", low=0)
    gap_images_per_digit: int = setting(1, "annealed test images of a class at earlier epochs; 0: none", low=0, least=0)
    simulated_images: int = setting(10, "simulated images for the bidirectional bounds; 0: none", low=0, least=0)
    fit_steps: int = setting(300, "steps of a fit of q* at a falling rate, twice those of a cycle of q*full", low=1)
    fitted_images: int = setting(300, "test images on which the methods are compared, or a few more", low=20, least=20)
    evaluation: str = setting("full", EVALUATION, choices=("none", "quick", "full"))
    classified_samples: int = setting(10_000, "samples of each decoder to classify", low=200, least=1000)

    def __post_init__(self):
        super().__post_init__()
        if self.gap_images_per_digit > self.images_per_digit:
            whole = f"--images-per-digit {self.images_per_digit}, of which they are at the last epoch"
            raise InputError(f"--gap-images-per-digit {self.gap_images_per_digit}: more than {whole}")

    @classmethod
    def for_training(cls, training, given, *, fewest=MANY, classes=1):
        """The counts that suit the TrainConfig `training` and its data, but for those that are given, {name: value}.

        fewest: images of the smallest class, in either split; classes: how many there are.
        """
        share = min(1.0, training.epochs * training.train_size / (TrainConfig.epochs * TrainConfig.train_size))
        scaled = [entry for entry in fields(cls) if entry.metadata["least"] is not None]
        values = {entry.name: max(entry.metadata["least"], round(share * entry.default)) for entry in scaled}
        given = {entry.name: given[entry.name] for entry in fields(cls) if entry.name in given}
        values["images_per_digit"] = max(1, min(values["images_per_digit"], fewest))
        values["fitted_images"] = max(values["fitted_images"], classes)
        return cls(**{**values, **given})


@dataclass(frozen=True)
class ClassifierConfig(LearnerConfig):
    """All that the supervised baseline's weights depend on, but for the data and the device."""

    epochs: int = setting(8, EPOCHS, low=1, high=100_000)
    binarize: bool = setting(False, "binarize the pixels once, by a fixed seed")
    batch_size: int = setting(128, "images per step", low=2)  # batch normalization needs two
    learning_rate: float = setting(0.006, "the highest learning rate of Adam", low=0.0, high=1e3)

    @classmethod
    def for_training(cls, training):
        """The classifier of the images of a TrainConfig."""
        shared = ("train_size", "seed", "dataset", "resize", "binarize", "precision")
        return cls(**{name: getattr(training, name) for name in shared}).with_enough_epochs()

    def with_enough_epochs(self):
        """The same, with more epochs where these would take under 100 steps, often no better than chance."""
        steps = math.ceil(self.train_size / self.batch_size)  # of an epoch
        return replace(self, epochs=max(self.epochs, math.ceil(100 / steps)))


@dataclass(frozen=True)
class RunConfig(Config):
    """Where a run reads and writes, and how it works."""

    device: str = setting("auto", "cpu, cuda, cuda:1, mps; auto takes CUDA, else the CPU")
    data_dir: str = setting("data", "directory that holds MNIST/raw, FashionMNIST/raw, KMNIST/raw")
    checkpoint_dir: str = setting("checkpoints", "directory of the checkpoints")
    results_dir: str = setting("results", "directory of figures and tables")
    resume: bool = setting(False, RESUME)
    overwrite: bool = setting(False, "remove the files of another run from these directories first")
    eager: bool = setting(False, "on CUDA, launch kernel by kernel, in place of a recorded training step (a graph)")


def differences(there, here, *, but=()):
    """In words, the settings that both dicts have, but with other values; empty if there are none. but: are skipped."""
    changed = [name for name in here if name in there and there[name] != here[name] and name not in but]
    return "; ".join(f"{flag(name)} {there[name]} there, {here[name]} here" for name in changed)


def source(dataset, data_dir):
    """The flags that say where the images are."""
    is_folder = str(dataset).startswith("folder:")
    return f"--dataset {dataset}" + ("" if is_folder else f", --data-dir {data_dir}")


def portable_settings(there, here):
    """The settings that may differ where a run continues; of the same images, by Data.digest, their path, too."""
    return (*PORTABLE, "dataset") if there and there == here else PORTABLE


def image_differences(there, here):
    """In words, how the images of two data sets differ, from Data.digest; empty if they do not, or one is not known."""
    if not there or not here or there == here:
        return ""
    before, now = ({(kind, *item) for kind in side for item in side[kind]["counts"].items()} for side in (there, here))
    if gone := [kind for kind in there if kind not in here]:
        return f"no {gone[0]} images of their own now"
    if changed := [f"{count} {kind} images of class {name}" for kind, name, count in sorted(now - before)]:
        return f"now {', '.join(changed[:5])}"
    kinds = " and ".join(kind for kind in here if there.get(kind) != here[kind])
    return "fewer classes" if now != before else f"other {kinds} images, or in another order"


def check_device(device):
    """Raises InputError if this machine does not have the device."""
    try:
        torch.empty(0, device=device)
    except (AssertionError, RuntimeError) as error:  # an AssertionError: a PyTorch that was built without it
        reason = str(error).strip().splitlines()[0][:300]
        raise InputError(f"device {device}: not on this machine ({reason})") from None


def choose_device(name):
    """The torch.device of `--device`: auto never takes MPS; under torchrun each process gets a GPU of its own.

    Raises InputError if this machine does not have it.
    """
    cuda = torch.cuda.device_count() if torch.cuda.is_available() else 0
    counts = {"cuda": cuda, "mps": int(torch.backends.mps.is_available()), "cpu": 1}
    if name == "auto":
        name = "cuda" if cuda else "cpu"  # nobody has run it on MPS: only if it is named
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(f"--device {name}: not a device; say auto, cpu, cuda, cuda:1, mps, ...") from None
    if device.type == "cuda" and torch.distributed.is_torchelastic_launched():  # each process has one of its own
        device = torch.device(name := f"cuda:{os.environ['LOCAL_RANK']}")
    if (device.index or 0) >= (count := counts.get(device.type, 0)):
        raise InputError(f"--device {name}: this machine or this PyTorch has {count} of this kind")
    return torch.device("cuda", device.index or 0) if device.type == "cuda" else device


def use_exact_kernels(device):
    """On CUDA, makes float32 in convolutions float32, not TF32, and steps deterministic."""
    if device.type == "cuda":
        torch.cuda.set_device(device)
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cudnn.deterministic = True


def choose_precision(precision, device):
    """ "float32" or "bfloat16"; "auto" takes bfloat16 only where the processor is faster in it."""
    if precision != "auto":
        return precision
    faster = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "cpu":
        # Private functions, and not in every version: without them, float32. An epoch in bfloat16 takes an AMD
        # EPYC 0.8 of the time; an Intel Xeon without AMX 1.3 to 1.5 times as long, though it has the instructions.
        bfloat16 = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)()
        amx = getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)()
        faster = bfloat16 and (amx or not _intel())
    return "bfloat16" if faster else "float32"


def _intel():
    cpuinfo = Path("/proc/cpuinfo")  # on Linux platform.processor() names no maker
    return "GenuineIntel" in (cpuinfo.read_text() if cpuinfo.exists() else platform.processor())


def versions():
    """The versions that results depend on, as plain values; of this program, a digest of its sources."""
    packages = {name: version(name) for name in ("torch", "numpy", "scikit-learn", "scipy")}
    return {"program": PROGRAM, "python": platform.python_version(), **packages}
