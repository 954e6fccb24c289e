"""report.html: what a run has found, in one file that needs no other."""

import base64
import csv
import json
import re
from html import escape
from io import BytesIO
from pathlib import Path

from matplotlib.colors import to_hex
from PIL import Image

from evaluation import style
from evaluation.captions import captions
from evaluation.explorer import ELBO_DRAWS
from evaluation.tables import conclusions, cost_rows, final_rows, headline_rows
from runtime.checkpoint import atomic_write

WEB = Path(__file__).parent / "web"
# The columns of log_probabilities.csv that are shown, and their titles.
COLUMNS = {
    "method": "method",
    "split": "split",
    "class": "class",
    "index": "image",
    "log_prob": "log p(x)",
    "log_prob_standard_error": "its standard error",
    "log_prob_bias": "its bias",
    "elbo": "ELBO(q)",
    "fitted_elbo": "ELBO(q*)",
    "importance_sampling": "importance sampling",
    "squared_error": "squared error",
    "temperatures": "temperatures",
}
TEXTS = ("method", "split", "class")
COUNTS = ("index", "temperatures")


def write_page(results_dir, summary, explorer, methods):
    """Writes report.html into the directory, from its figures and log_probabilities.csv.

    summary: what summary.json will hold; explorer: as `explorer.explorer` gives it; methods: their classes. Raises
    RunError if it cannot be written.
    """
    results_dir = Path(results_dir)
    classes, found = explorer["classes"], summary["methods"]
    drawable = all(method["layers"] for method in explorer["methods"].values())
    known = [f"{method['label']}: {method['bounds']['test']['elbo']['images']:,}" for method in found.values()]
    log_prob = next(iter(found.values()))["log_prob"]["test"]
    annealed = log_prob["annealed"]["images"]
    of_all = "all test images, by a regression on" if log_prob["regression"] else "the"
    with open(results_dir / "log_probabilities.csv", newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["log_prob"]]
    gaussian = summary["train_config"]["likelihood"] == "gaussian"
    parts = {
        "style": (WEB / "page.css").read_text(encoding="utf-8"),
        "script": (WEB / "page.js").read_text(encoding="utf-8"),
        "train_size": f"{summary['train_config']['train_size']:,}",
        "conclusions": "".join(f'<p class="lead"><strong>{escape(text)}</strong></p>' for text in conclusions(summary)),
        "headline": _table(*headline_rows(summary)),
        "counts": f"ELBO of test images ({escape('; '.join(known))}); log p(x) of {of_all} "
        f"{annealed} annealed ones; last row and difference: those {annealed}.",
        "likelihood": escape(summary["likelihood"]),
        "units": "log-densities, which do not compare with results on binarized images."
        if gaussian
        else "log-probabilities, never above 0.",
        "explore": _explore(explorer) if drawable else "<p>The page does not know a layer of these decoders.</p>",
        "figures": _figures(results_dir, captions(summary, methods), summary["scored_epoch"]),
        "numbers": _numbers(summary),
        "costs": _table([method["label"] for method in found.values()], cost_rows(summary)),
        "per_class": str(summary["eval_config"]["annealed_per_digit"]),
        "images": _images(rows, found, drawable),
        "settings": _settings(summary),
        "data": _data({**explorer, "colors": [to_hex(color) for color in style.class_colors(len(classes))]})
        if drawable
        else "",
    }
    template = (WEB / "page.html").read_text(encoding="utf-8")
    page = re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], template)
    with atomic_write(results_dir / "report.html") as tmp_path:
        tmp_path.write_text(page, encoding="utf-8")


def _data(value):
    """Plain values as JSON in a script element, in which a "<" could end it."""
    text = json.dumps(value, separators=(",", ":")).replace("<", "\\u003c")
    return f'<script type="application/json" id="explorer">{text}</script>'


def _head(*titles):
    return "<thead><tr>" + "".join(f'<th scope="col">{escape(title)}</th>' for title in titles) + "</tr></thead>"


