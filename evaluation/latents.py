"""What the latents represent: active dimensions, linear probes, maps, traversals and interpolations."""

import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.manifold import TSNE
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from data import SPLITS, rows_per_class, stratified_subset
from evaluation import figures, style
from evaluation.samples import classify
from evaluation.stats import accuracy, bootstrap_counts, wilson_interval
from runtime.checkpoint import save_csv, save_figure
from vae_utils import kl_per_dimension, random_generator

ACTIVE = 0.01  # variance over images of the mean of q above which a dimension is active (Burda et al. 2016)
RESAMPLES = 200
PROBE_LABELS = (100, 1000, 20_000)
PROBE_DRAWS = 5  # of the labels, where not all are used
# One C for every probe: around it accuracy changes by less than its interval on 500 test images, at all these labels.
PROBE_C, PROBE_TOLERANCE, PROBE_ITERATIONS = 0.1, 1e-3, 500
TRAVERSED_DIMENSIONS, TRAVERSED_DIRECTIONS = 4, 3
TRAVERSED_CLASS, INTERPOLATED_CLASSES = 3, (2, 7)  # by their position, modulo the number of classes


def active_units(mean):
    """Which dimensions are active, (D,) bool, by the means of q (B, D): Cov_x(E_q[z]) > ACTIVE (Burda et al. 2016)."""
    return mean.double().var(0) > ACTIVE


def active_units_interval(mean, *, generator):
    """The 95% interval of the number of active units, two whole numbers: percentiles over resamples of the images."""
    mean = mean.double() - mean.double().mean(0)  # centered, so that the difference of squares loses no digits
    counts = bootstrap_counts(len(mean), resamples=RESAMPLES, generator=generator)
    first, second = counts @ mean / len(mean), counts @ mean.square() / len(mean)
    variance = (second - first.square()) * len(mean) / (len(mean) - 1)  # (resamples, D)
    active = (variance > ACTIVE).sum(1).cpu().numpy()
    return [int(np.quantile(active, end, method=method)) for end, method in ((0.025, "lower"), (0.975, "higher"))]


def usage(q, *, generator):
    """One dict per dimension of q, a diagonal Normal (B, D), and the number of active units with its interval."""
    images, divergence = len(q.mean), kl_per_dimension(q).double()
    columns = divergence.mean(0), divergence.std(0) / images**0.5, q.mean.double().var(0)
    rows = [
        {"dimension": dimension, "images": images, "kl": mean, "kl_standard_error": error, "variance_of_mean": variance}
        for dimension, (mean, error, variance) in enumerate(torch.stack(columns, dim=1).tolist())
    ]
    interval = active_units_interval(q.mean, generator=generator)
    return rows, {"active_units": int(active_units(q.mean).sum()), "interval_95": interval, "images": images}


def probe(features, labels):
    """A logistic regression on standardized features (N, F), with the labels (N,): (scikit-learn model, converged)."""
    regression = LogisticRegression(C=PROBE_C, tol=PROBE_TOLERANCE, max_iter=PROBE_ITERATIONS)
    model = make_pipeline(StandardScaler(), regression)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # it is returned
        model.fit(features.cpu().numpy(), labels.cpu().numpy())
    return model, bool(regression.n_iter_.max() < PROBE_ITERATIONS)


def probe_scores(features, *, train, sample, seed):
    """How well classes can be read from features, {name: one dict for each number of labels}.

    features: {name: (of the training images (N, F), of the test images (M, F))}; train, sample: the Splits of these
    images. The numbers of labels are PROBE_LABELS, at most N. Fewer than N labels are drawn PROBE_DRAWS times,
    stratified, the same draws for all features. The accuracy is the mean over the draws; the interval is Wilson's over
    the M test images alone, and the standard deviation is that over the draws.
    """
    count, images, scores = len(train.labels), len(sample.labels), {name: [] for name in features}
    numbered = replace(train, index=torch.arange(count, device=train.labels.device))
    for size in sorted({min(size, count) for size in PROBE_LABELS}):
        draws = [
            stratified_subset(numbered, size=size, seed=_seed(seed, "labels of the probe", size, draw)).index
            for draw in range(PROBE_DRAWS if size < count else 1)
        ]
        for name, (of_train, of_sample) in features.items():
            models, converged = zip(*(probe(of_train[rows], train.labels[rows]) for rows in draws), strict=True)
            x, y = of_sample.cpu().numpy(), sample.labels.cpu().numpy()
            shares = [float((model.predict(x) == y).mean()) for model in models]
            mean = sum(shares) / len(draws)
            scores[name].append(
                {
                    "labels": size,
                    "accuracy": mean,
                    "interval_95": wilson_interval(mean * images, images),
                    "images": images,
                    "draws": len(draws),
                    "standard_deviation_over_draws": float(np.std(shares, ddof=1)) if len(draws) > 1 else None,
                    "converged": all(converged),
                }
            )
    return scores


