"""What the figures show, with one to three methods, few or many classes and images that are no MNIST."""

import io
from itertools import pairwise, product
from statistics import NormalDist

import matplotlib as mpl
import numpy as np
import pytest
import torch
from made_up import LABELS, METHODS, changed, made_up_scores
from matplotlib import font_manager
from matplotlib.colors import to_rgba

from data import SPLITS
from evaluation import figures, latent_figures, style
from evaluation.statistics import TRACKED, find, select_scores


def texts(figure):
    """All texts of a figure, drawn."""
    figure.savefig(io.BytesIO(), format="png", dpi=30)
    return [text.get_text() for text in figure.findobj(mpl.text.Text)]


def with_means(scores, means):
    """The Scores with other means of some quantities, {quantity: mean}."""
    return [entry._replace(mean=means.get(entry.quantity, entry.mean)) for entry in scores]


def draw_log_probabilities(scores, methods, classes, values=None):
    """log_probabilities with images of two channels."""
    values = np.zeros((len(methods), len(classes))) if values is None else values
    options = {"images": torch.zeros(len(classes), 2, 8, 12), "example_values": values, "num_samples": 1234}
    return figures.log_probabilities(scores=scores, methods=methods, classes=classes, **options)


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_a_row_shows_its_images_side_by_side_and_nothing_across_them(channels):
    images = torch.rand(3, channels, 12, 20) * 4 - 2  # some of it out of range
    figure = style.image_rows(rows=[("upper", images), ("lower", -images)], captions={"lower": "abc"}, title="")
    upper, lower = figure.axes
    shown = torch.from_numpy(np.array(upper.images[0].get_array())).permute(2, 0, 1)
    expected = images if channels == 3 else images.mean(1, keepdim=True).expand(-1, 3, -1, -1)
    for left, image in zip((3, 26, 49), expected, strict=True):
        torch.testing.assert_close(shown[:, 3:15, left : left + 20], (image.clamp(-1, 1) + 1) / 2)
    assert [label.get_text() for label in upper.get_yticklabels()] == ["upper"]
    assert not any(line.get_visible() for axes in figure.axes for line in axes.get_ygridlines())
    captions = [[(text.get_text(), text.xy[0]) for text in axes.texts if text.get_text()] for axes in (upper, lower)]
    assert captions == [[], [("a", 12.5), ("b", 35.5), ("c", 58.5)]]


def test_captions_of_long_names_do_not_run_together():
    names = [f"handwritte…tters no {number:02}" for number in range(12)]
    row = style.image_rows(rows=[("row", torch.zeros(12, 1, 28, 28))], captions={"row": names}, title="")
    scores = made_up_scores(METHODS[:2], names)
    for figure in (row, draw_log_probabilities(scores, METHODS[:2], names)):
        figure.canvas.draw()
        shown = [text for axes in figure.findobj(mpl.axes.Axes) for text in axes.texts if "no" in text.get_text()]
        boxes = [text.get_window_extent() for text in shown]
        assert len(boxes) == 12
        assert all(one.x1 <= other.x0 for one, other in pairwise(boxes))


def test_training_curves_show_every_method_and_the_epochs_that_have_room():
    row = {"train_images": 4321, "validation_images": 987}
    for name in figures.PARTS:
        row |= {f"train_{name}": -9.0, f"validation_{name}": -8.0, f"validation_{name}_standard_error": 0.1}
    history = [row | {"method": method.name, "epoch": epoch} for method in METHODS for epoch in (1, 2)]
    for saved, named in (([7], [*range(1, 8)]), ([1, 5, 10, 20, 30, 300], [10, 30, 300])):
        figure = figures.training_curves(history=history, methods=METHODS, saved_epochs=saved)
        assert figure.axes[0].get_xticks().tolist() == named
    shown = texts(figure)
    for method in METHODS:
        assert {f"{method.label},\n4,321 training images", f"{method.label},\n987 validation images"} <= set(shown)


