"""What the figures show, with one to three methods, five or twelve classes and images that are no MNIST."""

import io
from types import SimpleNamespace

import matplotlib as mpl
import numpy as np
import pytest
import torch
from evaluation.stats import wilson_interval

from evaluation import figures, style

NAMED = (("one", "First way", "#0072B2"), ("two", "Second way", "#D55E00"), ("three", "Third way", "#E69F00"))
METHODS = [SimpleNamespace(name=name, label=label, color=color) for name, label, color in NAMED]
LABEL = "Bernoulli p(x|z), binarized pixels"


def texts(figure):
    """All texts of a figure, drawn."""
    figure.savefig(io.BytesIO(), format="png", dpi=30)
    return [text.get_text() for text in figure.findobj(mpl.text.Text)]


def score(mean, images=6):
    return {"mean": mean, "standard_error": 0.5 if images > 1 else None, "images": images}


def share(value, images=50):
    return {"accuracy": value, "interval_95": wilson_interval(value * images, images), "images": images}


def test_a_row_shows_its_images_side_by_side_and_nothing_across_them():
    images = torch.rand(3, 1, 12, 20) * 2 - 1
    figure = style.image_rows(rows=[("upper", images), ("lower", -images)], captions={"lower": "abc"}, title="")
    upper, lower = figure.axes
    shown = np.array(upper.images[0].get_array())
    for position, image in enumerate(images):
        left = 3 + (20 + 3) * position
        assert shown[3:15, left : left + 20, 0] == pytest.approx((image[0].numpy() + 1) / 2, abs=1e-6)
    assert (shown[:, 23:26] == 1).all()
    assert [label.get_text() for label in upper.get_yticklabels()] == ["upper"]
    assert not any(line.get_visible() for axes in figure.axes for line in axes.get_ygridlines())
    assert [text.get_text() for text in upper.texts if text.get_text()] == []
    captions = [text for text in lower.texts if text.get_text()]
    assert [text.get_text() for text in captions] == ["a", "b", "c"]
    assert [text.xy[0] for text in captions] == [12.5, 35.5, 58.5]


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_any_number_of_channels_is_shown(channels):
    image = torch.rand(1, channels, 8, 8) * 4 - 2  # some of it out of range
    axes = style.image_rows(rows=[("", image)], title="").axes[0]
    shown = torch.from_numpy(np.array(axes.images[0].get_array())).permute(2, 0, 1)
    expected = image[0] if channels == 3 else image[0].mean(0, keepdim=True).expand(3, -1, -1)
    torch.testing.assert_close(shown, (expected.clamp(-1, 1) + 1) / 2)


def test_small_print_and_style_stay_in_the_figure():
    before = dict(mpl.rcParams)
    sheets = {method.label: torch.zeros(9, 1, 8, 12) for method in METHODS}
    assert LABEL in texts(style.sample_sheets(sheets=sheets, title="", likelihood=LABEL))
    assert LABEL not in texts(style.sample_sheets(sheets=sheets, title=""))
    assert dict(mpl.rcParams) == before


@pytest.mark.parametrize("count", [1, 2, 3])
def test_curves_and_gaps_show_every_method(count):
    methods, part = METHODS[:count], ("elbo", "log_likelihood", "kl")
    history = []
    for method in methods:
        for epoch in (1, 2):
            row = {"method": method.name, "epoch": epoch, "train_images": 4321, "validation_images": 987}
            for name in part:
                row |= {f"train_{name}": -9.0, f"validation_{name}": -8.0, f"validation_{name}_standard_error": 0.1}
            history.append(row)
    figure = figures.training_curves(history=history, methods=methods, saved_epochs=[1, 2], likelihood=LABEL)
    found = texts(figure)
    for method in methods:
        assert f"{method.label},\n4,321 training images" in found
        assert f"{method.label},\n987 validation images" in found
    colors = [line.get_color() for line in figure.axes[0].lines]
    assert colors == [method.color for method in methods for _ in range(2)]

    rows, per_class, classes = [], {}, ("a", "b", "c", "d", "Ankle boot")
    for method in methods:
        for split in ("train", "test"):
            for epoch, images in ((1, 5), (2, 5), (2, 6)):  # the last epoch twice: the same images, and more
                gaps = {"approximation_gap": score(40.0 / epoch, images), "elbo": score(-90.0, images)}
                gaps["amortization_gap"] = score(0.0 if method.name == "two" else 30.0 / epoch, images)
                rows.append({"epoch": epoch, "method": method.name, "split": split, "scores": gaps})
            gaps = {"approximation_gap": score(3.0), "amortization_gap": score(1.0), "elbo": score(-60.0)}
            per_class.setdefault(method.name, {})[split] = [gaps] * len(classes)
    figure = figures.gaps_over_epochs(rows=rows, methods=methods, saved_epochs=[1, 2], likelihood=LABEL)
    assert len(figure.axes) == 2 * count
    assert "First way, training images (5 images; open marker: 6)" in texts(figure)
    # The lines are of the same images; the larger sample is a marker of its own. A gap that is 0 is not drawn.
    drawn = [line.get_ydata().tolist() for line in figure.axes[0].lines if line.get_linestyle() in ("-", "--")]
    assert drawn[:1] + drawn[1:2] == [[40, 20], [30, 15]]
    assert [len(axes.containers) for axes in figure.axes] == [2, 2, 1, 1, 2, 2][: 2 * count]
    assert figure.axes[0].get_yscale() == "log"
    for row in rows:
        row["scores"]["log_prob"] = score(-50.0)
    seconds = {method.name: 80.0 + 10 * number for number, method in enumerate(methods)}
    figure = figures.quality_over_seconds(rows=rows, training_seconds=seconds, methods=methods, likelihood=LABEL)
    drawn = [line.get_xdata().tolist() for line in figure.axes[0].lines]
    assert drawn == [[40 + 5 * number, 80 + 10 * number] for number in range(count)]  # epochs 1 and 2 of 2
    assert [line.get_ydata().tolist() for line in figure.axes[1].lines] == [[50, 50]] * count
    assert figure.axes[0].get_ylim()[0] > figure.axes[0].get_ylim()[1]  # the best is at the top
    assert any(text.startswith("-5") for text in texts(figure))  # numbers have the sign of what is drawn
    figure = figures.gaps_per_class(per_class=per_class, methods=methods, classes=classes, likelihood=LABEL)
    assert len(figure.axes) == 2 * count
    assert {"Ankle boot", LABEL} <= set(texts(figure))
    (error,) = {tuple(np.ptp(path.vertices[:, 1]) for path in bars.get_paths()) for bars in figure.axes[0].collections}
    assert error == pytest.approx([2 * 2.570582 * 0.5] * 5)  # Student's t with five degrees of freedom


