"""Models with known answers and a small data set, shared by the tests. Their settings differ from every default."""

import math
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import processes
import pytest
import torch
from filelock import FileLock
from PIL import Image
from rough import ROUGH
from run_directory import Directory
from torch import distributions, nn
from torch.distributions import MultivariateNormal, Normal

from benchmarks import stress
from data import Data, Split, load_dataset
from model import Bernoulli, Gaussian, LatentVariableModel
from runtime import progress
from runtime.config import RunConfig, TrainConfig
from runtime.run import Run
from training import train_epoch, validate
from vae_utils import GaussianPosterior

ROOT = Path(__file__).resolve().parent.parent
SIGMA = 0.7

os.environ.setdefault("LOKY_MAX_CPU_COUNT", "1")  # evaluations in one thread: files of tests share the cores
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # of a shell that runs the tests in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)
if "PYTEST_XDIST_WORKER" in os.environ:
    # Files of tests run side by side, a core each: threads that wait for each other would cost more than they give.
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)


def pytest_collection_modifyitems(items):
    """The longest files first, so that no core waits for them at the end; while one makes `whole_run`, documents."""
    names = "main_vae", "documents", "resume", "distributed", "seeds", "methods", "evaluate_only", "benchmarks"
    longest = [f"test_{name}.py" for name in names]
    items.sort(key=lambda item: longest.index(item.path.name) if item.path.name in longest else len(longest))


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def gaussian(mean, scale):
    """A diagonal q with the same scale in every dimension."""
    return GaussianPosterior(mean, torch.full_like(mean, scale))


def divergence(q):
    """KL(q || N(0, I)) of a diagonal q, (B,)."""
    return 0.5 * (q.mean.square() + q.scale.square() - 1 - q.scale.square().log()).sum(-1)


class LinearGaussian(LatentVariableModel):
    """x = W z + b + sigma * noise, z ~ N(0, I), in float64: everything about it has a closed form."""

    def __init__(self, weight, bias, sigma):
        pixels, latent_dim = weight.shape
        super().__init__(nn.Linear(latent_dim, pixels, dtype=torch.float64), Gaussian(sigma), latent_dim=latent_dim)
        self.decoder.load_state_dict({"weight": weight, "bias": bias})
        self.weight, self.bias, self.sigma = weight, bias, sigma  # (P, D), (P,)

    def log_prob(self, x):
        """log p(x) = log N(x; b, W W' + sigma^2 I), (B,)."""
        covariance = self.weight @ self.weight.T + self.sigma**2 * torch.eye(len(self.bias), dtype=x.dtype)
        return MultivariateNormal(self.bias, covariance).log_prob(x)

    def posterior_precision(self, x):
        """The inverse of the covariance of p(z|x), the same for all x, (D, D)."""
        return torch.eye(self.latent_dim, dtype=x.dtype) + self.weight.T @ self.weight / self.sigma**2

    def posterior(self, x):
        """p(z|x), full, (B, D)."""
        precision = self.posterior_precision(x)
        mean = torch.linalg.solve(precision, self.weight.T @ (x - self.bias).T / self.sigma**2).T
        return GaussianPosterior(mean, torch.linalg.cholesky(precision.inverse()).expand(len(x), -1, -1))

    def best_diagonal(self, x):
        """The diagonal q nearest to p(z|x) in KL(q || p), (B, D), and its bound (B,)."""
        precision = self.posterior_precision(x)
        gap = 0.5 * (precision.diagonal().log().sum() - torch.logdet(precision))
        mean = self.posterior(x).mean
        return GaussianPosterior(mean, precision.diagonal().rsqrt().expand_as(mean)), self.log_prob(x) - gap

    def elbo(self, q, x):
        """The bound of a diagonal q, (B,): E_q log p(x|z) is quadratic in z."""
        residual = (x - q.mean @ self.weight.T - self.bias).square().sum(-1)
        residual += q.scale.square() @ self.weight.square().sum(0)
        constant = 0.5 * x.shape[1] * math.log(2 * math.pi * self.sigma**2)
        return -residual / (2 * self.sigma**2) - constant - divergence(q)

    def poor(self, x):
        """A q that is off on purpose: the best diagonal one moved by half its own width, and a third too wide."""
        best, _ = self.best_diagonal(x)
        return GaussianPosterior(best.mean + 0.5 * best.scale, 1.3 * best.scale)


