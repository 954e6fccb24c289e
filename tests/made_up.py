"""Scores of made-up methods, shared by the tests of tables, figures and the page."""

from types import SimpleNamespace

from data import SPLITS
from evaluation.scores import MEANS, PAIRED
from evaluation.statistics import TRACKED, Score
from evaluation.tables import COSTS

NAMED = (("one", "First way", "#0072B2"), ("two", "Second way", "#D55E00"), ("three", "Third way", "#E69F00"))
METHODS = [
    SimpleNamespace(name=name, label=label, color=color, infers_best=name == "three", reconstruction_prefix=name)
    for name, label, color in NAMED
]
LABELS = {method.name: method.label for method in METHODS}
COUNTED = """draws monte_carlo_error bias acceptance images_not_trusted fit_converged
temperatures effective_sample_size full_effective_sample_size annealed_images log_weight_std used_dimensions
used_dimensions_lower used_dimensions_upper active_units active_units_lower active_units_upper share_of_kl"""
COUNTS = COUNTED.split()


def made_up_scores(methods, classes=("a", "b"), epochs=(1, 2)):
    """Every Score that tables, figures and captions of these methods read; no two means are equal."""
    last, scores, names = epochs[-1], [], [method.name for method in methods]

    def add(quantity, method, split="test", *, epoch=last, group="", images=50):
        mean = 0.05 * (1 + len(scores)) - 900.01  # with one digit, none is halfway between two
        scores.append(Score(quantity, method, split, epoch, group, mean, 0.5, images, images - 1))

    for name in names:
        for split in SPLITS:
            for quantity in ("elbo_all", "log_likelihood", "kl"):
                add(quantity, name, split, images=4321)
            for quantity in (*MEANS, *COUNTS):
                add(quantity, name, split)
            for quantity in MEANS:
                for group in classes:
                    add(quantity, name, split, group=group, images=5)
                for epoch in epochs:
                    add(quantity, name, split, epoch=epoch, group=TRACKED, images=10)
        add("bidirectional_gap", name, "simulated", images=20)
        for quantity, (split, *_) in COSTS.items():
            add(quantity, name, split)
    for number, one in enumerate(names):
        for other in names[number + 1 :]:
            for split in SPLITS:
                for quantity in PAIRED:
                    add(quantity, f"{one} - {other}", split)
    for name in (*names, f"{names[0]}_used", "pixels", "baseline_features"):
        for group in ("70", "150"):
            for quantity in ("probe_accuracy", "probe_draws"):
                add(quantity, name, group=group)
    for name in (*names, "pixels"):
        add("nearest_neighbor_accuracy", name)
    add("classifier_accuracy", "baseline")
    for kind in (*names, "pixel_gaussian", "test", "finite_sample_floor"):
        for quantity in ("frechet_distance", "frechet_ratio", "confidence"):
            add(quantity, kind, images=70)
        for group in classes:
            add("class_share", kind, group=group)
    shares = ("probe_accuracy", "nearest_neighbor_accuracy", "classifier_accuracy", "class_share", "share_of_kl")
    return [_positive(entry, shares) for entry in scores]


def _positive(entry, shares):
    """Shares between 0 and 1, counts and distances above 0."""
    if entry.quantity in (*shares, "acceptance", "fit_converged", "confidence"):
        return entry._replace(mean=-entry.mean / 1000)
    if entry.quantity == "probe_draws":
        return entry._replace(mean=5.0 if entry.group == "70" else 1.0)
    counted = entry.quantity in COUNTS or entry.quantity.startswith("frechet") or entry.quantity in COSTS
    gap = entry.quantity.endswith("gap")
    entry = entry._replace(mean=-entry.mean) if counted or gap else entry
    return entry._replace(freedom=None) if entry.quantity.startswith("frechet") else entry


def changed(scores, quantity, method, split="test", group="", **values):
    """The Scores with other values of one quantity."""
    which = {"quantity": quantity, "method": method, "split": split, "group": group}
    return [entry._replace(**values) if which.items() <= entry._asdict().items() else entry for entry in scores]