def test_gaps_that_are_not_positive_have_a_linear_axis():
    scores = {name: score(-12.0) for name in ("approximation_gap", "amortization_gap", "elbo")}
    rows = [{"epoch": 1, "method": "one", "split": split, "scores": scores} for split in ("train", "test")] * 2
    figure = figures.gaps_over_epochs(rows=rows, methods=METHODS[:1], saved_epochs=[1])
    assert figure.axes[0].get_yscale() == "linear"
    assert "-12" in texts(figure)


@pytest.mark.parametrize(("count", "classes"), [(1, 12), (3, 5)])
def test_log_probabilities_show_every_method_and_class(count, classes):
    names = tuple(f"class {number}" for number in range(classes))
    values = np.random.default_rng(0).normal(-80, 9, (count, classes))
    of_class = {"annealed": score(-80.0, images=4), "importance_sampling": score(-95.0, images=4)}
    of_split = {"classes": [of_class] * classes}
    figure = figures.log_probabilities(
        scores={method.name: {"train": of_split, "test": of_split} for method in METHODS[:count]},
        images=torch.zeros(classes, 2, 8, 12),
        example_values=values,
        num_samples=1234,
        methods=METHODS[:count],
        classes=names,
        likelihood=LABEL,
    )
    found = texts(figure)
    drawn = [set(line.get_ydata()) for line in figure.subfigs[1].axes[0].lines if line.get_marker() in ("o", "v")]
    assert drawn == [{-80.0}, {-95.0}] * 2  # annealed, and importance sampling beside it, of either split
    assert {f"{value:.1f}" for value in values.flatten()} <= set(found)
    assert {method.label for method in METHODS[:count]} <= set(found)
    assert {*names, LABEL} <= set(found)
    assert any("4 random images of each class with its 95% t interval" in text and "1,234" in text for text in found)


@pytest.mark.parametrize("names", ["01234", ("T-shirt", "Dress", "Coat", "Shirt", "Bag"), [f"c{n}" for n in range(12)]])
def test_the_map_draws_short_names_and_explains_long_ones(names):
    labels = torch.arange(36) % len(names)
    points = {method.name: torch.randn(36, 2) for method in METHODS}
    shares = {"agreement": {method.name: share(0.5) for method in METHODS}, "in_pixels": share(0.62)}
    figure = figures.latent_map(points=points, labels=labels, methods=METHODS, classes=names, **shares)
    legends = [text.get_text() for legend in figure.legends for text in legend.get_texts()]
    assert legends == ([] if max(map(len, names)) <= 2 else list(names))
    drawn = figure.axes[0].collections
    assert len({tuple(scatter.get_facecolor()[0]) for scatter in drawn}) == len(names)
    found = texts(figure)
    assert sum("50.0%" in text for text in found) == 3
    assert any("In raw pixels 62.0% (48.2% to 74.1%)" in text for text in found)


def test_names_of_classes_are_cut_in_the_middle_and_are_no_mathematics():
    assert [style.short(name) for name in ("Ankle boot", "a$b$", "class_number_27")] == [
        "Ankle boot",
        r"a\$b\$",
        "class_…er_27",
    ]
    assert style.are_short("0123")
    assert not style.are_short(["a", "_b"])  # an underscore would be an index in a marker
    images, values = torch.zeros(2, 1, 8, 8), np.zeros((1, 2))
    of_split = {"classes": [dict.fromkeys(("annealed", "importance_sampling"), score(-80))] * 2}
    figure = figures.log_probabilities(
        scores={"one": dict.fromkeys(("train", "test"), of_split)},
        images=images,
        example_values=values,
        num_samples=3,
        methods=METHODS[:1],
        classes=("a$b$", "class_number_27"),
    )
    upper, lower = figure.axes
    assert "class_…er_27" in [text.get_text() for text in upper.texts]
    assert [label.get_text() for label in lower.get_xticklabels()] == [r"a\$b\$", "class_…er_27"]