def linear_gaussian(*, pixels=12, latent_dim=3, orthogonal=False, nearly_singular=False):
    """A LinearGaussian; with orthogonal columns of W its posterior is diagonal.

    nearly_singular: two columns of W are all but equal, so that along their difference the posterior is the prior and
    along their sum it is far narrower.
    """
    generator = seeded(5)
    weight = torch.randn(pixels, latent_dim, generator=generator, dtype=torch.float64) / math.sqrt(latent_dim)
    if orthogonal:
        weight = torch.linalg.qr(weight)[0] * torch.linspace(0.3, 2, latent_dim, dtype=torch.float64)
    if nearly_singular:
        weight[:, 1] = weight[:, 0] + 1e-3 * weight[:, 1]
    return LinearGaussian(weight, torch.randn(pixels, generator=generator, dtype=torch.float64), SIGMA)


def linear_with_images(count, *, seed=1, **options):
    """A linear_gaussian, and images that it has made."""
    model = linear_gaussian(**options)
    return model, model.sample(count, seeded(seed))[0]


class NonlinearModel(LatentVariableModel):
    """A decoder with one hidden layer, in float64: log p(x) by quadrature, written with PyTorch's distributions."""

    def __init__(self, likelihood, latent_dim, *, pixels=6, hidden=8):
        generator = seeded(2)
        layers = nn.Linear(latent_dim, hidden), nn.Tanh(), nn.Linear(hidden, pixels)
        super().__init__(nn.Sequential(*layers).double(), likelihood, latent_dim=latent_dim)
        for parameter in self.parameters():
            nn.init.normal_(parameter, generator=generator)

    def _log_likelihood(self, x, z):
        output = self.decoder(z)
        if self.likelihood.name == "bernoulli":
            return distributions.Bernoulli(logits=output).log_prob((x + 1) / 2).sum(-1)
        return Normal(output, SIGMA).log_prob(x).sum(-1)

    def _grid(self, points):
        """Points of [-9, 9]^D, (M, 1, D), and the log-probabilities of N(0, I) in the cells around them, (M, 1)."""
        axis = torch.linspace(-9, 9, points, dtype=torch.float64)
        grid = torch.cartesian_prod(*[axis] * self.latent_dim).reshape(-1, 1, self.latent_dim)
        return grid, Normal(0.0, 1.0).log_prob(grid).sum(-1) + self.latent_dim * math.log(18 / (points - 1))

    @torch.no_grad()
    def log_prob(self, x, points=161):
        """log p(x), (B,), by the trapezoidal rule, which for a smooth integrand converges exponentially."""
        z, log_prior = self._grid(points)
        return (self._log_likelihood(x, z) + log_prior).logsumexp(0)

    @torch.no_grad()
    def elbo(self, q, x, points=161):
        """The bound of a diagonal q, (B,): E_q log p(x|z) by the same rule."""
        noise, log_weight = self._grid(points)
        return (log_weight.exp() * self._log_likelihood(x, q.mean + q.scale * noise)).sum(0) - divergence(q)

    def poor(self, x):
        """A q that is off on purpose: the prior."""
        return gaussian(torch.zeros(len(x), self.latent_dim, dtype=x.dtype), 1.0)


NONLINEAR = {
    f"{likelihood.name}, latent dimension {latent_dim}": NonlinearModel(likelihood, latent_dim)
    for likelihood in (Gaussian(SIGMA), Bernoulli())
    for latent_dim in (1, 2)
}
LINEAR = {
    "linear": linear_gaussian(),
    "linear, latent dimension 200": linear_gaussian(pixels=60, latent_dim=200),
    "linear, nearly singular": linear_gaussian(pixels=20, latent_dim=5, nearly_singular=True),
}


def each_of(models):
    """A fixture: each model, with known `log_prob` and `elbo`, and `poor`, a q to improve on."""
    return pytest.fixture(params=models.values(), ids=models.keys())(lambda request: request.param)


nonlinear, linear, model = each_of(NONLINEAR), each_of(LINEAR), each_of(LINEAR | NONLINEAR)


