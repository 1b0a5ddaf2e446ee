"""Calibration sets of a method's own: ``calibration.awq``, beside the options of the corpus itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from harness.settings.construct import plugin
from harness.settings.plugins import plugin_name

OWN_SETS = ("awq",)  # the methods that may have one


def own_set(calibration: Any, method: Any, problems: list[str]) -> Any | None:
    """The calibration set of the method's own; what there is for other methods says nothing."""
    name = plugin_name(method)
    own = calibration.get(name) if isinstance(calibration, Mapping) and name in OWN_SETS else None
    if own is None:
        return None
    key = f"calibration.{name}"
    if not isinstance(own, Mapping):
        problems.append(f"{key}={own!r}: no corpus; one is chosen by calibration@{key}=NAME")
        return None
    return plugin(own, key, problems, "tokens")


def without_own_sets(node: Any, calibration: Any) -> Any:
    """``node`` with nothing but the corpus itself wherever ``calibration`` stands in it."""
    if not isinstance(node, Mapping):
        return node
    if node == calibration:
        return {key: value for key, value in node.items() if key not in OWN_SETS}
    return {key: without_own_sets(value, calibration) for key, value in node.items()}
