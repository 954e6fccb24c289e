"""What the latents represent: used dimensions, linear probes, maps, traversals and interpolations."""

import warnings

import numpy as np
import torch
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, LogisticRegressionCV
from sklearn.manifold import TSNE
from sklearn.model_selection import StratifiedKFold
from sklearn.utils import resample
from threadpoolctl import threadpool_limits

from data import SPLITS, rows_per_class, stratified_subset
from evaluation.samples import classify
from evaluation.statistics import count_interval, plain_score, score, stratified_mean
from vae_utils import random_generator

USED = 0.1  # nats: mean KL over images above which a dimension is used
ACTIVE = 0.01  # variance over images of the mean of q above which a dimension is active (Burda et al. 2016)
PROBE_LABELS = (100, 1000, 20_000)
PROBE_DRAWS = 5  # of the labels, where not all are used
PROBE_C = (0.001, 0.01, 0.1, 1.0, 10.0, 100.0)  # inverse strengths of the penalty, of which cross-validation chooses
PROBE_FOLDS, ENOUGH_LABELS = 3, 2000  # of cross-validation, which has at most so many labels to choose C by
PROBE_OPTIONS = {"tol": 1e-3, "max_iter": 1000}
PLANE, GRID = 2, 20  # of at most so many dimensions z itself is drawn; points on a side of its grid
TRAVERSED_DIMENSIONS, TRAVERSED_DIRECTIONS = 4, 3
TRAVERSED_CLASS, INTERPOLATED_CLASSES = 3, (2, 7)  # by their position, modulo the number of classes


def used_dimensions(q):
    """Which dimensions of q, diagonal, (B, D), are used, (D,) bool: their mean KL over images is above USED."""
    return (q.kl_per_dimension().cpu().double().mean(0) > USED).to(q.mean.device)


def usage_table(q):
    """One dict per dimension of q, diagonal, (B, D): KL over images with its error, variance of the mean."""
    images, nats, mean = len(q.mean), q.kl_per_dimension().cpu().double(), q.mean.cpu().double()
    columns = {"kl": nats.mean(0), "kl_standard_error": nats.std(0) / images**0.5, "variance_of_mean": mean.var(0)}
    rows = enumerate(torch.stack([*columns.values()], dim=1).tolist())
    return [{"dimension": number, "images": images, **dict(zip(columns, row, strict=True))} for number, row in rows]


def usage_scores(q, *, seed, **labels):
    """Yields Scores of q, diagonal, (B, D): counts of dimensions, with 95% bootstrap intervals, and "share_of_kl".

    A dimension is an active unit if the mean of q varies over the images by more than ACTIVE (Burda et al. 2016), which
    is also true of many dimensions with next to no KL. "share_of_kl" is what the used dimensions carry.
    """
    nats, mean = (values.cpu().double().numpy() for values in (q.kl_per_dimension(), q.mean))
    counts = {
        "used_dimensions": lambda rows: (nats[rows].mean(0) > USED).sum(),
        "active_units": lambda rows: (mean[rows].var(0, ddof=1) > ACTIVE).sum(),
    }
    images, kl = len(nats), nats.mean(0)
    for name, count in counts.items():
        ends = count_interval(count, images, seed=scikit_seed(seed, name, labels["method"], labels["split"]))
        for end, value in zip(("", "_lower", "_upper"), (count(np.arange(images)), *ends), strict=True):
            yield plain_score(name + end, value, images, **labels)
    share = kl[kl > USED].sum() / kl.sum() if (kl > USED).any() else 0.0
    yield plain_score("share_of_kl", share, images, **labels)


def rescale(features, others):
    """Both (N, F) and (M, F) centered and divided by one number, from features alone: their mean variance becomes 1."""
    # One number for each dimension would make an unused dimension as large as a used one.
    scale = features.var(0).mean().sqrt().clamp(min=torch.finfo(features.dtype).tiny)
    return tuple((values - features.mean(0)) / scale for values in (features, others))


