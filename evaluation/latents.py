"""What the latents represent: used dimensions, linear probes, maps, traversals and interpolations."""

import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.manifold import TSNE
from sklearn.model_selection import GridSearchCV, StratifiedKFold

from data import SPLITS, stratified_subset
from evaluation import figures, style
from evaluation.samples import classify
from evaluation.stats import accuracy, bootstrap_counts, count_interval, wilson_interval
from runtime.checkpoint import save_csv, save_figure
from runtime.tasks import compute
from vae_utils import random_generator

USED = 0.1  # nats: mean KL over images above which a dimension is used
ACTIVE = 0.01  # variance over images of the mean of q above which a dimension is active (Burda et al. 2016)
RESAMPLES = 200
PROBE_LABELS = (100, 1000, 20_000)
PROBE_DRAWS = 5  # of the labels, where not all are used
PROBE_C = (0.001, 0.01, 0.1, 1.0, 10.0, 100.0)  # inverse strengths of the penalty, of which cross-validation chooses
FEW_LABELS, MANY_FOLDS, FEW_FOLDS = 2000, 5, 3  # of more labels, the first of five folds is enough to choose C by
SEARCH_TOLERANCE, PROBE_TOLERANCE, PROBE_ITERATIONS = 1e-3, 1e-4, 1000
TRAVERSED_DIMENSIONS, TRAVERSED_DIRECTIONS = 4, 3
TRAVERSED_CLASS, INTERPOLATED_CLASSES = 3, (2, 7)  # by their position, modulo the number of classes


def used_dimensions(q):
    """Which dimensions of q, a diagonal q (B, D), are used, (D,) bool: their mean KL over images is above USED."""
    return q.kl_per_dimension().double().mean(0) > USED


def usage(q, *, generator):
    """One dict per dimension of q, a diagonal q (B, D), and the numbers of used dimensions and of active units.

    A dimension is used if its mean KL is above USED. It is an active unit if the mean of q varies over the images by
    more than ACTIVE (Burda et al. 2016), which is also true of many dimensions with next to no KL. The 95% intervals
    are percentiles over the same bootstrap resamples of the images.
    """
    images, divergence, mean = len(q.mean), q.kl_per_dimension().double(), q.mean.double()
    kl, variance = divergence.mean(0), mean.var(0)
    columns = torch.stack((kl, divergence.std(0) / images**0.5, variance), dim=1).tolist()
    rows = [
        {"dimension": dimension, "images": images, "kl": nats, "kl_standard_error": error, "variance_of_mean": spread}
        for dimension, (nats, error, spread) in enumerate(columns)
    ]
    counts = bootstrap_counts(images, resamples=RESAMPLES, generator=generator)
    mean = mean - mean.mean(0)  # so that the difference of squares loses no digits
    first, second = counts @ mean / images, counts @ mean.square() / images
    variances = (second - first.square()) * images / (images - 1)  # (resamples, D)
    used = used_dimensions(q)
    return rows, {
        "used_dimensions": int(used.sum()),
        "kl_threshold": USED,
        "share_of_kl": float(kl[used].sum() / kl.sum()) if used.any() else 0.0,
        "interval_95": count_interval((counts @ divergence / images > USED).sum(1)),
        "active_units": int((variance > ACTIVE).sum()),
        "variance_threshold": ACTIVE,
        "active_units_interval_95": count_interval((variances > ACTIVE).sum(1)),
        "images": images,
    }


def rescale(features, others):
    """Both (N, F) and (M, F) centered and divided by one number, from features alone: their mean variance becomes 1.

    One number for each dimension would make an unused dimension as large as a used one.
    """
    scale = features.var(0).mean().sqrt().clamp(min=torch.finfo(features.dtype).tiny)
    return tuple((values - features.mean(0)) / scale for values in (features, others))


def probe(features, labels, *, seed):
    """A logistic regression on features (N, F) with the labels (N,): (scikit-learn model, converged).

    C is the one of PROBE_C with the best accuracy in cross-validation on these labels; of equals, the smallest. Where
    a class has fewer labels than there are folds, it is 1.
    """
    x, y = features.cpu().numpy(), labels.cpu().numpy()
    few, best = len(y) <= FEW_LABELS, {"C": 1.0}
    folds = FEW_FOLDS if few else MANY_FOLDS
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # it is returned
        if np.unique(y, return_counts=True)[1].min() >= folds:
            splits = list(StratifiedKFold(folds, shuffle=True, random_state=seed).split(x, y))
            regression = LogisticRegression(tol=SEARCH_TOLERANCE, max_iter=PROBE_ITERATIONS)
            search = GridSearchCV(regression, {"C": PROBE_C}, cv=splits if few else splits[:1], refit=False)
            best = search.fit(x, y).best_params_
        model = LogisticRegression(**best, tol=PROBE_TOLERANCE, max_iter=PROBE_ITERATIONS).fit(x, y)
    return model, bool(model.n_iter_.max() < PROBE_ITERATIONS)


