"""Both methods through the one loop: same start, same batches; states and checkpoints."""

import gc
import math
import weakref
from io import BytesIO

import numpy as np
import pytest
import torch
from conftest import SIGMA, toy_config, toy_data, train

import amortized_vae
import latent_optimization
from amortized_vae import AmortizedVAE
from latent_optimization import LatentOptimization
from latent_table import LatentTable
from model import ConvVAE, Encoder
from runtime.checkpoint import load_checkpoint, save_checkpoint
from runtime.config import InputError
from runtime.learners import saved_epochs
from semi_amortized_vae import SemiAmortizedVAE
from training import train_epoch, validate
from vae_utils import GaussianPosterior, elbo, random_generator

METHODS = {AmortizedVAE: amortized_vae, LatentOptimization: latent_optimization}  # with their modules
BOTH = pytest.mark.parametrize("method_class", METHODS, ids=lambda each: each.name)
NOISE = torch.randn(9, 5, generator=random_generator(0))


def trained(method_class, directory, **changes):
    """The method, trained with what a TrainConfig changes; its checkpoints are in the directory."""
    method = method_class(toy_config(**changes), toy_data())
    train(method, directory)
    return method


@BOTH
def test_an_epoch_is_its_steps(method_class):
    """The loop, written out, with validation in between: order and noise are the same for every method.

    Beta weighs the gradient of the KL; the bound that is reported is that of beta one.
    """
    config, data = toy_config(epochs=3), toy_data()
    method, written_out = (method_class(config, data) for _ in range(2))
    for epoch in (1, 2, 3):
        row = train_epoch(method, epoch)
        order = torch.randperm(150, generator=random_generator(3, epoch, "order"))
        generator, sums = random_generator(3, epoch, "noise"), []
        for rows in order.split(32):
            x = data.train.images[rows]
            noise = torch.randn(len(rows), 5, generator=generator)
            bound = elbo(written_out.model, x, written_out.posterior(x, rows), noise)
            (config.beta * bound.kl - bound.log_likelihood).sum().backward()
            for optimizer in written_out.optimizers:
                optimizer.step()
                optimizer.zero_grad()
            sums.append(torch.stack([part.detach().sum() for part in bound]))
        means = [row[f"train_{name}"] for name in method.metrics]
        assert means == (torch.stack(sums).sum(0) / 150).tolist()
        assert torch.equal(method.validate(epoch).elbo, written_out.validate(epoch).elbo)


MORE = {"latent_steps": 2, "latent_start": "normal", "latent_rank": 2}


@pytest.mark.parametrize(
    ("method_class", "changes"),
    [(AmortizedVAE, {}), (SemiAmortizedVAE, {}), (LatentOptimization, {}), (LatentOptimization, MORE)],
)
def test_a_state_continues_to_the_same_bits(method_class, changes):
    """All that the next epoch depends on is in one state_dict, which a file that runs no code can hold."""
    one, other = (method_class(toy_config(epochs=3, **changes), toy_data()) for _ in range(2))
    train_epoch(one, 1)
    one.validate(1)
    file = BytesIO()
    torch.save(one.state_dict(), file)
    other.load_state_dict(torch.load(BytesIO(file.getvalue()), weights_only=True))
    for method in (one, other):
        train_epoch(method, 2)
    assert torch.equal(one.validate(2).elbo, other.validate(2).elbo)
    torch.testing.assert_close(one.weights(), other.weights(), rtol=0, atol=0)


@BOTH
def test_a_method_that_nobody_needs_frees_its_memory_at_once(method_class):
    """A reference to itself would keep its table until the next garbage collection, which no full GPU brings about."""
    method = method_class(toy_config(), toy_data())
    train_epoch(method, 1)
    there = weakref.ref(method)
    gc.disable()
    del method
    gc.enable()
    assert there() is None


def test_an_epoch_is_one_of_the_settings_whatever_its_type():
    epochs = [train_epoch(AmortizedVAE(toy_config(), toy_data()), epoch)["train_elbo"] for epoch in (1, np.int64(1))]
    assert epochs[0] == epochs[1]
    for epoch, error in ((0, ValueError), (3, ValueError), (1.0, TypeError)):
        with pytest.raises(error):
            train_epoch(AmortizedVAE(toy_config(), toy_data()), epoch)
    config = toy_config(learning_rate=np.float64(0.002), likelihood=np.str_("gaussian"))
    assert (type(config.learning_rate), type(config.likelihood)) == (float, str)


