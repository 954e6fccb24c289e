"""The classifier through the common loop; its checkpoint: loaded as trained, trained anew where it is another."""

from dataclasses import replace

import pytest
import torch
from conftest import train

import sup_classification
from data import Data, stratified_subset
from runtime.checkpoint import load_checkpoint, save_checkpoint
from runtime.config import ClassifierConfig, InputError, RunConfig, TrainConfig
from runtime.run import Run
from sup_classification import ClassifierTraining, augment, find_classifier, load_classifier, predict
from vae_utils import random_generator

CONFIG = ClassifierConfig(epochs=2, train_size=100, batch_size=30, seed=3, learning_rate=0.004, precision="float32")


@pytest.fixture(scope="module")
def data(mnist):
    parts = [stratified_subset(mnist[part], size=size) for part, size in ((0, 100), (1, 60), (0, 90), (1, 50))]
    return Data(*parts)


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    """The path of classifier.pt, and the trained model."""
    folder, learner = tmp_path_factory.mktemp("classifier"), ClassifierTraining(CONFIG, data)
    train(learner, folder)
    return folder / "classifier.pt", learner.model.eval()


def test_a_loaded_classifier_is_the_trained_one(trained, data):
    path, model = trained
    loaded, images = load_classifier(path, data), data.test.images
    assert not loaded.training
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    assert loaded.features(images).shape == (50, 128)
    assert loaded.config == CONFIG
    found = predict(model.train(), images, batch_size=7)  # in evaluation mode, which does not stay
    assert model.training
    torch.testing.assert_close(found, loaded(images).log_softmax(-1), rtol=1e-3, atol=1e-4)
    assert torch.equal(predict(model.eval(), images), predict(loaded, images))


def test_a_classifier_learns(data, tmp_path):
    learner = ClassifierTraining(replace(CONFIG, epochs=12), data)
    errors = [row["train_error"] for row in train(learner, tmp_path)]
    assert errors[0] > 0.5
    assert errors[-1] < 0.2


def test_other_files_are_refused(trained, data, tmp_path):
    path, checkpoint = tmp_path / "classifier.pt", load_checkpoint(trained[0])
    for change, message in (
        ({"train_index": data.train.index + 1}, "trained on other images"),
        ({"method": "amortized"}, "not a checkpoint of classifier"),
        ({"weights": {}}, "do not fit this program"),
    ):
        save_checkpoint(path, checkpoint | change)
        with pytest.raises(InputError, match=message):
            load_classifier(path, data)


def test_a_classifier_is_trained_only_where_it_is_not_there(trained, data, tmp_path):
    path, model = trained
    before = path.stat().st_mtime_ns
    for folder in (path.parent, tmp_path):
        run = Run(RunConfig(checkpoint_dir=str(folder)), {})
        assert all(map(torch.equal, find_classifier(data, CONFIG, run).parameters(), model.parameters()))
    assert path.stat().st_mtime_ns == before
    assert load_classifier(tmp_path / "classifier.pt", data).config == CONFIG
    for _ in range(2):  # the user's is not replaced
        beside = find_classifier(data, other := replace(CONFIG, seed=4), run)
        assert load_classifier(tmp_path / "classifier_of_samples.pt", data).config == beside.config == other
    assert load_classifier(tmp_path / "classifier.pt", data).config == CONFIG


def test_few_images_are_seen_often_enough():
    epochs = {size: ClassifierConfig.for_training(TrainConfig(train_size=size)).epochs for size in (110, 700, 20_000)}
    assert epochs == {110: 100, 700: 17, 20_000: 8}


def test_augmentation_moves_but_does_not_invent(mnist):
    images = mnist[1].images[:200]
    changed = augment(images, 2 * torch.rand(4, 200, generator=random_generator(0)) - 1)
    assert changed.shape == images.shape
    assert changed.abs().max() <= 1.0001
    share = (changed + 1).sum((1, 2, 3)) / (images + 1).sum((1, 2, 3))  # of the ink
    assert 0.7 < share.min() < share.max() < 1.35
    assert not torch.equal(changed[0], images[0])
    torch.testing.assert_close(augment(images, torch.zeros(4, 200)), images, atol=1e-4, rtol=0)


def test_an_image_that_is_no_square_is_turned_and_shifted_by_as_much():
    square, wide = torch.full((1, 1, 28, 28), -1.0), torch.full((1, 1, 28, 112), -1.0)
    square[..., 12:16, 18:24] = wide[..., 12:16, 60:66] = 1  # as far from the centre
    noise = torch.tensor([0.9, 0.7, -0.8, 0.5]).unsqueeze(1)
    torch.testing.assert_close(augment(wide, noise)[..., 42:70], augment(square, noise), atol=1e-4, rtol=0)


def test_the_most_confident_mistakes_come_first(mnist):
    split = stratified_subset(mnist[1], size=20)
    log_prob = torch.full((20, 10), -10.0)
    log_prob[torch.arange(20), split.labels] = -0.1
    for row, value in ((3, -0.01), (7, -0.5)):
        log_prob[row] = -10.0
        log_prob[row, (split.labels[row] + 1) % 10] = value
    found = sup_classification.most_confidently_wrong(log_prob, split, count=5)
    assert [found[1:3] for found in found] == [(label, (label + 1) % 10) for label in split.labels[[3, 7]].tolist()]
