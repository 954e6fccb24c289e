"""report.html of the pretrained models, in a real browser."""

import json
import re
from contextlib import contextmanager
from html import escape
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from browser import open_page, pixels, set_value
from conftest import ROOT
from made_up import METHODS, made_up_scores
from matplotlib.figure import Figure
from selenium.webdriver import ActionChains

import amortized_vae
import latent_optimization
import main_vae
from data import stratified_subset
from evaluation import style
from evaluation.latents import map_2d
from evaluation.measurements import Measured
from evaluation.page.explorer import explorer
from evaluation.page.page import NUMBERS, fill_page
from evaluation.report import RESULTS
from evaluation.tables import read_scores
from model import ConvModel
from posterior_fit import Fit
from runtime.checkpoint import load_json, save_file
from vae_utils import GaussianPosterior, random_generator

SUMMARY, SCORES = load_json(ROOT / "pretrained/summary.json"), read_scores(ROOT / "pretrained/scores.csv")
SAMPLE, ANNEALED, TRAIN = 30, 10, 40  # images
FIGURES = ("training_curves", *(f"{name}_epoch_{epoch}" for name in ("comparison", "samples") for epoch in (5, 30)))


def with_model(method, model, **changes):
    """An object with all that the page needs of a method."""
    names = ("name", "label", "color", "reconstruction_prefix", "infers_best")
    return SimpleNamespace(**{name: getattr(method, name) for name in names} | {"model": model, **changes})


@pytest.fixture(scope="module")
def methods():
    """Two methods with the pretrained models."""
    loads = zip(main_vae.METHODS[:2], (amortized_vae.load_model, latent_optimization.load_model), strict=True)
    return [with_model(method, load(ROOT / "pretrained" / f"{method.prefix}.pt")) for method, load in loads]


@pytest.fixture(scope="module")
def images(mnist):
    """Test images, a Split: the SAMPLE, then those that stand for TRAINing images."""
    return stratified_subset(mnist[1], size=SAMPLE + TRAIN, seed=3)


@pytest.fixture(scope="module")
def posteriors(methods, images):
    """{method's name: q of the images, (SAMPLE + TRAIN, D)}: the encoder's, and for the other one drawn."""
    drawn = torch.randn(2, SAMPLE + TRAIN, 200, generator=random_generator(0, "q"))
    with torch.no_grad():
        encoded = methods[0].model.encode(images.images)
    return {methods[0].name: encoded, methods[1].name: GaussianPosterior.from_log_var(drawn[0], drawn[1] - 3)}


def write(folder, methods, posteriors, images, points):
    """Writes a page of Results: the first ANNEALED images have a log p(x)."""
    sample, values = images.at(torch.arange(SAMPLE)), torch.arange(float(SAMPLE))
    values[ANNEALED:] = torch.nan
    errors = 0.1 + values / 10
    errors[ANNEALED - 1] = torch.inf  # of an integral that has not settled
    columns = {"elbo": -100 - values.nan_to_num(), "log_prob": -90 - values, "log_prob_standard_error": errors}
    measured = {name: Measured(columns, Fit.given(q[slice(SAMPLE)]), 0.0) for name, q in posteriors.items()}
    trained = {name: q[slice(SAMPLE, None)] for name, q in posteriors.items()}
    moved = explorer(methods, trained, sample, measured, points=points)
    row = dict.fromkeys(NUMBERS, 0.5) | {"method": "amortized", "split": "test", "class": "3"}
    numbers = zip(images.index.tolist(), (-5.0, -90.5, -10.25, -9.5, None), strict=False)
    rows = [{**row, "index": index, "log_prob": number} for index, number in numbers]
    shared = {"methods": methods, "classes": images.classes, "labels": SUMMARY["labels"], "scores": SCORES}
    results = SimpleNamespace(images=rows, explorer=moved, **shared)
    (folder / "report.html").write_text(fill_page(folder, results, SUMMARY), encoding="utf-8")


@pytest.fixture(scope="module")
def folder(methods, posteriors, images, tmp_path_factory):
    """A results directory with a page and figures, some of them the user's own."""
    folder = tmp_path_factory.mktemp("page")
    for name in (*FIGURES, "mine_epoch_5", "comparison_epoch_5b"):
        save_file(folder / f"{name}.png", Figure())
    points = torch.randn(SAMPLE, 2, generator=random_generator(0, "points"))
    write(folder, methods, posteriors, images, dict.fromkeys(posteriors, points))
    return folder


