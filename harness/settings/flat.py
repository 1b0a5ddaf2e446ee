"""A configuration as flat settings, written as on the command line."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

OPEN = {"qep.overrides"}  # mappings with keys of the user's: one setting each


def flat(config: Mapping[str, Any]) -> dict[str, str]:
    """A configuration with dotted keys, ``qep.damping -> "1"``."""
    return dict(_flat(config, ""))


def _flat(node: Mapping[str, Any], prefix: str) -> Iterable[tuple[str, str]]:
    for key, value in node.items():
        if isinstance(value, Mapping) and value and f"{prefix}{key}" not in OPEN:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", _text(value)


def _text(value: Any) -> str:
    """A value as on the command line; 1 and 1.0 are the same."""
    if isinstance(value, list | tuple):
        return f"[{','.join(map(_text, value))}]"
    if isinstance(value, Mapping):
        return f"{{{','.join(f'{key}:{_text(one)}' for key, one in value.items())}}}"
    if isinstance(value, float | int) and not isinstance(value, bool):
        return f"{value:.12g}"
    return value if isinstance(value, str) else json.dumps(value)


def lettered(said: Sequence[str], longest: int) -> tuple[list[str], list[str]]:
    """Settings as they fit into a table's cells, and the lines that explain its letters.

    Where one is longer than ``longest`` characters, equal ones share a letter: ``(a)``.
    """
    if all(len(one) <= longest for one in said):
        return list(said), []
    letters: dict[str, str] = {}
    for one in filter(None, said):
        letters.setdefault(one, f"({_letter(len(letters))})")
    return [letters.get(one, "") for one in said], [f"{letters[one]} {one}" for one in letters]


def _letter(index: int) -> str:
    """a, ..., z, aa, ab, ..."""
    return (_letter(index // 26 - 1) if index >= 26 else "") + chr(ord("a") + index % 26)
