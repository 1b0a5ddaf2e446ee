"""Speed against counted work, on this machine: ``make bench``.

Absolute seconds depend on the machine and its mood; every line also gives the ratio to matrix
products of the same floating-point count, measured in the same process.
"""

from __future__ import annotations

import argparse
import itertools
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from statistics import median
from typing import TypeVar
from unittest.mock import patch

import torch
from torch import Tensor

from harness.command.cli import plan_jobs, prepare
from harness.command.console import Console
from harness.evaluate.base import Context
from harness.formats.int import Int
from harness.inputs import assets
from harness.methods.base import RowMethod
from harness.methods.gptq import GPTQ
from harness.methods.quantease import QuantEase
from harness.numerics import twins
from harness.numerics.statistics import Statistics, collect
from harness.pipeline import COMPUTED, run
from harness.ranges.base import GridSpec
from harness.ranges.minmax import MinMax
from harness.records.cache import Cache

ROOT = Path(__file__).parents[2]
SHAPES = ((1536, 576), (576, 1536))  # rows x columns: the default model's MLP
# All linears of one block of the default model: q, k, v, o, gate, up, down.
MODEL = ((576, 576), (192, 576), (192, 576), (576, 576), (1536, 576), (1536, 576), (576, 1536))
METHODS: dict[str, RowMethod] = {"gptq": GPTQ(), "quantease": QuantEase(iterations=20)}
BUSY_ROUNDS = 5  # of one and two threads in turns
PRODUCTS = 10  # between two batches: a fifth of a second

T = TypeVar("T")


def seconds(work: Callable[[], object], repeats: int = 3) -> float:
    """The best of ``repeats`` timings, after one warm-up."""
    work()
    found = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        found.append(time.perf_counter() - start)
    return min(found)


def product_speed() -> float:
    """Floating-point operations per second of the matrix products of a forward."""
    inputs, weight = torch.randn(1024, 576), torch.randn(576, 1536)
    return 2.0 * 1024 * 576 * 1536 / seconds(lambda: inputs @ weight, 20)


def instance(rows: int, columns: int) -> tuple[Tensor, Statistics]:
    """Random weights and correlated activations."""
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(columns, columns, generator=generator) / columns**0.5
    inputs = torch.randn(2 * columns, columns, generator=generator) @ mixing
    return torch.randn(rows, columns, generator=generator), collect(inputs)


def plain(method: RowMethod, weight: Tensor, statistics: Statistics, spec: GridSpec) -> float:
    """Seconds of a method with the per-column torch loops in place of the compiled kernels."""
    with (
        patch("harness.methods.gptq.gptq_block", twins.gptq_block),
        patch("harness.methods.quantease.quantease_block", twins.quantease_block),
    ):
        return seconds(lambda: method.quantize_rows(weight, statistics, spec), 1)


def bench_kernels(console: Console) -> None:
    """GPTQ and QuantEase on the default model's shapes: against products and plain loops."""
    spec = GridSpec(Int(3), MinMax())
    console.say("method     rows x columns  threads  seconds  x product  plain loop / kernel")
    for threads in (1, 2):
        torch.set_num_threads(threads)
        for name, method in METHODS.items():
            totals = [0.0, 0.0]
            for rows, columns in MODEL:
                weight, statistics = instance(rows, columns)
                product = method.flops(rows, columns) / product_speed()
                took = seconds(lambda: method.quantize_rows(weight, statistics, spec))  # noqa: B023
                loop = plain(method, weight, statistics, spec)
                totals = [totals[0] + took, totals[1] + loop]
                if (rows, columns) in SHAPES:
                    console.say(
                        f"{name:<10} {rows:>4} x {columns:<9} {threads:>7}  {took:7.3f}  "
                        f"{took / product:9.2f}  {loop / took:19.1f}"
                    )
            console.say(f"{name:<10} one block {threads:>13}  {totals[0]:7.3f}             "
                        f"{totals[1] / totals[0]:18.1f}")  # fmt: skip


