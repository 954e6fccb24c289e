"""What the figures show, with one to three methods, five or twelve classes and images that are no MNIST."""

import io
from types import SimpleNamespace

import matplotlib as mpl
import numpy as np
import pytest
import torch

from evaluation import figures, style
from evaluation.stats import wilson_interval

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
            for epoch, images in ((1, 5), (2, 6)):
                scores = {name: score(-100.0 / epoch, images) for name in ("log_prob", "fitted_elbo")}
                scores["elbo"] = scores["fitted_elbo"] if method.name == "two" else score(-110.0 / epoch, images)
                rows.append({"epoch": epoch, "method": method.name, "split": split, "scores": scores})
            gaps = {"approximation_gap": score(3.0), "amortization_gap": score(1.0), "elbo": score(-60.0)}
            per_class.setdefault(method.name, {})[split] = [gaps] * len(classes)
    figure = figures.gaps_over_epochs(rows=rows, methods=methods, saved_epochs=[1, 2], likelihood=LABEL)
    found = texts(figure)
    assert len(figure.axes) == 2 * count
    assert "First way, training images (6 at the last epoch, 5 before)" in found
    assert found.count("ELBO(q), the same: q is fitted") == 2 * (count > 1)
    # The best is at the top, and the numbers on the axis have the sign of what is drawn.
    bottom, top = figure.axes[0].get_ylim()
    assert bottom > top
    assert any(text.startswith("-1") for text in found)
    figure = figures.gaps_per_class(per_class=per_class, methods=methods, classes=classes, likelihood=LABEL)
    assert len(figure.axes) == 2 * count
    assert {"Ankle boot", LABEL} <= set(texts(figure))
    (error,) = {tuple(np.ptp(path.vertices[:, 1]) for path in bars.get_paths()) for bars in figure.axes[0].collections}
    assert error == pytest.approx([2 * 2.570582 * 0.5] * 5)  # Student's t with five degrees of freedom


def test_positive_log_densities_have_a_linear_axis():
    scores = {name: score(12.0) for name in ("log_prob", "fitted_elbo", "elbo")}
    rows = [{"epoch": 1, "method": "one", "split": split, "scores": scores} for split in ("train", "test")]
    figure = figures.gaps_over_epochs(rows=rows, methods=METHODS[:1], saved_epochs=[1])
    assert figure.axes[0].get_yscale() == "linear"
    assert "12" in texts(figure)


@pytest.mark.parametrize(("count", "classes"), [(1, 12), (3, 5)])
def test_log_probabilities_show_every_method_and_class(count, classes):
    names = tuple(f"class {number}" for number in range(classes))
    values = np.random.default_rng(0).normal(-80, 9, (count, classes))
    of_split = {"classes": [score(-80.0, images=4)] * classes}
    found = texts(
        figures.log_probabilities(
            scores={method.name: {"train": of_split, "test": of_split} for method in METHODS[:count]},
            images=torch.zeros(classes, 2, 8, 12),
            example_values=values,
            num_samples=1234,
            methods=METHODS[:count],
            classes=names,
            likelihood=LABEL,
        )
    )
    assert {f"{value:.1f}" for value in values.flatten()} <= set(found)
    assert {method.label for method in METHODS[:count]} <= set(found)
    assert {*names, LABEL} <= set(found)
    assert any("Mean over 4 images per class with its 95% interval" in text and "1,234" in text for text in found)


@pytest.mark.parametrize("names", ["01234", ("T-shirt", "Dress", "Coat", "Shirt", "Bag"), [f"c{n}" for n in range(12)]])
def test_the_map_draws_short_names_and_explains_long_ones(names):
    labels = torch.arange(36) % len(names)
    points = {method.name: torch.randn(36, 2) for method in METHODS}
    agreement = {method.name: share(0.5) for method in METHODS}
    figure = figures.latent_map(points=points, labels=labels, agreement=agreement, methods=METHODS, classes=names)
    legends = [text.get_text() for legend in figure.legends for text in legend.get_texts()]
    assert legends == ([] if max(map(len, names)) <= 2 else list(names))
    drawn = figure.axes[0].collections
    assert len({tuple(scatter.get_facecolor()[0]) for scatter in drawn}) == len(names)
    assert any("50.0%" in text for text in texts(figure))


def test_probes_draw_every_feature_with_its_look():
    rows = [{"labels": labels, "draws": draws, **share(0.8)} for labels, draws in ((70, 5), (150, 1))]
    scores = dict.fromkeys(("one", "one_active", "two", "three", "pixels", "baseline_features"), rows)
    found = texts(figures.probes(scores=scores, baseline=share(0.9), methods=METHODS, likelihood=LABEL))
    assert {
        "First way, mean of q",
        "First way, mean of q, active units only",
        "Third way, mean of q",
        "Raw pixels",
        "70\n(5 draws)",
    } <= set(found)
    assert "150\n(1 draw)" in found


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
