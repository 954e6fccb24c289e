"""What the latents hold: which dimensions are used, what a linear probe reads from them, and what they draw.

The functions take plain tensors, diagonal Normals (B, D) and any `decode` from z (..., D) to the mean of p(x|z).
"""

import warnings
from pathlib import Path

import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.manifold import TSNE
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch.distributions import Normal, kl_divergence

import analysis_figures
import figures
from baseline import predict
from data import rows_per_digit, stratified_subset
from files import save_csv, save_figure
from intervals import accuracy, bootstrap_counts, wilson_interval
from vae_utils import prior_like, random_generator

ACTIVE = 0.01  # variance over images of the mean of q above which a dimension is active (Burda et al. 2016)
RESAMPLES = 200
PROBE_LABELS = (100, 1000, 20_000)
PROBE_DRAWS = 5  # of the labels, where not all are used
# One C for every probe: accuracy is flat around it, within the interval of 500 test images, at 100 to 20,000 labels.
PROBE_C, PROBE_TOLERANCE, PROBE_ITERATIONS = 0.1, 1e-3, 500
TRAVERSED_DIMENSIONS, TRAVERSED_DIRECTIONS = 4, 3
TRAVERSED_DIGIT = 3
INTERPOLATED_DIGITS = 2, 7


def kl_per_dimension(q):
    """KL(q || N(0, I)) of every image and dimension, (B, D), nats; its sum over dimensions is vae_utils.kl."""
    return kl_divergence(q, prior_like(q))


def active_units(mean, *, threshold=ACTIVE):
    """Which dimensions are active, (D,) bool: those whose mean of q, (B, D), varies over images by more than that.

    Burda et al. 2016, Appendix C: Cov_x(E_q[z]) > 0.01.
    """
    return mean.double().var(0) > threshold


def active_units_interval(mean, *, generator, resamples=RESAMPLES, threshold=ACTIVE):
    """The 95% interval of the number of active units: percentiles over bootstrap resamples of the images."""
    mean = mean.double() - mean.double().mean(0)  # centred, so that the difference of squares loses no digits
    counts = bootstrap_counts(len(mean), resamples=resamples, generator=generator)
    first, second = counts @ mean / len(mean), counts @ mean.square() / len(mean)
    variance = (second - first.square()) * len(mean) / (len(mean) - 1)  # (resamples, D)
    active = (variance > threshold).sum(1).double()
    return active.quantile(torch.tensor([0.025, 0.975], dtype=active.dtype, device=active.device)).tolist()


def usage(q, *, generator):
    """One split's use of the dimensions: a table of one dict per dimension, and the number of active units.

    q: diagonal Normal (B, D). Standard errors are over the B images.
    """
    images = len(q.mean)
    divergence = kl_per_dimension(q).double()
    columns = {
        "kl": divergence.mean(0),
        "kl_standard_error": divergence.std(0) / images**0.5,
        "variance_of_mean": q.mean.double().var(0),
    }
    values = zip(*(column.tolist() for column in columns.values()), strict=True)
    rows = [
        {"dimension": dimension, "images": images, **dict(zip(columns, row, strict=True))}
        for dimension, row in enumerate(values)
    ]
    interval = active_units_interval(q.mean, generator=generator)
    return rows, {"active_units": int(active_units(q.mean).sum()), "interval_95": interval, "images": images}