def test_probes_draw_every_feature_with_its_look():
    rows = [{"labels": labels, "draws": draws, **share(0.8)} for labels, draws in ((70, 5), (150, 1))]
    scores = dict.fromkeys(("one", "one_used", "two", "three", "pixels", "baseline_features"), rows)
    methods = [SimpleNamespace(**vars(method), shared_inference=method.name != "three") for method in METHODS]
    found = texts(figures.probes(scores=scores, baseline=share(0.9), methods=methods, likelihood=LABEL))
    assert {
        "First way, mean of q",
        "First way, mean of q, used dimensions only",
        "Third way, mean of q\n(training: rows of its table; test: fitted)",
        "Raw pixels",
        "70\n(5 draws)",
    } <= set(found)
    assert "150\n(1 draw)" in found


def test_usage_says_both_numbers_with_their_thresholds():
    row = {"images": 30, "kl_standard_error": 0.1, "variance_of_mean": 1.0}
    kl = (0.4, 3.0, 0.01)
    table = [
        {"method": method.name, "split": split, "dimension": number, "kl": value * 10**shift, **row}
        for shift, method in enumerate(METHODS)
        for split in ("train", "test")
        for number, value in enumerate(kl)
    ]
    counts = {"used_dimensions": 2, "kl_threshold": 0.25, "share_of_kl": 0.9971, "interval_95": [1, 2], "images": 30}
    counts |= {"active_units": 3, "variance_threshold": 0.07, "active_units_interval_95": [2, 3]}
    dimensions = {method.name: {"train": counts, "test": counts} for method in METHODS}
    figure = figures.latent_usage(table=table, dimensions=dimensions, methods=METHODS, likelihood=LABEL)
    found = texts(figure)
    expected = "2 dimensions above 0.25 nats (1 to 2): 99.7% of the KL\n3 active units (2 to 3)"
    assert sum(text.endswith(expected) for text in found) == 6
    assert any("dotted: 0.25 nats" in text and "above 0.07" in text for text in found)
    assert list(figure.axes[0].lines[0].get_ydata()) == [3, 0.4, 0.01]
    assert figure.axes[0].get_ylim()[0] == 0
    assert figure.axes[0].get_ylim()[1] > 300  # the same axis for the last method, whose KL is larger
    assert list(figure.axes[2].lines[-1].get_ydata()) == [0.25, 0.25]


def test_sample_quality_shows_ratios_and_the_floor():
    def kind(value, ratio, error):
        distance = {"value": value, "standard_error": 0.1 * value, "images": 70}
        distance["over_pixel_gaussian"] = {"value": ratio, "standard_error": error}
        classes = [{"share": 0.5, "interval_95": wilson_interval(35, 70)}] * 2
        return {"frechet_distance": distance, "classes": classes, "confidence": score(0.9, 70)}

    scores = {method.name: kind(40 + number, 0.4, 0.05) for number, method in enumerate(METHODS)}
    scores |= {"pixel_gaussian": kind(100, 1.0, 0.0), "test": kind(0, 0, 0)}
    examples = {name: torch.zeros(3, 1, 8, 8) for name in scores if name != "test"}
    shown = {"examples": examples, "methods": METHODS, "classes": "ab", "likelihood": LABEL}
    figure = figures.sample_quality(scores=scores, floor={"value": 1.234}, **shown)
    found = texts(figure)
    assert {"40.0\n0.400\n± 0.098", "42.0\n0.400\n± 0.098", "100", "finite-sample floor: 1.23", LABEL} <= set(found)
    distance = next(axes for axes in figure.axes if axes.get_title().startswith("Fréchet"))
    assert [1.234, 1.234] in [list(line.get_ydata()) for line in distance.lines]
    low, high = distance.get_ylim()
    assert low < 1.234 < 100 < high


@pytest.mark.parametrize("wrong", [0, 3])
def test_classification_names_the_classes(wrong):
    classes = ("a", "b", "c", "d", "Ankle boot")
    history = [
        {"train_images": 30, "validation_images": 20, "validation_error_standard_error": 0.01}
        | {"epoch": epoch, "train_error": 0.2, "validation_error": 0.1}
        for epoch in (1, 2)
    ]
    mistakes = [(torch.zeros(1, 8, 8), 4, label, 0.87654) for label in range(wrong)]
    figure = figures.classification(
        history=history,
        per_class=[share(0.96)] * 5,
        confusion=np.eye(5, dtype=int) * 48,
        wrong=mistakes,
        classes=classes,
    )
    found = texts(figure)
    assert {"Ankle boot", "20 validation images", "Supervised baseline on all 250 test images"} <= set(found)
    assert found.count("p = 0.877") == wrong
