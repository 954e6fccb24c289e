"""--methods: methods that are added to a run, scored alone, or lack a checkpoint."""

import signal
from argparse import Namespace

import processes
import pytest

import main_vae
from evaluation.settings import choose_methods
from evaluation.statistics import find, select_scores
from evaluation.tables import read_scores
from runtime.config import InputError

CHOSEN = ["--methods", "latent_optimization", "semi_amortized", "amortized"]
OPTIONS = ["--epochs", "1", "--latent-rank", "2", "--refinement-steps", "3", "--evaluation", "quick"]


def test_methods_can_be_added_to_a_run_and_scored_alone(folder_of_runs):
    """A run of one that is stopped, to which the others are added; every table has all three."""
    folder = folder_of_runs / "added"
    after = {"after": "semi_amortized: epoch 1/1", "number": signal.SIGTERM}
    assert processes.stop(processes.MAIN, folder, *OPTIONS, "--methods", "semi_amortized", **after)[0] == 143
    said = "of a run of --methods semi_amortized, to which --resume adds the others"
    processes.refused(processes.MAIN, folder, *OPTIONS, *CHOSEN, said=said)
    status, out, _ = processes.run(processes.MAIN, folder, *OPTIONS, *CHOSEN, "--resume")
    assert status == 0
    assert max(map(len, out.splitlines())) <= 100
    scores = read_scores(folder / "results/scores.csv")
    assert len(select_scores(scores, quantity="fitted_elbo", split="test", group="")) == 6  # every two of them, too
    for name, visits in (("amortized", 1), ("latent_optimization", 1), ("semi_amortized", 3)):  # each says its own
        assert find(scores, "training_gradients", name, "train").mean == 100 * visits
    assert find(scores, "training_gradients_per_q", "amortized", "train").mean == 100  # all images shape it

    # Scored alone, or not at all
    alone = [*OPTIONS, "--methods", "semi_amortized", "--evaluate-only", "--results-dir", "alone"]
    assert processes.run(processes.MAIN, folder, *alone)[0] == 0
    of_one = read_scores(folder / "alone/scores.csv")
    for quantity in ("elbo", "fitted_elbo", "amortization_gap"):
        assert find(of_one, quantity, "semi_amortized") == find(scores, quantity, "semi_amortized")
    assert {entry.method for entry in of_one if entry.quantity == "elbo"} == {"semi_amortized"}
    (folder / "checkpoints/vae_epoch_1.pt").unlink()
    said = "checkpoints: no checkpoints vae_epoch_N.pt"
    assert processes.refused(processes.MAIN, folder, *OPTIONS, *CHOSEN, "--evaluate-only", said=said).endswith(said)


def test_two_methods_of_one_name_prefix_or_label_are_refused():
    class Other(main_vae.METHODS[0]):
        name = "other"

    class Alike(Other):
        prefix = "other"

    class Same(main_vae.METHODS[0]):
        prefix = "other"

    for method, said in ((Other, "prefix vae"), (Same, "name amortized"), (Alike, "label Amortized VAE")):
        with pytest.raises(InputError, match=f"METHODS: two have the {said}"):
            choose_methods(Namespace(), (*main_vae.METHODS, method))
