"""--seeds: a run per seed in directories of its own, then seeds.csv and a table over seeds."""

import csv
import json
import os
import re
import shutil
import signal

import pytest
from made_up import METHODS, made_up_scores
from processes import MAIN, contents, wait_for
from scipy import stats

from benchmarks import stress
from evaluation import seeds
from evaluation.statistics import find
from evaluation.tables import DIFFERENCES, read_scores, title
from runtime.checkpoint import RunError, exclusive_lock

FLAGS = "--data-dir ../data " + stress.SCRIPTS[MAIN].replace("--seed 2 ", "")
SEEDS = ["--seeds", "3", "2"]


def start(folder, *flags):
    return stress.start(MAIN, [*FLAGS.split(), *flags], folder)


def run(folder, *flags):
    """Runs main_vae.py to its end. Returns (exit status, stdout, lines of stderr)."""
    process = start(folder, *flags)
    process.join()
    return process.exitcode, (folder / "out").read_text(), (folder / "err").read_text().splitlines()


def stop(folder, *flags, after, number):
    """Sends the signal `number` once `after` has happened. Returns (exit status, stderr)."""
    process = start(folder, *flags)
    wait_for(after, process, folder)
    os.kill(process.pid, number)
    process.join()
    return process.exitcode, (folder / "err").read_text()


def rows_of(folder, results="results"):
    with open(folder / results / "seeds.csv", newline="") as file:
        return list(csv.DictReader(file))


def summary_of(folder, seed):
    return json.loads((folder / f"results/seed_{seed}/summary.json").read_text())


