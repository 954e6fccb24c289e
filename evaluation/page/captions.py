"""What each figure of report.html shows, and what to conclude, with the numbers of the run."""

from evaluation import style
from evaluation.latents import USED
from evaluation.statistics import find, select_scores
from evaluation.tables import number, pairs


def captions(scores, methods, classes=(), *, plane=False):
    """{name of a figure, without its epoch: (title, what it shows and what to conclude)}, in their order.

    plane: whether z has at most two dimensions.
    """
    labels = {method.name: method.label for method in methods}

    def values(quantity, form=".1f", **where):
        """The quantity of every method, with its label."""
        entries = {label: find(scores, quantity, name, **where) for name, label in labels.items()}
        return "; ".join(f"{label} {entry.mean:{form}}" for label, entry in entries.items())

    def difference(quantity):
        entries = [(label, find(scores, quantity, pair)) for pair, label in pairs(labels)]
        return " ".join(
            f"{label}: {number(entry, 1)} on the same {entry.images} test images." for label, entry in entries
        )

    # With the most labels.
    probes = select_scores(scores, quantity="probe_accuracy", method="pixels")
    most = max(probes, key=lambda entry: int(entry.group))
    neighbors = find(scores, "nearest_neighbor_accuracy", "pixels").mean
    of_class = f"of the same class for {values('nearest_neighbor_accuracy', '.1%')}; raw pixels {neighbors:.1%}"
    table_rows = (
        " Where q is fitted to each image, validation images may be ahead: they get more steps than a row of the table."
    )
    squared_error, log_prob = difference("squared_error"), difference("log_prob")
    numbered = " Classes are shown by number; above is what they mean." * style.are_numbered(classes)
    of_classes = [entry for entry in select_scores(scores, quantity="inference_gap") if entry.group in set(classes)]
    intervals = ", with 95% intervals" * any(entry.images > 1 for entry in of_classes)
    return {
        "comparison": (
            "The same unseen images through every method",
            "Test images and what each decoder draws at the mean of their q(z), with the squared error below."
            + f" Of all measured test images, at the last epoch: {squared_error}" * bool(squared_error),
        ),
        **{
            method.reconstruction_prefix: (
                f"Reconstructions: {method.label}",
                "Training images, then test images, each over its reconstruction: where the test images are as good, "
                "the decoder has not merely memorized.",
            )
            for method in methods
        },
        "samples": (
            "Samples from the prior",
            "What each decoder draws at the same z from p(z): pictures that could be training images mean that p(z) is "
            "covered by what was learned.",
        ),
        "training_curves": (
            "Training",
            "The negative ELBO and its two parts over epochs, lower is better; a dashed line far above its solid one "
            "is overfitting."
            + table_rows * any(not method.shared_inference for method in methods)
            + f" At the end the ELBO of test images is: {values('elbo')}.",
        ),
        "quality_over_seconds": (
            "What a second of training buys",
            "ELBO and log p(x) of the same test images over seconds: compare the methods at equal seconds here, and at "
            "equal updates by the numbers at the markers, which are epochs.",
        ),
        "log_probabilities": (
            "log p(x) of every class",
            "One image of each class with its log p(x), and the means of the classes. It is annealed, or with one or "
            f"two dimensions integrated; importance sampling is low where few of its samples are effective. {log_prob}"
            + numbered,
        ),
        "where_the_nats_go": (
            "Where the nats go",
            "log p(x) - ELBO(q) in its three parts: what a better diagonal q would gain, what correlations in q "
            "would gain, and what no Gaussian can. On test images: amortization gap: "
            f"{values('amortization_gap')}; mean-field gap: {values('mean_field_gap')}; non-Gaussian gap: "
            f"{values('non_gaussian_gap')} nats.",
        ),
        "gaps_over_epochs": (
            "What inference loses, over epochs",
            "The three gaps on the same few images after every saved epoch, and at the end of all measured ones.",
        ),
        "gaps_per_digit": (
            "What inference loses, class by class",
            f"The gaps of every class at the last epoch{intervals}. In all, on test "
            f"images: {values('inference_gap')} nats.{numbered}",
        ),
        "latent_usage": (
            "Which dimensions of z are used",
            "KL of every dimension, sorted: a dimension near 0 is ignored by the decoder. Above "
            f"{USED:g} nats on test images are: {values('used_dimensions', '.0f')}.",
        ),
        "latent_probes": (
            "What a linear classifier reads from z",
            f"Accuracy over the number of labels. With {int(most.group):,}: "
            f"{values('probe_accuracy', '.1%', group=most.group)}; raw pixels {most.mean:.1%}: a latent below raw "
            "pixels has lost something that they show.",
        ),
        "latent_map": (
            "A map of the latents",
            "The means of q of test images in z itself, beside one and two standard deviations of the prior: samples "
            f"from where no image lies look like none. Nearest neighbors are {of_class}.{numbered}"
            if plane
            else "t-SNE of the means of q of test images. Trust the nearest neighbors in all dimensions rather than "
            f"the picture: they are {of_class}.{numbered}",
        ),
        "latent_manifold": (
            "What the decoders draw over all of z",
            "Every z of a grid, decoded. Its steps have equal shares of the prior, so the area of a kind of picture is "
            "its share of the samples.",
        ),
        "traversals": (
            "Along one dimension",
            "What each decoder draws as z moves along a dimension or a principal direction: a change that can be named "
            "is one that the decoder has separated from others.",
        ),
        "interpolation": (
            "Between two images",
            "Pictures halfway that could be real mean that the line between two codes stays where the decoder has "
            f"learned; mixed pixels are what that is to be compared with.{numbered}",
        ),
        "sample_quality": (
            "How real samples look to a classifier",
            "Fréchet distance of samples from the test images, lower is better, over that of a Gaussian of pixels: "
            f"{values('frechet_ratio', '.2f')}. The classifier itself has "
            f"{find(scores, 'classifier_accuracy', 'baseline').mean:.1%} of the test images right.{numbered}",
        ),
    }