def bench_busy(console: Console) -> None:
    """One block by one and by two threads in turns, while other processes keep every core busy."""
    work = [instance(rows, columns) for rows, columns in MODEL]
    spec, threads = GridSpec(Int(3), MinMax()), (1, 2)
    spin = [sys.executable, "-c", "while True: pass"]
    others = [subprocess.Popen(spin) for _ in range(os.cpu_count() or 1)]
    try:
        for name, method in METHODS.items():
            found: dict[int, list[float]] = {count: [] for count in threads}
            for count in threads * BUSY_ROUNDS:
                torch.set_num_threads(count)
                start = time.perf_counter()
                for weight, statistics in work:
                    method.quantize_rows(weight, statistics, spec)
                found[count].append(time.perf_counter() - start)
            one, two = (spread_of(found[count]) for count in threads)
            console.say(f"{name:<10} one block, busy cores: {one} on one thread, {two} on two")
    finally:
        for other in others:
            other.kill()
            other.wait()


def spread_of(values: list[float]) -> str:
    """Median and extremes of some seconds."""
    return f"{median(values):.3f} s ({min(values):.3f} to {max(values):.3f})"


def bench_run(console: Console, threads: int) -> None:
    """Calibrate and quantise the default model (GPTQ, alpha 0.5, 16 x 256) against its own floor."""
    words = ["eval=none", "tracker=none", "force=true", f"threads={threads}"]
    with tempfile.TemporaryDirectory() as folder:
        config = replace(plan_jobs(ROOT / "conf", words)[0], results=folder)
        torch.set_num_threads(threads)
        before = product_speed()
        record = run(config, console)
        speed = (before + product_speed()) / 2
    phases = ("walk", "correct", "quantise")
    work = sum(record.flops[phase] for phase in phases)
    took = sum(record.seconds[phase] for phase in (*phases, "errors"))
    console.say(
        f"calibrate + quantise, {threads} threads: {took:.1f} s; {work / 1e12:.2f} TFLOP at "
        f"{speed / 1e9:.0f} GFLOP/s: floor {work / speed:.1f} s, ratio {took * speed / work:.2f}"
    )
    console.say(
        "  " + ", ".join(f"{name} {value:.1f} s" for name, value in record.seconds.items())
    )


AXES = {
    "as it is": (),
    "transform hadamard": ("transform=hadamard",),
    "range mse": ("range=mse",),
    "target residual": ("qep.target=residual",),
}
AXES_ROUNDS = 3


def bench_axes(console: Console, threads: int) -> None:
    """What an axis adds to walking, correcting and quantising the default model with plain GPTQ.

    In turns, so that what else the machine does hits all alike; medians of the rounds.
    """
    torch.set_num_threads(threads)
    words = ["eval=none", "tracker=none", "force=true", f"threads={threads}"]
    found: dict[str, list[float]] = {name: [] for name in AXES}
    with tempfile.TemporaryDirectory() as folder:
        for name, more in list(AXES.items()) * AXES_ROUNDS:
            config = replace(plan_jobs(ROOT / "conf", [*words, *more])[0], results=folder)
            spent = run(config, console).seconds
            found[name].append(sum(spent[phase] for phase in ("walk", "correct", "quantise")))
    plain = median(found["as it is"])
    for name, times in found.items():
        console.say(f"{name:<20} {spread_of(times)}, ratio {median(times) / plain:.2f}")


class Products:
    """Matrix products between the batches of an evaluation, at the speed that they have there.

    What else the machine does slows both down alike, which a speed measured before would not show.
    """

    def __init__(self) -> None:
        self.seconds, self.flops = 0.0, 0.0
        self._inputs, self._weight = torch.randn(1024, 576), torch.randn(576, 1536)

    def track(self, items: Iterable[T], label: str, total: int | None = None) -> Iterable[T]:
        """A progress display that shows nothing and multiplies."""
        for item in items:
            yield item
            start = time.process_time()
            for _ in range(PRODUCTS):
                self._inputs @ self._weight
            self.seconds += time.process_time() - start
            self.flops += PRODUCTS * 2.0 * 1024 * 576 * 1536