@BOTH
def test_a_loaded_model_knows_what_it_was_trained_with(tmp_path, method_class):
    method = trained(method_class, tmp_path)
    model = METHODS[method_class].load_model(tmp_path / f"{method.prefix}_epoch_2.pt")
    assert model.config == method.config == toy_config()
    assert (model.epoch, model.likelihood.name, model.likelihood.sigma) == (2, "gaussian", SIGMA)
    assert torch.equal(model.train_index, toy_data().train.index)
    assert not model.training
    x, z = toy_data().test.images, torch.randn(3, 5)
    assert torch.equal(model.decode(z), method.model.decode(z))
    start = model.initial_posterior(x).mean  # by the encoder, or by principal components
    assert torch.equal(start, method.model.initial_posterior(x).mean)
    assert start.abs().max() > 0.1
    save_checkpoint(tmp_path / "weights.pt", method.model.state_dict())
    with pytest.raises(InputError, match=r"not a checkpoint of .*, but a state, or weights from elsewhere \(see docs"):
        METHODS[method_class].load_model(tmp_path / "weights.pt")


@BOTH
def test_a_checkpoint_knows_the_width_of_its_networks(tmp_path, method_class):
    """Another one, and the default's, also where it is from before there was the setting."""
    for hidden in (24, 512):
        path = tmp_path / f"{trained(method_class, tmp_path, epochs=1, hidden=hidden).prefix}_epoch_1.pt"
        if hidden == 512:
            checkpoint = load_checkpoint(path)
            del checkpoint["config"]["hidden"]
            save_checkpoint(path, checkpoint)
        model = METHODS[method_class].load_model(path)
        widths = [layer.normalized_shape[0] for layer in model.modules() if isinstance(layer, torch.nn.LayerNorm)]
        assert [model.config.hidden, *widths] == [hidden] * (2 + hasattr(model, "encoder"))


def test_a_model_class_of_one_width_says_so(monkeypatch):
    def narrow(latent_dim, likelihood, *, image_shape, seed, precision):
        return ConvVAE(latent_dim, likelihood, image_shape=image_shape, hidden=9)

    monkeypatch.setattr(AmortizedVAE, "model_class", staticmethod(narrow))
    AmortizedVAE(toy_config(), toy_data())
    with pytest.raises(InputError, match="--hidden 24: narrow got an unexpected"):
        AmortizedVAE(toy_config(hidden=24), toy_data())


def test_the_q_of_a_row_is_that_of_its_image(tmp_path):
    """From the table, from the method and from the loaded model; other rows explain the images worse."""
    method = trained(LatentOptimization, tmp_path, latent_learning_rate=0.2)
    rows = torch.tensor([7, 131, 3, 55])
    mean, log_var = method.table.current()
    model = latent_optimization.load_model(tmp_path / "latent_opt_epoch_2.pt")
    for q in (method.posterior(None, rows), model.posterior(rows)):
        assert torch.equal(q.mean, mean[rows])
        assert torch.equal(q.scale, (0.5 * log_var[rows]).exp())
    x = toy_data().train.images[rows]
    worth = torch.stack([model.log_likelihood(x, q.mean.roll(shift, 0)) for shift in range(4)])
    assert worth[0].sum() > worth[1:].sum(1).max()


def test_both_methods_start_from_the_same_model_which_the_seed_decides():
    made = ((AmortizedVAE, 3), (LatentOptimization, 3), (AmortizedVAE, 4))
    one, two, other = ([*method(toy_config(seed=seed), toy_data()).model.decoder.parameters()] for method, seed in made)
    assert all(map(torch.equal, one, two))
    assert not torch.equal(one[0], other[0])


def test_saved_epochs():
    assert [saved_epochs(epochs) for epochs in (30, 7, 1)] == [[1, 5, 10, 20, 30], [1, 5, 7], [1]]


@pytest.mark.parametrize(
    ("learning_rate", "message"),
    [(1e3, "the loss is not finite at epoch 1, step [2-5]"), (1e30, "the validation loss is not finite after epoch 1")],
)
def test_a_loss_that_is_not_finite_names_its_step(tmp_path, learning_rate, message):
    """With the larger rate one step is an epoch: only the validation images can tell."""
    method = AmortizedVAE(toy_config(batch_size=150 if learning_rate > 1e3 else 32), toy_data())
    method.optimizers[0].param_groups[0]["lr"] = learning_rate
    with pytest.raises(FloatingPointError, match=f"^amortized: {message}"):
        train(method, tmp_path)
    assert not list(tmp_path.iterdir())


def test_data_are_those_of_the_settings_which_come_first():
    for config, data, message in (
        (toy_data(), toy_config(), r"AmortizedVAE\(config, data\): settings come first"),
        (
            toy_config(train_size=149),
            toy_data(),
            r"train_size=149, not .* dataclasses.replace\(config, train_size=150\)",
        ),
        (toy_config(binarize=True), toy_data(), r"images are not binarized: data = load_data\(config\)"),
    ):
        with pytest.raises(ValueError, match=message):
            AmortizedVAE(config, data)


def test_a_step_of_the_table_reads_no_value():
    """On the device "meta" there are none, so that whoever asks for one gets an error: nothing waits for the device."""
    method = LatentOptimization(toy_config(), toy_data())
    method.images = method.images.to("meta")
    method.model.to("meta")
    method.table = LatentTable(size=150, latent_dim=5, device="meta")
    method.optimizers = [torch.optim.SGD(method.model.parameters(), lr=0.1), method.table]
    for count in (20, 20, 10):
        rows = torch.empty(count, dtype=torch.int64, device="meta")
        sums = method.train_step(rows, torch.empty(count, 5, device="meta"))
        assert sums.shape == (3,)
    with pytest.raises(RuntimeError, match="meta"):
        sums.tolist()


