"""Fills the templates page.html and captions.html with a run's scores, tables and figures: report.html."""

import base64
import re
from functools import partial
from io import BytesIO
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from matplotlib.colors import to_hex
from PIL import Image

from evaluation import style
from evaluation.figures import GAPS
from evaluation.gaps import METRICS
from evaluation.latents import PLANE, USED
from evaluation.statistics import FEWEST_FREE, TRACKED, find, how_found, rounded, select_scores
from evaluation.tables import basis, conclusions, cost_rows, final_rows, headline_rows, number, pairs, title

# Columns of log_probabilities.csv with numbers that are shown, and their titles where the tables have another one.
NUMBERS = ("log_prob", "log_prob_standard_error", "log_prob_bias", "elbo", "fitted_elbo", "full_elbo")
NUMBERS += ("importance_sampling", "temperatures", *(metric.__name__ for metric in METRICS))
TITLES = {"log_prob_standard_error": "its standard error", "log_prob_bias": "its bias"}


def fill_page(results_dir, results, summary):
    """The text of report.html, from the figures in a directory and a Results; summary: what summary.json will hold."""
    scores, labels, explorer, classes = results.scores, results.labels, results.explorer, results.classes
    colors = [to_hex(color) for color in style.class_colors(len(classes))]
    probes = select_scores(scores, quantity="probe_accuracy", method="pixels")
    gaps = [entry for quantity in GAPS for entry in select_scores(scores, quantity=quantity) if entry.group in classes]
    times = summary["seconds"]
    seconds = {f"training, {name}": value for name, value in times["training"].items()}
    seconds |= times["stages"] | {name: times[name] for name in ("evaluation", "total")}
    tables = (basis, conclusions, cost_rows, final_rows, headline_rows)
    values = {
        **{function.__name__: function(scores, labels) for function in tables},
        "summary": summary,
        "results": results,
        "drawable": all(method["layers"] for method in explorer["methods"].values()),
        "explorer": {**explorer, "colors": colors},
        "several": len(labels) > 1,
        "numbered": {n: classes[n] for n, name in enumerate(style.shown(classes)) if name == f"no. {n}"},
        "plane": any(method["latent_dim"] <= PLANE for method in explorer["methods"].values()),
        "numbers": {name: TITLES.get(name, title(name)) for name in NUMBERS},
        "seconds": {name: f"{value:.0f}" for name, value in seconds.items()},
        # For the captions.
        "pictures": partial(pictures, results_dir),
        "webp": webp,
        "find": partial(find, scores),
        "how": how_found(scores, results.methods[0].name),
        "values": partial(by_method, scores, labels),
        "differences": partial(differences, scores, labels),
        "most_labels": max(probes, key=lambda entry: int(entry.group)),
        "class_intervals": any((entry.freedom or 0) >= FEWEST_FREE for entry in gaps),
        "followed": len({entry.epoch for entry in select_scores(scores, quantity="fitted_elbo", group=TRACKED)}),
        "used": USED,
        "metrics": [metric.__name__ for metric in METRICS],
    }
    options = {"autoescape": True, "trim_blocks": True, "lstrip_blocks": True, "undefined": StrictUndefined}
    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), **options)
    return environment.get_template("page.html").render(values)


def by_method(scores, labels, quantity, form=None, **where):
    """A quantity of every method, with its label, as text; form: by default one digit."""
    means = {label: find(scores, quantity, name, **where).mean for name, label in labels.items()}
    return "; ".join(f"{label} {format(mean, form) if form else rounded(mean, 1)}" for label, mean in means.items())


def differences(scores, labels, quantity):
    """A quantity's paired difference of every two methods, as sentences."""
    entries = [(label, find(scores, quantity, pair)) for pair, label in pairs(labels)]
    of = "(standard error) on the same"
    return " ".join(f"{label}: {number(entry, 1)} {of} {entry.images} test images." for label, entry in entries)


def pictures(results_dir, name):
    """Pairs (epoch, path) of a figure, by epoch; 0 where it is not of one."""
    matches = [(re.fullmatch(rf"{name}(_epoch_(\d+))?", path.stem), path) for path in Path(results_dir).glob("*.png")]
    return sorted((int(match[2] or 0), path) for match, path in matches if match)


def webp(path):
    """{"width", "height", "source"} of a PNG as WebP in base64, lossless and half as large."""
    buffer = BytesIO()
    with Image.open(path) as image:
        width, height = image.size
        image.convert("RGB").save(buffer, "WEBP", lossless=True, method=2)
    return {"width": width, "height": height, "source": base64.b64encode(buffer.getvalue()).decode()}