def probe_scores(features, *, train, sample, seed):
    """How well classes can be read from features, `rescale`d: {name: one dict for each number of labels}.

    features: {name: (of the training images (N, F), of the test images (M, F))}; train, sample: the Splits of these
    images. The numbers of labels are PROBE_LABELS, at most N, without those in which the rarest class has no share of
    one label. Fewer than N labels are drawn PROBE_DRAWS times, stratified, the same draws for all features; each has a
    C of its own. The accuracy is the mean over the draws; the interval is Wilson's over the M test images alone, and
    the standard deviation is that over the draws.
    """
    count, images, scores = len(train.labels), len(sample.labels), {name: [] for name in features}
    numbered = replace(train, index=torch.arange(count, device=train.labels.device))
    rarest = int(train.labels.bincount().min())
    sizes = {min(size, count) for size in PROBE_LABELS if min(size, count) * rarest >= count}
    for size in sorted(sizes or {count}):
        draws = {}  # {seed: rows}
        for draw in range(PROBE_DRAWS if size < count else 1):
            of_draw = _seed(seed, "labels of the probe", size, draw)
            draws[of_draw] = stratified_subset(numbered, size=size, seed=of_draw).index
        for name, both in features.items():
            of_train, of_sample = rescale(*both)
            models, converged = zip(
                *(probe(of_train[rows], train.labels[rows], seed=of_draw) for of_draw, rows in draws.items()),
                strict=True,
            )
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
                    "C": [model.C for model in models],
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
def analyse(methods, train_q, data, classifier, config, *, sample, sample_q, results_dir, keep=compute):
    """Writes latent_usage, _probes, _map, traversals and interpolation to `results_dir`; returns the summary's numbers.

    train_q, sample_q: {method's name: diagonal q (N, D)}, of all training images and of sample, a stratified Split
    of test images; config: an EvalConfig; keep: as `Tasks.keep`.
    """
    results_dir, seed, train = Path(results_dir), config.seed, data.train
    likelihood = methods[0].model.likelihood.label

    def save(name, draw, **values):
        save_figure(results_dir / f"{name}.png", draw(likelihood=likelihood, **values))

    table, dimensions, seen = [], {}, {}
    numbered = replace(train, index=torch.arange(len(train.labels), device=train.labels.device))
    # As many as test images: a count of values above a threshold depends on how noisy these values are.
    compared = stratified_subset(numbered, size=min(len(sample.labels), len(train.labels)), seed=seed).index
    for method in methods:
        of_train, of_sample, dimensions[method.name] = train_q[method.name], sample_q[method.name], {}
        of_compared = of_train[compared]
        for split, q in zip(SPLITS, (of_compared, of_sample), strict=True):
            generator = random_generator(seed, "used dimensions", method.name, split, device=q.mean.device)
            rows, dimensions[method.name][split] = usage(q, generator=generator)
            table += [{"method": method.name, "split": split, **row} for row in rows]
        seen[method.name] = of_train.mean, of_sample.mean
        # A probe may read x from dimensions that the decoder ignores, because there q is very near to p(z).
        used = used_dimensions(of_compared)
        if used.any() and not used.all():
            seen[f"{method.name}_used"] = tuple(mean[:, used] for mean in seen[method.name])
    save_csv(results_dir / "latent_usage.csv", table)
    save("latent_usage", figures.latent_usage, table=table, dimensions=dimensions, methods=methods)

    seen["pixels"] = train.images.flatten(1), sample.images.flatten(1)
    classified = classify(classifier, sample.images)
    seen["baseline_features"] = classify(classifier, train.images).features, classified.features
    scores = keep("probes", lambda: probe_scores(seen, train=train, sample=sample, seed=seed))
    itself = accuracy(classified.label == sample.labels.cpu())
    save("latent_probes", figures.probes, scores=scores, baseline=itself, methods=methods)

    agreement = {name: accuracy(nearest_agree(q.mean, sample.labels)) for name, q in sample_q.items()}
    in_pixels = accuracy(nearest_agree(sample.images.flatten(1), sample.labels))
    points = keep("map", lambda: {name: map_2d(q.mean, seed=seed) for name, q in sample_q.items()})
    shared = {"labels": sample.labels.cpu(), "methods": methods, "classes": sample.classes}
    save("latent_map", figures.latent_map, points=points, agreement=agreement, in_pixels=in_pixels, **shared)
    _draw_traversals(methods, train_q, sample_q, sample, save)
    _draw_interpolation(methods, sample_q, sample, classifier, save)
    numbers = {}
    for name, share in agreement.items():
        numbers[name] = {
            "dimensions": dimensions[name],
            "nearest_neighbor_has_the_same_class": share,
            "nearest_neighbor_in_pixels_has_the_same_class": in_pixels,
        }
    points = {name: each.tolist() for name, each in points.items()}
    return {
        "methods": numbers,
        "points": points,
        "probes": {**scores, "baseline_itself": {"labels": len(train.labels), **itself}},
    }


def _draw_traversals(methods, train_q, sample_q, sample, save):
    """From -3 to 3: the dimensions with most KL in training, and the directions in which the means of q vary most."""
    labels = sample.labels.unique()  # a small sample may lack a rare class
    row = int((sample.labels == labels[TRAVERSED_CLASS % len(labels)]).nonzero()[0])
    values, columns = torch.linspace(-3, 3, 7, device=sample.images.device), {}
    for method in methods:
        q, start, decode = train_q[method.name], sample_q[method.name].mean[row], method.model.mean
        nats, dimensions = q.kl_per_dimension().mean(0).topk(min(TRAVERSED_DIMENSIONS, q.mean.shape[1]))
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
    labels = sample.labels.unique()
    first, last = (position % len(labels) for position in INTERPOLATED_CLASSES)
    last = last if last != first else (first + 1) % len(labels)
    start, end = (int((sample.labels == labels[position]).nonzero()[0]) for position in (first, last))
    rows = {"mixed pixels": line(sample.images[start], sample.images[end])}
    for method in methods:
        mean = sample_q[method.name].mean
        rows[method.label] = method.model.mean(line(mean[start], mean[end]))
    captions, between = {}, ": " if style.are_short(sample.classes) else "\n"
    for name, images in rows.items():
        _, labels, confidence = classify(classifier, images)
        pairs = zip(labels.tolist(), confidence.tolist(), strict=True)
        captions[name] = [f"{style.short(sample.classes[label])}{between}{share:.0%}" for label, share in pairs]
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
