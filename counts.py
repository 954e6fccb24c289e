"""How much of everything the evaluation scores: its flags, and what a short training makes of their defaults."""

import annealing
import evaluation
import gap_study
import gaps
import latent_optimization
import sample_quality
from cli import number
from data import TRAIN_SIZE
from files import InputError
from training import EPOCHS


class Share(int):
    """A default for the default training: a shorter one is scored on so much less, down to `least`."""

    def __new__(cls, value, *, least):
        share = super().__new__(cls, value)
        share.least = least
        return share


FLAGS = (
    # name, range, default, meaning
    ("--num-samples", (1, 10_000_000), Share(gaps.NUM_SAMPLES, least=100), "importance samples per image for log p(x)"),
    (
        "--images-per-digit",
        (1, 892),
        evaluation.IMAGES_PER_DIGIT,
        "images of each digit and split for log p(x)",
    ),
    (
        "--annealed-per-digit",
        (1, 892),
        Share(evaluation.ANNEALED_PER_DIGIT, least=1),
        "of these, how many are annealed",
    ),
    ("--chains", (2, 1_000_000), annealing.CHAINS, "chains of annealing per image"),
    (
        "--temperatures",
        (1, 1_000_000),
        Share(annealing.TEMPERATURES, least=20),
        "temperatures that each chain passes",
    ),
    (
        "--gap-images-per-digit",
        (1, 892),
        gap_study.IMAGES_PER_DIGIT,
        "images of each digit at earlier epochs",
    ),
    ("--simulated-images", (2, 100_000), Share(gap_study.SIMULATED_IMAGES, least=4), "images for the certificate"),
    ("--fit-steps", (1, 1_000_000), latent_optimization.FIT_STEPS, "steps of one cycle of a fit"),
    ("--fitted-images", (20, 10_000), Share(evaluation.FITTED_IMAGES, least=50), "test images whose q is fitted"),
    (
        "--judged-samples",
        (200, 50_000),
        Share(sample_quality.SAMPLES, least=1000),
        "samples of either decoder to judge",
    ),
)


def add_evaluation_flags(parser):
    """The flags that say how much is scored. Returns their group."""
    group = parser.add_argument_group(
        "evaluation",
        "Samples, temperatures, and images annealed, simulated, fitted, judged are by default fewer after a shorter "
        "training.",
    )
    for flag, (low, high), default, meaning in FLAGS:
        group.add_argument(flag, metavar="N", type=number(int, low, high), default=default, help=meaning)
    return group


def settle(arguments):
    """Puts in place of every default that is a Share what it comes to; refuses what cannot be together."""
    part = min(1.0, arguments.epochs * arguments.train_size / (EPOCHS * TRAIN_SIZE))
    for name, value in vars(arguments).items():
        if isinstance(value, Share):
            setattr(arguments, name, max(value.least, round(value * part)))
            if name == "annealed_per_digit":
                arguments.annealed_per_digit = min(arguments.annealed_per_digit, arguments.images_per_digit)
    if arguments.annealed_per_digit > arguments.images_per_digit:
        raise InputError(
            f"--annealed-per-digit {arguments.annealed_per_digit}: more than --images-per-digit "
            f"{arguments.images_per_digit}, of which they are taken"
        )
