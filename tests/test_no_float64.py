"""Apple's GPUs have no float64: tensors that stand for theirs refuse it, from the evaluation to what is printed."""

import sys

import pytest
import torch
from conftest import toy_config, toy_data
from torch.utils._pytree import tree_leaves

from amortized_vae import AmortizedVAE
from data import Split
from evaluation import log_prob, statistics
from evaluation.report import evaluate
from evaluation.scores import cost_scores
from latent_optimization import LatentOptimization
from model import Classifier
from posterior_fit import Fit
from runtime.config import EvalConfig, RunConfig
from runtime.run import Run
from sup_classification import report
from training import validate

# These choose float32 where the device is MPS.
CHOOSING = {"importance_sampling", "apply_deferred_steps", "current", "step"}


class OnMPS(torch.Tensor):
    """A tensor on the CPU that behaves as one on MPS, like all that is made of it, until `.cpu()`."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        if function is torch.Tensor.cpu:
            with torch._C.DisableTorchFunctionSubclass():
                return args[0].as_subclass(torch.Tensor)
        if function in (torch.Tensor.numpy, torch.Tensor.__array__):
            raise TypeError("can't convert mps device type tensor to numpy. Use Tensor.cpu() first")
        result = super().__torch_function__(function, types, args, kwargs or {})
        with torch._C.DisableTorchFunctionSubclass():
            made = has_float64(result if isinstance(result, tuple) else (result,))
            made = made and not has_float64(tree_leaves((args, kwargs)))
        if made and sys._getframe(1).f_code.co_name not in CHOOSING:
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64")
        return result


def has_float64(values):
    return any(isinstance(value, OnMPS) and value.dtype == torch.float64 for value in values)


def on_mps(tensor):
    return tensor.as_subclass(OnMPS)


@pytest.fixture(scope="module")
def data():
    parts = toy_data()
    moved = {
        name: Split(*(on_mps(getattr(split, field)) for field in ("images", "labels", "index")), split.classes)
        for name, split in parts._asdict().items()
        if isinstance(split, Split)
    }
    return parts._replace(**moved)


def test_an_evaluation_makes_float64_on_the_cpu_alone(data, tmp_path, monkeypatch, rough):
    with pytest.raises(TypeError, match="float64"):
        (data.test.images + 1).double()  # the stand-in refuses it
    monkeypatch.setattr("runtime.tasks.cpu_count", lambda only_physical_cores: 1)  # in this process, as on a GPU
    methods = [method(toy_config(latent_dim=3), data) for method in (AmortizedVAE, LatentOptimization)]
    for method in methods:
        validate(method, 1)
    counts = {"num_samples": 8, "images_per_digit": 2, "chains": 2, "temperatures": 3}
    config = EvalConfig(fit_steps=1, simulated_images=2, fitted_images=20, classified_samples=200, **counts)
    run = Run(RunConfig(checkpoint_dir=str(tmp_path), results_dir=str(tmp_path)), {})
    run.keep_results({}, 0.0)
    classifier = Classifier(5, image_shape=data.image_shape, seed=1).eval()
    run.earlier_training = dict.fromkeys(("amortized", "latent_optimization"), 1.0)
    results = evaluate(lambda epoch: methods, [2], data, classifier, config, run=run)
    assert any(entry.quantity == "used_dimensions" for entry in results.scores)


def test_what_is_printed_makes_none(data, tmp_path):
    method = AmortizedVAE(toy_config(latent_dim=3), data)
    values, q = on_mps(torch.rand(2)), method.model.encode(data.test.images[:2])
    whole = on_mps(torch.ones(2, dtype=torch.bool))
    shown = log_prob.LogProb(*[values] * 5, temperatures=whole.long(), trusted=whole)
    assert "acceptance" in str(shown)
    cost_scores([method], 1, {("amortized", "test"): (None, Fit(q, None, whole, whole.long()), 0.1)}, {})
    assert statistics.accuracy(whole)["accuracy"] == 1
    run = Run(RunConfig(checkpoint_dir=str(tmp_path), results_dir=str(tmp_path)), {})
    run.history = [
        {"train_images": 9, "train_error": 0.2, "validation_images": 9, "validation_error": 0.1}
        | {"epoch": 1, "validation_error_standard_error": 0.01}
    ]
    list(report(Classifier(5, image_shape=data.image_shape, seed=1), data.test, run, {}))
