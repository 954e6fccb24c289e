"""Seconds of one training epoch: this project's against the textbook's and pythae's, and as a share of the machine.

    python benchmarks/training.py [--profile | --state]

Amortized: an epoch over 20,000 images in batches of 64, then the bound of the validation images, the same network for
all. Latent optimization: the epoch alone. "Share of the machine": floating-point operations per second of the training
steps, over those of a large matrix product in the same precision. --profile: the processor's time in each kind of
operation, without those that it calls, by PyTorch's profiler; the last row is the step's time without a profiler.
--state: what it costs to write the state that continues a run. Everything runs on the CPU.
"""

import argparse
import importlib.util
import itertools
import statistics
import sys
import tempfile
import time
import timeit
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from torch import optim  # noqa: E402
from torch.profiler import ProfilerActivity, profile  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

from amortized_vae import AmortizedVAE  # noqa: E402
from benchmarks import textbook  # noqa: E402
from benchmarks.harness import REPEATS, median_and_range, print_table, ratios, take_turns  # noqa: E402
from data import load_data  # noqa: E402
from latent_optimization import LatentOptimization  # noqa: E402
from latent_table import INITIAL_LOG_VAR  # noqa: E402
from model import ConvModel, ConvVAE  # noqa: E402
from runtime.checkpoint import save_checkpoint  # noqa: E402
from runtime.config import TrainConfig, choose_precision  # noqa: E402
from training import train_epoch  # noqa: E402

DATA, AMORTIZED = ROOT / "data", "amortized"
METHODS = {AMORTIZED: AmortizedVAE, "latent optimization": LatentOptimization}
# The default one and float32: the same where the processor does not compute in bfloat16.
PRECISIONS = tuple(dict.fromkeys([choose_precision("auto", torch.device("cpu")), "float32"]))
# Kinds of work: how the profiler's names of their operations begin, and what FlopCounterMode calls those.
KINDS = {
    "convolutions, backward": (("aten::convolution_backward",), ("convolution_backward",)),
    "convolutions, forward": (("aten::mkldnn_convolution", "aten::_convolution"), ("convolution",)),
    "products of the linear layers": (("aten::mm", "aten::addmm"), ("mm", "addmm")),
    "Adam": (("aten::_fused_adam_", "Optimizer."), ()),
    "conversion of number formats, copies": (("aten::copy_", "aten::_to_copy"), ()),
    "nonlinearities": (("aten::silu", "aten::tanh"), ()),
}
OTHER = "everything else"


def make_learner(method, config):
    """A method as main_vae.py builds it."""
    return METHODS[method](config, load_data(config, data_dir=DATA))


def stepping(learner):
    """A function that takes a step, always on the same images."""
    size = learner.config.batch_size
    return partial(learner.train_step, torch.arange(size), learner.draw_noise(size, torch.Generator().manual_seed(0)))


def operations(step):
    """{kind: floating-point operations of a step}."""
    with FlopCounterMode(display=False) as counter:
        step()
    counts = {str(name).removeprefix("aten."): count for name, count in counter.get_flop_counts()["Global"].items()}
    return {kind: sum(counts.get(name, 0) for name in names) for kind, (_, names) in KINDS.items()}


def our_epochs(method, config):
    """A turn is an epoch as main_vae.py trains it; it returns the floating-point operations per second of its steps."""
    learner = make_learner(method, config)
    count = sum(operations(stepping(learner)).values()) * config.train_size / config.batch_size
    numbers = itertools.count(1)

    def turn():
        epoch, started = next(numbers), time.perf_counter()
        train_epoch(learner, epoch)
        rate = count / (time.perf_counter() - started)
        if method == AMORTIZED:
            learner.validate(epoch)
        return rate

    return turn


