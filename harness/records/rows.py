"""The rows of a run: what is recorded of every linear and of every decoder block."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from harness.methods.base import Quantized
from harness.numerics.forms import Distance, forms
from harness.numerics.propagation import Corrected
from harness.records.recorder import Recorder
from harness.walk.architecture import Linear, Plan
from harness.walk.walk import Passed, StageInputs


def layer_rows(
    stage: StageInputs,
    corrected: dict[str, Corrected],
    quantized: dict[str, Quantized],
    fallback: str | None = None,
) -> dict[str, dict[str, Any]]:
    """What is known of each linear before the streams have passed it.

    Errors are per token of the linear's own; without any there are none. ``fallback`` says where other
    statistics than these were used, see :mod:`harness.starving`.
    """
    rows: dict[str, dict[str, Any]] = {}
    distances: list[Distance] = []
    places: list[tuple[dict[str, Any], str]] = []  # where each of them goes
    curves: list[tuple[dict[str, Any], str, Tensor]] = []
    for linear in stage.stage.linears:
        name = linear.name
        weight, target, result = stage.weights[name], corrected[name], quantized[name]
        row = rows[name] = _row(linear, stage, target, result)
        for suffix, statistics in (("", stage.statistics), ("_heldout", stage.heldout)):
            if statistics is None or not statistics.tokens:
                continue
            tries = {"rounding_error": target.weight, "local_error": weight}
            if target.weight is weight:
                del tries["rounding_error"]
            for key, one in tries.items():
                distances.append(Distance(statistics.hessian, one, result.weight))
                places.append((row, f"{key}{suffix}"))
            row |= dict.fromkeys((f"rounding_error{suffix}", f"local_error{suffix}"))
        if linear.mixture is not None:
            row["fallback"] = fallback
        if result.traces:
            row["traces"] = {}
            curves += [
                (row["traces"], key, curve.sum(dim=1)) for key, curve in result.traces.items()
            ]
    errors, traces = forms(distances, [curve for _, _, curve in curves])
    for (row, key), error in zip(places, errors, strict=True):
        row[key] = error
    for row in rows.values():
        for suffix in ("", "_heldout"):
            if row.get(f"rounding_error{suffix}", 0.0) is None:  # nothing was corrected
                row[f"rounding_error{suffix}"] = row[f"local_error{suffix}"]
    for (found, key, _), trace in zip(curves, traces, strict=True):
        found[key] = trace
    return rows


def _row(
    linear: Linear, stage: StageInputs, target: Corrected, result: Quantized
) -> dict[str, Any]:
    """What is known of a linear but for its errors."""
    return {
        "name": linear.name,
        "block": linear.block,
        "role": linear.name.rsplit(".", 1)[-1],
        "rows": linear.shape[0],
        "columns": linear.shape[1],
        "tokens": stage.statistics.tokens,
        "alpha": target.alpha,
        "damping": target.damping,
        "ridge": target.ridge,
        "method_ridge": result.ridge,
        "target": target.target,
        "bits": result.grid.codebook.bits,
        "bits_per_weight": result.bits_per_weight,
        "online_flops": result.basis.flops(),
        "basis_bits": result.basis.bits(),
    }


def record_passed(
    passed: Passed, unpassed: dict[str, dict[str, Any]], chosen: Plan, recorder: Recorder
) -> None:
    """Completes and records the rows of the linears and blocks that all batches have passed.

    After a checkpoint the first batches pass what is recorded already.
    """
    for name, measured in passed.linears.items():
        if name not in unpassed:
            continue
        row = unpassed.pop(name)
        for suffix, side in (("", measured.calibration), ("_heldout", measured.heldout)):
            if side.tokens:
                row[f"total_error{suffix}"] = side.error / side.tokens
                row[f"signal{suffix}"] = side.signal / side.tokens
        recorder.layer(row)
    recorded = {row["block"] for row in recorder.blocks}
    for index, measured in passed.blocks.items():
        if index in recorded:
            continue
        row = {"block": index, "name": chosen.block_names[index]}
        for suffix, side in (("", measured.calibration), ("_heldout", measured.heldout)):
            if side.tokens:
                row[f"relative_error{suffix}"] = side.relative
                row[f"relative_error_token{suffix}"] = side.relative_token
        for kind, agreed in passed.routing.get(index, {}).items():
            suffix = "_heldout" if kind == "heldout" else ""
            row[f"routing_agreement{suffix}"] = agreed.share
            if agreed.borrowed:
                row[f"routing_borrowed{suffix}"] = agreed.borrowed / agreed.total
        recorder.block(row)


def agreement(blocks: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The mean over blocks with experts of the share of choices that the quantised stream would make."""
    result = {}
    for suffix in ("", "_heldout"):
        found = [row[key] for row in blocks if (key := f"routing_agreement{suffix}") in row]
        if found:
            result[f"routing/agreement{suffix}"] = float(np.mean(found))
    return result


def starved(layers: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """How many linears of experts had too few tokens, by what was done for them."""
    found = Counter(row["fallback"] for row in layers if row.get("fallback"))
    return {key: found[key] for key in ("blended", "rounded")}


def accumulation(blocks: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The error of the residual stream at the last block, and how fast it grows over depth.

    Growth is the least-squares slope of log(relative error) over the block index: e^growth is the
    factor per block, over the blocks that an error reaches. ``_token`` is of the mean over tokens of
    each token's relative error. A stream that has overflowed has an error of NaN, which is the last
    block's as well, and no growth.
    """
    result: dict[str, float] = {}
    for suffix in ("", "_heldout", "_token", "_token_heldout"):
        points = [
            (row["block"], row[f"relative_error{suffix}"])
            for row in blocks
            if not row.get(f"relative_error{suffix}", 0) <= 0
        ]
        if points:
            result[f"error/last_block{suffix}"] = points[-1][1]
        if len(points) > 1:
            depth, error = np.array(points, dtype=float).T
            finite = np.isfinite(error).all()
            slope = np.polyfit(depth, np.log(error), 1)[0] if finite else math.nan
            result[f"error/growth{suffix}"] = float(slope)
    return result