def test_the_bars_of_the_nats_end_at_the_inference_gap():
    """A bar of three parts for each method and split; their sum is log p(x) - ELBO(q)."""
    scores = made_up_scores(METHODS)
    figure = figures.where_the_nats_go(scores=scores, methods=METHODS)
    bars = [bar for bar in figure.axes[0].patches if bar.get_width()]
    assert len(bars) == 3 * 2 * 3
    whiskers = [path.vertices[:, 0].mean() for each in figure.axes[0].collections for path in each.get_paths()]
    assert sorted(whiskers) == pytest.approx(sorted(bar.get_x() + bar.get_width() for bar in bars))
    ends = sorted((bar.get_x() + bar.get_width() for bar in bars), reverse=True)[:6]
    of_bars = [[find(scores, gap, m.name, split).mean for gap in figures.GAPS] for m in METHODS for split in SPLITS]
    assert ends == pytest.approx(sorted(map(sum, of_bars), reverse=True))
    values = [f"{find(scores, quantity, 'one').mean:.1f} ± 1.0" for quantity in figures.GAPS]
    assert {"  +  ".join(values), "First way,\ntest images"} <= set(texts(figure))
    small = changed(scores, "mean_field_gap", "one", "test", mean=-0.04, standard_error=0.01)
    values[1] = "  -  0.04 ± 0.02  +  "
    assert "".join(values) in texts(figures.where_the_nats_go(scores=small, methods=METHODS))


def test_gaps_are_drawn_over_epochs_and_of_every_class():
    scores = made_up_scores(METHODS[:2], "abcd")
    figure = figures.gaps_over_epochs(scores=scores, methods=METHODS[:2])
    assert "First way, training images\n(10 images; open marker: 50)" in texts(figure)
    fewer = changed(scores, "mean_field_gap", "one", "train", images=10)  # as without a regression
    found = texts(figures.gaps_over_epochs(scores=fewer, methods=METHODS[:1]))
    assert "First way, training images\n(10 images; open marker: 10 and 50)" in found
    # The lines are of the tracked images; all annealed ones are a marker of its own.
    tracked = select_scores(scores, quantity="mean_field_gap", method="one", split="train", group=TRACKED)
    lines = [line.get_ydata().tolist() for line in figure.axes[0].lines]
    assert [entry.mean for entry in tracked] in lines
    assert [find(scores, "mean_field_gap", "one", "train").mean] in lines
    (legend,) = figure.legends
    drawn = [(line.get_linestyle(), line.get_marker()) for line in figure.axes[0].lines if len(line.get_xdata()) > 1]
    assert {(line.get_linestyle(), line.get_marker()) for line in legend.get_lines()} <= {*drawn}
    shades = [line.get_alpha() or to_rgba(line.get_color())[3] for line in legend.get_lines()]
    assert shades == sorted(shades)
    figure = figures.gaps_per_class(scores=scores, methods=METHODS[:2], classes="abcd")
    assert len(figure.axes) == 2 * 2
    errors = [np.ptp(path.vertices[:, 1]) for bars in figure.axes[0].collections for path in bars.get_paths()]
    assert errors == pytest.approx([2 * 2.776445 * 0.5] * 12)  # Student's t with four degrees of freedom
    ends = [bar.get_y() + bar.get_height() for bar in figure.axes[1].patches if bar.get_x() < 0]  # of the first class
    means = [find(scores, quantity, "one", "test", "a").mean for quantity in figures.GAPS]
    assert ends == pytest.approx(np.cumsum(means))


@pytest.mark.parametrize("count", [20, 36, 50, 130])
def test_the_names_of_many_classes_do_not_run_together(count):
    classes = tuple(map(str, range(count)))
    scores = made_up_scores(METHODS[:2], classes)
    figure = figures.gaps_per_class(scores=scores, methods=METHODS[:2], classes=classes, likelihood="small print")
    assert "small print" in texts(figure)
    boxes = [label.get_window_extent() for label in figure.axes[2].get_xticklabels()]
    assert len(boxes) == (44 if count == 130 else count)  # every third
    assert all(one.x1 < other.x0 for one, other in pairwise(boxes))


def test_a_gap_that_is_zero_is_not_drawn_and_one_that_is_negative_has_a_linear_axis():
    means = {"amortization_gap": 0.0, "mean_field_gap": 9.0, "non_gaussian_gap": -12.0}
    figure = figures.gaps_over_epochs(scores=with_means(made_up_scores(METHODS[:1]), means), methods=METHODS[:1])
    assert [len(axes.containers) for axes in figure.axes] == [2, 2]
    assert figure.axes[0].get_yscale() == "linear"
    assert any(text.startswith("-") for text in texts(figure))