@pytest.fixture(scope="module")
def known(folder):
    """The JSON from which the page draws."""
    text = (folder / "report.html").read_text(encoding="utf-8")
    return json.loads(re.search(r'id="explorer">(.*?)</script>', text)[1])


@pytest.fixture(scope="module")
def page(folder):
    with open_page(folder / "report.html") as page:
        yield page


def shown(page):
    return int(page.find_element("id", "image").get_property("value"))


def pictures(page):
    return np.stack([pixels(page, f"picture-{number}") for number in (0, 1)])


@torch.no_grad()
def assert_drawn(page, methods, latents, spread=10):
    """Both pictures are PyTorch's at z (D,), to 1/255 of a pixel's range; eight bits take half of that."""
    expected = [(method.model.mean(z)[0].numpy() + 1) * 127.5 for method, z in zip(methods, latents, strict=True)]
    assert np.abs(pictures(page) - expected).max() < 1
    assert np.std(expected, axis=(1, 2)).min() > spread  # they are pictures


def test_the_page_begins_with_an_image_and_its_numbers(page, methods, posteriors, images):
    assert shown(page) == 0
    assert (pixels(page, "original") == ((images.images[0, 0] + 1) * 127.5).round().numpy()).all()
    assert_drawn(page, methods, [q.mean[0] for q in posteriors.values()])
    for number, (method, q) in enumerate(zip(methods, posteriors.values(), strict=True)):
        with torch.no_grad():
            error = float((method.model.mean(q.mean[0]) - images.images[0]).square().sum())
        assert float(page.find_element("id", f"error-{number}").text) == pytest.approx(error, abs=0.2)
    for position, expected in ((0, "-90.0 ± 0.1"), (ANNEALED, "not measured"), (1, "-91.0 ± 0.2")):
        set_value(page, "image", position, "change")
        assert [page.find_element("id", f"log-prob-{number}").text for number in (0, 1)] == [expected] * 2
        assert page.find_element("id", "elbo-1").text == f"{-100 - position:.1f}" or position == ANNEALED
    assert page.find_element("id", "original-title").text.startswith(f"{images.labels[1]}, test image ")


def test_sliders_move_z_along_the_dimension_with_most_kl_and_a_principal_direction(page, methods, posteriors):
    moved = {"slider-0": (3, 1.5, []), "slider-6": (4, -2, [])}
    for q in posteriors.values():
        train = q[SAMPLE:]
        dimension = torch.eye(200)[train.kl_per_dimension().mean(0).argmax()]
        *_, vectors = torch.linalg.svd(train.mean - train.mean.mean(0), full_matrices=False)
        direction = vectors[0] * vectors[0][vectors[0].abs().argmax()].sign()
        for along, (position, value, latents) in zip((dimension, direction), moved.values(), strict=True):
            latents.append(q.mean[position] + value * (train.mean @ along).std() * along)
    for name, (position, value, latents) in moved.items():
        set_value(page, "image", position, "change")
        before = pictures(page)
        set_value(page, name, value)
        assert (np.abs(pictures(page) - before).max((1, 2)) > 5).all()
        assert_drawn(page, methods, latents)
        page.find_element("id", "back").click()
        assert (pictures(page) == before).all()


def test_z_walks_to_another_image_and_is_drawn_from_the_prior(page, methods, posteriors):
    set_value(page, "image", 2, "change")
    before = pictures(page)
    set_value(page, "target", 9, "change")
    for share in (0.5, 1):
        set_value(page, "walk", share)
        assert_drawn(page, methods, [torch.lerp(q.mean[2], q.mean[9], share) for q in posteriors.values()])
    page.find_element("id", "prior").click()
    assert (pictures(page) != before).any((1, 2)).all()
    page.find_element("id", "back").click()
    assert (pictures(page) == before).all()


def test_images_are_chosen_by_buttons_map_and_keys(page, known):
    set_value(page, "image", 5, "change")
    for button, is_same in (("next", False), ("previous", True)):
        page.find_element("id", button).click()
        assert (shown(page) == 5) == is_same
    points = np.array(known["methods"]["latent_optimization"]["points"])
    shares = (points - points.min(0)) / np.ptp(points, axis=0) - 0.5
    places = shares * (640 - 28, -(560 - 28))  # from the middle of the map, to the right and down
    page.find_element("id", "map-1").click()  # in its middle
    middle = int((places**2).sum(1).argmin())
    assert shown(page) == middle
    page.find_element("id", "map-1").send_keys("\ue014")  # the arrow to the right
    to_the_right = places - places[middle]
    allowed = (to_the_right[:, 0] > 0) & (to_the_right[:, 0] >= np.abs(to_the_right[:, 1]))
    assert shown(page) == np.where(allowed, (to_the_right**2).sum(1), np.inf).argmin()


