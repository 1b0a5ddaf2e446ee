"""How long a thousand runs take: ``python -m analysis.bench``.

Writes synthetic records (30 blocks of 7 linears each, two corpora, four tasks), then reads them and
builds every table and every figure. The bounds are a minute and a gigabyte.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from analysis.__main__ import built, write_figures, write_tables
from analysis.frames import CURVES, Frames
from analysis.load import load
from harness.records.record import BLOCKS, LAYERS, Record, write_record

ROLES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
METHODS = ("rtn", "gptq", "awq", "quantease", "qqa")
GRIDS = ((4, None), (3, None), (2, 64))
ALPHAS: tuple[Any, ...] = (0.0, 0.25, 0.5, 0.75, 1.0, "auto")
CORPORA, TASKS = ("wiki", "web"), ("arc_easy", "piqa", "term", "describe")
WINDOWS, QUESTIONS = 32, 200
POINTS = {"quantease": {"loss": 20}, "qqa": {"loss": 80, "penalty": 80, "diversity": 80}}
BASELINE = "tiny-none-00000000"
HASHES = {"model": "c0ffee", **{name: f"hash of {name}" for name in (*CORPORA, *TASKS)}}


def synthetic(folder: Path, runs: int, blocks: int = 30) -> None:
    """Leaves ``runs`` records below ``folder``, the first of them in full precision.

    QEP lowers their errors by a known factor, so that tables and figures have something to show.
    """
    random = np.random.default_rng(0)
    base = random.normal(2.6, 0.3, WINDOWS)
    _leave(folder, Record(BASELINE, "done"), "none", 16, None, 0.0, 0, base, random)
    recipes = itertools.product(range(runs), METHODS, GRIDS, ALPHAS)
    for seed, method, (bits, size), alpha in itertools.islice(recipes, runs - 1):
        name = f"tiny-{method}-w{bits}{f'g{size}' if size else ''}-a{alpha}-s{seed}"
        strength = 0.5 if alpha == "auto" else alpha
        harm = (5 - bits) * (1.2 - 0.5 * strength) + 0.05 * METHODS.index(method)
        loss = base + harm + random.normal(0, 0.05, WINDOWS)
        record = Record(name, "done", baseline=BASELINE)
        record.files = _rows(folder / name, method, bits, blocks, harm, random)
        _leave(folder, record, method, bits, size, alpha, seed, loss, random)


def _leave(
    folder: Path,
    record: Record,
    method: str,
    bits: int,
    size: int | None,
    alpha: float | str,
    seed: int,
    loss: np.ndarray,
    random: np.random.Generator,
) -> None:
    record.summary = {"model": "tiny", "method": method, "bits": bits, "group_size": size}
    record.summary |= {"alpha": alpha, "seed": seed}
    record.config = {
        "model": {"name": "tiny"},
        "eval": {"windows": WINDOWS, "questions": QUESTIONS},
        "method": {"_target_": f"methods.{method}"},
    }
    if method != "none":
        record.config |= {
            "grid": {"bits": bits, "group_size": size},
            "qep": {"alpha": alpha, **({"damping": 1.0} if alpha else {})},
            "calibration": {"windows": 16, "holdout": 4 if alpha == "auto" else 0},
            "seed": seed,
        }
    for corpus in CORPORA:
        record.samples[f"loss/{corpus}"] = loss.tolist()
        record.metrics[f"perplexity/{corpus}"] = float(np.exp(loss.mean()))
    for task in TASKS:
        right = (random.random(QUESTIONS) < np.clip(1.1 - 0.15 * loss.mean(), 0.2, 1)) * 1.0
        record.samples[f"accuracy/{task}"] = right.tolist()
        record.metrics[f"accuracy/{task}"] = float(right.mean())
        record.metrics[f"accuracy_stderr/{task}"] = float(right.std() / np.sqrt(QUESTIONS - 1))
    if method != "none":
        record.metrics["error/last_block"] = float(np.exp(loss.mean() - 5))
        record.metrics["error/growth"] = 0.01
    record.seconds = {"walk": 30.0, "correct": 4.0, "quantise": 8.0, "total": 120.0}
    record.flops = {"walk": 2e12, "correct": 1e11, "quantise": 1e11}
    record.bits_per_weight, record.peak_memory = bits, 2 * 10**9
    record.checkpoint_bytes = 0 if method == "none" else 4 * 10**7
    record.hashes, record.finished = dict(HASHES), "2026-01-01T00:00:00+00:00"
    record.command = f"python run.py method={method} bits={bits} qep.alpha={alpha} seed={seed}"
    (folder / record.run).mkdir(parents=True, exist_ok=True)
    write_record(folder / record.run, record)


def _rows(
    folder: Path, method: str, bits: int, blocks: int, harm: float, random: np.random.Generator
) -> dict[str, dict[str, Any]]:
    """Writes the rows of a run; how many each file has, and its hash."""
    folder.mkdir(parents=True)
    with (folder / LAYERS).open("w", encoding="utf-8") as file:
        for block, role in itertools.product(range(blocks), ROLES):
            error = float(random.lognormal(harm, 0.2))
            row = {"name": f"model.layers.{block}.{role}", "block": block, "role": role}
            row |= {"rows": 576, "columns": 576, "alpha": 0.5, "damping": 1.0, "ridge": 1e-3}
            row |= {"bits_per_weight": bits, "rounding_error": error, "local_error": 1.1 * error}
            row |= {"total_error": 1.3 * error, "signal": 700.0}
            curves = POINTS.get(method, {})
            if curves:
                row["traces"] = {
                    name: (error * (1 + np.exp(-np.arange(n) / 5))).tolist()
                    for name, n in curves.items()
                }
            file.write(json.dumps(row) + "\n")
    with (folder / BLOCKS).open("w", encoding="utf-8") as file:
        for block in range(blocks):
            error = float(np.exp(harm - 6 + 0.1 * block + random.normal(0, 0.05)))
            row = {"block": block, "name": f"model.layers.{block}", "relative_error": error}
            file.write(json.dumps(row) + "\n")
    counts = {LAYERS: blocks * len(ROLES), BLOCKS: blocks}
    return {
        name: {"rows": count, "sha256": hashlib.sha256((folder / name).read_bytes()).hexdigest()}
        for name, count in counts.items()
    }


def size(frames: Frames) -> int:
    """Bytes of all frames, with the dictionaries and curves that their columns point to."""
    tables = (frames.runs, frames.layers, frames.blocks, frames.samples)
    total = sum(int(table.memory_usage(deep=True).sum()) for table in tables)
    texts = frames.runs[["metrics", "config", "settings", "hashes"]].to_numpy().ravel()
    total += sum(2 * len(str(one)) for one in texts)
    curves = [one for one in frames.layers[CURVES] if isinstance(one, dict)]
    return total + sum(128 + int(curve.nbytes) for one in curves for curve in one.values())


def main() -> None:
    """Prints seconds and bytes of every step."""
    parser = argparse.ArgumentParser(prog="python -m analysis.bench", description=__doc__)
    parser.add_argument("--runs", type=int, default=1000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder, out = Path(name) / "records", Path(name) / "paper"
        synthetic(folder, options.runs)
        start = clocks()
        frames = load(folder)
        loaded = clocks()
        write_tables(built(frames), out / "tables")
        tabled = clocks()
        figures = write_figures(frames, out / "figures")
        drawn = clocks()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(f"{len(frames.runs)} runs, {len(frames.layers)} linears, {figures} figures; seconds:")
    steps = {"load": (start, loaded), "tables": (loaded, tabled), "figures": (tabled, drawn)}
    for name, (begin, end) in (steps | {"all": (start, drawn)}).items():
        print(f"{name:<8} {end[0] - begin[0]:6.1f}, of the processor {end[1] - begin[1]:6.1f}")
    print(f"frames {size(frames) / 1e9:.2f} GB, peak {peak / 1e9:.2f} GB")


def clocks() -> tuple[float, float]:
    """Seconds on the wall and on the processor."""
    return time.perf_counter(), time.process_time()


if __name__ == "__main__":
    main()