def probe(*, features, labels):
    """A logistic regression on standardised features (N, F), with the labels (N,): (scikit-learn model, converged)."""
    model = make_pipeline(
        StandardScaler(), LogisticRegression(C=PROBE_C, tol=PROBE_TOLERANCE, max_iter=PROBE_ITERATIONS)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # it is returned
        model.fit(features.cpu().numpy(), labels.cpu().numpy())
    return model, bool(model[-1].n_iter_.max() < PROBE_ITERATIONS)


def probe_scores(*, features, train, sample, sizes, seed):
    """How well digits can be read from features, {name: one dict for each number of labels}.

    features: {name: (of the training images (N, F), of the test images (M, F))}; train, sample: the Splits of these
    images; sizes: numbers of labels, those above N as N. Where not all labels are used, the stratified draw of them is
    repeated PROBE_DRAWS times, the same draws for all features. The accuracy is the mean over the draws; the interval
    is Wilson's over the M test images, which leaves out the draw of the labels: that is the standard deviation.
    """
    count = len(train.labels)
    scores = {name: [] for name in features}
    for size in sorted({min(size, count) for size in sizes}):
        numbered = train._replace(index=torch.arange(count, device=train.labels.device))
        draws = [
            stratified_subset(numbered, size=size, seed=_draw(seed, "labels of the probe", size, draw)).index
            for draw in range(PROBE_DRAWS if size < count else 1)
        ]
        for name, (of_train, of_sample) in features.items():
            accuracies, converged = [], []
            for rows in draws:
                model, ended = probe(features=of_train[rows], labels=train.labels[rows])
                predicted = torch.from_numpy(model.predict(of_sample.cpu().numpy()))
                accuracies.append(float((predicted == sample.labels.cpu()).double().mean()))
                converged.append(ended)
            mean, images = sum(accuracies) / len(draws), len(sample.labels)
            scores[name].append(
                {
                    "labels": size,
                    "accuracy": mean,
                    "interval_95": wilson_interval(mean * images, images),
                    "images": images,
                    "draws": len(draws),
                    "standard_deviation_over_draws": float(torch.tensor(accuracies).std()) if len(draws) > 1 else None,
                    "converged": all(converged),
                }
            )
    return scores


def map_2d(features, *, seed):
    """t-SNE (van der Maaten & Hinton 2008) of features (B, F): (B, 2), the same on every call."""
    count, width = features.shape
    embedding = TSNE(
        perplexity=min(30, (count - 1) / 3),
        init="pca" if width > 1 else "random",
        random_state=_draw(seed, "map"),
    )
    return torch.from_numpy(embedding.fit_transform(features.cpu().numpy()))


def nearest_agree(features, labels):
    """Whether the nearest other image by features (B, F), Euclidean, has the same label, (B,) bool."""
    distance = torch.cdist(features, features).fill_diagonal_(torch.inf)
    return labels[distance.argmin(1)] == labels


@torch.no_grad()
def traversal(*, decode, start, directions, values):
    """What is drawn when z takes the values along one direction at a time, and stays at start (D,) across it.

    directions: unit vectors (K, D), those of single dimensions or any others; values: (V,). Returns (K, V, 1, 28, 28).
    """
    rest = start - (directions @ start)[:, None] * directions  # (K, D)
    return decode(rest[:, None] + values[:, None] * directions[:, None])


def principal_directions(mean, count):
    """The unit vectors along which the means of q (B, D) vary most, (count, D), and the variance along each, (count,).

    At most D of them. Their signs are such that the largest entry is positive.
    """
    values, vectors = torch.linalg.eigh(torch.cov(mean.double().cpu().T).reshape(mean.shape[1], -1))
    vectors = vectors.T.flip(0)[:count]
    signs = vectors.gather(1, vectors.abs().argmax(1, keepdim=True)).sign()
    return (vectors * signs).to(mean), values.flip(0)[:count].to(mean)


@torch.no_grad()
def interpolation(*, decode, start, end, steps=9):
    """What is drawn along the straight line from start to end, (D,) each. Returns (steps, 1, 28, 28)."""
    return decode(_line(start, end, steps))


def analyse(*, vae, latents, train, test, sample, sample_q, judge, results_dir, seed=0, probe_labels=PROBE_LABELS):
    """Writes latent_usage, _probes, _map, traversals and interpolation to `results_dir`; returns the summary's numbers.

    vae, latents: a ConvVAE and a LatentModel; train, test: Splits; sample: a stratified Split of test images, and
    sample_q their q under latent optimization, diagonal Normal (M, D), which is costly, so that whatever needs test
    images of both regimes uses these. Only the amortized VAE's use of the dimensions is taken on all of `test`.
    """
    results_dir = Path(results_dir)
    rows = torch.arange(len(train.images), device=train.images.device)
    on_train = {"amortized": _encode(vae, train.images), "latent_optimization": latents.posterior(None, rows)}
    on_sample = {"amortized": _encode(vae, sample.images), "latent_optimization": sample_q}
    on_test = {"amortized": _encode(vae, test.images), "latent_optimization": sample_q}

    table, units = [], {}
    for regime in on_train:
        units[regime] = {}
        for split, q in (("train", on_train[regime]), ("test", on_test[regime])):
            generator = random_generator(seed, "active units", regime, split, device=q.mean.device)
            dimensions, units[regime][split] = usage(q, generator=generator)
            table += [{"regime": regime, "split": split, **row} for row in dimensions]
    save_csv(results_dir / "latent_usage.csv", table)
    save_figure(results_dir / "latent_usage.png", analysis_figures.latent_usage(table=table, units=units))

    seen = {regime: (on_train[regime].mean, on_sample[regime].mean) for regime in on_train}
    # An encoder may say something about x in dimensions in which q is so near to p(z) that the decoder ignores them.
    active = active_units(on_train["amortized"].mean)
    if active.any():
        seen["amortized_active"] = tuple(mean[:, active] for mean in seen["amortized"])
    seen["pixels"] = train.images.flatten(1), sample.images.flatten(1)
    seen["baseline_features"] = tuple(
        torch.cat([judge.features(x) for x in split.images.split(100)]).detach() for split in (train, sample)
    )
    scores = probe_scores(features=seen, train=train, sample=sample, sizes=probe_labels, seed=seed)
    itself = accuracy(predict(model=judge, images=sample.images).argmax(-1) == sample.labels)
    save_figure(results_dir / "latent_probes.png", analysis_figures.probes(scores=scores, baseline=itself))

    agreement = {regime: accuracy(nearest_agree(q.mean, sample.labels)) for regime, q in on_sample.items()}
    points = {regime: map_2d(q.mean, seed=seed) for regime, q in on_sample.items()}
    figure = analysis_figures.latent_map(points=points, labels=sample.labels.cpu(), agreement=agreement)
    save_figure(results_dir / "latent_map.png", figure)

    decoders = {"amortized": vae.decode, "latent_optimization": latents.decode}
    _draw_traversals(decoders=decoders, on_train=on_train, on_sample=on_sample, sample=sample, results_dir=results_dir)
    _draw_interpolation(decoders=decoders, on_sample=on_sample, sample=sample, judge=judge, results_dir=results_dir)
    return {
        "active_units": units,
        "probes": {**scores, "baseline_itself": {"labels": len(train.labels), **itself}},
        "nearest_neighbour_has_the_same_digit": agreement,
    }


def _draw_traversals(*, decoders, on_train, on_sample, sample, results_dir):
    """From -3 to 3: the dimensions with most KL in training, and the directions in which the means of q vary most."""
    row = int(rows_per_digit(sample.labels, 1)[TRAVERSED_DIGIT])
    values = torch.linspace(-3, 3, 7, device=sample.images.device)
    drawn = {}
    for regime, decode in decoders.items():
        mean = on_train[regime].mean
        nats, dimensions = kl_per_dimension(on_train[regime]).mean(0).topk(min(TRAVERSED_DIMENSIONS, mean.shape[1]))
        principal, variances = principal_directions(mean, TRAVERSED_DIRECTIONS)
        directions = torch.cat((torch.eye(mean.shape[1], device=mean.device)[dimensions], principal))
        images = traversal(decode=decode, start=on_sample[regime].mean[row], directions=directions, values=values)
        captions = [f"z[{d}]\n{kl:.2f} nats" for d, kl in zip(dimensions.tolist(), nats.tolist(), strict=True)]
        captions += [f"direction {n}\nvariance {v:.1f}" for n, v in enumerate(variances.tolist(), 1)]
        drawn[regime] = list(zip(captions, images.cpu(), strict=True))
    figure = analysis_figures.traversals(drawn=drawn, values=values.tolist(), original=sample.images[row])
    save_figure(results_dir / "traversals.png", figure)


def _draw_interpolation(*, decoders, on_sample, sample, judge, results_dir):
    """Between two test images: a mixture of their pixels, and both decoders between the means of q."""
    first, last = rows_per_digit(sample.labels, 1)[list(INTERPOLATED_DIGITS)].flatten().tolist()
    rows = {"mixed pixels": _line(sample.images[first], sample.images[last], 9)}
    for regime, decode in decoders.items():
        mean = on_sample[regime].mean
        rows[figures.NAMES[regime]] = interpolation(decode=decode, start=mean[first], end=mean[last])
    captions = {}
    for name, images in rows.items():
        confidence, digit = predict(model=judge, images=images).exp().max(-1)
        captions[name] = [f"{d}: {p:.0%}" for d, p in zip(digit.tolist(), confidence.tolist(), strict=True)]
    figure = figures.image_rows(
        rows=list(rows.items()),
        captions=captions,
        title="On the straight line between two test images (the ends of the upper row),\nor between their means of q; "
        "below each, what the supervised baseline takes it for",
    )
    save_figure(results_dir / "interpolation.png", figure)


def _line(start, end, steps):
    """Equidistant points from start to end, both included: (steps, *shape)."""
    share = torch.linspace(0, 1, steps, device=start.device).reshape(-1, *[1] * start.dim())
    return start + share * (end - start)


@torch.no_grad()
def _encode(vae, images, batch_size=1000):
    """q of all images, a diagonal Normal (N, D)."""
    parts = [vae.encode(x) for x in images.split(batch_size)]
    mean, stddev = (torch.cat([getattr(q, name) for q in parts]) for name in ("mean", "stddev"))
    return Normal(mean, stddev, validate_args=False)


def _draw(seed, *purpose):
    """A seed for scikit-learn, a function of (seed, purpose) alone."""
    return int(torch.randint(2**31, (), generator=random_generator(seed, *purpose)))
