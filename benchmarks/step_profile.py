"""Where the time of a training step goes, by kind of work.

    python benchmarks/step_profile.py

Steps of the amortized VAE under PyTorch's profiler, in either precision, on all threads and on one, in turns. Time is
the processor's in an operation itself, without those that it calls. The last row is the step's time without a profiler.
Operations per second count multiplications and additions of convolutions and matrix products. Runs on the CPU.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from torch.profiler import ProfilerActivity, profile  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

from amortized_vae import AmortizedVAE  # noqa: E402
from benchmarks.contest import REPEATS, print_table  # noqa: E402
from model import LATENT_DIM  # noqa: E402
from training import BATCH_SIZE, choose_precision, take_step  # noqa: E402

# How the profiler's names of operations begin.
KINDS = {
    "convolutions, backward": ("aten::convolution_backward",),
    "convolutions, forward": ("aten::mkldnn_convolution", "aten::_convolution"),
    "products of the linear layers": ("aten::mm", "aten::addmm"),
    "Adam": ("aten::_fused_adam_", "Optimizer."),
    "conversion of number formats, copies": ("aten::copy_", "aten::_to_copy"),
    "nonlinearities": ("aten::silu", "aten::tanh"),
}
OPERATIONS = {
    "convolutions, backward": ("convolution_backward",),
    "convolutions, forward": ("convolution",),
    "products of the linear layers": ("mm", "addmm"),
}
OTHER = "all else"


def stepping(*, precision):
    """A function that takes a step of the amortized VAE on random images, which cost what others cost."""
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(BATCH_SIZE, 1, 28, 28, generator=generator)
    index, noise = torch.arange(BATCH_SIZE), torch.randn(BATCH_SIZE, LATENT_DIM, generator=generator)
    regime = AmortizedVAE(test_images=images)
    return lambda: take_step(index, noise, regime=regime, images=images, precision=precision)


def operations(step):
    """{kind: floating-point operations of a step}."""
    with FlopCounterMode(display=False) as counter:
        step()
    counts = {str(name).removeprefix("aten."): count for name, count in counter.get_flop_counts()["Global"].items()}
    return {kind: sum(counts.get(name, 0) for name in names) for kind, names in OPERATIONS.items()}


def kind_of(name):
    """The kind of work that an operation of the profiler's is."""
    return next((kind for kind, beginnings in KINDS.items() if name.startswith(beginnings)), OTHER)


def seconds_by_kind(step, *, steps):
    """{kind: seconds of a step}, by the profiler."""
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        for _ in range(steps):
            step()
    times = dict.fromkeys([*KINDS, OTHER], 0.0)
    for event in profiler.key_averages():
        times[kind_of(event.key)] += event.self_cpu_time_total / 1e6 / steps
    return times


def seconds(step, *, steps):
    """Seconds of a step, without the profiler."""
    started = time.perf_counter()
    for _ in range(steps):
        step()
    return (time.perf_counter() - started) / steps


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=REPEATS, help="rounds (5)")
    parser.add_argument("--steps", type=int, default=60, help="steps of each measurement (60)")
    arguments = parser.parse_args()
    precisions = dict.fromkeys([choose_precision("auto", torch.device("cpu")), "float32"])
    steps = {precision: stepping(precision=precision) for precision in precisions}
    counted = {precision: operations(step) for precision, step in steps.items()}
    numbers_of_threads = dict.fromkeys([torch.get_num_threads(), 1])
    cases = [(precision, threads) for precision in precisions for threads in numbers_of_threads]
    profiled, whole = ({case: [] for case in cases} for _ in range(2))
    for _ in range(arguments.repeats):
        for precision, threads in cases:
            torch.set_num_threads(threads)
            seconds(steps[precision], steps=10)  # until the threads are there
            whole[precision, threads].append(seconds(steps[precision], steps=arguments.steps))
            profiled[precision, threads].append(seconds_by_kind(steps[precision], steps=arguments.steps))
    rows = []
    for kind in (*KINDS, OTHER):
        row = [kind]
        for case in cases:
            second = statistics.median(times[kind] for times in profiled[case])
            share = statistics.median(times[kind] / sum(times.values()) for times in profiled[case])
            rate = f", {counted[case[0]][kind] / second / 1e9:.0f} GFLOP/s" if kind in OPERATIONS else ""
            row.append(f"{1000 * second:.1f} ms, {share:.0%}{rate}")
        rows.append(row)
    rows.append(["a step"] + [f"{1000 * statistics.median(whole[case]):.1f} ms" for case in cases])
    print_table(["", *(f"{precision}, threads: {threads}" for precision, threads in cases)], rows)


if __name__ == "__main__":
    main()