def textbook_epochs(method, config):
    """A turn is an epoch of the same network in the textbook's loop."""
    data, loader = load_data(config, data_dir=DATA), partial(textbook.mnist_loader, data_dir=DATA)
    train = loader(rows=data.train.index, batch_size=config.batch_size)
    validation = loader(rows=data.validation.index, batch_size=1000, shuffle=False)
    if method == AMORTIZED:
        model = textbook.in_default_layout(ConvVAE(seed=0))
        groups, posterior = model.parameters(), lambda x, rows: model.encode(x)
    else:
        model, size = textbook.in_default_layout(ConvModel(seed=0)), config.train_size
        latents = textbook.Latents(size=size, initial_log_var=INITIAL_LOG_VAR, latent_dim=config.latent_dim)
        table = {"params": latents.parameters(), "lr": config.latent_learning_rate}
        groups, posterior = [table, {"params": model.parameters()}], lambda x, rows: latents(rows)
    optimizer = optim.Adam(groups, lr=config.learning_rate)

    def turn():
        textbook.train_epoch(posterior, model.decode, train, optimizer)
        if method == AMORTIZED:
            textbook.validate(posterior, model.decode, validation)

    return turn


def pythae_epochs(config):
    """A turn is an epoch of the same network in pythae's training pipeline."""
    from benchmarks import pythae_loop

    trainer = pythae_loop.make_trainer(ConvVAE(seed=0), load_data(config, data_dir=DATA), config)
    numbers = itertools.count(1)

    def turn():
        epoch = next(numbers)
        trainer.train_step(epoch)
        trainer.eval_step(epoch)

    return turn


def matrix_product(*, precision, size, count=3):
    """A turn is products of square matrices; it returns their floating-point operations per second."""
    matrices = torch.randn(2, size, size, generator=torch.Generator().manual_seed(0))
    one, other = matrices.to(getattr(torch, precision))
    return lambda: 2 * size**3 * count / timeit.timeit(lambda: one @ other, number=count)


def compare_epochs(*, train_size, repeats, product_size):
    """Prints the table of epochs."""
    default, candidates, products = f"ours, {PRECISIONS[0]}", {}, {}
    for method in METHODS:
        for precision in PRECISIONS:
            # An epoch to warm up, and the steps of another for the one whose operations are counted.
            config = TrainConfig(train_size=train_size, epochs=repeats + 2, precision=precision)
            candidates[method, f"ours, {precision}"] = partial(our_epochs, method, config)
            products["product", f"ours, {precision}"] = partial(matrix_product, precision=precision, size=product_size)
        candidates[method, "textbook"] = partial(textbook_epochs, method, config)
        if method == AMORTIZED and importlib.util.find_spec("pythae"):
            candidates[method, "pythae"] = partial(pythae_epochs, config)
    turns = take_turns(candidates | products, repeats=repeats)
    times = {name: [turn.seconds for turn in turns[name]] for name in turns}
    rates = {name: [turn.result for turn in turns[name]] for name in turns}
    rows = []
    for method, name in candidates:
        row = [f"{method}, {name}", median_and_range(times[method, name])]
        for base in (default, "ours, float32"):
            row.append(median_and_range(ratios(times[method, name], times[method, base])))
        share = ratios(rates[method, name], rates["product", name]) if name.startswith("ours") else None
        rows.append([*row, median_and_range(share, ".1%") if share else ""])
    header = [f"epoch of {train_size:,} images", "seconds", f"over {default}", "over ours, float32"]
    print_table([*header, "share of the machine"], rows)
    for precision in PRECISIONS:
        rate = median_and_range([rate / 1e9 for rate in rates["product", f"ours, {precision}"]], ".0f")
        print(f"matrix product, {precision}: {rate} GFLOP/s")
    if not importlib.util.find_spec("pythae"):
        print("pythae is left out: pip install -r benchmarks/requirements.txt")