def times(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def entries(markdown):
    """[(title, [(mean, half width) of train, of test])] of the lines of a table."""
    cells = [line.strip("| ").split(" | ") for line in markdown.splitlines() if line.startswith("| ")][1:]
    return [(title, [tuple(map(float, text.split(" ± "))) for text in row]) for title, *row in cells]


@pytest.fixture(scope="module")
def folder_of_runs(tmp_path_factory, whole_run):
    """A folder with a small MNIST and a finished run of two seeds, of which one was made alone."""
    folder = tmp_path_factory.mktemp("seeds")
    shutil.copytree(whole_run / "data", folder / "data")
    for name in ("checkpoints", "results"):
        shutil.copytree(whole_run / "run" / name, folder / f"whole/{name}/seed_2")
    status, said, errors = run(folder / "whole", *SEEDS, "--resume")
    assert (status, errors) == (0, [])
    assert said.count("this run is finished, there is nothing to do") == 1
    return folder


@pytest.fixture
def copy(folder_of_runs):
    """A copy of that run."""
    folder = shutil.copytree(folder_of_runs / "whole", folder_of_runs / "copy")
    yield folder
    shutil.rmtree(folder)


def test_every_seed_has_directories_of_its_own(folder_of_runs):
    folder = folder_of_runs / "whole"
    assert {path.name for path in (folder / "checkpoints").iterdir()} == {"seed_3", "seed_2"}
    assert {path.name for path in (folder / "results").iterdir()} == {"seed_3", "seed_2", "seeds.csv"}
    for seed in (3, 2):
        assert summary_of(folder, seed)["settings"]["seed"] == summary_of(folder, seed)["train_config"]["seed"] == seed
        names = {path.name for path in (folder / f"checkpoints/seed_{seed}").iterdir()}
        assert names == {
            *(f"{name}_epoch_{n}.pt" for name in ("vae", "latent_opt") for n in (1, 3)),
            *(f"{name}_state{part}" for name in ("vae", "latent_opt") for part in (".json", "_3.pt")),
            "latent_opt_state_3_rows_0_of_1.pt",
            "classifier.pt",
        }
    said = (folder / "out").read_text()
    assert said.index("seed 3: checkpoints/seed_3, results/seed_3") < said.index("seed 2: checkpoints/seed_2")
    assert "results/seeds.csv: " in said


def test_finished_seeds_are_compared_without_work(copy):
    before = times(copy / "checkpoints"), times(copy / "results")
    status, said, errors = run(copy, *SEEDS, "--resume")
    assert (status, errors) == (0, [])
    assert said.count("this run is finished, there is nothing to do") == 2
    after = times(copy / "results")
    path = copy / "results/seeds.csv"
    assert after.pop(path) > before[1].pop(path)
    assert (times(copy / "checkpoints"), after) == before


def test_the_csv_holds_the_numbers_of_the_scores(folder_of_runs):
    folder = folder_of_runs / "whole"
    rows = rows_of(folder)
    assert list(rows[0]) == ["seed", "method", "split", "quantity", "value", "standard_error", "images"]
    cells = {(row["seed"], row["method"], row["split"], row["quantity"].partition(" by ")[0]): row for row in rows}
    assert len(cells) == len(rows)
    titles = {"ELBO": "elbo", "log p(x)": "log_prob"}
    titles |= {quantity.replace("_", " "): quantity for quantity in ("approximation_gap", "amortization_gap")}
    pair, pair_titles = "amortized - latent_optimization", {title(quantity): quantity for quantity in DIFFERENCES}
    for seed in (3, 2):
        scores = read_scores(folder / f"results/seed_{seed}/scores.csv")
        for method, quantities in {"amortized": titles, "latent_optimization": titles, pair: pair_titles}.items():
            for split in ("train", "test"):
                for label, quantity in quantities.items():
                    row, score = cells.pop((str(seed), method, split, label)), find(scores, quantity, method, split)
                    values = [float(row[column]) for column in ("value", "standard_error", "images")]
                    assert values == [score.mean, score.standard_error, score.images]
    assert not cells


def test_the_table_holds_means_and_t_intervals_over_seeds(folder_of_runs):
    folder = folder_of_runs / "whole"
    said = (folder / "out").read_text()
    lines = entries(said[said.index("| nats per image | train | test |") :])
    values = {}
    for row in rows_of(folder):
        values.setdefault((row["method"], row["quantity"]), {}).setdefault(row["split"], []).append(float(row["value"]))
    assert [title.split(": ")[-1] for title, _ in lines] == [quantity for _, quantity in values]
    assert [title for title, _ in lines if "**" in title][:2] == [
        "**Amortized VAE**: ELBO",
        "**Latent optimization**: ELBO",
    ]
    for (_, cells), of_splits in zip(lines, values.values(), strict=True):
        for cell, (one, two) in zip(cells, of_splits.values(), strict=True):
            half = 12.7062047 * abs(one - two) / 2  # t with one degree of freedom; s / sqrt(2) is half the difference
            assert cell == pytest.approx(((one + two) / 2, half), abs=0.00501)
    assert "Gaussian p(x|z), sigma 0.3" in said.splitlines()[-1]
    assert (
        "mean over seeds 3, 2 ± half width of its 95% t interval over seeds, which redraw the images"
        in said.splitlines()[-1]
    )
    assert "100 and 150 for ELBO of Amortized VAE; 100 and 20 for ELBO of Latent optimization" in said.splitlines()[-1]


BOTH = {"one": "First way", "two": "Second way"}


def shifted(shift, **options):
    """Scores of two methods, the means moved by more for few images, as between seeds."""
    return [
        score._replace(mean=score.mean + shift * (1 + score.images / 7))
        for score in made_up_scores(METHODS[:2], **options)
    ]


def test_the_table_of_three_seeds_with_paired_differences():
    scores = {0: shifted(0.0), 4: shifted(1.0), 2: shifted(5.0)}
    text = seeds.table(scores, BOTH, "p(x|z)")
    lines = [line for line in text.splitlines() if line.startswith("| ")][1:]
    assert len(lines) == 2 * 4 + 4
    for number, heading, quantity, method in (
        (0, "**First way**: ELBO", "elbo", "one"),
        (3, "amortization gap", "amortization_gap", "one"),
        (5, "log p(x) by regression", "log_prob", "two"),
        (8, "**First way - Second way (paired)**: ELBO(q)", "elbo", "one - two"),
        (10, "log p(x), annealed", "log_prob", "one - two"),
    ):
        cells = []
        for split in ("train", "test"):
            values = [find(rows, quantity, method, split).mean for rows in scores.values()]
            low, high = stats.t.interval(0.95, 2, loc=sum(values) / 3, scale=stats.sem(values))
            cells.append(f"{sum(values) / 3:.2f} ± {(high - low) / 2:.2f}")
        assert lines[number] == f"| {heading} | {' | '.join(cells)} |"
    assert text.splitlines()[-1] == (
        "p(x|z); mean over seeds 0, 4, 2 ± half width of its 95% t interval over seeds, which redraw the images where "
        "not all are scored; images (train and test): 4,321 and 4,321 for ELBO of First way, ELBO of Second way; "
        "50 and 50 for all else."
    )


def test_the_table_of_one_seed_is_over_images():
    scores = shifted(0.0)
    text = seeds.table({7: scores}, BOTH, "p(x|z)")
    gap = next(line for line in text.splitlines() if "approximation gap" in line)
    half = stats.t.ppf(0.975, 49) * 0.5
    mean = find(scores, "approximation_gap", "one", "train").mean
    assert gap.startswith(f"| approximation gap | {mean:.2f} ± {half:.2f} |")
    assert "mean over the images of seed 7 ± half width of its 95% t interval over images;" in text


def test_seeds_with_other_numbers_are_not_compared():
    with pytest.raises(RunError, match=r"seeds 0 and 1: one, test, log p\(x\) by annealing is in one scores.csv only"):
        seeds.records({0: shifted(0.0), 1: shifted(0.0, regressed=False)})


def test_stopped_and_killed_in_the_second_seed_it_is_continued_to_the_same_numbers(folder_of_runs, copy):
    for path in (copy / "checkpoints/seed_2", copy / "results/seed_2"):
        shutil.rmtree(path)
    (copy / "results/seeds.csv").unlink()
    first = [copy / name / "seed_3" for name in ("checkpoints", "results")]
    before = [times(path) for path in first]
    event = "checkpoints/seed_2/vae_state.json"
    status, said = stop(copy, *SEEDS, "--resume", after=event, number=signal.SIGTERM)
    advice = "the same command with --resume continues"
    assert status == 143
    assert re.fullmatch(rf"{MAIN}: stopped by SIGTERM in seed 2, after .*(epoch|epochs).*; {advice}\n", said)
    assert "nothing to resume: the run begins" in (copy / "out").read_text()
    assert not (copy / "results/seeds.csv").exists()
    status, _ = stop(copy, *SEEDS, "--resume", after="results/seed_2/recon_epoch_1.png", number=signal.SIGKILL)
    assert status == -signal.SIGKILL
    status, said, errors = run(copy, *SEEDS, "--resume")
    assert (status, errors) == (0, [])
    assert "results/seed_3/summary.json: this run is finished, there is nothing to do" in said
    assert said.count("training images on") == 1
    assert "vae: resumed after epoch 3" in said
    assert [times(path) for path in first] == before
    assert stress.differences(folder_of_runs / "whole", copy) == []


def test_stopped_before_the_first_epoch_of_a_seed(copy):
    shutil.rmtree(copy / "checkpoints/seed_2")
    shutil.rmtree(copy / "results/seed_2")
    status, said = stop(copy, *SEEDS, "--resume", after="seed 2: ", number=signal.SIGINT)
    advice = "the same command with --resume continues"
    assert (status, said) == (130, f"{MAIN}: stopped by SIGINT in seed 2, before its first epoch; {advice}\n")
    status, said = stop(copy, *SEEDS, "--overwrite", after="seed 3: ", number=signal.SIGINT)
    assert said == f"{MAIN}: stopped by SIGINT before an epoch of its own was over; give the same command again\n"


def test_evaluate_only_scores_the_checkpoints_of_a_seed_with_that_seed(folder_of_runs, copy):
    before = contents(copy / "checkpoints"), contents(copy / "results")
    status, said, errors = run(copy, "--seeds", "2", "--evaluate-only", "--results-dir", "again")
    assert (status, errors) == (0, [])
    assert "evaluation with seed 2" in said
    assert "mean over the images of seed 2 ± half width of its 95% t interval over images" in said
    assert (contents(copy / "checkpoints"), contents(copy / "results")) == before
    assert rows_of(copy, "again") == [row for row in rows_of(folder_of_runs / "whole") if row["seed"] == "2"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--seeds 0 1 --seed 0", "--seed: not together with --seeds"),
        ("--seeds 0 1 --seed 0 --evaluate-only", "--seed: not together with --seeds"),
        ("--seeds 0 5 0", "--seeds: 0 is repeated"),
        ("--seeds 0 -1", "--seeds: '-1' is not a whole number from 0 to 4,294,967,295"),
        ("--seeds 0 4294967296", "--seeds: '4294967296' is not a whole number"),
        ("--seeds 0 1.5", "--seeds: '1.5'"),
        ("--seeds", "--seeds: expected at least one argument"),
        ("--seeds 0 5 --evaluate-only", "seed_0: no checkpoints"),
        ("--seeds 3 0 --evaluate-only", "seed_0: no checkpoints"),
        (
            "--seeds 3 8 --evaluate-only",
            "checkpoints/seed_8: the checkpoints are of another training: --seed 2 there, 8 here",
        ),
        ("--seeds 0 1 --resume --evaluate-only", "--resume: not together with --evaluate-only"),
        (
            "--seeds 0 2 --resume --beta 0.5",
            "checkpoints/seed_2/vae_state.json: of another run (--beta 1.0 there, 0.5 here); --overwrite",
        ),
        ("--seeds 0 6", "--results-dir results/seed_6: cannot be written to"),
        ("--seeds 0 1 --device gpu", "--device gpu: not a device"),
        ("--seeds 0 1 --images-per-digit 20", "20 images of each class were asked for"),
        ("--seeds 0 2 --results-dir used", "used/seed_2: in use by another run"),
        ("--seeds 0 4 --results-dir used/seed_2", "used/seed_2: in use by another run"),
    ],
)
def test_bad_input_is_refused_before_any_work(copy, flags, message):
    (copy / "results/seed_6").write_text("a file")
    shutil.copytree(copy / "checkpoints/seed_2", copy / "checkpoints/seed_8")
    (copy / "used/seed_2").mkdir(parents=True)
    before = contents(copy)
    with exclusive_lock(copy / "used/seed_2"):
        status, out, errors = run(copy, *flags.split())
    assert (status, out, len(errors)) == (2, "", 1)
    assert errors[0].startswith(f"{MAIN}: error: ")
    assert message in errors[0]
    assert contents(copy) == before
