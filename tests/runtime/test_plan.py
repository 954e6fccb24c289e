"""plan.py: where a run continues, what it refuses, and whose the files in its directories are."""

import os
import shutil

import pytest
from run_directory import OWNED, First, Second
from torch import nn

from runtime import learners
from runtime.checkpoint import LOCK, load_checkpoint, load_json, save_checkpoint, save_file
from runtime.config import InputError, TrainConfig
from runtime.learners import lengthen
from runtime.plan import plan_evaluation
from runtime.run import open_evaluation


@pytest.mark.parametrize("resume", [False, True])
def test_a_run_among_the_files_of_another_stops(directory, tmp_path, resume):
    directory.save(First(), 1)
    different = r"first_state.json: of another run \(--seed 0 there, 5 here; --batch-size 64"
    directory.refuses(different, resume=resume, seed=5, batch_size=8)
    directory.refuses("without the settings beta; .*--overwrite removes", resume=resume, beta=1.0)
    directory.refuses("of a longer run, of 3 epochs", resume=resume, epochs=2)
    (tmp_path / "first_state.json").rename(tmp_path / "first_epoch_1.pt")
    directory.refuses("of another run, which cannot be continued", resume=resume)


def test_an_interrupted_run_is_continued_only_when_asked_or_by_torchrun(directory, monkeypatch):
    directory.save(First(), 1)
    directory.refuses("of an interrupted run of the same settings, which --resume continues")
    directory.refuses("of a run of 3 epochs, which --resume lengthens", epochs=5)
    assert not directory.plan(resume=True).lengthened
    directory.refuses("--overwrite: not together with --resume", resume=True, overwrite=True)
    for name, value in {"TORCHELASTIC_RUN_ID": "run", "RANK": "0", "WORLD_SIZE": "1"}.items():
        monkeypatch.setenv(name, value)
    directory.refuses("which --resume continues")  # of another call
    assert directory.plan(overwrite=True).states == {}
    directory.save(First(), 1)
    for overwrite in (False, True):
        assert list(directory.plan(overwrite=overwrite).states) == ["first"]


def test_a_damaged_or_foreign_early_checkpoint_is_found_before_the_run_goes_on(directory, tmp_path):
    directory.save(First(), 2)
    path = tmp_path / "first_epoch_1.pt"
    checkpoint = load_checkpoint(path)
    save_checkpoint(path, checkpoint | {"config": checkpoint["config"] | {"seed": 7}})
    directory.refuses(r"first_epoch_1.pt: of another training \(--seed 7 there, 0 here\)", resume=True)
    path.write_bytes(path.read_bytes()[:100])
    directory.refuses(r"first_epoch_1.pt: not a checkpoint, or damaged", resume=True)


def test_a_run_that_was_killed_while_it_wrote_its_first_state_begins_again(directory, tmp_path, capsys):
    (tmp_path / "first_state_1.pt").write_text("of a killed run")
    assert directory.plan(resume=True).states == {}
    assert os.listdir(tmp_path) == ["first_state_1.pt"]  # a plan changes nothing
    with directory.open(resume=True) as run:
        assert run.states == {}
        assert not (tmp_path / "first_state_1.pt").exists()
    assert "nothing to resume: the run begins" in capsys.readouterr().out


@pytest.mark.parametrize("resume", [False, True])
def test_a_finished_run_says_so(directory, tmp_path, capsys, resume):
    directory.finish(num_samples=5)
    with directory.open(resume=resume, scoring={"num_samples": 5}) as run:
        assert run.finished
    assert "this run is finished" in capsys.readouterr().out
    other_counts = r"--num-samples 5 there, 6 here\); these flags with --evaluate-only, and"
    directory.refuses(other_counts, resume=resume, scoring={"num_samples": 6})
    directory.refuses("--seed 0 there, 1 here", resume=resume, seed=1)
    for path in tmp_path.glob("*_state*"):
        path.unlink()
    directory.refuses("of a run whose checkpoints are not in", resume=resume)


def test_a_finished_run_can_be_lengthened_where_no_schedule_forbids_it(directory):
    directory.finish()
    plan = directory.plan(resume=True, epochs=5)
    assert (plan.lengthened, list(plan.states)) == (True, ["first", "second"])
    unextendable = OWNED._replace(evaluates=False)
    directory.refuses("--epochs 3 there, 5 here", resume=True, epochs=5, owned=unextendable)