def _table(titles, rows):
    """A table of rows (label, texts)."""
    body = "".join(
        f'<tr><th scope="row">{escape(label)}</th>' + "".join(f"<td>{escape(text)}</td>" for text in texts) + "</tr>"
        for label, texts in rows
    )
    return f"{_head('', *titles)}<tbody>{body}</tbody>"


def _numbers(summary):
    found = [_head("nats per image", "training images", "test images")]
    for rows in final_rows(summary):
        found.append("<tbody>")
        for row in rows:
            cells = "".join(f"<td>{escape(value)} <small>{escape(note)}</small></td>" for value, note in row.cells)
            if row.depth == 0:
                found.append(f'<tr><th scope="rowgroup" colspan="3">{escape(row.label)}</th></tr>')
            else:
                kind, span = ' class="detail"' * (row.depth == 2), "" if cells else ' colspan="3"'
                found.append(f'<tr{kind}><th scope="row"{span}>{escape(row.label)}</th>{cells}</tr>')
        found.append("</tbody>")
    return "".join(found)


def _images(rows, methods, drawable):
    """The rows of log_probabilities.csv of annealed images, as a table."""
    head = "".join(f'<th scope="col"><button>{escape(title)}</button></th>' for title in COLUMNS.values())
    body = []
    for row in rows:
        cells = []
        for name in COLUMNS:
            text = escape(methods[row["method"]]["label"] if name == "method" else row[name])
            if name == "index" and row["split"] == "test" and drawable:
                text = f'<button class="link" data-image="{text}">{text}</button>'
            elif name not in (*TEXTS, *COUNTS):
                text = f"{float(text):.2f}"
            elif name == "temperatures":
                text = f"{float(text):.0f}"
            cells.append(f'<td class="text">{text}</td>' if name in TEXTS else f"<td>{text}</td>")
        body.append(f"<tr>{''.join(cells)}</tr>")
    return f"<thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody>"


def _settings(summary):
    found = []
    seconds = summary["seconds"]
    times = {f"training, {name}": value for name, value in seconds["training"].items()}
    times |= {"evaluation": seconds["evaluation"], "total": seconds["total"]}
    parts = {
        "Training": summary["train_config"],
        "Evaluation": summary["eval_config"],
        "Versions": {**summary["versions"], "device": summary["settings"]["device"]},
        "Seconds": {name: f"{value:.0f}" for name, value in times.items()},
    }
    for title, values in parts.items():
        pairs = "".join(
            f"<dt>{escape(str(name).replace('_', ' '))}</dt><dd>{escape(str(value))}</dd>"
            for name, value in values.items()
        )
        found.append(f'<h3>{title}</h3><dl class="settings">{pairs}</dl>')
    return "".join(found)


