"""Data for the pictures that move with z in report.html: the decoders in half precision, and q of test images."""

import base64
from math import isfinite

import torch
from torch import nn

from evaluation.latents import strongest_directions

SLIDER_DIMENSIONS, SLIDER_DIRECTIONS = 6, 3
# The layers that page.js knows, with the attributes that it reads beside their weights.
LAYER_SETTINGS = {
    **dict.fromkeys((nn.Linear, nn.SiLU, nn.Tanh, nn.Identity), ()),
    **dict.fromkeys((nn.Conv2d, nn.ConvTranspose2d), ("out_channels", "kernel_size", "stride", "padding")),
    nn.LayerNorm: ("eps",),
    nn.Unflatten: ("unflattened_size",),
    nn.PixelShuffle: ("upscale_factor",),
}
# How E[x|z] follows from the last layer, of several parameters of a pixel from the first: page.js calculates it.
MEAN_LAYERS = {"gaussian": [], "bernoulli": [{"type": "Tanh", "scale": 0.5}]}


@torch.no_grad()
def explorer(methods, train_q, sample, measured, *, points):
    """Plain values with which the page shows the test images of the Split `sample` and moves their z.

    train_q: {method's name: diagonal q (N, D)} of all training images; measured: {its name: Measured} of the sample;
    points: {its name: (M, 2)}.
    """
    images, parts = sample.images, {}
    for method in methods:
        columns, q, q_train = measured[method.name].columns, measured[method.name].fit.q, train_q[method.name]
        known = zip(columns["log_prob"].tolist(), columns["log_prob_standard_error"].tolist(), strict=True)
        vectors, names = strongest_directions(q_train, SLIDER_DIMENSIONS, SLIDER_DIRECTIONS)
        parts[method.name] = {
            "label": method.label,
            "color": method.color,
            "layers": layers(method.model),
            "first": encoded(method.model.mean(q.mean[0])),  # by which the page checks what it draws
            "latent_dim": q.mean.shape[1],
            "means": encoded(q.mean),
            "elbo": [round(value, 2) for value in columns["elbo"].tolist()],
            "log_prob": [
                [round(value, 3), round(error, 3)] if isfinite(value + error) else None for value, error in known
            ],
            "points": [[round(value, 2) for value in point] for point in points[method.name].tolist()],
            "sliders": names,
            "directions": encoded(vectors),
            "deviations": [round(value, 4) for value in (q_train.mean @ vectors.T).std(0).tolist()],
        }
    return {
        "image_shape": list(images.shape[1:]),
        "classes": list(sample.classes),
        "labels": sample.labels.tolist(),
        "index": sample.index.tolist(),
        "images": encoded(((images.clamp(-1, 1) + 1) * 127.5).round(), "u1"),
        "methods": parts,
    }


def encoded(values, kind="<f2"):
    """Values of a tensor as base64, of a type of numpy: by default in half precision, little-endian."""
    return base64.b64encode(values.detach().cpu().numpy().astype(kind).tobytes()).decode()


def layers(model):
    """The layers from z to E[x|z] as plain values, weights `encoded`.

    None if the decoder's `layers` are no Sequential of LAYER_SETTINGS, or the likelihood is not in MEAN_LAYERS.
    """
    modules, last = getattr(model.decoder, "layers", None), MEAN_LAYERS.get(model.likelihood.name)
    known = isinstance(modules, nn.Sequential) and all(type(module) in LAYER_SETTINGS for module in modules)
    if not known or last is None:
        return None
    described = []
    for module in modules:
        values = {name: getattr(module, name) for name in LAYER_SETTINGS[type(module)]}
        values |= {name: encoded(weights) for name, weights in module.named_parameters()}
        described.append({"type": type(module).__name__, **values})
    return described + last