def test_a_run_that_is_not_trained_and_scored_to_its_end_is_not_finished(directory, tmp_path):
    directory.finish()
    summary = load_json(tmp_path / "summary.json")
    for epoch in (2, 3):
        save_file(tmp_path / "summary.json", summary | {"scored_epoch": epoch})
        assert directory.plan(resume=True).finished == (epoch == 3)
    last = tmp_path / "second_epoch_3.pt"
    last.rename(tmp_path / "away")
    assert not directory.plan(resume=True).finished  # which writes it again
    directory.refuses("of a finished run without its last checkpoint, which --resume writes again")
    save_file(tmp_path / "summary.json", summary | {"eval_config": {"num_samples": 5}})
    directory.refuses("these flags with --evaluate-only", resume=True, scoring={"num_samples": 9})
    (tmp_path / "away").rename(last)
    (tmp_path / "summary.json").write_text("damaged")
    directory.refuses(r"summary.json: .* or damaged; move it, and --resume writes it again; other", resume=True)
    save_file(tmp_path / "summary.json", summary | {"settings": directory.settings | {"epochs": 2}})
    directory.refuses(r"summary.json: of a run of 2 epochs, which --resume lengthens")
    directory.save(Second(), 1)
    save_file(tmp_path / "summary.json", summary)
    assert not directory.plan(resume=True).finished


def test_kept_results_of_tasks_go_with_the_run_that_they_are_of(directory, tmp_path):
    directory.finish(num_samples=7)
    scoring, others = {"num_samples": 7}, directory.settings | {"seed": 1}
    directory.keep(settings=directory.settings, eval_config={"num_samples": 8})
    assert directory.plan(scoring=scoring)[1:4] == ([], False, True)  # an evaluation with other counts goes on there
    identity = directory.keep(settings=directory.settings, eval_config=scoring, files={})
    assert directory.plan(scoring=scoring).remove == [identity]  # the run was killed right after its end
    with directory.open(scoring=scoring) as run:
        assert run.finished
    assert not identity.parent.exists()
    identity.parent.mkdir()  # the run was killed while it removed them
    assert not directory.plan(scoring=scoring, owned=OWNED._replace(evaluates=False)).remove  # of another script
    with directory.open(scoring=scoring):
        assert not identity.parent.exists()
    directory.keep(settings=others)
    (tmp_path / "summary.json").unlink()
    directory.refuses("identity.json: of another run", resume=True)
    assert not directory.plan(resume=True, owned=OWNED._replace(evaluates=False)).remove
    with directory.open(overwrite=True):
        assert not identity.parent.exists()
    directory.keep(settings=others)
    directory.refuses("identity.json: of another run")


def test_a_lengthening_that_was_interrupted_goes_on_and_the_shorter_run_is_gone(directory, tmp_path, monkeypatch):
    directory.finish()
    assert directory.plan().finished
    whole = {path: path.read_bytes() for path in tmp_path.glob("*_state_3.pt")}
    for path in whole:
        path.write_bytes(b"")
    with pytest.raises(InputError, match=r"_state_3.pt: not a checkpoint"):  # before anything is changed
        lengthen(OWNED, directory.config(), 5)
    assert directory.plan().finished
    for path, contents in whole.items():
        path.write_bytes(contents)
    (tmp_path / "first_epoch_3.pt").write_bytes(b"")  # of an epoch that is not kept
    monkeypatch.setattr(learners, "save_checkpoint", lambda *given: 1 / 0)
    with pytest.raises(ZeroDivisionError):  # it is stopped on its way
        lengthen(OWNED, directory.config(), 5)
    monkeypatch.undo()
    longer = r"first_state.json: of a longer run, of 5 epochs"
    directory.refuses(longer)
    directory.refuses(longer, resume=True)
    assert directory.plan(resume=True, epochs=5).lengthened
    lengthen(OWNED, directory.config(), 5)
    assert {path.name for path in tmp_path.glob("*_epoch_*.pt")} == {"first_epoch_1.pt", "second_epoch_1.pt"}
    assert load_checkpoint(tmp_path / "first_epoch_1.pt")["config"]["epochs"] == 5
    directory.refuses(longer, resume=True)
    plan = directory.plan(resume=True, epochs=5)
    assert (plan.lengthened, plan.finished) == (False, False)
    directory.settings["epochs"] = 5
    for learner in (First(), Second()):
        directory.save(learner, 5)
    assert not directory.plan(resume=True, epochs=5).finished  # the summary is still that of the shorter run
    (tmp_path / "first_epoch_5.pt").write_bytes(b"")  # its last one: the restored run writes it again
    lengthen(OWNED, directory.config(), 7)
    assert load_checkpoint(tmp_path / "second_epoch_5.pt")["config"]["epochs"] == 7


