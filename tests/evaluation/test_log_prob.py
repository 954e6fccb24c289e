"""log_prob, on models whose log p(x) is known: its errors are honest, and an image's result is its own."""

import re
import warnings

import pytest
import torch
from conftest import NONLINEAR, SIGMA, NonlinearModel, linear_gaussian, seeded, toy_config, toy_data
from torch import nn

from amortized_vae import AmortizedVAE
from data import binarized
from evaluation import log_prob as module
from evaluation.log_prob import LogProb, log_prob
from model import ConvModel, ConvVAE, Gaussian, LatentVariableModel
from runtime.config import TrainConfig
from vae_utils import Noise, elbo

SETTINGS = {"seed": 5, "chains": 16, "log_weight_std": 0.3}


def images_of(model, count):
    """Draws of the model, moved to the range of pixels."""
    x, _ = model.sample(count, seeded(3))
    return x.clamp(-1, 1)


def test_log_prob_is_the_exact_one_within_its_stated_errors(model):
    """Every image within four standard errors; all together, within three of theirs. Integrals are within the error."""
    x, chains = images_of(model, 6), model.latent_dim > 2
    found, exact = log_prob(model, x, **SETTINGS), model.log_prob(x)
    error = found.log_prob - found.bias - exact
    assert (error.abs() < (4 if chains else 1) * found.standard_error + 1e-9).all()
    assert error.mean().abs() < 3 * found.standard_error.square().sum().sqrt() / len(x) + 1e-9
    assert found.standard_error.max() < (0.4 if chains else 0.01)


def test_what_is_found_for_an_image_depends_on_no_other_and_not_on_its_place(monkeypatch):
    monkeypatch.setattr(module, "AT_ONCE", 3)
    model = NonlinearModel(Gaussian(SIGMA), 3)
    x = images_of(model, 5)
    together, alone, turned = (log_prob(model, rows, **SETTINGS) for rows in (x, x[3], x.flip(0)))
    for value, of_one, of_turned in zip(together, alone, turned, strict=True):
        torch.testing.assert_close(value[3:4], of_one)
        torch.testing.assert_close(value, of_turned.flip(0))
    other = log_prob(model, x[3], **{**SETTINGS, "seed": 6})
    assert not torch.equal(alone.standard_error, other.standard_error)
    assert len(together.temperatures.unique()) > 1


def test_networks_compute_in_float32(rough):
    """In bfloat16 an image's result would depend on the others; images may come from torch.inference_mode()."""
    model = ConvVAE(3, image_shape=(1, 8, 8), seed=0).eval()
    with torch.inference_mode():
        x, _ = model.sample(2, seeded(3))
    one, other = (log_prob(each, x.clamp(-1, 1)) for each in (model, model.in_precision("bfloat16")))
    assert torch.equal(one.log_prob, other.log_prob)


def test_chains_start_near_the_posterior():
    """Correlated dimensions: the best diagonal Gaussian is half a nat away. A fit begins at the encoder's q."""
    model = linear_gaussian(pixels=30, latent_dim=12)
    x = images_of(model, 4)
    full = module.start_of_chains(model, x, noise=Noise(0))
    bound = elbo(model, x, full, torch.randn(4000, 4, 12, generator=seeded(4), dtype=x.dtype)).elbo.detach()
    assert (model.log_prob(x) - bound < 0.2).all()
    asked = []
    model.encode = lambda x: asked.append(x) or model.best_diagonal(x)[0]
    log_prob(model, x, chains=2)
    assert torch.equal(*asked, x)


def test_one_image_or_many_with_or_without_a_channel(rough):
    model = ConvModel(3, Gaussian(SIGMA), image_shape=(1, 8, 12), seed=1)
    x = torch.rand(2, 1, 8, 12, generator=seeded(0)) * 2 - 1
    few = {"chains": 2, "log_weight_std": 100.0}
    many = log_prob(model, x, **few)
    for images in (x[:, 0].numpy(), x.double()):
        torch.testing.assert_close(log_prob(model, images, **few).log_prob, many.log_prob)
    for image in (x[1], x[1, 0]):
        torch.testing.assert_close(log_prob(model, image, **few).log_prob, many.log_prob[1:])