def _explore(explorer):
    """The controls and canvases of page.js."""
    methods, (_, height, width) = list(explorer["methods"].values()), explorer["image_shape"]
    size = f'width="{width}" height="{height}"'
    pictures = [
        f'<div class="picture"><strong>The image</strong><canvas id="original" {size} role="img" '
        'aria-label="The chosen test image"></canvas><span id="original-title"></span></div>'
    ]
    maps = []
    for number, method in enumerate(methods):
        label = escape(method["label"])
        pictures.append(
            f'<div class="picture"><strong>{label}</strong><canvas id="picture-{number}" {size} role="img" '
            f'aria-label="What the decoder of {label} draws from z"></canvas><dl>'
            f'<dt>ELBO</dt><dd id="elbo-{number}"></dd><dt>log p(x)</dt><dd id="log-prob-{number}"></dd>'
            f'<dt>squared error</dt><dd id="error-{number}"></dd></dl></div>'
        )
        maps.append(
            f'<div class="map"><strong>{label}</strong><canvas id="map-{number}" width="640" height="560" tabindex="0" '
            f'role="img" aria-label="Map of the latents of {label}; arrow keys go to the next image"></canvas></div>'
        )
    count, sliders = max(len(method["sliders"]) for method in methods), []
    for number in range(count):
        names = [
            f"{escape(method['label'])}: {escape(method['sliders'][number])}"
            for method in methods
            if number < len(method["sliders"])
        ]
        sliders.append(
            f'<div class="slider"><label for="slider-{number}">{"<br>".join(names)}</label><input id="slider-{number}" '
            'type="range" min="-3" max="3" step="0.1" value="0"><output></output></div>'
        )
    names, colors = explorer["classes"], style.class_colors(len(explorer["classes"]))
    legend = "".join(
        f'<span><i style="background:{to_hex(color)}"></i>{escape(name)}</span>'
        for name, color in zip(names, colors, strict=True)
    )
    return f"""
<p>Choose a test image: z begins at the mean of its q(z) under each method. Then move z, and see what each decoder
draws, the mean of p(x|z).</p>
<div class="controls"><label for="image">Test image</label><select id="image"></select>
<button id="previous">Previous</button><button id="next">Next</button><button id="back">Back to this image</button>
<button id="prior">Draw z from the prior</button></div>
<div class="controls"><label for="walk">Walk</label><input id="walk" type="range" min="0" max="1" step="0.02" value="0">
<output id="walk-value"></output><label for="target">to</label><select id="target"></select></div>
<div class="workbench">
<div class="pictures">{"".join(pictures)}</div>
<p id="where" aria-live="polite"></p>
<p class="soft">ELBO (of {ELBO_DRAWS} draws) and log p(x) (annealed, ± its standard error over the chains) are those of
the image, in nats; the squared error is that of the drawn picture, summed over pixels in [-1, 1].
<span id="agreement"></span></p>
<h3>Move along one direction</h3>
<p class="soft">From -3 to 3 standard deviations of the means of q over the training images: the dimensions with most
KL, then the directions in which these means vary most. Every method has dimensions of its own.</p>
<div id="sliders">{"".join(sliders)}</div>
</div>
<h3>The latents of {len(methods[0]["points"])} test images in two dimensions</h3>
<p class="soft">t-SNE, whose axes have no units; distances between clusters mean nothing. Click an image, or go on
with the arrow keys.</p>
<div class="maps">{"".join(maps)}</div><div class="legend">{legend}</div>"""


def _figures(results_dir, texts, last):
    """Every figure that is there with its text; of those drawn at several epochs, a choice of the epoch."""
    of_epochs, found = {}, []
    for path in results_dir.glob("*_epoch_[0-9]*.png"):
        name, _, epoch = path.stem.rpartition("_epoch_")
        if name in texts and epoch.isdecimal():  # or it is the user's own
            of_epochs.setdefault(int(epoch), []).append(name)
    if len(of_epochs) > 1:
        options = "".join(
            f'<option value="{epoch}"{" selected" * (epoch == last)}>{epoch}</option>' for epoch in sorted(of_epochs)
        )
        found.append(
            '<div class="controls"><label for="epoch">Epoch of the next pictures</label>'
            f'<select id="epoch">{options}</select></div>'
        )
    for epoch, names in sorted(of_epochs.items()):
        for name in sorted(names, key=list(texts).index):
            attributes = f' data-epoch="{epoch}"' + " hidden" * (epoch != last)
            found.append(_figure(results_dir / f"{name}_epoch_{epoch}.png", *texts[name], attributes))
    for name, (title, text) in texts.items():
        if (path := results_dir / f"{name}.png").exists():
            found.append(_figure(path, title, text))
    return "\n".join(found)


def _figure(path, title, text, attributes=""):
    # Lossless, and half as large as PNG.
    buffer = BytesIO()
    with Image.open(path) as image:
        width, height = image.size
        image.convert("RGB").save(buffer, "WEBP", lossless=True, method=2)
    source = base64.b64encode(buffer.getvalue()).decode()
    return (
        f"<figure{attributes}><h3>{escape(title)}</h3><figcaption><p>{escape(text)}</p></figcaption>"
        f'<div class="scroll"><img alt="{escape(title)}: {escape(path.name)}" width="{width}" height="{height}" '
        f'src="data:image/webp;base64,{source}"></div></figure>'
    )