def test_states_that_are_foreign_or_do_not_fit_are_refused(directory, tmp_path):
    directory.save(First(), 1)
    path, state = tmp_path / "first_state_1.pt", tmp_path / "first_state.json"
    save_checkpoint(path, nn.Linear(4, 2).state_dict())
    known = load_json(state)
    save_file(state, {name: value for name, value in known.items() if name != "crc32"})  # of an earlier version
    with pytest.raises(InputError, match=r"first_state_1.pt: its contents do not fit this program"):
        directory.restored(First())
    path.unlink()
    refused = "no such checkpoint, so that the run cannot be continued"
    directory.refuses(f"first_state_1.pt: {refused}", resume=True)
    directory.save(First(), 2)
    (tmp_path / "first_epoch_1.pt").unlink()  # which the evaluation would miss after all training
    directory.refuses(f"first_epoch_1.pt: {refused}", resume=True)
    directory.save(First(), 1)
    known = load_json(state)
    save_file(state, known | {"ranks": 2})
    directory.refuses(f"first_state_1_rows_0_of_2.pt: {refused}", resume=True)
    for contents in ({"prefix": "first"}, known | {"prefix": "second"}, known | {"ranks": 0}, known | {"epoch": 2}):
        save_file(state, contents)
        directory.refuses(r"first_state.json: its contents do not fit this program", resume=True)
    state.write_text("no JSON")
    directory.refuses(r"first_state.json: not a file of this program, or damaged; other --checkpoint", resume=True)


@pytest.fixture
def plan(directory):
    """plan_evaluation, of checkpoints of so many epochs, of which the third of one method is scored."""

    def plan(epochs=3, dataset="mnist", images=None, evaluation="full", **fields):
        options = {"owned": OWNED._replace(page="page.html"), "epoch": 3, "methods": ["first"], "images": images}
        options["evaluation"] = evaluation
        return plan_evaluation(directory.config(**fields), TrainConfig(epochs=epochs, dataset=dataset), **options)

    return plan


def test_a_folder_that_has_moved_is_the_same_training(tmp_path, plan):
    known = {"train_config": {"epochs": 3, "dataset": "folder:there"}, "seconds": {"training": {"first": 7}}}
    save_file(tmp_path / "summary.json", known | {"settings": {"images": {"train": "a digest"}}})
    assert plan(dataset="folder:here", images={"train": "a digest"}) == ({"first": 7}, [])
    with pytest.raises(InputError, match="of another run"):
        plan(dataset="folder:here", images={"train": "another"})


def test_quick_scores_do_not_replace_full_ones(tmp_path, plan):
    for kind, page, refused in (("full", 0, 0), ("full", 1, 1), ("none", 1, 1), ("quick", 1, 0)):  # 0: lengthened
        save_file(tmp_path / "summary.json", {"train_config": {"epochs": 3}, "eval_config": {"evaluation": kind}})
        (tmp_path / "page.html").touch()
        if not page:
            (tmp_path / "page.html").unlink()
        assert plan() == plan(evaluation="none") == plan(evaluation="quick", overwrite=True) == ({}, [])
        if refused:
            with pytest.raises(InputError, match=r"its scores are of a full evaluation; another --results-dir keeps"):
                plan(evaluation="quick")
        else:
            assert plan(evaluation="quick") == ({}, [])