def test_the_table_is_sorted_by_its_buttons(page, known):
    (button,) = [each for each in page.find_elements("css selector", "th button") if each.text == "log p(x)"]
    column = button.find_element("xpath", "ancestor::th").get_property("cellIndex")
    read = "return [...document.querySelector('.sortable').tBodies[0].rows].map(r => r.cells[arguments[0]].textContent)"
    # What is not annealed is not there.
    assert page.execute_script(read, column) == ["-5.00", "-90.50", "-10.25", "-9.50"]
    for expected in (["-90.50", "-10.25", "-9.50", "-5.00"], ["-5.00", "-9.50", "-10.25", "-90.50"]):
        page.execute_script("arguments[0].click()", button)
        assert page.execute_script(read, column) == expected
    link = page.find_elements("css selector", "button[data-image]")[2]
    page.execute_script("arguments[0].click()", link)
    assert known["index"][shown(page)] == int(link.text)


def test_figures_of_an_epoch_are_shown_together(page):
    images = page.find_elements("css selector", "figure img")
    names = [image.get_attribute("alt").rpartition(": ")[2] for image in images]
    assert sorted(names) == sorted(f"{name}.png" for name in FIGURES)
    assert all(image.get_property("naturalWidth") > 300 for image in images)
    for epoch in ("5", "30"):
        set_value(page, "epoch", epoch, "change")
        figures = page.find_elements("css selector", "figure[data-epoch]")
        assert [figure.get_attribute("data-epoch") for figure in figures if figure.is_displayed()] == [epoch] * 2


@pytest.mark.parametrize("latent_dim", [1, 2])
def test_z_is_dragged_over_its_plane_or_line(latent_dim, methods, images, tmp_path):
    """Decoders of another width, with larger weights, so that their pictures differ from z to z."""
    drawn, posteriors, points = [], {}, {}
    for seed, method in enumerate(methods):
        model = ConvModel(latent_dim, hidden=24, seed=seed)
        model.decoder.layers[0].weight.data *= 9
        drawn.append(with_model(method, model))
        mean = torch.randn(SAMPLE + TRAIN, latent_dim, generator=random_generator(seed, "plane")).clamp(-2.5, 2.5)
        mean[5] = torch.tensor([3.0, 0])[:latent_dim]  # the farthest of all
        posteriors[method.name] = GaussianPosterior(mean, torch.full_like(mean, 0.3))
        points[method.name] = map_2d(mean[:SAMPLE], seed=0)
    save_file(tmp_path / "latent_map.png", Figure())
    write(tmp_path, drawn, posteriors, images, points)
    with open_page(tmp_path / "report.html") as page:
        assert "t-SNE" not in page.page_source
        page.set_window_size(1300, 1200)
        canvas = page.find_element("id", "map-0")
        unit = 560 / 2 / (1.05 * 3) * canvas.size["width"] / 640  # a unit of z, in pixels of the screen
        x, y = round(-1.2 * unit), round(-0.8 * unit)  # from the middle
        actions = ActionChains(page).move_to_element(canvas).click_and_hold()
        actions.move_to_element_with_offset(canvas, x, y).perform()
        box = page.execute_script("return arguments[0].getBoundingClientRect()", canvas)
        middle = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        z = torch.tensor([x - middle[0] % 1, middle[1] % 1 - y])[:latent_dim] / unit
        assert_drawn(page, drawn, [z, z], spread=1)
        numbers = [float(number) for number in re.findall(r"-?\d+\.\d\d", page.find_element("id", "where").text)]
        assert numbers == pytest.approx(z.tolist(), abs=0.02)
        ActionChains(page).release().move_to_element(canvas).perform()  # without a button it stays
        canvas.send_keys("\ue014")  # the arrow to the right
        z[0] += 0.1
        assert_drawn(page, drawn, [z, z], spread=1)
        if latent_dim == 2:
            script = "arguments[0].dispatchEvent(new MouseEvent('dblclick', arguments[1]))"
            page.execute_script(script, canvas, {"clientX": middle[0] + 3 * unit, "clientY": middle[1]})
            assert shown(page) == 5
        set_value(page, "image", 6, "change")
        assert_drawn(page, drawn, [q.mean[6] for q in posteriors.values()], spread=1)


