"""Plugins by the name of their file: ``gptq`` is the dataclass in ``harness/methods/gptq.py``."""

from __future__ import annotations

import importlib
import inspect
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from pathlib import Path

# What a plugin of a room is called in a configuration, and what one can do.
ROOMS = {
    "methods": ("method", "quantize"),
    "formats": ("format", "bounded"),
    "ranges": ("range", "fit"),
    "transforms": ("transform", "find"),
    "export": ("save", "tensors"),
}


def load_plugin(room: str, name: object) -> type:
    """The plugin of ``harness/<room>/<name>.py``.

    Raises:
        ValueError: there is none; the message has the nearest name.
    """
    what, does = ROOMS[room]
    known = plugin_names(room)
    if name not in known:
        near = get_close_matches(str(name), known, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"{what}={name!r}: allowed are {', '.join(known)}{hint}")
    module = importlib.import_module(f"harness.{room}.{name}")
    found: list[type] = [
        value
        for value in vars(module).values()
        if inspect.isclass(value) and value.__module__ == module.__name__
        if is_dataclass(value) and hasattr(value, does)
    ]
    return found[0]


def plugin_names(room: str) -> list[str]:
    """The names of all plugins of ``harness/<room>``."""
    package = importlib.import_module(f"harness.{room}")
    files = sorted(path.stem for path in Path(package.__path__[0]).glob("*.py"))
    return [one for one in files if one not in ("__init__", "base")]


def plugin_name(made: object) -> str:
    """The name of a plugin: that of its file."""
    kind = made if isinstance(made, type) else type(made)
    return kind.__module__.rsplit(".", 1)[-1]


def field_names(kind: type) -> set[str]:
    """The options of a plugin."""
    return {one.name for one in fields(kind)}
