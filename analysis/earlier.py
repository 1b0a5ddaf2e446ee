"""Configurations as earlier versions of the harness recorded them, in today's terms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def modern(config: Mapping[str, Any]) -> dict[str, Any]:
    """``config`` with the axes that its version had in other places.

    Version 1 knew integers with minimum and maximum or ``mse`` ranges, whose float32 scales it counted
    as 16 bits; AWQ's scales and clipping were options of its own; GPTQ's ``fresh_groups`` was ``refit``.
    """
    grid = config.get("grid")
    if not isinstance(grid, Mapping) or "mse" not in grid:
        return dict(config)
    method = dict(config["method"])
    awq = str(method.get("_target_", "")).endswith("awq.AWQ")
    kind = "mse.MSE" if grid["mse"] else "minmax.MinMax"
    if "refit" in method:
        method["fresh_groups"] = method.pop("refit")
    transform = {}
    if awq:
        steps = method.pop("n_grid", 20)
        transform = {"awq": {"_target_": "harness.transforms.awq.AWQ", "steps": steps}}
        kind = "loss.Loss" if method.pop("clip", True) else kind
    form = {"_target_": "harness.formats.int.Int", "symmetric": grid["symmetric"]}
    return {
        **config,
        "method": method,
        "grid": {
            "bits": grid["bits"],
            "group_size": grid["group_size"],
            "format": {**form, "scales": "float32"},
            "range": {"_target_": f"harness.ranges.{kind}"},
            "refit": "none",
        },
        "transform": transform,
        "overrides": {},
    }


def own_parts(config: Mapping[str, Any]) -> list[str]:
    """The axes that were as the method's authors have them: all but a range that was searched."""
    searched = bool(config.get("grid", {}).get("mse"))
    return ["format", *([] if searched else ["range"]), "transform", "overrides"]
