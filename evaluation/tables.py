"""The tables of a run, from its summary: as rows of plain texts, for the terminal and for report.html."""

import math
import textwrap
from typing import NamedTuple

from data import SPLITS
from evaluation import scores


class Row(NamedTuple):
    """A row of the final table."""

    label: str
    cells: tuple = ()  # (value, images or remark) of training images, and the same of test images
    depth: int = 1  # 0: a heading; 2: a detail of the row above


BOUNDS = {"elbo": "ELBO", "log_likelihood": "E_q log p(x|z)", "kl": "KL(q || p)"}
GAPS = {
    "approximation_gap": "approximation gap, log p(x) - ELBO(q*)",
    "amortization_gap": "amortization gap, ELBO(q*) - ELBO(q)",
}
DIFFERENCES = {
    "elbo": "ELBO(q)",
    "fitted_elbo": "ELBO(q*)",
    "log_prob": "log p(x), annealed",
    "squared_error": "squared error of the mean of q (not nats)",
}
COSTS = {
    "decoder_updates": ("updates of the decoder", ",.0f"),
    "training_gradients": ("training, all images: gradients of q", ",.0f"),
    "training_gradients_per_q": ("training, one image: gradients that shape its q", ",.0f"),
    "training_seconds": ("training: seconds, the decoder's included", ",.0f"),
    "unseen_image_gradients": ("one unseen image: gradients of q", ",.0f"),
    "unseen_image_seconds": ("one unseen image: seconds, several at a time", ".5f"),
}
TITLE = "nats per image (± standard error over images)"


def number(score, digits=2):
    """A mean with its standard error, as text; score: as `mean_and_error` gives it."""
    error = score["standard_error"]
    return f"{score['mean']:.{digits}f}" + ("" if error is None else f" ± {error:.{digits}f}")


def final_rows(summary):
    """The Rows of the final table: a list for each method, then one for each pair of methods."""

    def row(label, of_splits, depth=1):
        return Row(label, tuple((number(score), f"{score['images']:,}") for score in of_splits), depth)

    blocks = []
    for method in summary["methods"].values():
        of_splits, gap = [method["log_prob"][split] for split in SPLITS], method["bdmc"]["gap"]
        rows = [Row(method["label"], depth=0)]
        rows += [row(label, [method["bounds"][split][name] for split in SPLITS]) for name, label in BOUNDS.items()]
        draws = (scores.draws_of(method["bounds"][split]["elbo"]["images"]) for split in SPLITS)
        rows.append(Row("draws of z per image", tuple((f"{count}", "") for count in draws), 2))
        if all(each["regression"] for each in of_splits):
            rows.append(row("log p(x) of all images, regressed on ELBO", [each["regression"] for each in of_splits]))
        annealed = [each["annealed"] for each in of_splits]
        integrated = annealed[0]["temperatures_median"] == 0
        rows.append(row("log p(x), integrated on a grid" if integrated else "log p(x), annealed from q*", annealed))
        cells = tuple((f"± {score['monte_carlo_error']:.2f}", "") for score in annealed)
        rows.append(Row("of that, Monte Carlo error", cells, 2))
        errors = [(each["regression"] or each["annealed"])["standard_error"] or math.inf for each in of_splits]
        biases = [score["bias"] for score in annealed]
        cells = tuple((f"{bias:.2f}", _beyond(-bias, error)) for bias, error in zip(biases, errors, strict=True))
        rows.append(Row("of that, bias, an estimate", cells, 2))
        cells = tuple((f"{score['acceptance']:.2f}", "") for score in annealed)
        rows.append(Row("of that, acceptance of transitions", cells, 2))
        counts = {"images_not_trusted": "images that may be wrong by more"}
        counts["images_with_several_modes"] = "images with several modes"
        for name, label in counts.items():
            rows.append(Row(label, tuple((f"{each[name]}", "") for each in of_splits), 2))
        text = f"bidirectional bounds of {gap['images']} simulated images are {number(gap)} nats apart"
        rows.append(Row(f"{text} {_beyond(gap['mean'], min(errors))}".rstrip(), depth=2))
        for q, name in (("q", "importance_sampling"), ("q*", "importance_sampling_fitted")):
            estimates = [each[name] for each in of_splits]
            rows.append(row(f"log p(x), importance sampling from {q}", estimates))
            sizes = [score["effective_sample_size_median"] for score in estimates]
            cells = tuple((f"{size:.1f}", "too low" if size < scores.FEW else "") for size in sizes)
            rows.append(Row("rests on (median effective samples)", cells, 2))
        cells = tuple((f"{each['fits_converged']:.0%}", "") for each in of_splits)
        rows.append(Row("fits of q* that have converged", cells))
        rows += [row(label, [method["gaps"][split][name] for split in SPLITS]) for name, label in GAPS.items()]
        blocks.append(rows)
    for difference in summary["differences"]:
        rows = [Row(f"{_less(summary, difference)}, the same images", depth=0)]
        rows += [row(label, [difference[split][name] for split in SPLITS]) for name, label in DIFFERENCES.items()]
        blocks.append(rows)
    return blocks


