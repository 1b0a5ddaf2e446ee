"""A configuration as flat settings, written as on the command line."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

OPEN = {"qep.overrides", "overrides"}  # mappings with keys of the user's: one setting each
# Named parts, one after the other: their names are a setting beside their options.
CHAIN = "transform"


def flat(config: Mapping[str, Any]) -> dict[str, str]:
    """A configuration with dotted keys, ``qep.damping -> "1"``."""
    return dict(_flat(config, ""))


def _flat(node: Mapping[str, Any], prefix: str) -> Iterable[tuple[str, str]]:
    for key, value in node.items():
        if key == CHAIN and not prefix and isinstance(value, Mapping):
            yield CHAIN, "+".join(value) or "none"
            options = {name: _options(one) for name, one in value.items()}
            yield from _flat({key: one for key, one in options.items() if one}, f"{CHAIN}.")
        elif isinstance(value, Mapping) and value and f"{prefix}{key}" not in OPEN:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", text(value)


def _options(part: Mapping[str, Any]) -> dict[str, Any]:
    return {key: one for key, one in part.items() if key != "_target_"}


def value_at(config: Any, key: Sequence[str]) -> Any:
    """What stands in a configuration at the end of these names; in a list the name is the place."""
    for name in key:
        config = config[int(name)] if isinstance(config, list | tuple) else config[name]
    return config


def pruned(config: Any, keys: Collection[tuple[str, ...]], where: tuple[str, ...] = ()) -> Any:
    """A configuration without what stands at ``keys``."""
    if isinstance(config, Mapping):
        kept = {name: one for name, one in config.items() if (*where, name) not in keys}
        return {name: pruned(one, keys, (*where, name)) for name, one in kept.items()}
    if isinstance(config, list | tuple):
        return [pruned(one, keys, (*where, str(place))) for place, one in enumerate(config)]
    return config


def text(value: Any) -> str:
    """A value as on the command line; 1 and 1.0 are the same."""
    if isinstance(value, list | tuple):
        return f"[{','.join(map(text, value))}]"
    if isinstance(value, Mapping):
        return f"{{{','.join(f'{key}:{text(one)}' for key, one in value.items())}}}"
    if isinstance(value, float | int) and not isinstance(value, bool):
        return f"{value:.12g}"
    return value if isinstance(value, str) else json.dumps(value)


def file_and_class(target: str) -> str:
    """A class by its file and itself, whichever folder that lies in: ``gptq.GPTQ``."""
    return ".".join(target.split(".")[-2:])


def file_of(target: str) -> str:
    """A class by the name of its file: ``gptq``."""
    return target.split(".")[-2:][0]


def short(content: str) -> str:
    """The first digits of a hash, or of the commit in ``owner/name@commit``."""
    return content.rpartition("@")[2][:8]


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