def test_a_step_that_was_interrupted_leaves_no_trace():
    """The gradients that it has left behind do not count."""
    rows, results = torch.arange(9), []
    for interrupted in (False, True):
        method = LatentOptimization(toy_config(), toy_data())
        if interrupted:
            x = method.images[rows]
            elbo(method.model, x, method.posterior(x, rows), NOISE).elbo.sum().backward()
            method.posterior(x, rows)
        method.train_step(rows, NOISE)
        results.append([*method.model.parameters(), *method.table.current()])
    assert all(map(torch.equal, *results))


def test_an_epoch_that_would_train_nothing_is_refused():
    method = AmortizedVAE(toy_config(), toy_data())
    for context in (torch.no_grad(), torch.inference_mode()):
        with context, pytest.raises(ValueError, match=r"train_epoch needs gradients: call it outside of torch.no_grad"):
            train_epoch(method, 1)
    method.model.requires_grad_(False)
    with pytest.raises(ValueError, match=r"weights are frozen: method.model.requires_grad_\(True\)"):
        train_epoch(method, 1)
    method.model = AmortizedVAE(toy_config(seed=8), toy_data()).model
    with pytest.raises(ValueError, match=r"has all of the method's weights: method.optimizers\[0\] = torch.optim.Adam"):
        train_epoch(method, 1)


def test_a_layer_that_is_replaced_is_trained_or_refused():
    method = AmortizedVAE(toy_config(), toy_data())
    method.model.encoder.layers[-1] = layer = torch.nn.Linear(method.config.hidden, 2 * method.config.latent_dim)
    with pytest.raises(ValueError, match=r"add_param_group\({'params': layer.parameters\(\)}\)"):
        train_epoch(method, 1)
    before = layer.weight.clone()
    method.optimizers[0].add_param_group({"params": layer.parameters()})
    train_epoch(method, 1)
    assert not torch.equal(layer.weight, before)


@pytest.mark.parametrize("method_class", [AmortizedVAE, LatentOptimization])
def test_two_methods_that_continue_from_one_state_share_nothing(method_class):
    alone, one, other = (method_class(toy_config(), toy_data()) for _ in range(3))
    for method in (alone, one):
        train_epoch(method, 1)
    other.load_state_dict(one.state_dict())
    elbos = [train_epoch(method, 2)["train_elbo"] for method in (alone, other, one)]
    assert elbos[0] == elbos[1] == elbos[2]
    assert alone.state_dict().keys() == one.state_dict().keys()
    for method in (other, one):
        assert method.optimizers[0].state_dict()["state"][0]["step"] == 2 * math.ceil(150 / method.config.batch_size)


def test_a_method_says_itself_how_what_it_learns_beside_the_model_is_kept():
    class Points(AmortizedVAE):
        def __init__(self, config, data):
            super().__init__(config, data)
            self.points = torch.nn.Embedding(len(self.images), 5)

    with pytest.raises(ValueError, match=r"Points: define weights and load_weights, .* hold points\.weight"):
        Points(toy_config(), toy_data()).weights()

    class Kept(Points):
        def weights(self):
            return {**super().weights(), "points.weight": self.points.weight}

    assert "points.weight" in Kept(toy_config(), toy_data()).weights()


def test_what_a_method_learns_beside_the_model_has_an_optimizer():
    class Encoded(AmortizedVAE):
        def __init__(self, config, data):
            super().__init__(config, data)
            self.own = Encoder(config.latent_dim, image_shape=data.image_shape, hidden=9)

        def posterior(self, x, rows):
            return GaussianPosterior.from_log_var(*self.own(x).chunk(2, dim=-1))

    method = Encoded(toy_config(), toy_data())
    with pytest.raises(ValueError, match="no optimizer has all of the method's weights"):
        train_epoch(method, 1)
    before = method.own.layers[-1].bias.clone()
    method.optimizers[0].add_param_group({"params": method.own.parameters()})
    train_epoch(method, 1)
    assert not torch.equal(method.own.layers[-1].bias, before)


def test_an_epoch_is_in_training_mode_whatever_was_done_before():
    method = AmortizedVAE(toy_config(), toy_data())
    method.model.decoder.layers[4] = torch.nn.Dropout(0.5)
    method.model.eval()  # as log_prob needs it
    train_epoch(method, 1)
    assert method.model.decoder.layers[4].training


def test_validation_is_in_evaluation_mode(monkeypatch):
    method, modes = AmortizedVAE(toy_config(), toy_data()), []
    bound = method.validate(1)
    monkeypatch.setattr(method, "validate", lambda epoch: modes.append(method.model.training) or bound)
    validate(method, 1)
    assert (modes, method.model.training) == ([False], True)