@pytest.mark.parametrize("methods", [METHODS[:1], METHODS], ids=len)
def test_quality_over_seconds_says_whether_gradients_are_equal(methods):
    scores, count = with_means(made_up_scores(methods), {"training_gradients": 600.0}), len(methods)
    for number, method in enumerate(methods):
        scores = changed(scores, "training_seconds", method.name, "train", mean=80.0 + 10 * number)
    figure = figures.quality_over_seconds(scores=scores, methods=methods)
    drawn = [line.get_xdata().tolist() for line in figure.axes[0].lines]
    assert drawn == [[40 + 5 * number, 80 + 10 * number] for number in range(count)]  # epochs 1 and 2 of 2
    tracked = select_scores(scores, quantity="log_prob", method="one", split="test", group=TRACKED)
    assert figure.axes[1].lines[0].get_ydata() == pytest.approx([entry.mean for entry in tracked])
    assert any("all methods take equally many gradients" in text for text in texts(figure)) == (count > 1)
    scores = changed(with_means(scores, {"log_prob": 9.0}), "training_gradients", "one", "train", mean=2400.0)
    other = texts(figures.quality_over_seconds(scores=scores, methods=methods))
    assert not any("equally many" in text for text in other)
    assert "-0" not in other


def test_log_probabilities_show_every_method_and_class():
    names = tuple(f"class {number}" for number in range(12))
    values, scores = np.random.default_rng(0).normal(-80, 9, (3, 12)), made_up_scores(METHODS, names)
    figure = draw_log_probabilities(scores, METHODS, names, values)
    shown = texts(figure)
    expected = [find(scores, "log_prob", "one", "test", name).mean for name in names]
    assert expected in [line.get_ydata().tolist() for line in figure.subfigs[1].axes[0].lines]
    assert {*names, *(f"{value:.1f}" for value in values.flatten()), *LABELS.values()} <= set(shown)
    assert any(
        "Mean of each class with its 95% t interval over three images or more" in text and "1,234" in text
        for text in shown
    )


@pytest.mark.parametrize(
    "names", ["01234", ("T-shirt", "_Dress", "Coat", "Shirt", "Bag"), [f"c{n}" for n in range(12)]]
)
def test_the_map_draws_short_names_and_explains_long_ones(names):
    labels, points = torch.arange(36) % len(names), {method.name: torch.randn(36, 2) for method in METHODS}
    scores = changed(made_up_scores(METHODS, names), "nearest_neighbor_accuracy", "pixels", mean=0.62)
    options = {"labels": labels, "methods": METHODS, "classes": names, "latent_dims": {}}
    figure = latent_figures.latent_map(points=points, scores=scores, **options)
    assert not style.are_short(["a", "_b"])  # an underscore would be an index in a marker
    legends = {text.get_text() for legend in figure.legends for text in legend.get_texts()}
    assert legends == (set() if max(map(len, names)) <= 2 else {name.replace("_", " _") for name in names})
    drawn = figure.axes[0].collections
    assert len({tuple(scatter.get_facecolor()[0]) for scatter in drawn}) == len(names)
    assert any("In raw pixels 62.0% (48.2% to 74.1%)" in text for text in texts(figure))


def test_the_map_of_few_dimensions_is_z_itself_beside_the_prior():
    drawn = torch.randn(3, 36, 2, generator=torch.Generator().manual_seed(0)).clamp(-3.9, 3.9)
    labels, points = torch.arange(36) % 3, dict(zip(("one", "two", "three"), drawn, strict=True))
    points["two"][7] = torch.tensor([4.0, 0.5])
    options = {"scores": made_up_scores(METHODS), "methods": METHODS, "classes": "abc", "labels": labels}
    figure = latent_figures.latent_map(points=points, latent_dims={"one": 2, "two": 1, "three": 7}, **options)
    plane, line, _ = figure.axes
    assert any("z itself; dashed: 1 and 2 standard deviations" in t and "or t-SNE" in t for t in texts(figure))
    assert [circle.radius for circle in plane.patches] == [1, 2]
    assert plane.get_xlim() == plane.get_ylim() == line.get_xlim() == (-4.2, 4.2)
    assert np.asarray(plane.collections[1].get_offsets()) == pytest.approx(points["one"][labels == 1].numpy())
    assert [mark.get_xdata()[0] for mark in line.lines] == [-2, -1, 1, 2]
    rows = points["two"][labels == 2].numpy() * [1, 0.7] + [0, 2]
    assert np.asarray(line.collections[2].get_offsets()) == pytest.approx(rows)
    figure = latent_figures.latent_map(points=points, latent_dims=dict.fromkeys(points, 2), **options)
    assert not any("t-SNE" in text for text in texts(figure))


