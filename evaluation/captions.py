"""What each figure of report.html shows, and what to conclude, with the numbers of the run."""


def captions(summary, methods):
    """{name of a figure, without its epoch: (title, what it shows and what to conclude)}, in their order."""
    scores, of_samples = summary["methods"], summary["samples"]
    labels = {method.name: method.label for method in methods}

    def each(text):
        """What `text` gives for every method, with its label."""
        return "; ".join(f"{labels[name]} {text(name, method)}" for name, method in scores.items())

    def difference(quantity):
        found = []
        for pair in summary["differences"]:
            score, (one, other) = pair["test"][quantity], (labels[name] for name in pair["methods"])
            error = "" if score["standard_error"] is None else f" ± {score['standard_error']:.1f}"
            found.append(f"{one} less {other}: {score['mean']:.1f}{error} on the same {score['images']} test images.")
        return " ".join(found)

    def gap(name):
        return each(lambda _, method: f"{method['gaps']['test'][name]['mean']:.1f}")

    dimensions = {name: method["latents"]["dimensions"]["test"] for name, method in scores.items()}
    probes = {name: rows[-1] for name, rows in summary["probes"].items() if isinstance(rows, list)}
    agreement = "nearest_neighbor_has_the_same_class"
    of_pixels = next(iter(scores.values()))["latents"]["nearest_neighbor_in_pixels_has_the_same_class"]
    return {
        "comparison": (
            "The same unseen images through every method",
            "Test images and what each decoder draws at the mean of their q(z), with the squared error below. Of all "
            "annealed test images, at the last epoch: " + difference("squared_error"),
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
            + " Where q is fitted to each image, validation images may be ahead: they get more steps than a row of the "
            "table."
            * any(not method.shared_inference for method in methods)
            + " At the end the ELBO of test images is: "
            + each(lambda _, method: f"{method['bounds']['test']['elbo']['mean']:.1f}")
            + ".",
        ),
        "quality_over_seconds": (
            "What a second of training buys",
            "ELBO and log p(x) of the same test images over seconds: compare the methods at equal seconds here, and at "
            "equal updates by the numbers at the markers, which are epochs.",
        ),
        "log_probabilities": (
            "log p(x) of every class",
            "One image of each class with its log p(x), and the means of the classes. Annealing is the estimate to "
            "compare by; importance sampling is low by more than its intervals say. " + difference("log_prob"),
        ),
        "gaps_over_epochs": (
            "What inference loses, over epochs",
            "The approximation gap is what no diagonal Gaussian can reach, the amortization gap what a better q could "
            f"gain. On test images at the end: approximation gap: {gap('approximation_gap')}; amortization "
            f"gap: {gap('amortization_gap')} nats.",
        ),
        "gaps_per_digit": (
            "What inference loses, class by class",
            "Both gaps of every class at the last epoch, with 95% intervals. In all, on test "
            "images: " + gap("inference_gap") + " nats.",
        ),
        "latent_usage": (
            "Which dimensions of z are used",
            "KL of every dimension, sorted: a dimension near 0 is ignored by the decoder. Above "
            f"{next(iter(dimensions.values()))['kl_threshold']:g} nats on test images are: "
            + each(lambda name, _: f"{dimensions[name]['used_dimensions']}")
            + ".",
        ),
        "latent_probes": (
            "What a linear classifier reads from z",
            f"Accuracy over the number of labels. With {next(iter(probes.values()))['labels']:,}: "
            + each(lambda name, _: f"{probes[name]['accuracy']:.1%}")
            + f"; raw pixels {probes['pixels']['accuracy']:.1%}: a latent below raw pixels has lost something "
            "that they show.",
        ),
        "latent_map": (
            "A map of the latents",
            "t-SNE of the means of q of test images. Trust the nearest neighbors in all dimensions rather than the "
            "picture: they are of the same class for "
            + each(lambda _, method: f"{method['latents'][agreement]['accuracy']:.1%}")
            + f"; raw pixels {of_pixels['accuracy']:.1%}.",
        ),
        "traversals": (
            "Along one dimension",
            "What each decoder draws as z moves along a dimension or a principal direction: a change that can be named "
            "is one that the decoder has separated from others.",
        ),
        "interpolation": (
            "Between two images",
            "Pictures halfway that could be real mean that the line between two codes stays where the decoder has "
            "learned; mixed pixels are what that is to be compared with.",
        ),
        "sample_quality": (
            "How real samples look to a classifier",
            "Fréchet distance of samples from the test images, lower is better, over that of a Gaussian of pixels: "
            + each(lambda name, _: f"{of_samples[name]['frechet_distance']['over_pixel_gaussian']['value']:.2f}")
            + f". The classifier itself has {summary['probes']['baseline_itself']['accuracy']:.1%} of the test images "
            "right.",
        ),
    }
