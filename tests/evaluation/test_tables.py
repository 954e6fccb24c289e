"""The three numbers of the first screen, and the sentence that follows from them."""

import re

import pytest

from evaluation import tables


def score(mean, error, images=50):
    return {"mean": mean, "standard_error": error, "images": images}


def summary(*, difference=(12.5, 0.9), regression=True):
    """A summary of two methods with different numbers."""
    methods = {}
    for shift, name in ((0, "one"), (10, "other")):
        methods[name] = {
            "label": f"Method {name}",
            "bounds": {"test": {"elbo": score(-108.25 - shift, 0.5)}},
            "log_prob": {
                "test": {
                    "regression": score(-82.5 - shift, 0.25) if regression else None,
                    "annealed": score(-80.5 - shift, 3.5),
                }
            },
            "gaps": {"test": {"inference_gap": score(26.5 + shift, 1.5)}},
        }
    of_pair = {"elbo": score(42.75, 1.5), "log_prob": score(*difference), "inference_gap": score(-30.25, 1.75)}
    return {"methods": methods, "differences": [{"methods": ["one", "other"], "test": of_pair}]}


def test_the_headline_has_a_column_for_each_method_and_their_paired_difference():
    titles, rows = tables.headline_rows(summary())
    assert titles == ["Method one", "Method other", "difference, same 50 images"]
    assert rows == [
        ("ELBO", ["-108.25 ± 0.50", "-118.25 ± 0.50", "42.75 ± 1.50"]),
        ("log p(x)", ["-82.50 ± 0.25", "-92.50 ± 0.25", "12.50 ± 0.90"]),
        ("log p(x) - ELBO", ["26.50 ± 1.50", "36.50 ± 1.50", "-30.25 ± 1.75"]),
    ]
    assert tables.headline_rows(summary(regression=False))[1][1][1][0] == "-80.50 ± 3.50"


def test_one_method_has_no_difference():
    alone = summary()
    del alone["methods"]["other"]
    alone["differences"] = []
    titles, rows = tables.headline_rows(alone)
    assert titles == ["Method one"]
    assert all(len(texts) == 1 for _, texts in rows)
    assert tables.conclusions(alone) == []


@pytest.mark.parametrize(
    ("difference", "start"),
    [
        ((12.5, 0.9), "Method one has a log p(x) 12.5 ± 0.9 nats higher than method other on the same 50 test images"),
        ((-12.5, 0.9), "Method other has a log p(x) 12.5 ± 0.9 nats higher than method one on"),
        ((1.5, 0.9), "Method one has a log p(x) 1.5 ± 0.9 nats higher, which may be chance, than method other on"),
        ((1.5, None), "Method one has a log p(x) 1.5 nats higher, which may be chance, than"),
    ],
)
def test_the_conclusion_names_the_better_method_and_doubts_small_differences(difference, start):
    (sentence,) = tables.conclusions(summary(difference=difference))
    assert sentence.startswith(start)


def test_the_headline_fits_a_terminal():
    lines = tables.headline(summary()).splitlines()
    assert re.split(" {2,}", lines[0]) == [
        "test images, nats",
        "Method one",
        "Method other",
        "difference, same 50 images",
    ]
    assert max(map(len, lines)) <= 100
    assert len({len(line) for line in lines[:4]}) == 1
    assert "12.50 ± 0.90" in lines[2]