def map_2d(features, *, seed):
    """t-SNE (van der Maaten & Hinton 2008) of features (B, F): (B, 2), the same on every call."""
    count, width = features.shape
    init, perplexity = "pca" if width > 1 else "random", min(30, (count - 1) / 3)
    embedding = TSNE(perplexity=perplexity, init=init, random_state=_seed(seed, "map"))
    return torch.from_numpy(embedding.fit_transform(features.cpu().numpy()))


def nearest_agree(features, labels):
    """Whether the nearest other image by features (B, F), Euclidean, has the same label, (B,) bool."""
    distance = torch.cdist(features, features).fill_diagonal_(torch.inf)
    return labels[distance.argmin(1)] == labels


def principal_directions(mean, count):
    """Principal directions of the means of q (B, D), (count, D), largest entry positive, and variances, (count,)."""
    pca = PCA(min(count, *mean.shape), svd_solver="full").fit(mean.cpu().double().numpy())
    directions = torch.from_numpy(pca.components_)
    signs = directions.gather(1, directions.abs().argmax(1, keepdim=True)).sign()
    return (directions * signs).to(mean), torch.from_numpy(pca.explained_variance_).to(mean)


def line(start, end, steps=9):
    """Equidistant points from start to end, both included: (steps, *shape)."""
    share = torch.linspace(0, 1, steps, device=start.device).reshape(-1, *[1] * start.dim())
    return start + share * (end - start)


def traversal(start, directions, values):
    """z that takes the values (V,) along one unit vector (K, D) at a time, elsewhere those of start (D,): (K, V, D)."""
    rest = start - (directions @ start)[:, None] * directions  # (K, D)
    return rest[:, None] + values[:, None] * directions[:, None]


@torch.no_grad()
def analyse(methods, train_q, data, classifier, config, *, sample, sample_q, results_dir):
    """Writes latent_usage, _probes, _map, traversals and interpolation to `results_dir`; returns the summary's numbers.

    train_q, sample_q: {method's name: diagonal Normal (N, D)}, of all training images and of sample, a stratified Split
    of test images; config: an EvalConfig.
    """
    results_dir, seed, train = Path(results_dir), config.seed, data.train
    likelihood = methods[0].model.likelihood.label

    def save(name, draw, **values):
        save_figure(results_dir / f"{name}.png", draw(likelihood=likelihood, **values))

    table, units, seen = [], {}, {}
    for method in methods:
        both, units[method.name] = (train_q[method.name], sample_q[method.name]), {}
        for split, q in zip(SPLITS, both, strict=True):
            generator = random_generator(seed, "active units", method.name, split, device=q.mean.device)
            rows, units[method.name][split] = usage(q, generator=generator)
            table += [{"method": method.name, "split": split, **row} for row in rows]
        seen[method.name] = tuple(q.mean for q in both)
        # A probe may read x from dimensions that the decoder ignores, because there q is very near to p(z).
        active = active_units(train_q[method.name].mean)
        if active.any() and not active.all():
            seen[f"{method.name}_active"] = tuple(mean[:, active] for mean in seen[method.name])
    save_csv(results_dir / "latent_usage.csv", table)
    save("latent_usage", figures.latent_usage, table=table, units=units, methods=methods)

    seen["pixels"] = train.images.flatten(1), sample.images.flatten(1)
    classified = classify(classifier, sample.images)
    seen["baseline_features"] = classify(classifier, train.images).features, classified.features
    scores = probe_scores(seen, train=train, sample=sample, seed=seed)
    itself = accuracy(classified.label == sample.labels.cpu())
    save("latent_probes", figures.probes, scores=scores, baseline=itself, methods=methods)

    agreement = {name: accuracy(nearest_agree(q.mean, sample.labels)) for name, q in sample_q.items()}
    points = {name: map_2d(q.mean, seed=seed) for name, q in sample_q.items()}
    shared = {"labels": sample.labels.cpu(), "methods": methods, "classes": sample.classes}
    save("latent_map", figures.latent_map, points=points, agreement=agreement, **shared)
    _draw_traversals(methods, train_q, sample_q, sample, save)
    _draw_interpolation(methods, sample_q, sample, classifier, save)
    numbers = {}
    for name, share in agreement.items():
        numbers[name] = {"active_units": units[name], "nearest_neighbor_has_the_same_class": share}
    return {"methods": numbers, "probes": {**scores, "baseline_itself": {"labels": len(train.labels), **itself}}}


