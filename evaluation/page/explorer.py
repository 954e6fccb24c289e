"""Data for the pictures that move with z in report.html: the decoders in half precision, and q of test images."""

import base64

import torch
from torch import nn

from evaluation.latents import strongest_directions
from vae_utils import GaussianPosterior, Noise, evaluate_bound

SLIDER_DIMENSIONS, SLIDER_DIRECTIONS = 6, 3
ELBO_DRAWS = 16  # of z, for the ELBO of each image
# How E[x|z] follows from the last layer: page.js calculates it.
MEAN_LAYERS = {"gaussian": [], "bernoulli": [{"type": "Tanh", "scale": 0.5}]}


@torch.no_grad()
def explorer(methods, train_q, sample, sample_q, annealed, annealed_q, annealed_log_prob, *, points, seed):
    """Plain values with which the page shows test images and moves their z.

    train_q, sample_q, annealed_q: {method's name: diagonal q (B, D)}, of all training images, of the Split
    `sample` of test images and of the Split `annealed`; annealed_log_prob: {method's name: (log p(x), its standard
    error)} of the latter, (B,) each; points: {method's name: (M, 2)}, of the sample.
    """
    # The sample, then the annealed images that are not in it.
    new = ~torch.isin(annealed.index, sample.index)  # q of an image is the same in both
    images = torch.cat((sample.images, annealed.images[new]))
    labels, index = (torch.cat((getattr(sample, name), getattr(annealed, name)[new])) for name in ("labels", "index"))
    position = {row: number for number, row in enumerate(index.tolist())}

    parts = {}
    for method in methods:
        # q of every image, and its ELBO.
        q_train, q_sample, q_annealed = (qs[method.name] for qs in (train_q, sample_q, annealed_q))
        q = GaussianPosterior.concatenate([q_sample, q_annealed.to(images.device)[new]])
        noise = Noise(seed, "explorer", method.name, device=images.device)
        bound = evaluate_bound(method.model, images, lambda x, rows, q=q: q[rows], noise=noise, draws=ELBO_DRAWS)
        mean = q.mean
        # log p(x), where annealed.
        log_prob = [None] * len(images)
        for row, *values in zip(annealed.index.tolist(), *annealed_log_prob[method.name], strict=True):
            log_prob[position[row]] = [round(float(value), 3) for value in values]
        # Directions of the sliders.
        vectors, names = strongest_directions(q_train, SLIDER_DIMENSIONS, SLIDER_DIRECTIONS)
        parts[method.name] = {
            "label": method.label,
            "color": method.color,
            "layers": layers(method.model),
            "first": half(method.model.mean(mean[0])),  # by which the page checks what it draws
            "latent_dim": mean.shape[1],
            "means": half(mean),
            "elbo": [round(value, 2) for value in bound.elbo.tolist()],
            "log_prob": log_prob,
            "points": [[round(value, 2) for value in point] for point in points[method.name].tolist()],
            "sliders": names,
            "directions": half(vectors),
            "deviations": [round(value, 4) for value in (q_train.mean @ vectors.T).std(0).tolist()],
        }
    pixels = ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).cpu()
    return {
        "image_shape": list(images.shape[1:]),
        "classes": list(sample.classes),
        "labels": labels.tolist(),
        "index": index.tolist(),
        "images": base64.b64encode(pixels.numpy().tobytes()).decode(),
        "methods": parts,
    }


def half(values):
    """Values of a tensor in half precision, little-endian, as base64."""
    return base64.b64encode(values.detach().cpu().contiguous().numpy().astype("<f2").tobytes()).decode()


def layers(model):
    """The layers from z to E[x|z] as plain values, weights as `half` gives them.

    None if the decoder is not the Sequential `layers` of known kinds, or the likelihood is not known.
    """
    settings = {
        nn.Linear: (),
        nn.LayerNorm: ("eps",),
        nn.SiLU: (),
        nn.Unflatten: ("unflattened_size",),
        nn.ConvTranspose2d: ("in_channels", "out_channels", "kernel_size", "stride", "padding"),
        nn.Conv2d: ("in_channels", "out_channels", "kernel_size", "stride", "padding"),
        nn.PixelShuffle: ("upscale_factor",),
        nn.Tanh: (),
        nn.Identity: (),
    }
    modules, last = getattr(model.decoder, "layers", None), MEAN_LAYERS.get(model.likelihood.name)
    if (
        not isinstance(modules, nn.Sequential)
        or last is None
        or any(type(module) not in settings for module in modules)
    ):
        return None
    described = []
    for module in modules:
        values = {name: getattr(module, name) for name in settings[type(module)]}
        values |= {name: half(weights) for name, weights in module.named_parameters()}
        described.append({"type": type(module).__name__, **values})
    return described + last
