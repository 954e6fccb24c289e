"""The tables of a run, from its Scores: as rows of plain texts, for the terminal and for report.html; scores.csv."""

import csv
import math
import textwrap
from itertools import combinations, zip_longest
from typing import NamedTuple

from data import SPLITS
from evaluation.scores import PAIRED
from evaluation.statistics import Score, find
from runtime.checkpoint import invalid_contents, save_csv

FEW = 10  # effective samples: below, importance sampling is too low by an amount that the weights cannot tell
TITLE = "nats per image (± standard error over images)"
NAMES = {  # of quantities, where not their own
    "elbo": "ELBO(q)",
    "fitted_elbo": "ELBO(q*)",
    "log_prob": "log p(x), annealed",
    "inference_gap": "log p(x) - ELBO(q)",
    "squared_error": "squared error of the mean of q (not nats)",
}
COSTS = {
    "decoder_updates": ("train", "updates of the decoder", ",.0f"),
    "training_gradients": ("train", "training, all images: gradients of q", ",.0f"),
    "training_gradients_per_q": ("train", "training, one image: gradients that shape its q", ",.0f"),
    "training_seconds": ("train", "training: seconds, the decoder's included", ",.0f"),
    "unseen_image_gradients": ("test", "one unseen image: gradients of q", ",.0f"),
    "unseen_image_seconds": ("test", "one unseen image: seconds, several at a time", ".5f"),
}
# Differences in the final table; the inference gap has its own table.
DIFFERENCES = tuple(name for name in PAIRED if name != "inference_gap")


class Row(NamedTuple):
    """A row of the final table."""

    label: str
    cells: tuple = ()  # (value, images or remark) of training images, and the same of test images
    depth: int = 1  # 0: a heading; 2: a detail of the row above


def write_scores(path, scores):
    """Writes Scores as scores.csv."""
    save_csv(path, [entry._asdict() for entry in scores])


def read_scores(path):
    """The Scores of a scores.csv. Raises InputError if it is missing or damaged."""
    with invalid_contents(path), open(path, newline="", encoding="utf-8") as file:
        return [
            Score(
                **{name: row[name] for name in ("quantity", "method", "split", "group")},
                **{name: int(row[name]) for name in ("epoch", "images")},
                mean=float(row["mean"]),
                standard_error=float(row["standard_error"]) if row["standard_error"] else None,
                freedom=int(row["freedom"]) if row["freedom"] else None,
            )
            for row in csv.DictReader(file)
        ]


def number(entry, digits=2):
    """The mean of a Score with its standard error, as text."""
    error = entry.standard_error
    return f"{entry.mean:.{digits}f}" + ("" if error is None else f" ± {error:.{digits}f}")


def title(quantity):
    """What a quantity is called in a table."""
    return NAMES.get(quantity, quantity.replace("_", " "))


def pairs(labels):
    """[("a - b", "A less b")] of every two methods; labels: {method's name: its label}."""
    return [(f"{a} - {b}", f"{labels[a]} less {_lower(labels[b])}") for a, b in combinations(labels, 2)]


def _lower(label):
    return label[0].lower() + label[1:]


def annealed_log_prob(scores, method, split="test"):
    """The mean log p(x) of the annealed images, a Score."""
    return find(scores, "log_prob_annealed", method, split) or find(scores, "log_prob", method, split)


def final_rows(scores, labels):
    """The Rows of the final table: a list for each method, then one for each pair; labels: {method's name: label}."""

    def row(label, quantity, method):
        entries = [find(scores, quantity, method, split) for split in SPLITS]
        return Row(label, tuple((number(entry), f"{entry.images:,}") for entry in entries))

    blocks = [[Row(label, depth=0), *_method_rows(scores, name, row)] for name, label in labels.items()]
    for pair, label in pairs(labels):
        rows = [row(title(quantity), quantity, pair) for quantity in DIFFERENCES]
        blocks.append([Row(f"{label}, the same images", depth=0), *rows])
    return blocks


def _method_rows(scores, name, row):
    def values(quantity):
        return [find(scores, quantity, name, split).mean for split in SPLITS]

    def detail(label, quantity, form, remarks=("", ""), depth=2):
        texts = zip(map(form.format, values(quantity)), remarks, strict=True)
        return Row(label, tuple(texts), depth)

    # Bounds of whole splits.
    yield row("ELBO", "elbo", name)
    yield row("E_q log p(x|z)", "log_likelihood", name)
    yield row("KL(q || p)", "kl", name)
    yield detail("draws of z per image", "draws", "{:.0f}")

    # log p(x), annealed, and how far it can be trusted.
    plain = annealed_log_prob(scores, name).quantity
    if plain != "log_prob":
        yield row("log p(x) of all images, regressed on ELBO", "log_prob", name)
    integrated = values("temperatures")[0] == 0
    yield row("log p(x), integrated on a grid" if integrated else "log p(x), annealed from q*", plain, name)
    errors = [find(scores, "log_prob", name, split).standard_error or math.inf for split in SPLITS]
    biased = [_beyond(-bias, error) for bias, error in zip(values("bias"), errors, strict=True)]
    yield detail("of that, Monte Carlo error", "monte_carlo_error", "± {:.2f}")
    yield detail("of that, bias, an estimate", "bias", "{:.2f}", biased)
    yield detail("of that, acceptance of transitions", "acceptance", "{:.2f}")
    yield detail("images that may be wrong by more", "images_not_trusted", "{:.0f}")
    yield detail("images with several modes", "images_with_several_modes", "{:.0f}")
    gap = find(scores, "bidirectional_gap", name, "simulated")
    text = f"bidirectional bounds of {gap.images} simulated images are {number(gap)} nats apart"
    yield Row(f"{text} {_beyond(gap.mean, min(errors))}".rstrip(), depth=2)

    # Importance sampling, and what inference costs.
    for q, prefix in (("q", ""), ("q*", "fitted_")):
        yield row(f"log p(x), importance sampling from {q}", f"{prefix}importance_sampling", name)
        size = f"{prefix}effective_sample_size"
        remarks = ["too low" if value < FEW else "" for value in values(size)]
        yield detail("rests on (median effective samples)", size, "{:.1f}", remarks)
    yield detail("fits of q* that have converged", "fit_converged", "{:.0%}", depth=1)
    yield row("approximation gap, log p(x) - ELBO(q*)", "approximation_gap", name)
    yield row("amortization gap, ELBO(q*) - ELBO(q)", "amortization_gap", name)