@pytest.mark.parametrize("count", [1, 3])
def test_a_page_of_any_number_of_methods_has_every_figure_and_escapes_labels(count, tmp_path, monkeypatch):
    """With one method, also of one image of each class, whose mean has no interval; with three, of numbered classes."""
    monkeypatch.setattr(style, "shown", lambda classes: ["no. 0", "b"] if count > 1 else ["猫", "b"])
    model = SimpleNamespace(likelihood=SimpleNamespace(name="", units="U!"))
    made_up = [with_model(method, model, label=f"<{method.label}>") for method in METHODS[:count]]
    labels = {method.name: method.label for method in made_up}
    names = ["one_epoch_7.png", *(name.replace("[0-9]*", "7") for name in RESULTS if name.endswith(".png"))]
    for name in names:
        save_file(tmp_path / name, Figure(figsize=(0.1, 0.1)))
    scores = made_up_scores(made_up, classes := ("猫", "b"))
    scores = [entry._replace(freedom=count) if entry.group in classes else entry for entry in scores]
    moved = {"methods": {name: {"layers": None, "latent_dim": 5} for name in labels}}
    image = {"method": "one", "split": "test", "class": "b", "index": 3, **dict.fromkeys(NUMBERS), "log_prob": -1.25}
    results = {"scores": scores, "labels": labels, "methods": made_up, "images": [image], "explorer": moved}
    text = fill_page(tmp_path, SimpleNamespace(**results, classes=classes), SUMMARY)
    assert sorted(re.findall(r'<img alt=".*?: (\w+\.png)"', text)) == sorted(names)
    assert ("at the last epoch, with 95% intervals" in text) == (count > 1)
    assert "<td>-1.25</td><td></td>" in text  # a metric that is no number of this image
    for legend in ('<p id="class-numbers">', "alike: no. 0: <bdi>猫</bdi>.</p>", "which classes are shown by number"):
        assert (legend in text.replace("\n", "")) == (count > 1)
    assert "does not know a layer" in text
    assert "U!" in text
    assert all(escape(label) in text and label not in text for label in labels.values())
    assert text.count("the same images</th>") == count * (count - 1) // 2


@contextmanager
def a_screen(page, width, height, media="screen"):
    """The page on a phone or a tablet, or on paper."""
    device = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": True}
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", device)
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": media})
    try:
        yield
    finally:
        page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
        page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_on_a_phone_held_sideways_the_pictures_do_not_stay_above_the_sliders(page):
    script = "return getComputedStyle(document.querySelector('.pictures')).position"
    for height, position in ((375, "static"), (900, "sticky")):
        with a_screen(page, 740, height):
            assert page.execute_script(script) == position


def test_on_paper_nothing_is_cut(page):
    script = """return [...document.querySelectorAll(".scroll")].map(box => {
        const table = box.querySelector("table, img");
        return [table.scrollWidth - box.clientWidth, box.scrollHeight - box.clientHeight];
    })"""
    with a_screen(page, 662, 900, media="print"):
        assert all(max(beyond) <= 1 for beyond in page.execute_script(script))


def test_names_and_numbers_in_one_column_have_an_order(page):
    script = """const table = document.querySelector(".sortable"), rows = [...table.tBodies[0].rows];
    ["b", "10", "a", "9"].forEach((name, n) => { rows[n].cells[2].textContent = name; });
    table.querySelectorAll("th button")[2].click();
    return [...table.tBodies[0].rows].map(row => row.cells[2].textContent);"""
    assert page.execute_script(script) == ["9", "10", "a", "b"]
    page.refresh()


@pytest.mark.parametrize("width", [320, 730, 820, 1000])
def test_neither_phone_nor_tablet_needs_a_scroll_bar_for_the_headline(page, width):
    with a_screen(page, width, 600):
        script = """const table = document.querySelector(".headline"), box = table.parentElement;
        const cells = [...table.querySelectorAll("td")].map(cell => getComputedStyle(cell, "::before").content);
        return [box.scrollWidth - box.clientWidth, cells];"""
        beyond, titles = page.execute_script(script)
    assert beyond <= 0
    assert (titles[0] == '"Amortized VAE"') == (width < 720)