def table(summary):
    """The final table, at most 100 columns wide."""

    def line(label, cells):
        return f"{label:44}{''.join(f'{value:>19}{count:>8}' for value, count in cells)}".rstrip()

    rule = "-" * 98
    lines = [summary["likelihood"], line(TITLE, (("train", "images"), ("test", "images"))), rule]
    for rows in final_rows(summary):
        lines += [line("  " * row.depth + row.label, row.cells) for row in rows]
        lines.append(rule)
    return "\n".join(lines)


def _less(summary, difference):
    """The labels of two methods, one less the other."""
    one, other = (summary["methods"][name]["label"] for name in difference["methods"])
    return f"{one} less {other[0].lower()}{other[1:]}"


def _beyond(error, standard_error):
    """A mark for an error that is larger than the standard error of log p(x) of all images."""
    return "> ±" if error > standard_error else ""


def cost_rows(summary):
    """[(label, a text for each method)]: what training and inference took; scores.compute_cost explains a gradient."""
    found = []
    for name, (label, form) in COSTS.items():
        values = [method["cost"][name] for method in summary["methods"].values()]
        found.append((label, ["not known" if value is None else format(value, form) for value in values]))
    return found


def cost_table(summary):
    """What training and inference took, as a table."""
    header = f"{'computation':50}" + "".join(f"{method['label']:>21}" for method in summary["methods"].values())
    lines = [header, "-" * len(header)]
    lines += [f"{label:50}" + "".join(f"{text:>21}" for text in texts) for label, texts in cost_rows(summary)]
    return "\n".join([*lines, lines[1]])


def headline_rows(summary):
    """(the columns' titles, [(label, a text for each column)]): ELBO, log p(x) and what inference costs, test images.

    A column for each method; with two methods, one more for their paired difference.
    """
    methods, pair = list(summary["methods"].values()), summary["differences"]
    titles = [method["label"] for method in methods]
    elbo = [method["bounds"]["test"]["elbo"] for method in methods]
    log_prob = [
        method["log_prob"]["test"]["regression"] or method["log_prob"]["test"]["annealed"] for method in methods
    ]
    inference = [method["gaps"]["test"]["inference_gap"] for method in methods]
    rows = [("ELBO", elbo, "elbo"), ("log p(x)", log_prob, "log_prob"), ("log p(x) - ELBO", inference, "inference_gap")]
    if len(pair) == 1:
        of_test = pair[0]["test"]
        titles.append(f"difference, same {of_test['elbo']['images']} images")
        rows = [(label, [*found, of_test[name]], name) for label, found, name in rows]
    return titles, [(label, [number(score) for score in found]) for label, found, _ in rows]


def headline(summary):
    """The three numbers of every method, as a table for the terminal, and what follows from them."""
    titles, rows = headline_rows(summary)
    widths = [max(20, len(title) + 2) for title in titles]
    lines = [
        f"{label:18}" + "".join(f"{text:>{width}}" for text, width in zip(texts, widths, strict=True))
        for label, texts in [("test images, nats", titles), *rows]
    ]
    return "\n".join([*lines, *(line for text in conclusions(summary) for line in textwrap.wrap(text, 98))])


def conclusions(summary):
    """One sentence for each pair of methods: which has the higher log p(x) on the same test images."""
    found = []
    for difference in summary["differences"]:
        one, other = (summary["methods"][name]["label"] for name in difference["methods"])
        score = difference["test"]["log_prob"]
        if score["mean"] < 0:
            one, other = other, one
        error = score["standard_error"] or math.inf
        sure = "higher" if abs(score["mean"]) > 2 * error else "higher, which may be chance,"
        size = number({**score, "mean": abs(score["mean"])}, 1)
        text = f"{one} has a log p(x) {size} nats {sure} than {other[0].lower()}{other[1:]}"
        found.append(f"{text} on the same {score['images']} test images (± standard error over images).")
    return found
