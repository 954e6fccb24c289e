"""Every method through the one loop: same start, same batches, the same contents under the same seed."""

from dataclasses import replace
from io import BytesIO

import pytest
import torch
from conftest import SIGMA, toy_config, toy_data, train

import amortized_vae
import latent_optimization
import semi_amortized_vae
from amortized_vae import AmortizedVAE
from latent_optimization import LatentOptimization
from runtime.checkpoint import InputError, load_checkpoint, save_checkpoint
from runtime.distributed import Shard
from runtime.learners import find_checkpoints, saved_epochs
from semi_amortized_vae import SemiAmortizedVAE
from training import train_epoch
from vae_utils import Noise, elbo, random_generator


class LowRank(LatentOptimization):
    """Latent optimization with a factor of rank 2."""

    def __init__(self, config, data):
        super().__init__(replace(config, latent_rank=2), data)


METHODS = (AmortizedVAE, LatentOptimization)
MODULES = {AmortizedVAE: amortized_vae, LatentOptimization: latent_optimization, SemiAmortizedVAE: semi_amortized_vae}
BOTH = pytest.mark.parametrize("method_class", METHODS, ids=lambda each: each.name)
ALL = pytest.mark.parametrize("method_class", [*METHODS, LowRank, SemiAmortizedVAE], ids=lambda each: each.__name__)


def trained(method_class, directory, **changes):
    """(method, history) after the training of toy_config."""
    directory.mkdir(exist_ok=True)
    config = toy_config(**changes)
    method = method_class(config, toy_data(binary=config.binarize))
    return method, train(method, directory)


