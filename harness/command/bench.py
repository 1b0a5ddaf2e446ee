"""Speed against counted work, on this machine: ``make bench``.

Absolute seconds depend on the machine and its mood. So the table that it prints has ratios: to the *floor*,
matrix products of the same floating-point count measured in the same process; of the *plain loops* in torch
to the compiled ones; and of a run with another choice of one *axis* to the plain run.
"""

from __future__ import annotations

import argparse
import itertools
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from statistics import median
from typing import TypeVar
from unittest.mock import patch

import torch
from rich.table import Table
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
# Rows x columns of all linears of one block of the default model: q, k, v, o, gate, up, down.
MODEL = ((576, 576), (192, 576), (192, 576), (576, 576), (1536, 576), (1536, 576), (576, 1536))
METHODS: dict[str, RowMethod] = {"gptq": GPTQ(), "quantease": QuantEase(iterations=20)}
BUSY_ROUNDS = 5  # of one and two threads in turns
PRODUCTS = 10  # between two batches: a fifth of a second

T = TypeVar("T")


@dataclass(frozen=True)
class Row:
    """A line of the table: seconds, and those ratios that say something of it."""

    what: str
    seconds: float
    floor: float | None = None
    loops: float | None = None
    axis: float | None = None

    def cells(self) -> list[str]:
        """As the table has them."""
        ratios = [self.floor, self.loops, self.axis]
        return [
            self.what,
            f"{self.seconds:.3g}",
            *("" if r is None else f"{r:.2f}" for r in ratios),
        ]


def table(rows: Iterable[Row]) -> Table:
    """All that was measured."""
    made = Table(box=None, pad_edge=False, header_style="bold", show_edge=False)
    for title in ("", "seconds", "to the floor", "plain loops", "to plain GPTQ"):
        made.add_column(title, justify="right" if title else "left")
    for row in rows:
        made.add_row(*row.cells())
    return made


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


def bench_kernels() -> Iterator[Row]:
    """GPTQ and QuantEase on the linears of one block of the default model."""
    spec = GridSpec(Int(3), MinMax())
    for threads in (1, 2):
        torch.set_num_threads(threads)
        for name, method in METHODS.items():
            took = floor = loops = 0.0
            for rows, columns in MODEL:
                weight, statistics = instance(rows, columns)
                floor += method.flops(rows, columns) / product_speed()
                took += seconds(lambda: method.quantize_rows(weight, statistics, spec))  # noqa: B023
                loops += plain(method, weight, statistics, spec)
            yield Row(f"{name}, one block, {threads} threads", took, took / floor, loops / took)


def bench_busy() -> Iterator[Row]:
    """One block by one and by two threads in turns while other processes keep every core busy, medians."""
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
            for count in threads:
                yield Row(f"{name}, one block, {count} threads, busy cores", median(found[count]))
    finally:
        for other in others:
            other.kill()
            other.wait()


def bench_run(console: Console, threads: int) -> Iterator[Row]:
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
    yield Row(f"calibrate and quantise, {threads} threads", took, took * speed / work)


AXES = {
    "as it is": (),
    "transform hadamard": ("transform=hadamard",),
    "range mse": ("range=mse",),
    "target residual": ("qep.target=residual",),
}
AXES_ROUNDS = 3


def bench_axes(console: Console, threads: int) -> Iterator[Row]:
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
        yield Row(f"GPTQ, {name}", median(times), axis=median(times) / plain)


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


def bench_evaluation() -> Iterator[Row]:
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
            yield Row(f"evaluation: {name}, 1 thread", took, took / floor)
    yield Row("evaluation, 1 thread", times, times / floors)


SWEEP = {"method": ("gptq", "rtn"), "bits": ("3",), "qep.alpha": ("0", "0.5")}


def bench_sweep(console: Console) -> Iterator[Row]:
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
    yield Row(f"{len(cells)} cells as processes", apart)
    yield Row(f"{len(cells)} cells as one sweep: {together / apart:.2f} of that", together)


def bench_start() -> Iterator[Row]:
    """``--help``, which must not wait for torch."""
    command = [sys.executable, str(ROOT / "run.py"), "--help"]
    took = seconds(lambda: subprocess.run(command, capture_output=True, check=True))
    yield Row("run.py --help", took)


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
    parts: dict[str, Callable[[], Iterator[Row]]] = {
        "start": bench_start,
        "kernels": bench_kernels,
        "busy": bench_busy,
        "run": lambda: bench_run(console, options.threads),
        "axes": lambda: bench_axes(console, options.threads),
        "evaluation": bench_evaluation,
        "sweep": lambda: bench_sweep(console),
    }
    if unknown := [name for name in options.what if name not in parts]:
        parser.error(f"{unknown[0]!r}: allowed are {', '.join(parts)}")
    rows: list[Row] = []
    for name in options.what or parts:
        rows += parts[name]()
    console.out.print(table(rows))


if __name__ == "__main__":
    main()