def test_results_whose_training_is_not_known_are_not_scored_over(directory, tmp_path, plan):
    picture, summary = tmp_path / "picture.png", tmp_path / "summary.json"
    assert plan() == ({}, [])
    summary.write_text("damaged")
    assert plan() == ({}, [])
    summary.unlink()
    picture.touch()  # of a run whose summary is gone
    with pytest.raises(InputError, match=r"picture.png: of a run whose summary.json is missing or damaged; other"):
        plan()
    assert plan(overwrite=True) == ({}, [picture])
    identity = directory.keep(train_config={"epochs": 3}, settings={})
    assert plan() == ({}, [])  # an evaluation that was interrupted goes on, or begins anew
    with pytest.raises(InputError, match=r"identity.json: of another run \(--epochs 3 there, 4 here\)"):
        plan(4)
    assert plan(4, overwrite=True) == ({}, [picture])
    directory.save(First(), 1)
    directory.refuses(r"identity.json: of a run without the settings seed", resume=True)
    shutil.rmtree(identity.parent)
    identity.parent.touch()
    directory.refuses(r".evaluation: a file, where a run has a directory")
    summary.mkdir()
    for planned in (plan, directory.plan):
        with pytest.raises(InputError, match=r"summary.json: a directory, where a run has a file"):
            planned()


def test_results_of_another_training_are_not_scored_over(directory, tmp_path, plan):
    summary, known = tmp_path / "summary.json", {"train_config": {"epochs": 3}, "seconds": {"training": {"first": 2.0}}}
    save_file(summary, known)  # as of an older version
    assert plan() == ({"first": 2.0}, [])
    with pytest.raises(InputError, match=r"summary.json: of another run \(--epochs 3 there, 4 here\)"):
        plan(4)
    options = {"owned": OWNED, "epoch": 4, "methods": ["first"], "device": "cpu"}
    (tmp_path / "mine.png").touch()
    with open_evaluation(directory.config(overwrite=True), TrainConfig(epochs=4), **options):
        assert sorted(os.listdir(tmp_path)) == [LOCK, "mine.png"]
    both = {"settings": {"methods": "first second"}}  # without an epoch, as `lengthen` leaves it
    for other in ({"scored_epoch": 2, "settings": {"methods": "first"}}, {"scored_epoch": 3, **both}, both):
        save_file(summary, known | other)
        with pytest.raises(InputError, match=r"its scores are of epoch [23] and --methods first.*; another --results"):
            plan()
        seconds = {} if other.get("scored_epoch") == 2 else {"first": 2.0}  # those of another epoch are other ones
        assert plan(overwrite=True) == (seconds, [])
    for foreign in ({"train_config": None}, {"train_config": [1]}, {"train_config": {"epochs": 3}, "seconds": 1}):
        save_file(summary, foreign)
        with pytest.raises(InputError, match=r"summary.json: its contents do not fit this program"):
            plan()
    save_file(summary, {"train_config": {"epochs": 2}, "seconds": 1})  # damaged, and of another run
    assert plan(overwrite=True) == ({}, [summary])
    save_file(summary, {"settings": None})
    directory.refuses(r"summary.json: its contents do not fit this program")


def test_files_of_the_users_own_are_none_of_a_run(directory, tmp_path):
    names = ["first_state_2.pt.bak", "first_state_backup.pt", "first_state_notes.txt", "first_epoch_best.pt"]
    names += ["mine.png", "third_epoch_1.pt", "first_epoch_keep_2.pt", "first_state_of_epoch_3.pt"]
    for name in (*names, "picture.png"):
        (tmp_path / name).touch()
    directory.finish()
    assert not {path.name for path in directory.plan(resume=True, epochs=5).remove} & {*names}
    with directory.open(overwrite=True) as run:
        assert run.states == {}
    assert sorted(os.listdir(tmp_path)) == sorted(names)
    directory.save(First(), 3)
    assert {*names} <= {*os.listdir(tmp_path)}
    path = tmp_path / "first_state_3.pt"
    path.write_bytes(path.read_bytes()[:100])
    directory.settings["epochs"] = 5
    with pytest.raises(InputError, match=r"first_state_3.pt: not the file of this"), directory.open(resume=True):
        pass
    assert (tmp_path / "first_epoch_2.pt").exists()  # nothing was removed before
