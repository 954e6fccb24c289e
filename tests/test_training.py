"""Both regimes through the one loop: same start, same batches, the same bits under the same seed."""

import pytest
import torch

import amortized_vae
import latent_optimization
from amortized_vae import AmortizedVAE
from data import stratified_subset
from files import InputError, load_checkpoint, save_checkpoint
from latent_optimization import LatentOptimization
from model import ConvVAE
from training import saved_epochs, train_epoch

CONFIG = {"latent_dim": 5, "sigma_p": 0.4, "seed": 0}


def small(mnist, size=150):
    return stratified_subset(mnist[0], size=size), stratified_subset(mnist[1], size=100)


@pytest.mark.parametrize("regime", [amortized_vae, latent_optimization])
def test_the_same_seed_writes_the_same_bits(mnist, tmp_path, regime):
    train, test = small(mnist)
    for run in ("one", "two"):
        (tmp_path / run).mkdir()
        model, history = regime.train(
            train=train,
            test=test,
            config=CONFIG,
            checkpoint_dir=tmp_path / run,
            epochs=2,
            precision="float32",
            **CONFIG,
        )
    files = [sorted((tmp_path / run).iterdir()) for run in ("one", "two")]
    assert [path.name for path in files[0]] == [path.name for path in files[1]]
    assert len(files[0]) >= 2
    for one, two in zip(*files, strict=True):
        if "epoch" in one.name:
            assert one.read_bytes() == two.read_bytes()
    assert [row["epoch"] for row in history] == [1, 2]
    assert history[1]["train_elbo"] > history[0]["train_elbo"]

    path = next(path for path in files[0] if path.name.endswith("epoch_2.pt"))
    loaded = regime.load_model(path)
    z = torch.randn(3, 5)
    assert torch.equal(loaded.decode(z), model.decode(z))
    index = torch.tensor([0, 7])
    given = [
        candidate.encode(train.images[index]) if regime is amortized_vae else candidate.posterior(None, index)
        for candidate in (loaded, model)
    ]
    assert torch.equal(given[0].mean, given[1].mean)
    assert torch.equal(given[0].stddev, given[1].stddev)
    assert torch.equal(load_checkpoint(path)["train_index"], train.index)


def test_both_regimes_start_from_the_same_decoder(mnist):
    train, test = small(mnist)
    one = AmortizedVAE(test_images=test.images, latent_dim=5, seed=4)
    two = LatentOptimization(train_size=len(train.images), test=test, max_steps=1, latent_dim=5, seed=4)
    assert all(map(torch.equal, one.decoder.parameters(), two.decoder.parameters()))
    other = ConvVAE(latent_dim=5, seed=5)
    assert not all(map(torch.equal, one.decoder.parameters(), other.decoder.parameters()))


def test_an_epoch_visits_every_image_once_and_both_regimes_see_the_same_batches(mnist):
    train, test = small(mnist)
    visits = {}
    for regime in (
        AmortizedVAE(test_images=test.images, latent_dim=5),
        LatentOptimization(train_size=len(train.images), test=test, max_steps=3, latent_dim=5),
    ):
        seen, posterior = visits.setdefault(regime.name, []), regime.posterior

        def watched(x, index, seen=seen, posterior=posterior):
            seen.append(index.tolist())
            assert torch.equal(x, train.images[index])
            return posterior(x, index)

        regime.posterior = watched
        sums = train_epoch(regime=regime, images=train.images, epoch=1, seed=0)
        assert sums.shape == (3, 3)
        assert torch.allclose(sums[:, 0], sums[:, 1] - sums[:, 2], rtol=1e-4)
    assert visits["amortized"] == visits["latent_optimization"]
    assert [len(batch) for batch in visits["amortized"]] == [64, 64, 22]
    assert sorted(row for batch in visits["amortized"] for row in batch) == list(range(150))


def test_seeding_leaves_the_global_generator_alone():
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    ConvVAE(latent_dim=5, seed=0)
    assert torch.equal(torch.rand(3), expected)


def test_saved_epochs():
    assert saved_epochs(30) == [1, 5, 10, 20, 30]
    assert saved_epochs(7) == [1, 5, 7]
    assert saved_epochs(1) == [1]


def test_a_loss_that_is_not_finite_names_its_step(mnist, tmp_path):
    train, test = small(mnist)
    train.images[3] = float("nan")
    with pytest.raises(InputError, match=r"amortized.*epoch 1, step \d"):
        amortized_vae.train(train=train, test=test, config=CONFIG, checkpoint_dir=tmp_path, epochs=1, **CONFIG)
    assert not list(tmp_path.glob("*epoch*"))


def test_the_other_regimes_checkpoint_is_refused(tmp_path):
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, {"regime": "amortized"})
    with pytest.raises(InputError, match="not a checkpoint of latent optimization"):
        latent_optimization.load_model(path)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(InputError, match="damaged"):
        amortized_vae.load_model(path)
