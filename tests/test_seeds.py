"""--seeds: a run per seed in directories of its own, then seeds.csv and a table over seeds."""

import json
import re
import shutil
import signal
from argparse import Namespace
from functools import partial
from itertools import product
from types import SimpleNamespace

import processes
import pytest
from conftest import toy_config
from made_up import METHODS, made_up_scores
from processes import MAIN, contents, read_csv
from scipy import stats

from benchmarks import stress
from evaluation import seeds
from evaluation.statistics import Score, find
from evaluation.tables import DIFFERENCES, read_scores
from runtime.checkpoint import exclusive_lock
from runtime.config import InputError, RunError
from runtime.seeds import run_seeds

FLAGS = {"settings": stress.SCRIPTS[MAIN].replace("--seed 2 ", "") + " --evaluation quick"}
SEEDS = ["--seeds", "2", "3", "--resume"]
run, stop = partial(processes.run, MAIN, **FLAGS), partial(processes.stop, MAIN, **FLAGS)
FINISHED = "this run is finished, there is nothing to do"
ADVICE = "the same command with --resume continues"


def times(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def folder_of_runs(folder_of_runs):
    """A folder with "seeds": seed 2 was finished before, seed 3 stopped, killed and continued to its end."""
    folder = folder_of_runs / "seeds"
    assert run(folder, "--seeds", "2")[0] == 0
    before = times(folder / "checkpoints/seed_2") | times(folder / "results/seed_2")
    (folder / "results/seeds.csv").unlink()
    status, said = stop(folder, *SEEDS, after="checkpoints/seed_3/vae_state.json", number=signal.SIGTERM)
    assert status == 143
    assert re.fullmatch(rf"{MAIN}: stopped by SIGTERM in seed 3, after .*(epoch|epochs).*; {ADVICE}\n", said)
    assert "nothing to resume: the run begins" in (folder / "out").read_text()
    drawn = "results/seed_3/recon_epoch_1.png"
    assert stop(folder, *SEEDS, after=drawn, number=signal.SIGKILL)[0] == -signal.SIGKILL
    assert not (folder / "results/seeds.csv").exists()
    status, said, errors = run(folder, *SEEDS)
    assert (status, errors) == (0, [])
    assert f"results/seed_2/summary.json: {FINISHED}" in said
    assert said.count("training images on") == 1
    assert "amortized: resumed after epoch 3" in said
    assert before.items() <= times(folder).items()
    return folder_of_runs


def test_every_seed_has_directories_of_its_own(folder_of_runs):
    folder = folder_of_runs / "seeds"
    assert {path.name for path in (folder / "checkpoints").iterdir()} == {"seed_3", "seed_2"}
    assert {path.name for path in (folder / "results").iterdir()} == {"seed_3", "seed_2", "seeds.csv"}
    for seed in (3, 2):
        summary = json.loads((folder / f"results/seed_{seed}/summary.json").read_text())
        assert summary["settings"]["seed"] == summary["train_config"]["seed"] == seed
    for part in ("checkpoints", "results"):
        assert contents(folder / part / "seed_2").keys() == contents(folder / part / "seed_3").keys()
    said = (folder / "out").read_text()
    assert said.index("seed 2: checkpoints/seed_2, results/seed_2") < said.index("seed 3: checkpoints/seed_3")
    assert "results/seeds.csv: " in said
    assert "Gaussian p(x|z), sigma 0.3" in said
    assert "mean over seeds 2, 3 ± half width of its 95% t interval over seeds (over their images, if that" in said


def test_finished_seeds_are_compared_without_work(copy):
    folder = copy("seeds")
    before, path = times(folder), folder / "results/seeds.csv"
    status, said, errors = run(folder, *SEEDS)
    assert (status, errors, said.count(FINISHED)) == (0, [], 2)
    after = times(folder)
    assert after[path] > before[path]
    assert {changed.name for changed in before if after[changed] != before[changed]} <= {"seeds.csv", "out", "err"}


def test_the_csv_holds_the_numbers_of_the_scores(folder_of_runs):
    folder = folder_of_runs / "seeds"
    rows = read_csv(folder / "results/seeds.csv")
    assert list(rows[0]) == ["seed", *Score._fields]
    cells = {(row["seed"], row["method"], row["split"], row["quantity"]): row for row in rows}
    assert len(cells) == len(rows)
    one, other, asked, compared = "amortized", "latent_optimization", seeds.QUANTITIES, set()
    asked = [*product((one, other), asked), *product((f"{one} - {other}",), DIFFERENCES)]
    for seed, split, (method, quantity) in product((3, 2), ("train", "test"), asked):
        if score := find(read_scores(folder / f"results/seed_{seed}/scores.csv"), quantity, method, split):
            row = cells.pop((str(seed), method, split, quantity))
            values = [float(row[column]) for column in ("mean", "standard_error", "images")]
            assert values == [score.mean, score.standard_error, score.images]
            compared.add(quantity)
    assert {"elbo", "fitted_elbo", "amortization_gap"} <= compared  # of a quick evaluation
    assert not cells


BOTH = {"one": "First way", "two": "Second way"}


def shifted(shift):
    """Scores of two methods, the means moved by more for few images, as between seeds."""
    return [score._replace(mean=score.mean + shift * (1 + score.images / 7)) for score in made_up_scores(METHODS[:2])]


def table_of(scores):
    """The lines of the table; scores: {seed: its Scores}."""
    headlines = {seed: seeds.headline_scores(of_seed) for seed, of_seed in scores.items()}
    return seeds.table(headlines, BOTH, "p(x|z)").splitlines()


def test_the_table_of_three_seeds_with_paired_differences():
    scores = {0: shifted(0.0), 4: shifted(1.0), 2: shifted(5.0)}
    *table, last = table_of(scores)
    lines = [line for line in table if line.startswith("| ")][1:]
    assert len(lines) == 2 * 5 + 7
    for number, heading, quantity, method in (
        (0, "**First way**: ELBO(q)", "elbo", "one"),
        (2, "amortization gap, ELBO(q*) - ELBO(q)", "amortization_gap", "one"),
        (6, "log p(x)", "log_prob", "two"),
        (10, "**First way - Second way (paired)**: ELBO(q)", "elbo", "one - two"),
        (14, "log p(x)", "log_prob", "one - two"),
    ):
        cells = []
        for split in ("train", "test"):
            values = [find(rows, quantity, method, split).mean for rows in scores.values()]
            low, high = stats.t.interval(0.95, 2, loc=sum(values) / 3, scale=stats.sem(values))
            cells.append(f"{sum(values) / 3:.2f} ± {(high - low) / 2:.2f}")
        assert lines[number] == f"| {heading} | {' | '.join(cells)} |"
    assert last.startswith("p(x|z); mean over seeds 0, 4, 2 ±")
    assert last.endswith("; images (train and test): 50 and 50 for all.")


def test_seeds_that_agree_by_chance_have_the_interval_over_their_images():
    lines = table_of({0: shifted(0.0), 4: shifted(1e-3), 2: shifted(2e-3)})
    gap = next(line for line in lines if "mean-field gap" in line)
    half = stats.t.ppf(0.975, 3 * 49) * 0.5 / 3**0.5
    assert re.findall(r"± ([0-9.]+)", gap) == [f"{half:.2f}"] * 2


def test_the_table_of_one_seed_is_over_images_and_seeds_with_other_numbers_are_not_compared():
    scores = shifted(0.0)
    *lines, last = table_of({7: scores})
    gap = next(line for line in lines if "mean-field gap" in line)
    half = stats.t.ppf(0.975, 49) * 0.5
    mean = find(scores, "mean_field_gap", "one", "train").mean
    assert gap.startswith(f"| mean-field gap, ELBO(q*full) - ELBO(q*) | {mean:.2f} ± {half:.2f} |")
    assert "mean over the images of seed 7 ± half width of its 95% t interval over images;" in last
    rows = seeds.headline_scores(scores)
    fewer = {key: score for key, score in rows.items() if score.quantity != "log_prob"}
    with pytest.raises(RunError, match=r"seeds 0 and 1: one, test, log p\(x\) is in one scores.csv only"):
        seeds.records({0: rows, 1: fewer})


def test_seeds_of_different_trainings_are_refused(tmp_path):
    digest = {"training": {"counts": {"a": 3}, "sha256": "of three"}}
    others = {"training": {"counts": {"a": 3}, "sha256": "of others"}}
    given = Namespace(seeds=[0, 1], evaluate_only=True, results_dir=str(tmp_path))
    for changes, images, said in (
        ({"sigma_p": 0.5}, digest, "--sigma-p 0.7 there, 0.5 here"),
        ({"precision": "float32"}, others, "other training images"),
    ):
        found = [(toy_config(seed=0), digest), (toy_config(seed=1, **changes), images)]
        experiments = [SimpleNamespace(config=config, data=SimpleNamespace(digest=known)) for config, known in found]
        with pytest.raises(InputError, match=f"--seeds: 0 and 1 are of two trainings: {said}"):
            run_seeds(given, lambda given: experiments[given.seed], None, None)  # noqa: B023
    # A folder that changes while the first seed trains
    prepared = iter([toy_config(seed=seed) for seed in (0, 1, 0, 1)])
    executed = []

    def prepare(given):
        data = SimpleNamespace(digest=others if executed else digest)
        return SimpleNamespace(config=next(prepared), data=data)

    with pytest.raises(InputError, match="--seeds: 0 and 1 are of two trainings: other training images"):
        run_seeds(given, prepare, executed.append, None)
    assert len(executed) == 1


def test_without_an_evaluation_there_is_no_table(tmp_path, capsys):
    assert list(seeds.compare_seeds({0: tmp_path}, tmp_path)) == []
    assert "no table of means: without an evaluation" in capsys.readouterr().out


def test_stopped_before_the_first_epoch_of_a_seed(copy):
    folder = copy("seeds")
    shutil.rmtree(folder / "checkpoints/seed_3")
    shutil.rmtree(folder / "results/seed_3")
    ended = stop(folder, *SEEDS, after="seed 3: ", number=signal.SIGINT)
    assert ended == (130, f"{MAIN}: stopped by SIGINT in seed 3, before its first epoch; {ADVICE}\n")
    _, said = stop(folder, "--seeds", "3", "2", "--overwrite", after="seed 3: ", number=signal.SIGINT)
    assert said == f"{MAIN}: stopped by SIGINT before an epoch of its own was over; give the same command again\n"


def test_evaluate_only_scores_the_checkpoints_of_a_seed_with_that_seed(folder_of_runs, copy):
    folder = copy("seeds")
    for path in folder.glob("checkpoints/seed_2/*_epoch_1.pt"):
        path.unlink()  # of the last epoch are the numbers that are compared
    before = contents(folder / "checkpoints"), contents(folder / "results")
    status, said, errors = run(folder, "--seeds", "2", "--evaluate-only", "--results-dir", "again")
    assert (status, errors) == (0, [])
    assert "evaluation with seed 2" in said
    assert "mean over the images of seed 2 ± half width of its 95% t interval over images" in said
    assert (contents(folder / "checkpoints"), contents(folder / "results")) == before
    again, rows = read_csv(folder / "again/seeds.csv"), read_csv(folder_of_runs / "seeds/results/seeds.csv")
    assert again == [row for row in rows if row["seed"] == "2"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("0 1 --seed 0 --evaluate-only", "--seed: not together with --seeds"),
        ("0 5 0", "--seeds: 0 is repeated"),
        ("0 -1", "--seed -1: not from 0 to 4,294,967,295"),
        ("", "--seeds: expected at least one argument"),
        ("3 0 --evaluate-only", "seed_0: no checkpoints"),
        ("3 8 --evaluate-only", "seed_8: the checkpoints are of another training: --seed 2 there, 8 here"),
        ("0 1 --resume --evaluate-only", "--resume: not together with --evaluate-only"),
        ("0 2 --resume --beta 0.5", "seed_2/vae_state.json: of another run (--beta 1.0 there, 0.5 here); its flags"),
        ("0 6", "--results-dir results/seed_6: cannot be written to"),
        ("0 1 --images-per-digit 20", "20 images of each class were asked for"),
        ("0 2 --results-dir used", "used/seed_2: in use by another run"),
        ("0 4 --results-dir used/seed_2", "used/seed_2: in use by another run"),
    ],
)
def test_bad_input_is_refused_before_any_work(copy, flags, message):
    folder = copy("seeds")
    (folder / "results/seed_6").write_text("a file")
    shutil.copytree(folder / "checkpoints/seed_2", folder / "checkpoints/seed_8")
    (folder / "used/seed_2").mkdir(parents=True)
    with exclusive_lock(folder / "used/seed_2"):
        processes.refused(MAIN, folder, "--seeds", *flags.split(), said=message, **FLAGS)
