"""What the two regimes have in common and what they spend: the decoder's start and updates, the gradients of q."""

import hashlib
import math

from evaluation import REGIMES
from model import ConvVAE, seeded_decoder
from trained import SECONDS

COUNTED = (
    "A gradient is one backward pass of one image's bound, at one sample of z, to what its q is made",
    "of: the encoder's weights, which all images share, or that image's own mean and log-variance.",
)


def fingerprint(network):
    """The first 12 digits of the SHA-256 sum of all weights, in the order of their names."""
    digest = hashlib.sha256()
    for name, values in sorted(network.state_dict().items()):
        digest.update(name.encode())
        digest.update(values.cpu().numpy().tobytes())
    return digest.hexdigest()[:12]


def spent(*, trained, inference):
    """{regime: what its training and its inference took}, as plain values.

    trained: a Trained; inference: {regime: {"gradients", "seconds"}} of one unseen image. The initial weights are
    built here once more, in the way in which each regime builds them.
    """
    config, epochs = trained.config, trained.epochs[-1]
    model = {name: config[name] for name in ("latent_dim", "seed")}
    starts = (ConvVAE(**model).decoder, seeded_decoder(**model))
    gradients = epochs * config["train_size"]
    # Every image's gradient moves the encoder, and with it every image's q; a row of the table is moved by its own.
    shaping = (gradients, epochs)
    rows = {}
    for regime, start, shapes, seconds in zip(REGIMES, starts, shaping, SECONDS, strict=True):
        rows[regime] = {
            "decoder_start": fingerprint(start),
            "decoder_updates": epochs * math.ceil(config["train_size"] / config["batch_size"]),
            "training": {
                "gradients": gradients,
                "gradients_that_shape_one_q": shapes,
                "seconds": trained.seconds.get(seconds),
            },
            "unseen_image": inference[regime],
        }
    return rows


def table(spent):
    """What `spent` gave as a table, at most 100 columns wide."""

    def columns(row):
        training, unseen = row["training"], row["unseen_image"]
        return (
            row["decoder_start"],
            f"{row['decoder_updates']:,}",
            f"{training['gradients']:,}",
            f"{training['gradients_that_shape_one_q']:,}",
            "not known" if training["seconds"] is None else f"{training['seconds']:,.0f}",
            f"{unseen['gradients']:,.0f}",
            f"{unseen['seconds']:.5f}",
        )

    labels = (
        "the decoder's initial weights, SHA-256",
        "updates of the decoder",
        "training, all images: gradients of q",
        "training, one image: gradients that shape its q",
        "training: seconds, the decoder's included",
        "one unseen image: gradients of q",
        "one unseen image: seconds, several at a time",
    )
    lines = [f"{'what was spent':50}{'amortized VAE':>16}{'latent optimization':>22}", "-" * 88]
    for label, *texts in zip(labels, columns(spent["amortized"]), columns(spent["latent_optimization"]), strict=True):
        lines.append(f"{label:50}{texts[0]:>16}{texts[1]:>22}")
    return "\n".join([*lines, "-" * 88, *COUNTED])
