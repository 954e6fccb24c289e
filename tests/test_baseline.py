"""The classifier's checkpoint: loaded as it was trained, trained anew where it is not what is asked for."""

import pytest
import torch

import baseline
from data import stratified_subset
from files import InputError, load_checkpoint, save_checkpoint


@pytest.fixture(scope="module")
def place(mnist, tmp_path_factory):
    """The splits and a folder with the classifier trained on them."""
    place = tmp_path_factory.mktemp("baseline")
    train, test = stratified_subset(mnist[0], size=100), stratified_subset(mnist[1], size=50)
    model, history = baseline.train_baseline(train=train, test=test, checkpoint_dir=place)
    assert [row["epoch"] for row in history] == list(range(1, baseline.EPOCHS + 1))
    return place, train, test, model


def test_the_judge_is_the_classifier_that_was_trained(place):
    folder, train, test, model = place
    judge = baseline.load_judge(folder / "classifier.pt", train_index=train.index)
    assert not judge.training
    assert not any(parameter.requires_grad for parameter in judge.parameters())
    assert judge.features(test.images).shape == (50, 128)
    assert torch.equal(*(baseline.predict(model=each, images=test.images) for each in (model, judge)))


def test_what_is_no_judge_is_refused(place, tmp_path):
    folder, train, _, _ = place
    with pytest.raises(InputError, match="trained on other images"):
        baseline.load_judge(folder / "classifier.pt", train_index=train.index + 1)
    with pytest.raises(InputError, match="no such checkpoint"):
        baseline.load_judge(tmp_path / "classifier.pt")
    checkpoint = load_checkpoint(folder / "classifier.pt")
    for change, said in (
        ({"regime": "amortized"}, "not a checkpoint of the classifier"),
        ({"weights": {}}, "do not fit this program"),
        ({"weights": None}, "do not fit this program"),
        ({"train_index": None}, "do not fit this program"),
    ):
        save_checkpoint(tmp_path / "classifier.pt", {**checkpoint, **change})
        with pytest.raises(InputError, match=said):
            baseline.load_judge(tmp_path / "classifier.pt", train_index=train.index)


def test_a_judge_is_trained_only_where_it_is_not_there(place, tmp_path):
    folder, train, test, model = place
    path = folder / "classifier.pt"
    before = path.stat().st_mtime_ns
    found = baseline.find_judge(train=train, test=test, checkpoint_dir=folder)
    assert path.stat().st_mtime_ns == before
    anew = baseline.find_judge(train=train, test=test, checkpoint_dir=tmp_path)
    for judge in (found, anew):
        assert all(torch.equal(*pair) for pair in zip(judge.parameters(), model.parameters(), strict=True))
    assert (tmp_path / "classifier.pt").read_bytes() == path.read_bytes()
    for other in ({"train": train._replace(index=train.index + 1)}, {"seed": 1}):
        before = (tmp_path / "classifier.pt").read_bytes()
        baseline.find_judge(**{"train": train, "test": test, "checkpoint_dir": tmp_path, **other})
        assert (tmp_path / "classifier.pt").read_bytes() != before