def same(one, other):
    """Whether two checkpoints hold the same, at every depth."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


@ALL
def test_the_same_seed_gives_the_same_contents_and_another_seed_others(tmp_path, method_class):
    for name, seed in (("one", 3), ("two", 3), ("three", 4)):
        trained(method_class, tmp_path / name, seed=seed)
    names = [f"{method_class.prefix}_epoch_{epoch}.pt" for epoch in (1, 2)]
    assert sorted(path.name for path in (tmp_path / "one").glob("*epoch*")) == names
    for name in names:
        one, two, three = (load_checkpoint(tmp_path / run / name) for run in ("one", "two", "three"))
        assert same(one, two)
        assert not same(one["weights"], three["weights"])


@pytest.mark.parametrize("likelihood", ["gaussian", "bernoulli"])
@ALL
def test_training_raises_the_bound_of_training_and_validation_images(tmp_path, method_class, likelihood):
    _, history = trained(method_class, tmp_path, likelihood=likelihood)
    assert [row["epoch"] for row in history] == [1, 2]
    for split in ("train", "validation"):
        first, last = (row[f"{split}_elbo"] for row in history)
        assert last > first
        parts = (history[1][f"{split}_{part}"] for part in ("log_likelihood", "kl"))
        assert last == pytest.approx(next(parts) - next(parts), abs=1e-3)  # whatever beta is


@BOTH
def test_an_epoch_is_its_steps(method_class):
    """The loop, written out, with validation in between."""
    config, data = toy_config(epochs=3), toy_data()
    method, written_out = (method_class(config, data) for _ in range(2))
    for epoch in (1, 2, 3):
        sums, expected = [], []

        def step(rows, noise, sums=sums):
            sums.append(method.train_step(rows, noise))
            return sums[-1]

        method.step = step
        row = train_epoch(method, epoch)
        order = torch.randperm(150, generator=random_generator(3, epoch, "order"))
        generator = random_generator(3, epoch, "noise")
        for rows in order.split(32):
            x = data.train.images[rows]
            noise = torch.randn(len(rows), 5, generator=generator)
            bound = elbo(written_out.model, x, written_out.posterior(x, rows), noise)
            (config.beta * bound.kl - bound.log_likelihood).sum().backward()
            for optimizer in written_out.optimizers:
                optimizer.step()
                optimizer.zero_grad()
            expected.append(torch.stack([part.detach().sum() for part in bound]))
        assert torch.equal(torch.stack(sums), torch.stack(expected))
        means = [row[f"train_{name}"] for name in method.metrics]
        assert means == (torch.stack(expected).sum(0) / 150).tolist()
        assert torch.equal(method.validate(epoch).elbo, written_out.validate(epoch).elbo)


@ALL
def test_a_state_continues_to_the_same_bits(method_class):
    """All that the next epoch depends on is in one state_dict, which a file that runs no code can hold."""
    one, other = (method_class(toy_config(epochs=3), toy_data()) for _ in range(2))
    train_epoch(one, 1)
    one.validate(1)
    file = BytesIO()
    torch.save(one.state_dict(), file)
    other.load_state_dict(torch.load(BytesIO(file.getvalue()), weights_only=True))
    for method in (one, other):
        train_epoch(method, 2)
    assert torch.equal(one.validate(2).elbo, other.validate(2).elbo)
    assert same(one.weights(), other.weights())


@pytest.mark.parametrize("method_class", MODULES, ids=lambda each: each.name)
def test_a_loaded_model_knows_what_it_was_trained_with(tmp_path, method_class):
    method, _ = trained(method_class, tmp_path)
    model = MODULES[method_class].load_model(tmp_path / f"{method.prefix}_epoch_2.pt")
    assert model.config == method.config == toy_config()
    assert (model.epoch, model.likelihood.name, model.likelihood.sigma) == (2, "gaussian", SIGMA)
    assert torch.equal(model.train_index, toy_data().train.index)
    assert not model.training
    x, z = toy_data().test.images, torch.randn(3, 5)
    assert torch.equal(model.decode(z), method.model.decode(z))
    if method_class is AmortizedVAE:
        assert torch.equal(model.encode(x).mean, method.infer(x).q.mean)


@ALL
def test_what_is_found_for_an_image_depends_on_no_other(method_class):
    """Unseen images have a generator each, training images none; q has one form, and is no worse than its start."""
    method, x, index = method_class(toy_config(), toy_data()), toy_data().train.images, torch.tensor([5, 3, 140])

    def infer(index):
        return method.infer(x[index], noise=Noise.of_images(2, "inference", index=index), fit_steps=60).q

    one, unseen, seen = index[1:2], infer(index), method.posterior(x[index], index)
    torch.testing.assert_close(infer(one).tensors(), unseen[1:2].tensors())
    torch.testing.assert_close(method.posterior(x[one], one).tensors(), seen[1:2].tensors())
    assert unseen.tensors().keys() == seen.tensors().keys()
    noise = torch.randn(2000, 3, 5, generator=random_generator(0))
    start = method.model.initial_posterior(x[index])
    assert (elbo(method.model, x[index], unseen, noise).elbo >= elbo(method.model, x[index], start, noise).elbo).all()


def test_the_q_of_a_row_is_that_of_its_image(tmp_path):
    """From the table, from the method and from the loaded model; other rows explain the images worse."""
    method, _ = trained(LatentOptimization, tmp_path, latent_learning_rate=0.2)
    rows = torch.tensor([7, 131, 3, 55])
    mean, log_var = method.table.current()
    model = latent_optimization.load_model(tmp_path / "latent_opt_epoch_2.pt")
    for q in (method.posterior(None, rows), model.posterior(rows)):
        assert torch.equal(q.mean, mean[rows])
        assert torch.equal(q.scale, (0.5 * log_var[rows]).exp())
    x = toy_data().train.images[rows]
    worth = torch.stack([model.log_likelihood(x, q.mean.roll(shift, 0)) for shift in range(4)])
    assert worth[0].sum() > worth[1:].sum(1).max()


def test_both_methods_start_from_the_same_model():
    one, two = (method(toy_config(), toy_data()).model for method in METHODS)
    other = AmortizedVAE(toy_config(seed=5), toy_data()).model
    assert one.likelihood.sigma == two.likelihood.sigma == SIGMA
    assert all(map(torch.equal, one.decoder.parameters(), two.decoder.parameters()))
    assert not all(map(torch.equal, one.decoder.parameters(), other.decoder.parameters()))


def test_an_epoch_visits_every_image_once_and_both_methods_see_the_same_batches():
    visits = {}
    for method_class in METHODS:
        method, seen = method_class(toy_config(), toy_data()), visits.setdefault(method_class.name, [])

        def step(rows, noise, seen=seen, train_step=method.train_step):
            seen.append((rows.tolist(), noise.tolist()))
            return train_step(rows, noise)

        method.step = step
        row = train_epoch(method, 1)
        assert row["train_elbo"] == pytest.approx(row["train_log_likelihood"] - row["train_kl"])
    assert visits["amortized"] == visits["latent_optimization"]
    batches = [rows for rows, _ in visits["amortized"]]
    assert [len(rows) for rows in batches] == [32] * 4 + [22]
    assert sorted(row for batch in batches for row in batch) == list(range(150))


@pytest.mark.parametrize("beta", [0.0, 0.5])
@BOTH
def test_beta_weighs_the_gradient_of_the_kl(method_class, beta):
    method = method_class(toy_config(learning_rate=0.0), toy_data())
    rows, noise = torch.arange(9), torch.randn(9, 5, generator=random_generator(0))
    x, weights = method.images[rows], list(method.model.parameters())
    bound = elbo(method.model, x, method.posterior(x, rows), noise)
    expected = torch.autograd.grad((beta * bound.kl - bound.log_likelihood).sum(), weights)
    method.train_step(rows, noise, beta=beta)
    for weight, gradient in zip(weights, expected, strict=True):
        torch.testing.assert_close(weight.grad, gradient)


@ALL
def test_the_bound_that_is_reported_is_that_of_beta_one(method_class):
    """beta, from the configuration or from the caller, is in the loss alone."""
    rows, sums = torch.arange(9), []
    for beta, given in ((0.3, None), (1.0, None), (0.3, 2.0)):
        method = method_class(toy_config(beta=beta), toy_data())
        noise = method.draw_noise(9, random_generator(0))
        sums.append(method.train_step(rows, noise, beta=given))
        assert sums[-1][0] == pytest.approx((sums[-1][1] - sums[-1][2]).item())
    assert torch.equal(sums[0], sums[1])
    assert torch.equal(sums[0], sums[2])


@ALL
def test_the_parts_of_two_ranks_add_up(method_class):
    """The same bound and the same gradients of the weights, from the images that each holds."""
    data, rows = toy_data(), torch.arange(3, 20)
    whole = method_class(toy_config(latent_start="normal"), data)
    noise = whole.draw_noise(len(rows), random_generator(0))
    sums, gradients = whole.backward(rows, noise), []
    for rank in (0, 1):
        part = data._replace(train=data.train.at(torch.arange(rank, 150, 2)), shard=Shard(rank, 2))
        method = method_class(toy_config(latent_start="normal"), part)
        sums = sums - method.backward(rows, noise)
        gradients.append([weight.grad for weight in method.model.parameters()])
        q, expected = method.posterior(part.train.images[:4], torch.arange(4)), torch.arange(rank, rank + 8, 2)
        torch.testing.assert_close(q.tensors(), whole.posterior(data.train.images[expected], expected).tensors())
    torch.testing.assert_close(sums, torch.zeros(3), atol=2e-3, rtol=0)
    for weight, *parts in zip(whole.model.parameters(), *gradients, strict=True):
        torch.testing.assert_close(sum(parts), weight.grad, rtol=1e-3, atol=1e-3)


def test_saved_epochs():
    assert saved_epochs(30) == [1, 5, 10, 20, 30]
    assert saved_epochs(7) == [1, 5, 7]
    assert saved_epochs(1) == [1]


def test_a_loss_that_is_not_finite_names_its_step(tmp_path):
    data = toy_data()
    data.train.images[3] = float("nan")
    with pytest.raises(FloatingPointError, match=r"amortized.*epoch 1, step \d"):
        train(AmortizedVAE(toy_config(), data), tmp_path)
    assert not list(tmp_path.glob("*epoch*"))


def test_another_methods_checkpoint_and_a_damaged_one_are_refused(tmp_path):
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, {"method": "amortized"})
    with pytest.raises(InputError, match="not a checkpoint of latent_optimization"):
        latent_optimization.load_model(path)
    with pytest.raises(InputError, match="do not fit"):
        amortized_vae.load_model(path)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(InputError, match="damaged"):
        amortized_vae.load_model(path)


def test_checkpoints_of_one_training_come_back_as_methods(tmp_path):
    changes, classes = {"latent_rank": 3, "refinement_steps": 2, "refinement_rate": 0.1}, (*METHODS, SemiAmortizedVAE)
    methods = [trained(method_class, tmp_path, **changes)[0] for method_class in classes]
    found = find_checkpoints(classes, tmp_path)
    assert (found.epochs, found.config) == ([1, 2], toy_config(**changes))
    x, rows = toy_data().train.images[:4], torch.arange(4)
    for method, loaded in zip(methods, found.load(2, toy_data()), strict=True):
        assert same(loaded.posterior(x, rows).tensors(), method.posterior(x, rows).tensors())
    assert methods[1].posterior(x, rows).factor.shape == (4, 5, 3)
    q = latent_optimization.load_model(tmp_path / "latent_opt_epoch_2.pt").posterior(rows)
    assert same(q.tensors(), methods[1].posterior(x, rows).tensors())