def choose_penalty(features, labels, *, seed):
    """The C of PROBE_C with the best accuracy of a logistic regression on features (N, F) in cross-validation.

    By a path over C, on a stratified sample of at most ENOUGH_LABELS of the labels (N,); of equals, the smallest. Where
    a class has fewer labels there than there are folds, it is 1.
    """
    x, y = features.cpu().numpy(), labels.cpu().numpy()
    if len(y) > ENOUGH_LABELS:
        x, y = resample(x, y, replace=False, n_samples=ENOUGH_LABELS, stratify=y, random_state=seed)
    if np.unique(y, return_counts=True)[1].min() < PROBE_FOLDS:  # a fold would lack a class
        return 1.0
    folds = StratifiedKFold(PROBE_FOLDS, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # that of the probe itself is returned
        warnings.simplefilter("ignore", FutureWarning)  # of attributes that are not read
        search = LogisticRegressionCV(Cs=PROBE_C, cv=folds, scoring="accuracy", **PROBE_OPTIONS)
        return float(np.ravel(search.fit(x, y).C_)[0])


def probe(features, labels, penalty):
    """A logistic regression on features (N, F) with the labels (N,): (scikit-learn model, converged)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model = LogisticRegression(C=penalty, **PROBE_OPTIONS).fit(features.cpu().numpy(), labels.cpu().numpy())
    return model, bool(model.n_iter_.max() < PROBE_OPTIONS["max_iter"])


@threadpool_limits.wrap(limits=1, user_api="blas")  # on such small matrices two threads wait more than they work
def probe_predictions(features, *, train, sample, seed):
    """{name: {number of labels: {"correct" (draws, M) and "converged", a list}}} of probes of features.

    features: {name: (of the training images (N, F), of the test images (M, F))}, which are `rescale`d; train, sample:
    their Splits. The numbers of labels are PROBE_LABELS, at most N, without those in which the rarest class has no
    share of one label. Fewer than N labels are drawn PROBE_DRAWS times, the same for all features; the first chooses C.
    """
    count, results = len(train.labels), {name: {} for name in features}
    rarest = int(train.labels.bincount().min())
    sizes = sorted({min(size, count) for size in PROBE_LABELS})
    rescaled, y = {name: rescale(*both) for name, both in features.items()}, sample.labels.cpu().numpy()
    for size in [size for size in sizes if size * rarest >= count] or [count]:
        draws = range(PROBE_DRAWS if size < count else 1)
        seeds = [scikit_seed(seed, "labels of the probe", size, draw) for draw in draws]
        drawn = [in_subset(train, size=size, seed=draw_seed) for draw_seed in seeds]
        for name, (known, asked) in rescaled.items():
            penalty = choose_penalty(known[drawn[0]], train.labels[drawn[0]], seed=seeds[0])
            models, converged = zip(*(probe(known[part], train.labels[part], penalty) for part in drawn), strict=True)
            correct = np.stack([model.predict(asked.cpu().numpy()) == y for model in models])
            results[name][size] = {"correct": torch.from_numpy(correct), "converged": list(converged)}
    return results


def in_subset(split, *, size, seed):
    """Which images of a Split are in the `stratified_subset` of it, (N,) bool, on the CPU: it fits any device."""
    return torch.isin(split.index, stratified_subset(split, size=size, seed=seed).index).cpu()


def stratified_share(right, labels, shares):
    """The `stratified_mean` of values from 0 to 1, (N,), with the error of a weighted sample.

    The variance is that of all images: within a class of few, all right or all wrong, it would seem to be 0.
    """
    result, right = stratified_mean(right, labels, shares), right.cpu().double()
    weights = (shares / labels.bincount(minlength=len(shares)))[labels]
    weights, count = weights / weights.sum(), len(right)
    variance = (weights * (right - result["mean"]).square()).sum() * count / (count - 1)
    error = float((weights.square().sum() * variance).sqrt())
    return {**result, "standard_error": error, "freedom": count - 1}


def probe_scores(predictions, classes, shares, epoch):
    """Scores of `probe_predictions`, whose group is the number of labels; the error is over the test images alone.

    classes, shares: the labels of the test images (M,), and what each class has of all.
    """
    rows = []
    for name, sizes in predictions.items():
        for size, values in sizes.items():
            correct, labels = values["correct"].double(), {"method": name, "epoch": epoch, "group": str(size)}
            draws, images = correct.shape
            rows.append(score("probe_accuracy", stratified_share(correct.mean(0), classes, shares), **labels))
            rows.append(plain_score("probe_draws", draws, images, **labels))
            rows.append(plain_score("probe_converged", np.mean(values["converged"]), images, **labels))
            if draws > 1:
                rows.append(plain_score("probe_deviation", correct.mean(1).std(), images, **labels))
    return rows


def map_2d(features, *, seed):
    """Features (B, F) as points (B, 2), the same on every call: by t-SNE (van der Maaten & Hinton 2008) if F > 2."""
    count, width = features.shape
    if width <= PLANE:  # the points themselves; one feature is their first coordinate, the second keeps them apart
        apart = torch.rand(count, PLANE - width, generator=random_generator(seed, "map")) - 0.5
        return torch.cat((features.cpu(), apart), dim=1)
    if features.std(0).max() < 1e-15:  # all alike, whose variance is 0 in float32: t-SNE would end the process
        return torch.zeros(count, PLANE)
    embedding = TSNE(perplexity=min(30, (count - 1) / 3), init="pca", random_state=scikit_seed(seed, "map"))
    return torch.from_numpy(embedding.fit_transform(features.cpu().numpy()))


@torch.no_grad()
def manifold(methods):
    """{method's name: images (GRID^D, C, H, W)} on a grid of z, where D <= 2 (Kingma & Welling 2014, figure 4)."""
    # Row by row: z[0] rises to the right, z[1] to the top, in steps of equal shares of the prior.
    steps, drawn = torch.special.ndtri((torch.arange(GRID) + 0.5) / GRID), {}
    grids = {1: steps[:, None], 2: torch.cartesian_prod(steps.flip(0), steps).flip(1)}  # (GRID^D, D)
    for method in methods:
        if (model := method.model).latent_dim in grids:
            rows = grids[model.latent_dim].to(model.like).split(GRID)
            drawn[method.name] = torch.cat([model.mean(row).cpu() for row in rows])
    return drawn


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


def strongest_directions(q, dimensions, directions):
    """Unit vectors (K, D) and their names: the dimensions of q with most KL, then principal directions of its means."""
    latent_dim = q.mean.shape[1]
    nats, strongest = q.kl_per_dimension().mean(0).topk(min(dimensions, latent_dim))
    vectors = torch.eye(latent_dim).to(q.mean)[strongest]
    names = [f"z[{d}], {kl:.2f} nats" for d, kl in zip(strongest.tolist(), nats.tolist(), strict=True)]
    if latent_dim > PLANE:  # else they would show the same again
        principal, variances = principal_directions(q.mean, directions)
        names += [f"direction {n}, variance {variance:.1f}" for n, variance in enumerate(variances.tolist(), 1)]
        vectors = torch.cat((vectors, principal))
    return vectors, names


def line(start, end, steps=9):
    """Equidistant points from start to end, both included: (steps, *shape)."""
    share = torch.linspace(0, 1, steps, device=start.device).reshape(-1, *[1] * start.dim())
    return start + share * (end - start)


def traversal(start, directions, values):
    """z that takes the values (V,) along one unit vector (K, D) at a time, elsewhere those of start (D,): (K, V, D)."""
    rest = start - (directions @ start)[:, None] * directions  # (K, D)
    return rest[:, None] + values[:, None] * directions[:, None]


@torch.no_grad()
def traversals(methods, train_q, sample_q, sample):
    """The values of z (V,), and {method's name: [(label, images (V, C, H, W))]} along `strongest_directions`."""
    row = int(rows_per_class(sample, 1)[TRAVERSED_CLASS % sample.num_classes])
    values, columns = torch.linspace(-3, 3, 7, device=sample.images.device), {}
    for method in methods:
        start, decode = sample_q[method.name].mean[row], method.model.mean
        directions, names = strongest_directions(train_q[method.name], TRAVERSED_DIMENSIONS, TRAVERSED_DIRECTIONS)
        drawn = decode(traversal(start, directions, values))  # (K, V, C, H, W)
        first = torch.ones_like(drawn[0])  # white beside the test image and its reconstruction
        first[:2] = torch.stack((sample.images[row], decode(start)))
        rows = [(name.replace(", ", "\n"), images.cpu()) for name, images in zip(names, drawn, strict=True)]
        columns[method.name] = [("test image,\nreconstruction", first.cpu()), *rows]
    return values.tolist(), columns


@torch.no_grad()
def interpolations(methods, sample_q, sample, classifier):
    """{"pixels" or method's name: images (V, C, H, W), and the Classified of them} between two test images."""
    first, last = (position % sample.num_classes for position in INTERPOLATED_CLASSES)
    last = last if last != first else (first + 1) % sample.num_classes
    start, end = rows_per_class(sample, 1)[[first, last], 0].tolist()
    rows = {"pixels": line(sample.images[start], sample.images[end])}
    for method in methods:
        mean = sample_q[method.name].mean
        rows[method.name] = method.model.mean(line(mean[start], mean[end]))
    return {name: (images.cpu(), classify(classifier, images)) for name, images in rows.items()}


@torch.no_grad()
def analyse(train_q, data, classifier, config, *, sample, sample_q, epoch, keep):
    """The Scores of the latents, rows of latent_usage.csv, and {method's name: map (M, 2)}.

    train_q, sample_q: {method's name: diagonal q (N, D)}, of all training images and of sample, a stratified Split
    of test images; keep: as `Tasks.keep`.
    """
    scores, table, features, seed, train = [], [], {}, config.seed, data.train

    # Used dimensions, of as many training as test images: a count above a threshold depends on the values' noise.
    compared = in_subset(train, size=min(len(sample.labels), len(train.labels)), seed=seed)
    for name in sample_q:
        compared_q = train_q[name][compared]
        for split, q in zip(SPLITS, (compared_q, sample_q[name]), strict=True):
            table += [{"method": name, "split": split, **row} for row in usage_table(q)]
            scores += usage_scores(q, seed=seed, method=name, split=split, epoch=epoch)
        features[name] = train_q[name].mean, sample_q[name].mean
        # A probe may read x from dimensions that the decoder ignores, because there q is very near to p(z).
        used = used_dimensions(compared_q)
        if used.any() and not used.all():
            features[f"{name}_used"] = tuple(mean[:, used] for mean in features[name])

    # Probes, beside the supervised classifier itself.
    features["pixels"] = train.images.flatten(1), sample.images.flatten(1)
    both = train.images, sample.images
    features["baseline_features"] = tuple(classify(classifier, images).features for images in both)
    predictions = keep("probes", lambda: probe_predictions(features, train=train, sample=sample, seed=seed))
    # The sample may have more of a rare class than its share.
    classes, shares = sample.labels.cpu(), torch.tensor([*data.test.counts().values()]) / len(data.test.labels)
    scores += probe_scores(predictions, classes, shares, epoch)

    # Neighbors, in all dimensions, and maps in two.
    for name in (*sample_q, "pixels"):
        agreement = stratified_share(nearest_agree(features[name][1], sample.labels), classes, shares)
        scores.append(score("nearest_neighbor_accuracy", agreement, method=name, epoch=epoch))
    points = keep("map", lambda: {name: map_2d(q.mean, seed=seed) for name, q in sample_q.items()})
    return scores, table, points


def scikit_seed(seed, *purpose):
    """A seed for scikit-learn, a function of (seed, purpose) alone."""
    return int(torch.randint(2**31, (), generator=random_generator(seed, *purpose)))
