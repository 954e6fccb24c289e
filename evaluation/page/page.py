"""Fills the template page.html with a run's scores, tables and figures: report.html."""

import base64
from io import BytesIO
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.colors import to_hex
from PIL import Image

from evaluation import style
from evaluation.gaps import METRICS
from evaluation.latents import PLANE
from evaluation.page.captions import captions
from evaluation.page.explorer import ELBO_DRAWS
from evaluation.tables import basis, conclusions, cost_rows, final_rows, headline_rows, title
from runtime.checkpoint import atomic_write

FOLDER = Path(__file__).parent
# Columns of log_probabilities.csv that are shown, their titles and forms; then those of gaps.METRICS.
COLUMNS = {
    "method": ("method", "{}"),
    "split": ("split", "{}"),
    "class": ("class", "{}"),
    "index": ("image", "{}"),
    "log_prob": ("log p(x)", "{:.2f}"),
    "log_prob_standard_error": ("its standard error", "{:.2f}"),
    "log_prob_bias": ("its bias", "{:.2f}"),
    "elbo": ("ELBO(q)", "{:.2f}"),
    "fitted_elbo": ("ELBO(q*)", "{:.2f}"),
    "full_elbo": ("ELBO(q*full)", "{:.2f}"),
    "importance_sampling": ("importance sampling", "{:.2f}"),
    "temperatures": ("temperatures", "{:.0f}"),
}


def write_page(results_dir, results, summary):
    """Writes report.html into the directory, from its figures and a Results; summary: what summary.json will hold.

    Raises RunError if it cannot be written.
    """
    scores, labels, explorer = results.scores, results.labels, results.explorer
    likelihood, colors = results.methods[0].model.likelihood, style.class_colors(len(results.classes))
    colors = [to_hex(color) for color in colors]
    seconds = summary["seconds"]
    times = {f"training, {name}": value for name, value in seconds["training"].items()}
    times |= seconds.get("stages", {}) | {name: seconds[name] for name in ("evaluation", "total")}
    plane = any(method.get("latent_dim", PLANE + 1) <= PLANE for method in explorer["methods"].values())
    values = {
        "style": Markup((FOLDER / "page.css").read_text(encoding="utf-8")),
        "script": Markup((FOLDER / "page.js").read_text(encoding="utf-8")),
        "summary": summary,
        "labels": labels,
        "conclusions": conclusions(scores, labels),
        "headline": headline_rows(scores, labels),
        "basis": basis(scores, labels),
        "units": likelihood.units,
        "drawable": all(method["layers"] for method in explorer["methods"].values()),
        "explorer": {**explorer, "colors": colors},
        "legend": list(zip(results.classes, colors, strict=True)),
        "elbo_draws": ELBO_DRAWS,
        "numbered": list(enumerate(results.classes)) if style.are_numbered(results.classes) else [],
        "plane": plane,
        "figures": figures(results_dir, captions(scores, results.methods, results.classes, plane=plane)),
        "blocks": final_rows(scores, labels),
        "costs": cost_rows(scores, labels),
        "image_table": image_table(results.images, labels),
        "settings": {
            "Training": summary["train_config"],
            "Evaluation": summary["eval_config"],
            "Versions": summary["versions"],
            "Seconds": {name: f"{value:.0f}" for name, value in times.items()},
        },
    }
    options = {"autoescape": True, "trim_blocks": True, "lstrip_blocks": True, "undefined": StrictUndefined}
    template = Environment(loader=FileSystemLoader(FOLDER), **options).get_template("page.html")
    with atomic_write(Path(results_dir) / "report.html") as tmp_path:
        tmp_path.write_text(template.render(values), encoding="utf-8")


def image_table(images, labels):
    """(titles, rows {column: text}) of the annealed images; images: rows of log_probabilities.csv."""
    columns = COLUMNS | {metric.__name__: (title(metric.__name__), "{:.2f}") for metric in METRICS}
    rows = [{**row, "method": labels[row["method"]]} for row in images if row["log_prob"] is not None]
    texts = [{name: form.format(row[name]) for name, (_, form) in columns.items()} for row in rows]
    return [heading for heading, _ in columns.values()], texts


def figures(results_dir, texts):
    """Every figure that is there, dicts; those drawn at several epochs come first, by epoch.

    texts: of `captions`; another name is the user's own.
    """
    of_epochs, others = [], []
    for path in Path(results_dir).glob("*_epoch_[0-9]*.png"):
        name, _, epoch = path.stem.rpartition("_epoch_")
        if name in texts and epoch.isdecimal():
            of_epochs.append((int(epoch), list(texts).index(name), name, path))
    for name in texts:
        if (path := Path(results_dir) / f"{name}.png").exists():
            others.append((None, 0, name, path))
    return [
        {"epoch": epoch, "title": texts[name][0], "text": texts[name][1], "name": path.name, **picture(path)}
        for epoch, _, name, path in [*sorted(of_epochs), *others]
    ]


def picture(path):
    """{"width", "height", "source"} of a PNG as WebP in base64, lossless and half as large."""
    buffer = BytesIO()
    with Image.open(path) as image:
        width, height = image.size
        image.convert("RGB").save(buffer, "WEBP", lossless=True, method=2)
    return {"width": width, "height": height, "source": base64.b64encode(buffer.getvalue()).decode()}