def bench_evaluation(console: Console) -> None:
    """The default evaluation of a quantised model, one thread, against its operations' floor.

    Imports are start-up. In processor time: other work on the machine stretches the clock on the
    wall. The model is the full-precision one, which is compared with itself: that costs the same.
    """
    import_module("lm_eval.evaluator")
    import_module("datasets")
    torch.set_num_threads(1)
    config = plan_jobs(ROOT / "conf", ["tracker=none"])[0]
    loaded = config.model.load("cpu")
    times, floors = 0.0, 0.0
    with tempfile.TemporaryDirectory() as folder:
        context = Context(loaded.content_hash, True, Cache(Path(folder)))
        for name, evaluator in config.evaluators.items():
            products = Products()
            compared = replace(context, full_precision=False, track=products.track)
            if evaluator.missing(loaded.tokenizer, compared):
                evaluator.evaluate(loaded.model, loaded.tokenizer, context)
            start = time.process_time()
            work = evaluator.evaluate(loaded.model, loaded.tokenizer, compared).flops
            took = time.process_time() - start - products.seconds
            floor = work * products.seconds / products.flops
            times, floors = times + took, floors + floor
            console.say(
                f"{name}: {took:.1f} s; {work / 1e12:.2f} TFLOP at "
                f"{work / floor / 1e9:.0f} GFLOP/s: floor {floor:.1f} s, ratio {took / floor:.2f}"
            )
    console.say(f"evaluation, 1 thread: ratio {times / floors:.2f} of processor times")


SWEEP = {"method": ("gptq", "rtn"), "bits": ("3",), "qep.alpha": ("0", "0.5")}


def bench_sweep(console: Console) -> None:
    """Four cells of the mission's sweep in one process, and in four processes one after the other.

    Both evaluate four windows, share the full-precision baseline and start without anything
    computed; the model is in the cache.
    """
    common = ["eval.windows=4", "eval.tasks=[]", "tracker=none"]
    cells = [
        [f"{key}={value}" for key, value in zip(SWEEP, values, strict=True)]
        for values in itertools.product(*SWEEP.values())
    ]
    whole = ["-m", *(f"{key}={','.join(values)}" for key, values in SWEEP.items())]

    def timed(name: str, commands: list[list[str]]) -> float:
        with tempfile.TemporaryDirectory() as folder:
            cache = Path(folder) / "cache"
            cache.mkdir()
            for entry in assets.cache_directory().iterdir():
                if entry.name != COMPUTED:
                    (cache / entry.name).symlink_to(entry)
            environment = {**os.environ, "QEP_BENCH_CACHE": str(cache)}
            start = time.perf_counter()
            for words in console.track(commands, name, len(commands)):
                program = [sys.executable, str(ROOT / "run.py"), *words, *common]
                program.append(f"results={folder}/results")
                subprocess.run(program, env=environment, capture_output=True, check=True)
            return time.perf_counter() - start

    apart = timed("processes", cells)
    together = timed("sweep", [whole])
    console.say(
        f"{len(cells)} cells: {together:.0f} s as one sweep, {apart:.0f} s as processes, "
        f"ratio {together / apart:.2f}"
    )


def bench_start(console: Console) -> None:
    """``--help``, which must not wait for torch."""
    command = [sys.executable, str(ROOT / "run.py"), "--help"]
    took = seconds(lambda: subprocess.run(command, capture_output=True, check=True))
    console.say(f"run.py --help: {took:.2f} s")


def main() -> None:
    """Runs what was asked for, everything by default."""
    parser = argparse.ArgumentParser(prog="python -m harness.command.bench", description=__doc__)
    parser.add_argument(
        "what",
        nargs="*",
        help="start, kernels, busy, run, axes, evaluation, sweep; all by default",
    )
    parser.add_argument("--threads", type=int, default=1, help="of run and axes")
    options = parser.parse_args()
    console = Console()
    prepare(console.say)
    parts: dict[str, Callable[[], None]] = {
        "start": lambda: bench_start(console),
        "kernels": lambda: bench_kernels(console),
        "busy": lambda: bench_busy(console),
        "run": lambda: bench_run(console, options.threads),
        "axes": lambda: bench_axes(console, options.threads),
        "evaluation": lambda: bench_evaluation(console),
        "sweep": lambda: bench_sweep(console),
    }
    for name in options.what or parts:
        if name not in parts:
            parser.error(f"{name!r}: allowed are {', '.join(parts)}")
        parts[name]()


if __name__ == "__main__":
    main()
