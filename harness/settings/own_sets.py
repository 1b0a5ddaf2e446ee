"""What stands beside the options of the corpus itself below ``calibration``.

Sets of a method's own (``calibration.awq``), and where the forwards of the walk wait (``calibration.hold``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from harness.settings.construct import plugin
from harness.settings.plugins import plugin_name

OWN_SETS = ("awq",)  # the methods that may have one
HOLD = "hold"


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


def hold_of(calibration: Any) -> Any:
    """What ``calibration.hold`` says; None where it says nothing."""
    return calibration.get(HOLD) if isinstance(calibration, Mapping) else None


def without_own_sets(node: Any, calibration: Any) -> Any:
    """``node`` with nothing but the corpus itself wherever ``calibration`` stands in it."""
    if not isinstance(node, Mapping):
        return node
    if node == calibration:
        return {key: value for key, value in node.items() if key not in (*OWN_SETS, HOLD)}
    return {key: without_own_sets(value, calibration) for key, value in node.items()}