def _draw_traversals(methods, train_q, sample_q, sample, save):
    """From -3 to 3: the dimensions with most KL in training, and the directions in which the means of q vary most."""
    row = int(rows_per_class(sample, 1)[TRAVERSED_CLASS % sample.num_classes])
    values, columns = torch.linspace(-3, 3, 7, device=sample.images.device), {}
    for method in methods:
        q, start, decode = train_q[method.name], sample_q[method.name].mean[row], method.model.mean
        nats, dimensions = kl_per_dimension(q).mean(0).topk(min(TRAVERSED_DIMENSIONS, q.mean.shape[1]))
        principal, variances = principal_directions(q.mean, TRAVERSED_DIRECTIONS)
        directions = torch.cat((torch.eye(len(start)).to(start)[dimensions], principal))
        labels = [f"z[{d}]\n{kl:.2f} nats" for d, kl in zip(dimensions.tolist(), nats.tolist(), strict=True)]
        labels += [f"direction {n}\nvariance {v:.1f}" for n, v in enumerate(variances.tolist(), 1)]
        drawn = decode(traversal(start, directions, values))  # (K, V, C, H, W)
        first = torch.ones_like(drawn[0])  # white, but for two
        first[:2] = torch.stack((sample.images[row], decode(start)))
        columns[method.label] = [("test image,\nreconstruction", first), *zip(labels, drawn, strict=True)]
    axis = [f"{value:+g}" if value else "0" for value in values.tolist()]
    save(
        "traversals",
        style.image_rows,
        rows=columns,
        captions={rows[-1][0]: axis for rows in columns.values()},
        title="z set to the value at the bottom, in standard deviations of p(z), along the dimensions with most KL (at "
        "the left its mean over training images)\nand along the directions in which the means of q vary most; across "
        "these, z stays at the mean of q of the test image",
    )


def _draw_interpolation(methods, sample_q, sample, classifier, save):
    """Between two test images: a mixture of their pixels, and what each model draws between their means of q."""
    first, last = (position % sample.num_classes for position in INTERPOLATED_CLASSES)
    last = last if last != first else (first + 1) % sample.num_classes
    start, end = rows_per_class(sample, 1)[[first, last], 0].tolist()
    rows = {"mixed pixels": line(sample.images[start], sample.images[end])}
    for method in methods:
        mean = sample_q[method.name].mean
        rows[method.label] = method.model.mean(line(mean[start], mean[end]))
    captions = {}
    for name, images in rows.items():
        _, labels, confidence = classify(classifier, images)
        pairs = zip(labels.tolist(), confidence.tolist(), strict=True)
        captions[name] = [f"{sample.classes[label]}: {share:.0%}" for label, share in pairs]
    save(
        "interpolation",
        style.image_rows,
        rows=list(rows.items()),
        captions=captions,
        title="On the straight line between two test images (the ends of the upper row),\nor between their means of q; "
        "below each, the class that the supervised baseline finds most probable",
    )


def _seed(seed, *purpose):
    """A seed for scikit-learn, a function of (seed, purpose) alone."""
    return int(torch.randint(2**31, (), generator=random_generator(seed, *purpose)))