@pytest.mark.parametrize("dims", [{"one": 2, "three": 2}, {"two": 1}, {"one": 1, "two": 2}])
def test_the_grid_of_z_has_the_axes_of_the_prior(dims):
    count, (height, width) = latent_figures.GRID, (4, 6)
    images = {name: torch.rand(count**dim, 1, height, width) * 2 - 1 for name, dim in dims.items()}
    figure = latent_figures.latent_manifold(images=images, methods=METHODS)
    assert {*map(LABELS.get, dims), "\N{MINUS SIGN}1.5"} <= set(texts(figure))
    for axes, (name, dim) in zip(figure.axes, dims.items(), strict=True):
        shown = np.array(axes.images[0].get_array())[..., 0]
        assert shown.shape == (height * count ** (dim - 1), width * count)
        assert shown[-height:, -width:] == pytest.approx((images[name][-1, 0].numpy() + 1) / 2, abs=1e-6)
        edge = count * width * NormalDist().cdf(1.5) - 0.5
        assert axes.get_xticks()[[3, -1]] == pytest.approx([count * width / 2 - 0.5, edge])
        assert [axes.get_ylabel(), len(axes.get_yticks())] == (["z[1]", 7] if dim == 2 else ["", 0])


def test_probes_draw_every_feature_at_its_number_of_labels_also_where_numbers_are_close():
    scores = [entry._replace(group=entry.group.replace("150", "77")) for entry in made_up_scores(METHODS)]
    figure = latent_figures.probes(scores=scores, methods=METHODS)
    expected = {"First way, mean of q, used dimensions only", "Raw pixels", "70\n(5 draws)", "77\n(1 draw)"}
    assert expected <= set(texts(figure))
    assert {text.split(",")[0] for text in texts(figure) if "test: fitted" in text} == {"Third way"}  # it infers q*
    axes = figure.axes[0]
    drawn = [line.get_xdata() for line in axes.lines if len(line.get_xdata()) == 2 and line.get_xdata()[0] > 1]
    assert len(drawn) >= 6
    assert all(abs(np.log(np.array(x, float) / [70, 77])).max() < np.log(1.1) / 2 for x in drawn)


def test_usage_says_both_numbers_with_their_thresholds():
    row = {"images": 30, "kl_standard_error": 0.1, "variance_of_mean": 1.0}
    of_methods = product(METHODS, SPLITS, (0.4, 3.0, 0.01))
    table = [{"method": method.name, "split": split, "kl": value, **row} for method, split, value in of_methods]
    means = {"used_dimensions": 2, "used_dimensions_lower": 1, "used_dimensions_upper": 3, "share_of_kl": 0.9971}
    means |= {"active_units": 3, "active_units_lower": 2, "active_units_upper": 4}
    scores = with_means(made_up_scores(METHODS), means)
    shown = texts(latent_figures.latent_usage(table=table, scores=scores, methods=METHODS))
    expected = "2 dimensions above 0.1 nats (1 to 3): 99.7% of the KL\n3 active units (2 to 4)"
    assert sum(text.endswith(expected) for text in shown) == 6


def test_sample_quality_shows_ratios_and_the_floor():
    scores = made_up_scores(METHODS)
    for name, value in {"one": 40.0, "pixel_gaussian": 100.0, "finite_sample_floor": 1.234}.items():
        scores = changed(scores, "frechet_distance", name, mean=value)
    scores = changed(scores, "frechet_ratio", "one", mean=0.4, standard_error=0.05)
    examples = {name: torch.zeros(3, 1, 8, 8) for name in ("one", "two", "three", "pixel_gaussian")}
    figure = latent_figures.sample_quality(scores=scores, examples=examples, methods=METHODS, classes="ab")
    assert {"40.0\nratio 0.400\n± 0.098", "100", "finite-sample floor: 1.23"} <= set(texts(figure))
    distance = next(axes for axes in figure.axes if axes.get_title().startswith("Fréchet"))
    assert [1.234, 1.234] in [list(line.get_ydata()) for line in distance.lines]


