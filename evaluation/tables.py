"""The tables of a run, from its Scores: as rows of plain texts, for the terminal and for report.html; scores.csv."""

import csv
import math
import textwrap
from functools import partial
from itertools import combinations, zip_longest
from typing import NamedTuple

from data import SPLITS
from evaluation.gaps import METRICS
from evaluation.scores import PAIRED
from evaluation.statistics import Score, find, half_width, how_found, rounded
from runtime.checkpoint import invalid_contents

FEW = 10  # effective samples: below, importance sampling is too low by an amount that the weights cannot tell
NAMES = {  # of quantities, where not their own
    "elbo": "ELBO(q)",
    "fitted_elbo": "ELBO(q*)",
    "full_elbo": "ELBO(q*full)",
    "log_prob": "log p(x)",
    "amortization_gap": "amortization gap, ELBO(q*) - ELBO(q)",
    "mean_field_gap": "mean-field gap, ELBO(q*full) - ELBO(q*)",
    "non_gaussian_gap": "non-Gaussian gap, log p(x) - ELBO(q*full)",
    "inference_gap": "log p(x) - ELBO(q)",
    "squared_error": "squared error of q's mean (not nats)",
}
METRIC_NAMES = {metric.__name__ for metric in METRICS}  # numbers in units of their own
COSTS = {
    "decoder_updates": ("train", "updates of the decoder", ",.0f"),
    "training_gradients": ("train", "training, all images: gradients of q", ",.0f"),
    "training_gradients_per_q": ("train", "training, one image: gradients that shape its q", ",.0f"),
    "training_seconds": ("train", "training: seconds, the decoder's included", ",.0f"),
    "unseen_image_gradients": ("test", "one unseen image: gradients of q", ",.0f"),
    "unseen_image_seconds": ("test", "one unseen image: seconds, several at a time", ".5f"),
}
# Differences in the final table.
DIFFERENCES = tuple(name for name in PAIRED if name not in ("inference_gap", "approximation_gap"))


class Row(NamedTuple):
    """A row of the final table."""

    label: str
    cells: tuple = ()  # (value, images or remark) of training images, and the same of test images
    depth: int = 1  # 0: a heading; 2: a detail of the row above


