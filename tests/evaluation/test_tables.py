"""The tables of a run's Scores: what stands in them, with one, two and three methods, and scores.csv."""

import pytest
import torch
from made_up import LABELS, METHODS, changed, made_up_scores

from evaluation import tables
from evaluation.statistics import find, score
from runtime.checkpoint import write_files
from runtime.config import InputError

BOTH = {name: LABELS[name] for name in ("one", "two")}
SCORES = made_up_scores(METHODS[:2])


def test_scores_are_read_as_they_were_written(tmp_path):
    path, scores = tmp_path / "scores.csv", [SCORES[0]._replace(standard_error=None, freedom=None), *SCORES]
    write_files(tmp_path, [(path.name, [entry._asdict() for entry in scores])])
    assert tables.read_scores(path) == scores
    write_files(tmp_path, [(path.name, [{"seed": 0, **scores[0]._asdict()}])])
    with pytest.raises(InputError, match=r"of several seeds: read the scores.csv of each"):
        tables.read_scores(path)
    path.write_text("quantity,mean\nelbo,x\n")
    with pytest.raises(InputError):
        tables.read_scores(path)


def test_the_headline_has_a_column_for_each_method_and_their_paired_difference():
    titles, rows = tables.headline_rows(SCORES, BOTH)
    assert titles == ["First way", "Second way", "difference (paired)"]
    quantities = ("elbo", "amortization_gap", "mean_field_gap", "non_gaussian_gap", "log_prob")
    for (label, texts), quantity in zip(rows, quantities, strict=True):
        means = [find(SCORES, quantity, method).mean for method in ("one", "two", "one - two")]
        assert texts == [f"{mean:.2f} ± 0.50" for mean in means], label
    assert tables.basis(SCORES, BOTH).startswith("50 test images, the same in every column;")
    assert "of them is annealed" in tables.basis(SCORES, BOTH)
    assert "of them is integrated on a grid" in tables.basis(changed(SCORES, "temperatures", "one", mean=0), BOTH)
    few = changed(SCORES, "annealed_images", "one", mean=30)
    assert "; a regression on ELBO(q*) extends it to all" in tables.basis(few, BOTH)
    few = changed(few, "mean_field_gap", "one", images=30)
    assert "; their mean gap to ELBO(q*) carries it over to all" in tables.basis(few, BOTH)


def test_a_quick_evaluation_ends_at_the_best_diagonal_bound():
    quantities = ("elbo", "fitted_elbo", "amortization_gap", "fit_converged")
    scores = [entry for entry in SCORES if entry.quantity in quantities]
    labels = [label for label, _ in tables.headline_rows(scores, BOTH)[1]]
    assert labels == ["ELBO(q)", "+ amortization gap", "= ELBO(q*)"]
    assert tables.conclusions(scores, BOTH)[0].split(" has an ELBO(q*) ")[0] in BOTH.values()
    assert "annealed" not in tables.basis(scores, BOTH)
    text = tables.table(scores, BOTH, "p(x|z)")
    assert "log p(x)" not in text
    assert "ELBO(q*), the best diagonal Gaussian" in text


@pytest.mark.parametrize("count", [1, 2, 3])
def test_tables_have_every_method_and_every_pair(count):
    methods = METHODS[:count]
    labels, scores = {method.name: method.label for method in methods}, made_up_scores(methods)
    blocks = tables.final_rows(scores, labels)
    headings = [rows[0].label for rows in blocks]
    expected = ["First way minus second way", "First way minus third way", "Second way minus third way"]
    pairs = expected[: count * (count - 1) // 2]
    assert headings == [*labels.values(), *(f"{pair}, the same images" for pair in pairs)]
    row = next(row for row in blocks[0] if row.label == "= log p(x)")
    assert row.cells[1] == (tables.number(find(scores, "log_prob", "one")), "50")
    shown = [tables.number(score("x", {"mean": mean, "standard_error": 0.0, "images": 5})) for mean in (0.0, 1e-9)]
    assert shown == ["0", "0.00 ± 0.00"]  # of a q that is q*, and of a small number
    text = tables.table(scores, labels, "p(x|z)")
    assert max(map(len, text.splitlines())) <= 100
    assert text.count("bidirectional bounds (simulated images: 20) are ") == count
    costs = tables.cost_table(scores, dict.fromkeys(labels, "A semi-amortized label")).splitlines()
    assert {*map(len, costs)} == {50 + min(21, 50 // count) * count}
    assert len(tables.conclusions(scores, labels)) == len(pairs)
    assert all(len(texts) == count for _, texts in tables.cost_rows(scores, labels))
    without = [entry for entry in scores if entry.quantity != "training_seconds"]
    known = dict(tables.cost_rows(scores, labels)), dict(tables.cost_rows(without, labels))
    assert ["not known" in cells["training: seconds, the decoder's included"] for cells in known] == [False, True]
    assert all(len(texts) == count + (count == 2) for _, texts in tables.headline_rows(scores, labels)[1])


def test_what_is_too_low_or_biased_is_marked():
    scores = [entry for entry in SCORES if entry.quantity != "bidirectional_gap"]  # which need not be there
    scores = changed(scores, "effective_sample_size", "one", mean=9.9)
    scores = changed(changed(scores, "effective_sample_size", "one", "train", mean=10.0), "bias", "one", mean=-0.51)
    rows = {row.label: row.cells for row in reversed(tables.final_rows(scores, BOTH)[0])}
    assert rows["rests on (median effective samples)"] == (("10.0", ""), ("9.9", "too low"))
    assert rows["bias of their mean, an estimate"][1] == ("-0.51", "> ±")
    scores = changed(scores, "bias", "one", mean=-0.004)
    rows = {row.label: row.cells for row in reversed(tables.final_rows(scores, BOTH)[0])}
    assert rows["bias of their mean, an estimate"][1] == ("0.00", "")


@pytest.mark.parametrize(
    ("difference", "better", "size", "interval"),
    [
        ((12.5, 0.9, 9), "First", "12.5 nats higher than second", "95% t interval 10.5 to 14.5, over images"),
        ((-12.5, 0.9, 9), "Second", "12.5 nats higher than first", "95% t interval 10.5 to 14.5, over images"),
        ((161.1, 33.0, 1), "First", "161.1 nats higher, which may be chance, than second", "interval -258.2 to 580.4"),
        ((1.21, 0.58, 29), "First", "1.21 nats higher than second", "95% t interval 0.02 to 2.40"),
        ((1.5, None, 0), "First", "1.5 nats higher, which may be chance, than second", "(of this training;"),
    ],
)
def test_the_conclusion_names_the_better_method_and_doubts_small_differences(difference, better, size, interval):
    """By Student's t: two images say next to nothing."""
    mean, error, freedom = difference
    scores = changed(SCORES, "log_prob", "one - two", mean=mean, standard_error=error, freedom=freedom)
    (sentence,) = tables.conclusions(scores, BOTH)
    assert sentence.startswith(f"{better} way has a log p(x) {size} way on the same test images (")
    assert interval in sentence
    broken = changed(SCORES, "log_prob", "one - two", mean=torch.nan)
    assert tables.conclusions(broken, BOTH) == ["First way and second way: log p(x) is not finite."]
    lines = tables.headline(scores, BOTH).splitlines()
    assert len({len(line) for line in lines[:4]}) == 1