def _beyond(error, standard_error):
    """A mark for an error that is larger than the standard error of log p(x) of all images."""
    return "> ±" if error > standard_error else ""


def table(scores, labels, likelihood):
    """The final table, at most 100 columns wide; likelihood: what p(x|z) is."""

    def line(label, cells):
        return f"{label:44}{''.join(f'{value:>19}{count:>8}' for value, count in cells)}".rstrip()

    rule = "-" * 98
    lines = [likelihood, line(TITLE, (("train", "images"), ("test", "images"))), rule]
    for rows in final_rows(scores, labels):
        lines += [line("  " * row.depth + row.label, row.cells) for row in rows]
        lines.append(rule)
    return "\n".join(lines)


def cost_rows(scores, labels):
    """[(label, a text for each method)]: what training and inference took; scores.cost_scores explains a gradient."""
    rows = []
    for quantity, (split, label, form) in COSTS.items():
        entries = [find(scores, quantity, name, split) for name in labels]
        rows.append((label, ["not known" if entry is None else format(entry.mean, form) for entry in entries]))
    return rows


def cost_table(scores, labels):
    """What training and inference took, as a table."""
    width = min(21, 50 // len(labels))

    def line(label, texts):
        return f"{label:50}" + "".join(f"{text:>{width}}" for text in texts)

    headings = zip_longest(*(textwrap.wrap(label, width - 1) for label in labels.values()), fillvalue="")
    lines = [line("" if number else "computation", texts) for number, texts in enumerate(headings)]
    rule = "-" * len(lines[0])
    return "\n".join([*lines, rule, *(line(*row) for row in cost_rows(scores, labels)), rule])


def headline_rows(scores, labels):
    """(the columns' titles, [(label, a text for each column)]): ELBO, log p(x) and what inference costs, test images.

    A column for each method; with two methods, one more for their paired difference.
    """
    columns, titles = list(labels), list(labels.values())
    if len(labels) == 2:
        columns.append(" - ".join(labels))
        titles.append(f"difference, same {find(scores, 'elbo', columns[-1]).images} images")
    quantities = {"ELBO": "elbo", "log p(x)": "log_prob", "log p(x) - ELBO": "inference_gap"}
    return titles, [
        (label, [number(find(scores, quantity, method)) for method in columns])
        for label, quantity in quantities.items()
    ]


def headline(scores, labels):
    """The three numbers of every method, as a table for the terminal, and what follows from them."""
    titles, rows = headline_rows(scores, labels)
    widths = [max(20, len(title) + 2) for title in titles]
    lines = [
        f"{label:18}" + "".join(f"{text:>{width}}" for text, width in zip(texts, widths, strict=True))
        for label, texts in [("test images, nats", titles), *rows]
    ]
    return "\n".join([*lines, *(line for text in conclusions(scores, labels) for line in textwrap.wrap(text, 98))])


def conclusions(scores, labels):
    """One sentence for each pair of methods: which has the higher log p(x) on the same test images."""
    sentences = []
    for one, other in combinations(labels, 2):
        entry = find(scores, "log_prob", f"{one} - {other}")
        better, worse = (one, other) if entry.mean >= 0 else (other, one)
        sure = abs(entry.mean) > 2 * (entry.standard_error or math.inf)
        size = number(entry._replace(mean=abs(entry.mean)), 1)
        text = f"{labels[better]} has a log p(x) {size} nats {'higher' if sure else 'higher, which may be chance,'}"
        images = f"on the same {entry.images} test images (± standard error over images)."
        sentences.append(f"{text} than {_lower(labels[worse])} {images}")
    return sentences


def print_tables(scores, summary):
    """Prints the tables, the headline, and what training and evaluation took; summary: the contents of summary.json."""
    labels, seconds = summary["labels"], summary["seconds"]
    print(table(scores, labels, summary["likelihood"]))
    print(cost_table(scores, labels))
    print(headline(scores, labels))
    times = {**seconds["training"], "evaluation": seconds["evaluation"], "total": seconds["total"]}
    print("seconds: " + ", ".join(f"{name.replace('_', ' ')} {value:.0f}" for name, value in times.items()))