def read_scores(path):
    """The Scores of a scores.csv. Raises InputError if it is missing or damaged."""
    kinds, optional = {"epoch": int, "images": int, "mean": float}, {"standard_error": float, "freedom": int}
    with invalid_contents(path), open(path, newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if "seed" in reader.fieldnames:
            raise ValueError("of several seeds: read the scores.csv of each")
        rows = [{name: row[name] for name in Score._fields} for row in reader]
        for row in rows:
            row |= {name: kind(row[name]) for name, kind in kinds.items()}
            row |= {name: kind(row[name]) if row[name] else None for name, kind in optional.items()}
        return [Score(**row) for row in rows]


def number(entry, digits=2):
    """The mean of a Score with its standard error, as text."""
    error = entry.standard_error
    if entry.mean == error == 0:  # exactly, as the amortization gap of a q that is q*
        return "0"
    return rounded(entry.mean, digits) + ("" if error is None else f" ± {error:.{digits}f}")


def title(quantity):
    """What a quantity is called in a table."""
    words = quantity.replace("_", " ")
    return NAMES.get(quantity, f"{words} (not nats)" if quantity in METRIC_NAMES else words)


def pairs(labels):
    """[("a - b", "A minus b")] of every two methods; labels: {method's name: its label}."""
    return [(f"{a} - {b}", f"{labels[a]} minus {_lower(labels[b])}") for a, b in combinations(labels, 2)]


def _lower(label):
    return label[0].lower() + label[1:] if label[1:2].islower() else label  # not an acronym


def final_rows(scores, labels):
    """The Rows of the final table: a list for each method, then one for each pair; labels: {method's name: label}."""
    blocks = [[Row(label, depth=0), *_method_rows(scores, name)] for name, label in labels.items()]
    for pair, label in pairs(labels):
        rows = [_row(scores, pair, title(name), name) for name in DIFFERENCES if find(scores, name, pair)]
        blocks.append([Row(f"{label}, the same images", depth=0), *rows])
    return blocks


def _row(scores, method, label, quantity):
    entries = [find(scores, quantity, method, split) for split in SPLITS]
    return Row(label, tuple((number(entry), f"{entry.images:,}") if entry else ("", "") for entry in entries))


def _method_rows(scores, name):
    """The Rows of a method: of the measured images, from ELBO(q) up to log p(x), and of whole splits."""
    row = partial(_row, scores, name)

    def entries(quantity):
        return [find(scores, quantity, name, split) for split in SPLITS]

    def detail(label, quantity, form, remarks=("", "")):
        texts = [form.format(entry.mean) for entry in entries(quantity)]
        texts = ["0.00" if text == "-0.00" else text for text in texts]
        return Row(label, tuple(zip(texts, remarks, strict=True)), depth=2)

    yield row("ELBO(q)", "elbo")
    yield row("+ amortization gap", "amortization_gap")
    yield row("= ELBO(q*), the best diagonal Gaussian", "fitted_elbo")
    yield detail("fits that have converged", "fit_converged", "{:.0%}")
    if find(scores, "log_prob", name):
        yield row("+ mean-field gap", "mean_field_gap")
        yield row("+ non-Gaussian gap", "non_gaussian_gap")
        yield row("= log p(x)", "log_prob")
        how = how_found(scores, name)
        yield detail(f"of these images, {how}", "annealed_images", "{:.0f}")
        yield detail("images whose log p(x) is not trusted", "images_not_trusted", "{:.0f}")
        if how == "annealed":
            both = zip(entries("bias"), entries("non_gaussian_gap"), strict=True)
            biased = [_beyond(-bias.mean, gap) for bias, gap in both]
            yield detail("Monte Carlo error of their mean", "monte_carlo_error", "± {:.2f}")
            yield detail("bias of their mean, an estimate", "bias", "{:.2f}", biased)
            yield detail("acceptance of transitions", "acceptance", "{:.2f}")
            gap = find(scores, "bidirectional_gap", name, "simulated")
            if gap and gap.standard_error is not None:
                text = f"bidirectional bounds (simulated images: {gap.images}) are {number(gap)} nats apart"
                remark = max(_beyond(gap.mean, entry) for entry in entries("log_prob"))
                yield Row(f"{text} {remark}".rstrip(), depth=2)
        for q, prefix in (("q", ""), ("q*full", "full_")):
            yield row(f"log p(x), importance sampling from {q}", f"{prefix}importance_sampling")
            size = f"{prefix}effective_sample_size"
            remarks = ["too low" if entry.mean < FEW else "" for entry in entries(size)]
            yield detail("rests on (median effective samples)", size, "{:.1f}", remarks)
    yield row("ELBO(q) of all images", "elbo_all")
    yield row("E_q log p(x|z)", "log_likelihood")
    yield row("KL(q || p)", "kl")
    for metric in METRICS:
        yield row(title(metric.__name__), metric.__name__)


def _beyond(error, entry):
    """A mark for an error that is larger than the standard error of the Score that it is part of."""
    return "> ±" if error > (entry.standard_error or math.inf) else ""


def table(scores, labels, likelihood):
    """The final table, at most 100 columns wide; likelihood: what p(x|z) is."""
    heading = Row("nats per image (± standard error over images)", (("train", "images"), ("test", "images")), depth=0)
    lines = [likelihood]
    for rows in ([heading], *final_rows(scores, labels)):
        for row in rows:
            cells = "".join(f" {value:>18} {count:>7}" for value, count in row.cells)
            lines.append(f"{'  ' * row.depth + row.label:44}{cells}".rstrip())
        lines.append("-" * 98)
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
    width = max(14, min(21, 50 // len(labels)))

    def line(label, texts):
        return f"{label:50}" + "".join(f" {text:>{width - 1}}" for text in texts)

    wrapped = zip_longest(*(textwrap.wrap(label, width - 1) for label in labels.values()), fillvalue="")
    headings = [line(*row) for row in zip_longest(["computation"], wrapped, fillvalue="")]
    rule = "-" * len(headings[0])
    return "\n".join([*headings, rule, *(line(*row) for row in cost_rows(scores, labels)), rule])


def headline_rows(scores, labels):
    """(the columns' titles, [(label, a text for each column)]): from ELBO to log p(x) of the same test images.

    A column for each method; with two methods, one more for their paired difference.
    """
    columns = labels | ({" - ".join(labels): "difference (paired)"} if len(labels) == 2 else {})
    rows = {"ELBO(q)": "elbo", "+ amortization gap": "amortization_gap"}
    if find(scores, "log_prob", next(iter(labels))):
        rows |= {"+ mean-field gap": "mean_field_gap", "+ non-Gaussian gap": "non_gaussian_gap"}
        rows |= {"= log p(x)": "log_prob"}
    else:
        rows |= {"= ELBO(q*)": "fitted_elbo"}
    texts = {label: [number(find(scores, name, method)) for method in columns] for label, name in rows.items()}
    return list(columns.values()), list(texts.items())


def basis(scores, labels):
    """In words, which images the numbers of `headline_rows` are of."""
    name = next(iter(labels))
    same = ", the same in every column" if len(labels) > 1 else ""
    text = f"{find(scores, 'elbo', name).images:,} test images{same}; ± standard error over images"
    if annealed := find(scores, "annealed_images", name):
        carried = find(scores, "mean_field_gap", name).images > annealed.mean
        by = "a regression on ELBO(q*) extends it" if carried else "their mean gap to ELBO(q*) carries it over"
        by = f"; {by} to all" if annealed.mean < find(scores, "elbo", name).images else ""
        text += f"; log p(x) of {annealed.mean:.0f} of them is {how_found(scores, name)}{by}"
    return text


def headline(scores, labels):
    """`headline_rows` as a table for the terminal, what they are of, and what follows from them."""
    titles, rows = headline_rows(scores, labels)
    lines = [
        f"{label:20}"
        + "".join(f" {text:>{max(19, len(title) + 1)}}" for text, title in zip(texts, titles, strict=True))
        for label, texts in [("test images, nats", titles), *rows]
    ]
    texts = [f"({basis(scores, labels)})", *conclusions(scores, labels)]
    return "\n".join([*lines, *(textwrap.fill(text, 98) for text in texts)])


def conclusions(scores, labels):
    """One sentence for each pair of methods: which has the higher log p(x), or if it was not measured ELBO(q*)."""
    sentences = []
    for one, other in combinations(labels, 2):
        entry = find(scores, "log_prob", f"{one} - {other}") or find(scores, "fitted_elbo", f"{one} - {other}")
        better, worse = (one, other) if entry.mean >= 0 else (other, one)
        if not math.isfinite(entry.mean):
            sentences.append(f"{labels[one]} and {_lower(labels[other])}: {title(entry.quantity)} is not finite.")
            continue
        half = half_width(entry.standard_error, entry.freedom)
        digits = 2 if abs(abs(entry.mean) - half) < 0.1 else 1  # else the two might look alike
        size, ends = abs(entry.mean), (abs(entry.mean) - half, abs(entry.mean) + half)
        what = "a log p(x)" if entry.quantity == "log_prob" else "an ELBO(q*)"
        doubt = "" if size > half > 0 else ", which may be chance,"
        text = f"{labels[better]} has {what} {size:.{digits}f} nats higher{doubt} than {_lower(labels[worse])}"
        low, high = (rounded(end, digits) for end in ends) if half > 0 else ("", "")
        interval = f"95% t interval {low} to {high}, over images of this training" if half > 0 else "of this training"
        sentences.append(f"{text} on the same test images ({interval}; --seeds trains others).")
    return sentences


def print_tables(scores, summary):
    """Prints the tables, the headline, and what training and evaluation took; summary: the contents of summary.json."""
    labels, seconds = summary["labels"], summary["seconds"]
    if scores:
        print(table(scores, labels, summary["likelihood"]), cost_table(scores, labels), sep="\n")
        print(headline(scores, labels))
    times = seconds["training"] | seconds["stages"] | {name: seconds[name] for name in ("evaluation", "total")}
    line = "seconds: " + ", ".join(f"{name.replace('_', ' ')} {value:.0f}" for name, value in times.items())
    print(textwrap.fill(line, 98))
