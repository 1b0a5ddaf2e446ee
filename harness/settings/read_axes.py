"""The axes of a plain configuration; the command line, YAML files and notebooks all say them so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from harness.formats.base import ScaleType
from harness.ranges.base import Refit
from harness.settings.axes import AUTO, AXES, EVERY, OWN, SHARED, Axes, FormatChoice, Said
from harness.settings.construct import coerce, make, target_class, unknown
from harness.settings.plugins import field_names, load_plugin
from harness.transforms.base import Transform


def read_axes(plain: Mapping[str, Any], problems: list[str]) -> Axes | None:
    """The axes of a plain configuration; what is wrong with it is collected."""
    before = len(problems)
    if plain.get("bits") is None:
        problems.append("bits is needed: set bits=...")
        plain = {key: one for key, one in plain.items() if key != "bits"}
    said = _read(plain, "", problems)
    overrides = plain.get("overrides") or {}
    changes = {}
    if not isinstance(overrides, Mapping):
        problems.append(f"overrides={overrides!r}: want a mapping, {{pattern: {{bits: 4}}}}")
        overrides = {}
    for pattern, some in overrides.items():
        where = f"overrides[{pattern}]"
        if not isinstance(some, Mapping):
            problems.append(f"{where}={some!r}: want a mapping of {', '.join(AXES)}")
            continue
        problems += [unknown(str(key), AXES, f"{where}.") for key in some if key not in AXES]
        changes[str(pattern)] = _read(some, f"{where}.", problems)
    budget = coerce(float | None, plain.get("budget"), "budget", problems)
    if budget is not None and not budget > 0:
        problems.append(f"budget={budget:g}: must be positive")
    return None if len(problems) > before else Axes(Said(**said), changes, budget)


def _read(plain: Mapping[str, Any], where: str, problems: list[str]) -> dict[str, Any]:
    """Those fields of :class:`Said` that ``plain`` has."""
    simple = {"group_size": int | None, "symmetric": bool, "scales": ScaleType, "refit": Refit}
    found: dict[str, Any] = {
        key: coerce(hint, plain[key], f"{where}{key}", problems)
        for key, hint in simple.items()
        if key in plain
    }
    if "bits" in plain:
        bits = EVERY if plain["bits"] == AUTO else plain["bits"]
        several = isinstance(bits, list | tuple)
        hint = tuple[int, ...] if several else int
        found["bits"] = coerce(hint, bits, f"{where}bits", problems)
        if several and not bits:
            problems.append(f"{where}bits=[]: want at least one number to choose from")
    if "format" in plain:
        found["format"] = _format(plain["format"], f"{where}format", problems)
    if "range" in plain:
        found["range"] = _part("ranges", plain["range"], f"{where}range", problems)
    if "transform" in plain:
        found["transform"] = _chain(plain["transform"], f"{where}transform", problems)
    return found


def _format(node: Any, where: str, problems: list[str]) -> FormatChoice | None:
    """The format that a name, or a node with ``_target_``, stands for; None is the method's own."""
    kind, options = _kind("formats", node, where, problems)
    if kind is None:
        if options is not None:
            problems.append(f"{where}={node!r}: want a name, or options with _target_")
        return None
    bits = {"bits": 3} if "bits" in field_names(kind) else {}
    made = make(kind, {**bits, **options}, where, problems)
    return made and FormatChoice(kind, {key: getattr(made, key) for key in options})


def _part(room: str, node: Any, where: str, problems: list[str]) -> Any:
    """The range or transform of a name, of a node with ``_target_``, or built already."""
    kind, options = _kind(room, node, where, problems)
    return options if kind is None else make(kind, options, where, problems)


def _chain(node: Any, where: str, problems: list[str]) -> Mapping[str, Transform] | None:
    """Transforms by name: of one name, a list of names, or nodes by name; None is the method's own."""
    if node is None or node in ("own", OWN):
        return None
    if node == "none":
        return {}
    if isinstance(node, str):
        node = [node]
    if isinstance(node, Mapping):
        node = {key: one for key, one in node.items() if key != "own"}
        return {
            key: _part("transforms", one or key, f"{where}.{key}" if one else where, problems)
            for key, one in node.items()
        }
    if isinstance(node, Sequence):
        twice = [
            str(one)
            for one in dict.fromkeys(map(str, node))
            if list(map(str, node)).count(one) > 1
        ]
        if twice:
            problems.append(f"{where}={list(node)}: {', '.join(twice)} stands there twice")
        return {str(one): _part("transforms", one, where, problems) for one in node}
    problems.append(f"{where}={node!r}: want a name, a list of names, or options by name")
    return None


def _kind(room: str, node: Any, where: str, problems: list[str]) -> tuple[type | None, Any]:
    """The class that a node names, and its options; the node itself for an object that is built."""
    if node is None or node == "own":
        return None, None
    if isinstance(node, str):
        try:
            return load_plugin(room, node), {}
        except ValueError as error:
            problems.append(f"{where.rpartition('.')[0]}{'.' if '.' in where else ''}{error}")
            return None, None
    if not isinstance(node, Mapping):
        return None, node
    options = {key: one for key, one in node.items() if key != "_target_"}
    problems += [
        f"{where}.{key}: set {key}=..., for all parts" for key in options if key in SHARED
    ]
    if "_target_" not in node:
        problems.append(f"{where}._target_ is needed: want options with the _target_ of a class")
        return None, None
    return target_class(node["_target_"], where, problems), options
