"""What it costs to write the state that continues a run, as a share of an epoch at the default size.

    python benchmarks/state_cost.py

Steps of training, the held-out bound and writes of the state take turns, so that whatever else the machine does slows
all. An epoch is its training and the held-out bound; what is written is that of a run in its last epoch. The medians
are compared.
"""

import argparse
import math
import statistics
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from amortized_vae import AmortizedVAE  # noqa: E402
from data import TRAIN_SIZE, load_mnist, stratified_subset  # noqa: E402
from latent_optimization import LatentOptimization  # noqa: E402
from runs import Run, save_state, state_path  # noqa: E402
from training import BATCH_SIZE, EPOCHS, autocast, choose_precision, train_epoch  # noqa: E402


def share_of_an_epoch(*, regime, images, folder, repeats, steps=50):
    """Returns (share, seconds of an epoch, seconds of a write, bytes written)."""
    run = Run(identity="", flags={}, states={})
    history = [{"regime": regime.name, "epoch": epoch, "held_out_elbo": -1.0} for epoch in range(EPOCHS)]
    precision = choose_precision("auto", images.device)
    training, following, writing = [], [], []
    for repeat in range(repeats + 1):
        started = time.perf_counter()
        train_epoch(regime=regime, images=images[: steps * BATCH_SIZE], epoch=repeat, seed=0, precision=precision)
        trained = time.perf_counter()
        with autocast(precision, images.device):
            regime.held_out(repeat)
        followed = time.perf_counter()
        save_state(run=run, prefix=regime.prefix, checkpoint_dir=folder, history=history, state=regime.state_dict())
        training.append(trained - started)
        following.append(followed - trained)
        writing.append(time.perf_counter() - followed)
    # The first steps also set everything up.
    epoch = statistics.median(training[1:]) * math.ceil(TRAIN_SIZE / BATCH_SIZE) / steps
    epoch += statistics.median(following[1:])
    write = statistics.median(writing[1:])
    return write / epoch, epoch, write, state_path(folder, regime.prefix).stat().st_size


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=10, help="turns of training and writing (10)")
    parser.add_argument("--folder", default=ROOT / "checkpoints", help="where to write (checkpoints)")
    arguments = parser.parse_args()
    mnist_train, test = load_mnist(data_dir=ROOT / "data")
    images = stratified_subset(mnist_train, size=TRAIN_SIZE).images
    steps = (arguments.repeats + 1) * math.ceil(TRAIN_SIZE / BATCH_SIZE)
    for regime in (
        AmortizedVAE(test_images=test.images),
        LatentOptimization(train_size=TRAIN_SIZE, test=test, max_steps=steps),
    ):
        with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
            share, epoch, write, size = share_of_an_epoch(
                regime=regime, images=images, folder=folder, repeats=arguments.repeats
            )
        print(f"{regime.name}: {size / 1e6:.0f} MB in {write:.3f} s, {share:.1%} of an epoch of {epoch:.2f} s")


if __name__ == "__main__":
    main()