def seconds_by_kind(step, *, steps):
    """{kind: seconds of a step}, by the profiler."""
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        timeit.timeit(step, number=steps)
    times = dict.fromkeys([*KINDS, OTHER], 0.0)
    for event in profiler.key_averages():
        kind = next((kind for kind, (beginnings, _) in KINDS.items() if event.key.startswith(beginnings)), OTHER)
        times[kind] += event.self_cpu_time_total / 1e6 / steps
    return times


def profile_steps(*, train_size, repeats, steps=60):
    """Prints a table of kinds of work in a step of the amortized VAE, by precision and number of threads."""
    columns = list(itertools.product(PRECISIONS, dict.fromkeys([torch.get_num_threads(), 1])))
    configs = {precision: TrainConfig(train_size=train_size, precision=precision) for precision in PRECISIONS}
    step = {precision: stepping(make_learner(AMORTIZED, config)) for precision, config in configs.items()}
    counted = {precision: operations(step[precision]) for precision in PRECISIONS}
    profiled, whole = ({column: [] for column in columns} for _ in range(2))
    for _ in range(repeats):
        for precision, threads in columns:
            torch.set_num_threads(threads)
            timeit.timeit(step[precision], number=10)  # until the threads are there
            whole[precision, threads].append(timeit.timeit(step[precision], number=steps) / steps)
            profiled[precision, threads].append(seconds_by_kind(step[precision], steps=steps))
    rows = [[kind] for kind in (*KINDS, OTHER)]
    for row, (precision, threads) in itertools.product(rows, columns):
        samples = profiled[precision, threads]
        second = statistics.median(times[row[0]] for times in samples)
        share = statistics.median(times[row[0]] / sum(times.values()) for times in samples)
        count = counted[precision].get(row[0])
        row.append(f"{1000 * second:.1f} ms, {share:.0%}" + (f", {count / second / 1e9:.0f} GFLOP/s" if count else ""))
    rows.append(["a step"] + [f"{1000 * statistics.median(whole[column]):.1f} ms" for column in columns])
    print_table(["", *(f"{precision}, threads: {threads}" for precision, threads in columns)], rows)


def cost_of_state(method, *, train_size, repeats):
    """(seconds of an epoch with its validation, seconds of a write, bytes): medians of epochs and writes in turns."""
    config = TrainConfig(train_size=train_size, epochs=repeats + 1, precision=PRECISIONS[0])
    learner, epochs, writes = make_learner(method, config), [], []
    with tempfile.TemporaryDirectory(dir=ROOT / "checkpoints") as folder:
        path = Path(folder) / "state.pt"
        for epoch in range(1, repeats + 2):
            started = time.perf_counter()
            train_epoch(learner, epoch)
            learner.validate(epoch)
            trained = time.perf_counter()
            save_checkpoint(path, learner.state_dict())
            epochs.append(trained - started)
            writes.append(time.perf_counter() - trained)
        size = path.stat().st_size
    return statistics.median(epochs[1:]), statistics.median(writes[1:]), size  # the first of each sets everything up


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", action="store_true", help="what a step's time is spent on")
    parser.add_argument("--state", action="store_true", help="what it costs to write the state that continues a run")
    parser.add_argument("--repeats", type=int, default=REPEATS, help=f"rounds that count ({REPEATS})")
    parser.add_argument("--train-size", type=int, default=20_000, help="images of an epoch (20000)")
    parser.add_argument("--product-size", type=int, default=4096, help="rows of the matrix product (4096)")
    arguments = parser.parse_args()
    sizes = {"train_size": arguments.train_size, "repeats": arguments.repeats}
    if arguments.profile:
        profile_steps(**sizes)
    elif arguments.state:
        for method in METHODS:
            epoch, write, size = cost_of_state(method, **sizes)
            print(f"{method}: {size / 1e6:.0f} MB in {write:.3f} s, {write / epoch:.1%} of an epoch of {epoch:.2f} s")
    else:
        compare_epochs(product_size=arguments.product_size, **sizes)


if __name__ == "__main__":
    main()