@pytest.mark.parametrize("wrong", [0, 3])
def test_classification_names_the_classes(wrong):
    row = {"train_images": 30, "validation_images": 20, "validation_error_standard_error": 0.01}
    history = [row | {"epoch": epoch, "train_error": 0.2, "validation_error": 0.1} for epoch in (1, 2)]
    mistakes = [(torch.zeros(1, 8, 8), 4, label, 0.87654) for label in range(wrong)]
    options = {"per_class": [{"accuracy": 0.96, "images": 50}] * 5, "confusion": np.eye(5, dtype=int) * 48}
    found = texts(figures.classification(history=history, classes=[*"abcd", "Boot"], wrong=mistakes, **options))
    assert {"Boot", "20 validation images", "Supervised baseline on all 250 test images"} <= set(found)
    assert found.count("p = 0.877") == wrong


def test_the_users_settings_change_no_pixel():
    def png():
        file = io.BytesIO()
        figure = figures.gaps_per_class(scores=made_up_scores(METHODS), methods=METHODS, classes="ab")
        figure.savefig(file, format="png")
        return file.getvalue()

    before, expected = dict(mpl.rcParams), png()
    assert dict(mpl.rcParams) == before
    others = {"font.family": "No such font", "savefig.dpi": 20, "savefig.bbox": "tight", "figure.facecolor": "black"}
    with mpl.rc_context({"text.usetex": True, "axes.unicode_minus": False, "ytick.labelsize": 30, **others}):
        assert png() == expected


@pytest.mark.parametrize(
    ("classes", "expected"),
    [
        (("кошка", "σκύλος", "كلب"), ["кошка", "σκύλος", "كلب"]),
        (("Ankle boot", "a$b$", "class_number_27"), ["Ankle boot", r"a\$b\$", "class_…er_27"]),  # no mathematics
        (("猫", "犬", "schön"), ["no. 0", "no. 1", "schön"]),
        (("patient 001 left", "patient 002 left"), ["patient…1 left", "patient…2 left"]),
        (("a long name with 1 difference", "a long name with 2 difference"), ["no. 0", "no. 1"]),
    ],
)
@pytest.mark.filterwarnings("error")
def test_names_in_any_alphabet_are_drawn_or_replaced_by_numbers(monkeypatch, classes, expected):
    own = [font for font in font_manager.fontManager.ttflist if font.fname.startswith(mpl.get_data_path())]
    monkeypatch.setattr(font_manager.fontManager, "ttflist", own)  # those that come with matplotlib
    style._fonts.cache_clear()
    assert style.shown(classes) == expected
    shared = {"scores": made_up_scores(METHODS[:1], classes), "methods": METHODS[:1], "classes": classes}
    figure = draw_log_probabilities(**shared)
    _, (upper, lower) = texts(figure), figure.axes  # a missing glyph is a warning
    assert set(expected) <= {text.get_text() for text in upper.texts}
    assert [label.get_text() for label in lower.get_xticklabels()] == expected
    points, labels = {"one": torch.randn(8, 2)}, torch.arange(8) % len(classes)
    texts(latent_figures.latent_map(points=points, labels=labels, latent_dims={}, **shared))
    style._fonts.cache_clear()


def test_no_interval_is_claimed_of_two_images_and_no_axis_passes_the_best_density():
    scores, methods = made_up_scores(METHODS[:1]), METHODS[:1]
    axes = draw_log_probabilities(scores, methods, "ab").subfigs[1].axes[0]
    bottom, top = axes.get_ylim()
    assert top - axes.dataLim.y1 < 0.06 * (top - bottom)
    few = {"images": 2, "standard_error": 0.5, "freedom": 1}
    pairs = [entry._replace(**few) if entry.group in ("a", "b") else entry for entry in scores]
    for kept, claimed in ((scores, True), (pairs, False)):
        found = texts(draw_log_probabilities(kept, methods, "ab"))
        found += texts(figures.gaps_per_class(scores=kept, methods=methods, classes="ab"))
        assert sum("95%" in text for text in found) == 2 * claimed
    unsure = [entry._replace(images=1, standard_error=None, freedom=0) for entry in scores]
    found = "".join(texts(figures.where_the_nats_go(scores=unsure, methods=methods)))
    assert "nan" not in found
    assert found.count("±") == 1  # of the title
