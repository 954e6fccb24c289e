"""report.html of a small run, in a real browser."""

import base64
import json
import re

import numpy as np
import pytest
import torch
from browser import open_page, pixels, set_value

import amortized_vae
import latent_optimization
import main_vae
from benchmarks import stress
from data import load_mnist
from vae_utils import kl_per_dimension

RUN = (
    "--epochs 2 --train-size 200 --latent-dim 7 --sigma-p 0.7 --batch-size 50 --num-samples 20 --images-per-digit 2 "
    "--annealed-per-digit 1 --chains 2 --temperatures 4 --fit-steps 5 --fitted-images 20 --simulated-images 2 "
    "--classified-samples 200"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a finished run."""
    folder = tmp_path_factory.mktemp("page")
    stress.small_mnist(folder / "data")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("sys.argv", ["main_vae.py", *RUN.split()])
        main_vae.main()
    return folder


@pytest.fixture(scope="module")
def models(folder):
    """Of each method."""
    paths = [folder / f"checkpoints/{method.prefix}_epoch_2.pt" for method in main_vae.METHODS]
    return amortized_vae.load_model(paths[0]), latent_optimization.load_model(paths[1])


@pytest.fixture(scope="module")
def known(folder):
    """The JSON from which the page draws, and the means of q that it has, (images, D) for each method."""
    text = (folder / "results/report.html").read_text(encoding="utf-8")
    known = json.loads(re.search(r'id="explorer">(.*?)</script>', text)[1])
    means = []
    for method in known["methods"].values():
        values = np.frombuffer(base64.b64decode(method["means"]), "<f2").astype(np.float32)
        means.append(torch.from_numpy(values.reshape(-1, method["latent_dim"])))
    return known, means


@pytest.fixture(scope="module")
def page(folder):
    with open_page(folder / "results/report.html") as page:
        yield page


def shown(page):
    """The position in the page's lists of the image that is shown."""
    return int(page.find_element("id", "image").get_property("value"))


@torch.no_grad()
def assert_drawn(page, models, latents):
    """Both pictures are PyTorch's at z (D,), to 1/255 of a pixel's range."""
    for number, (model, z) in enumerate(zip(models, latents, strict=True)):
        expected = (model.mean(z)[0].numpy() + 1) * 127.5
        assert np.abs(pixels(page, f"picture-{number}") - expected).max() < 1
        assert expected.std() > 1  # it is a picture


@torch.no_grad()
def test_the_page_begins_with_the_mean_of_q(page, folder, models, known):
    _, test = load_mnist(data_dir=folder / "data")
    row = known[0]["index"][shown(page)]
    assert (pixels(page, "original") == ((test.images[row, 0] + 1) * 127.5).round().numpy()).all()
    assert_drawn(page, models, [models[0].encode(test.images[row : row + 1]).mean[0], known[1][1][shown(page)]])
    assert float(re.search(r"at most ([\d.]+)/255", page.page_source)[1]) < 1
    # The numbers beside the pictures are those of the table.
    import csv

    with open(folder / "results/log_probabilities.csv", newline="") as file:
        rows = [each for each in csv.DictReader(file) if (each["split"], each["index"]) == ("test", str(row))]
    for number, own in enumerate(rows):
        text = page.find_element("id", f"log-prob-{number}").text
        assert text == f"{float(own['ais_log_prob']):.1f} ± {float(own['ais_standard_error']):.1f}"
        assert page.find_element("id", f"error-{number}").text == f"{float(own['squared_error']):.1f}"
        assert float(page.find_element("id", f"elbo-{number}").text) == pytest.approx(float(own["elbo"]), abs=8)


def test_a_slider_moves_z_along_the_dimension_with_most_kl(page, folder, models, known):
    before = [pixels(page, f"picture-{number}") for number in (0, 1)]
    train, _ = load_mnist(data_dir=folder / "data")
    latents = []
    for model, means in zip(models, known[1], strict=True):
        images = train.images[model.train_index]
        with torch.no_grad():
            q = model.posterior(torch.arange(200)) if hasattr(model, "posterior") else model.encode(images)
        dimension = int(kl_per_dimension(q).mean(0).argmax())
        z = means[shown(page)].clone()
        z[dimension] += 2.5 * q.mean[:, dimension].std()
        latents.append(z)
    set_value(page, "slider-0", 2.5)
    for number, earlier in enumerate(before):
        assert np.abs(pixels(page, f"picture-{number}") - earlier).max() > 1
    assert_drawn(page, models, latents)
    page.find_element("id", "back").click()
    for number, earlier in enumerate(before):
        assert (pixels(page, f"picture-{number}") == earlier).all()


def test_z_walks_to_another_image(page, models, known):
    set_value(page, "target", 3, "change")
    for share in (0.5, 1):
        set_value(page, "walk", share)
        assert_drawn(page, models, [torch.lerp(means[shown(page)], means[3], share) for means in known[1]])


def test_a_draw_from_the_prior_is_of_both_and_no_image(page):
    page.find_element("id", "back").click()
    before = [pixels(page, f"picture-{number}") for number in (0, 1)]
    page.find_element("id", "prior").click()
    assert all((pixels(page, f"picture-{number}") != before[number]).any() for number in (0, 1))
    assert page.find_element("id", "error-0").text == "–"
    page.find_element("id", "back").click()


def test_images_are_chosen_by_list_buttons_map_and_keys(page, models, known):
    set_value(page, "image", 5, "change")
    assert_drawn(page, models, [means[5] for means in known[1]])
    page.find_element("id", "next").click()
    assert shown(page) != 5
    page.find_element("id", "previous").click()
    assert shown(page) == 5
    canvas = page.find_element("id", "map-1")
    canvas.send_keys("\ue014")  # to the right
    points = known[0]["methods"]["latent_optimization"]["points"]
    assert points[shown(page)][0] > points[5][0] or shown(page) == 5
    canvas.click()  # its middle
    places = np.array(points)
    ends = places.min(0), places.max(0)
    shares = (places - ends[0]) / (ends[1] - ends[0]) - 0.5
    distance = (shares[:, 0] * (640 - 28)) ** 2 + (shares[:, 1] * (560 - 28)) ** 2
    assert shown(page) == distance.argmin()


def test_the_table_is_sorted_by_its_buttons(page):
    (button,) = [each for each in page.find_elements("css selector", "th button") if each.text == "log p(x)"]
    column = button.find_element("xpath", "ancestor::th").get_property("cellIndex")
    script = "return [...document.querySelectorAll('table.sortable tbody tr')].map(row => row.cells[arguments[0]].textContent)"
    before = [float(text) for text in page.execute_script(script, column)]
    for expected in (sorted(before), sorted(before, reverse=True)):
        page.execute_script("arguments[0].click()", button)
        assert [float(text) for text in page.execute_script(script, column)] == expected
    assert before != sorted(before)
    page.execute_script("arguments[0].click()", page.find_element("css selector", "button[data-image]"))
    link = page.find_element("css selector", "button[data-image]")
    assert link.text.replace(",", "") in page.find_element("id", "original-title").text.replace(",", "")


def test_every_figure_is_on_the_page(page, folder):
    names = {path.name for path in (folder / "results").glob("*.png")}
    images = page.find_elements("css selector", "figure img")
    assert {image.get_attribute("alt").rpartition(": ")[2] for image in images} == names
    assert all(image.get_property("naturalWidth") > 300 for image in images)
    for epoch in ("1", "2"):
        set_value(page, "epoch", epoch, "change")
        visible = [each.get_attribute("data-epoch") for each in page.find_elements("css selector", "figure[data-epoch]") if each.is_displayed()]
        assert visible == [epoch] * 4


def test_the_page_needs_no_other_file(folder):
    text = (folder / "results/report.html").read_text(encoding="utf-8")
    assert not re.findall(r'(?:src|href)="(?!data:|#)', text)
    assert len(text) < 10_000_000