@pytest.fixture
def handlers():
    """The program's signal handlers, and no signal that was received, for the time of a test."""
    with progress.signals_handled():
        yield
    progress._received = None


@pytest.fixture
def rough(monkeypatch):
    """Evaluations in this process are rough, and quick, for the time of a test."""
    for settings, values in ROUGH:
        for name, value in values.items():
            monkeypatch.setitem(settings, name, value)


@pytest.fixture
def directory(tmp_path):
    return Directory(tmp_path)


@pytest.fixture(scope="session")
def mnist():
    return load_dataset(data_dir=ROOT / "data")


SEVEN = [(9, 6), (9, 7), (9, 8), (10, 8), (11, 8), (12, 7), (13, 7)]  # (row, column) of strokes


def strokes(stroke, ground, dtype=np.uint8):
    pixels = np.full((28, 28), ground, dtype)
    pixels[tuple(zip(*SEVEN, strict=True))] = stroke
    return pixels


LIGHT = torch.from_numpy(strokes(255, 0)).float() / 127.5 - 1


def image_folder(path, counts, *, size=(28, 28), seed=4):
    """Writes a folder of noise images for each class of `counts`, {name: images}, all of them different."""
    generator = np.random.default_rng(seed)
    for label, (name, count) in enumerate(counts.items()):
        (path / name).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            pixels = generator.integers(0, 60 + 40 * label, size, dtype=np.uint8)
            Image.fromarray(pixels).save(path / name / f"{number:03}.png")
    return path


def toy_data(*, device="cpu", binary=False):
    """A Data of made-up images, two channels of 12 x 16 pixels; each of the five classes is a pattern with noise."""
    generator = seeded(7)
    patterns = torch.rand(5, 2, 12, 16, generator=generator) * 2 - 1

    def split(count, first):
        labels, index = torch.arange(count) % 5, torch.arange(first, first + count)
        noise = torch.randn(count, 2, 12, 16, generator=generator)
        images = (patterns[labels] + 0.2 * noise).clamp(-1, 1)
        images = images.sign() if binary else images
        return Split(images.to(device), labels.to(device), index.to(device), ("a", "b", "c", "d", "e"))

    return Data(train=split(150, 40), validation=split(40, 0), rest=split(40, 0), test=split(35, 0))


def toy_config(**changes):
    """A TrainConfig for toy_data."""
    settings = {"epochs": 2, "train_size": 150, "batch_size": 32, "seed": 3, "latent_dim": 5, "sigma_p": SIGMA}
    settings |= {"beta": 0.9, "learning_rate": 0.002, "latent_learning_rate": 0.02, "precision": "float32"}
    return TrainConfig(**{**settings, **changes})


@pytest.fixture(scope="session")
def whole_run(tmp_path_factory):
    """A folder with a small MNIST, "data", and a finished run of main_vae.py, "run", made once: read it or copy it."""
    folder = tmp_path_factory.getbasetemp()
    folder = (folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / "whole"
    with FileLock(f"{folder}.lock"):
        if not (folder / "finished").exists():
            folder.mkdir()
            stress.small_mnist(folder / "data")
            status, _, errors = processes.run(processes.MAIN, folder / "run")
            assert (status, errors) == (0, [])
            (folder / "finished").touch()
    return folder


@pytest.fixture(scope="module")
def folder_of_runs(tmp_path_factory, whole_run):
    """A folder of the module's own with the small MNIST and a copy of the finished run, "whole"."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "data").symlink_to(whole_run / "data")
    shutil.copytree(whole_run / "run", folder / "whole")
    return folder


@pytest.fixture
def copy(folder_of_runs):
    """Copies a run of that folder, to be continued."""
    copies = []

    def copy(name="whole"):
        copies.append(folder_of_runs / f"copy {len(copies)}")
        return shutil.copytree(folder_of_runs / name, copies[-1])

    yield copy
    for folder in copies:
        shutil.rmtree(folder)


def train(learner, directory, **options):
    """Trains a Learner, with checkpoints in the directory and without states. Returns its history."""
    run = Run(RunConfig(checkpoint_dir=str(directory), results_dir=str(directory), **options), {})
    for epoch in run.epochs(learner, resumable=False):
        run.record(train_epoch(learner, epoch, progress=run.progress), validate(learner, epoch))
    return run.history