def test_a_result_is_one_line():
    of_weights = torch.full((2,), 0.7), torch.tensor([0.6, 0.7]), torch.tensor([16, 17]), torch.tensor([True, False])
    errors = torch.tensor([0.31, 1.31]), torch.tensor([-0.052, -1.052])
    many = LogProb(torch.tensor([-83.13, -82.13]), *errors, *of_weights)
    one = LogProb(*(values[:1] for values in many))
    assert str(one) == (
        "log p(x) = -83.1 nats, ± 0.31 (standard error of the estimate), bias about -0.05 (not corrected); "
        "acceptance 0.60"
    )
    assert repr(many) == (
        "log p(x) = -82.6 nats, ± 0.5 (mean of 2 images, standard error over images), Monte Carlo error 0.67, "
        "bias about -0.55 (not corrected); acceptance 0.60 or more; may be wrong by more than that for 1 of 2: lower "
        "log_weight_std"
    )
    assert str(one._replace(temperatures=torch.tensor([0]))).endswith("(not corrected); integrated on a grid")


BAD = {
    "another size": (torch.zeros(2, 1, 28, 20), {}, r"\(2, 1, 28, 20\): the model needs \(1, 8, 12\) or \(N, 1, 8, 12"),
    "two batches": (torch.zeros(1, 2, 1, 8, 12), {}, r"\(1, 2, 1, 8, 12\): the model needs"),
    "none": (torch.zeros(0, 1, 8, 12), {}, r"\(0, 1, 8, 12\): the model needs"),
    "bytes": (torch.arange(96, dtype=torch.uint8).reshape(8, 12), {}, r"pixels from 0 to 95: .* to \[-1, 1\]"),
    "no number": (torch.full((8, 12), torch.nan), {}, "pixels that are no finite numbers"),
    "a path": ("digit.png", {}, "give one tensor or array, .*; images.load_images reads files"),
    "one chain": (torch.zeros(8, 12), {"chains": 1}, "chains 1: not from 2"),
}


@pytest.mark.parametrize(("images", "settings", "message"), BAD.values(), ids=BAD.keys())
def test_bad_input_is_one_clear_line(images, settings, message, capsys):
    model = ConvModel(3, Gaussian(SIGMA), image_shape=(1, 8, 12), seed=1)
    with pytest.raises(ValueError, match=message) as error:
        log_prob(model, images, **settings)
    assert "\n" not in str(error.value)
    assert capsys.readouterr() == ("", "")


def test_a_call_that_is_refused_leaves_the_model_as_it_was():
    decoder = nn.Sequential(nn.Linear(2, 12), nn.BatchNorm1d(12))
    model = LatentVariableModel(decoder, Gaussian(), latent_dim=2)
    with pytest.raises(ValueError, match=r"model.eval\(\)"):
        log_prob(model, torch.zeros(3, 12))
    assert not decoder[1].running_mean.any()


def test_grey_pixels_have_no_probability_under_a_bernoulli_likelihood(capsys, rough):
    model = NONLINEAR["bernoulli, latent dimension 1"]
    x = torch.linspace(-1, 1, 6)
    with pytest.raises(ValueError, match=re.escape("data.binarized(127.5 * (x + 1), 0)")):
        log_prob(model, x)
    assert capsys.readouterr() == ("", "")
    assert log_prob(model, binarized(127.5 * (x + 1), 0)).log_prob < 0
    out, bar = capsys.readouterr()
    assert out == ""
    assert re.search(r"log p\(x\): 100%.* 1/1 .*img", bar)


def test_pixels_in_the_wrong_range_give_a_warning_that_names_the_call(rough):
    model = ConvModel(2, Gaussian(SIGMA), image_shape=(1, 4, 4), seed=1)
    image = torch.rand(1, 4, 4, generator=seeded(2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        log_prob(model, image, **SETTINGS)  # of images of its own
        for dataset in ("folder:mine", "fashion-mnist"):  # whose images may be so
            model.config = TrainConfig(dataset=dataset)
            log_prob(model, image, **SETTINGS)
    model.config = TrainConfig()
    with pytest.warns(UserWarning, match=r"pixels in \[0, 1\]\?") as caught:
        log_prob(model, image, **SETTINGS)
    assert caught[0].filename == __file__
    assert AmortizedVAE(toy_config(), toy_data()).model.config.dataset == "mnist"
