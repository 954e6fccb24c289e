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
    for part, others in (("checkpoints", set()), ("results", {"seeds.csv"})):
        assert {path.name for path in (folder / part).iterdir()} == {"seed_3", "seed_2"} | others
        assert contents(folder / part / "seed_2").keys() == contents(folder / part / "seed_3").keys()
    for seed in (3, 2):
        summary = json.loads((folder / f"results/seed_{seed}/summary.json").read_text())
        assert summary["settings"]["seed"] == summary["train_config"]["seed"] == seed
    said = (folder / "out").read_text()
    assert said.index("seed 2: checkpoints/seed_2, results/seed_2") < said.index("seed 3: checkpoints/seed_3")
    for text in ("results/seeds.csv: ", "Gaussian p(x|z), sigma 0.3", "mean over seeds 2, 3 ± half width of its 95% t"):
        assert text in said


def test_a_table_of_other_seeds_is_kept(copy):
    folder = copy("seeds")
    path = folder / "results/seeds.csv"
    path.write_text("".join(line for line in path.read_text().splitlines(True) if not line.startswith("3,")) + "4,a\n")
    before = path.read_bytes()
    status, _, errors = run(folder, *SEEDS)
    assert (status, len(errors)) == (2, 1)
    assert "seeds.csv: not of these seeds alone; move it, or another" in errors[0]
    assert "keeps it, or --seeds 2 3 4 makes one of all" in errors[0]
    assert path.read_bytes() == before
    path.unlink()
    path.mkdir()
    for flag in ("--resume", "--overwrite"):
        status, _, errors = run(folder, "--seeds", "2", "3", flag)
        assert (status, "results/seeds.csv: a directory, where a run has a file" in errors[0]) == (2, True)


def test_the_csv_holds_the_numbers_of_the_scores(folder_of_runs):
    folder, names = folder_of_runs / "seeds", ("amortized", "latent_optimization")
    rows = read_csv(folder / "results/seeds.csv")
    assert list(rows[0]) == ["seed", *Score._fields]
    cells = {(row["seed"], row["method"], row["split"], row["quantity"]): row for row in rows}
    assert len(cells) == len(rows)
    asked, compared = [*product(names, seeds.QUANTITIES), *product((" - ".join(names),), DIFFERENCES)], set()
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
    assert len(lines) == 2 * 6 + 7
    for number, heading, quantity, method in (
        (0, "**First way**: ELBO(q)", "elbo", "one"),
        (3, r"amortization gap, ELBO(q\*) - ELBO(q)", "amortization_gap", "one"),
        (8, "log p(x)", "log_prob", "two"),
        (12, "**First way - Second way (paired)**: ELBO(q)", "elbo", "one - two"),
        (16, "log p(x)", "log_prob", "one - two"),
    ):
        cells = []
        for split in ("train", "test"):
            values = [find(rows, quantity, method, split).mean for rows in scores.values()]
            low, high = stats.t.interval(0.95, 2, loc=sum(values) / 3, scale=stats.sem(values))
            cells.append(f"{sum(values) / 3:.2f} ± {(high - low) / 2:.2f}")
        assert lines[number] == f"| {heading} | {' | '.join(cells)} |"
    assert last.startswith("p(x|z); mean over seeds 0, 4, 2 ±")
    assert last.endswith("; images (train and test): 50 and 50 for all.")


@pytest.mark.parametrize("drawn", [(7,), (0, 4, 2)])
def test_one_seed_or_seeds_that_agree_by_chance_have_the_interval_over_their_images(drawn):
    scores = {seed: shifted(1e-3 * number) for number, seed in enumerate(drawn)}
    *lines, last = table_of({seed: [entry._replace(freedom=4) for entry in rows] for seed, rows in scores.items()})
    gap = next(line for line in lines if r"mean-field gap, ELBO(q\*full) - ELBO(q\*) |" in line)
    half = stats.t.ppf(0.975, len(drawn) * 4) * 0.5 / len(drawn) ** 0.5
    assert re.findall(r"± ([0-9.]+)", gap) == [f"{half:.2f}"] * 2
    of_one = "mean over the images of seed 7 ± half width of its 95% t interval over images;"
    assert (of_one in last) == (drawn == (7,))


def test_seeds_with_other_numbers_are_not_compared():
    rows = seeds.headline_scores(shifted(0.0))
    fewer = {key: score for key, score in rows.items() if score.quantity != "log_prob"}
    with pytest.raises(RunError, match=r"seeds 0 and 1: one, test, log p\(x\) is in one scores.csv only"):
        seeds.records({0: rows, 1: fewer})


def test_seeds_of_different_trainings_are_refused(tmp_path):
    digest, others = ({"training": {"counts": {"a": 3}, "sha256": text}} for text in ("of three", "of others"))
    one, two = toy_config(seed=0), toy_config(seed=1)
    given = Namespace(seeds=[0, 1], evaluate_only=True, results_dir=str(tmp_path))
    for executed, said, *found in (
        (0, "--sigma-p 0.7 there, 0.5 here", (one, digest), (toy_config(seed=1, sigma_p=0.5), digest)),
        (0, "other training images", (one, digest), (toy_config(seed=1, precision="bfloat16"), others)),
        # A folder that changes while the first seed trains
        (1, "other training images", (one, digest), (two, digest), (one, digest), (two, others)),
    ):
        prepared = iter([SimpleNamespace(config=config, data=SimpleNamespace(digest=known)) for config, known in found])
        done = []
        with pytest.raises(InputError, match=f"--seeds: 0 and 1 are of two trainings: {said}"):
            run_seeds(given, lambda given, prepared=prepared: next(prepared), done.append, None, None)
        assert len(done) == executed


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
    assert not list(folder.rglob("*_state*"))  # nothing is left of any seed that another command might continue
    assert not (folder / "results/seeds.csv").exists()
    _, said = stop(folder, "--seeds", "3", "2", "--overwrite", after="amortized: epoch 2/3", number=signal.SIGINT)
    assert said.endswith("; the same command with --resume in place of --overwrite continues\n")


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
