"""A record as flat, named numbers and rows: what any tracker mirrors. docs/metrics.md lists the names."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from harness.records.record import CODES, Record

ERRORS = ("rounding_error", "local_error", "total_error")
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Ending:
    """What is known when a run is over.

    Args:
        status: done, failed or stopped.
        traces: the points of the curves over iterations.
        numbers: see :func:`scalars`.
        labels: see :func:`labels`.
        tables: rows by the name of the table.
        histograms: values by the name of the histogram.
    """

    status: str
    traces: list[dict[str, float]]
    numbers: dict[str, float]
    labels: dict[str, Any]
    tables: dict[str, list[Row]]
    histograms: dict[str, list[float]]


def ending(record: Record, layers: list[Row], blocks: list[Row]) -> Ending:
    """All that is mirrored at the end of a run."""
    return Ending(
        record.status,
        trace_points(layers),
        scalars(record),
        labels(record),
        tables(record, layers, blocks),
        histograms(layers),
    )


def configuration(record: Record) -> dict[str, Any]:
    """What is known before the run: the summary's labels, the identity, versions, the command."""
    return {
        **record.summary,
        "recipe": record.config,
        "environment": record.environment,
        "git_commit": record.git_commit,
        "command": record.command,
        "baseline": record.baseline,
    }


def tags(record: Record) -> list[str]:
    """Model, method, bits and alpha, for filtering."""
    summary = record.summary
    found = [str(summary["model"]), str(summary["method"])]
    if summary["method"] != "none":
        alpha = summary["alpha"]
        found += [f"{summary['bits']} bits", f"alpha {alpha if alpha == 'auto' else f'{alpha:g}'}"]
    return found


def relative(row: Row) -> dict[str, float]:
    """The errors of a linear over its signal ‖W X‖²/T, as ``relative_<error>``."""
    return {
        f"relative_{error}{suffix}": row[f"{error}{suffix}"] / row[f"signal{suffix}"]
        for suffix in ("", "_heldout")
        for error in ERRORS
        if row.get(f"signal{suffix}")
    }


def depth_point(block: Row, layers: Iterable[Row]) -> dict[str, float]:
    """The point of a block: its own errors, and those and the alpha of the linears inside.

    The dots in the name of a linear become slashes: trackers nest names at dots.
    """
    curves = ("relative_", "routing_")
    point = {f"depth/{key}": value for key, value in block.items() if key.startswith(curves)}
    for row in layers:
        inside = row["name"].removeprefix(f"{block['name']}.").replace(".", "/")
        values = relative(row) | {"alpha": row["alpha"]}
        point |= {f"depth/{key}/{inside}": value for key, value in values.items()}
    return {"block": block["block"], **point}


def trace_points(layers: Iterable[Row]) -> list[dict[str, float]]:
    """The curves over iterations, summed over linears; one that stopped early stays where it was."""
    curves: dict[str, list[list[float]]] = {}
    for row in layers:
        for key, curve in row.get("traces", {}).items():
            curves.setdefault(key, []).append(curve)
    length = max((len(one) for found in curves.values() for one in found), default=0)
    return [
        {"iteration": at}
        | {
            f"trace/{key}": sum(one[min(at, len(one) - 1)] for one in found)
            for key, found in curves.items()
        }
        for at in range(length)
    ]


def histograms(layers: list[Row]) -> dict[str, list[float]]:
    """``histogram/relative_<error>``: a value per linear; those that are not finite have no bin."""
    found: dict[str, list[float]] = {}
    for row in layers:
        for key, value in relative(row).items():
            if math.isfinite(value):
                found.setdefault(f"histogram/{key}", []).append(value)
    return found


def tables(record: Record, layers: list[Row], blocks: list[Row]) -> dict[str, list[Row]]:
    """The rows of the tables ``layers``, ``blocks`` and ``samples``; without rows no table."""
    samples: list[Row] = [
        {"sample": key, "index": index, "value": value}
        for key, values in record.samples.items()
        for index, value in enumerate(values)
    ]
    plain: list[Row] = [{k: v for k, v in row.items() if k != "traces"} for row in layers]
    found = {"layers": plain, "blocks": blocks, "samples": samples}
    return {name: rows for name, rows in found.items() if rows}


def scalars(record: Record) -> dict[str, float]:
    """Every number of the record under its name in docs/metrics.md."""
    return {
        **record.metrics,
        **{f"seconds/{key}": value for key, value in record.seconds.items()},
        **{f"flops/{key}": value for key, value in record.flops.items()},
        "bits_per_weight": record.bits_per_weight,
        "bits_per_parameter": record.bits_per_parameter,
        "peak_memory": record.peak_memory,
        "peak_device_memory": record.peak_device_memory,
        "checkpoint_bytes": record.checkpoint_bytes,
        "shared_flops": record.shared_flops,
    }


def labels(record: Record) -> dict[str, Any]:
    """What else is known at the end: status and why, times, contents and their hashes, tokens."""
    found: dict[str, Any] = {
        "run": record.run,
        "status": record.status,
        "started": record.started,
        "finished": record.finished,
        "resumed": record.resumed,
        "contents": record.contents,
        "hashes": record.hashes,
    }
    counted = ("calibration_tokens", "heldout_tokens", "own_tokens", "bos", CODES)
    found |= {key: record.summary[key] for key in counted if key in record.summary}
    if record.stopped:
        found["stopped"] = record.stopped
    if record.error:
        message = (record.error["message"] or "").partition("\n")[0]
        found["failure"] = f"{record.error['type']}: {message}"
    return found
