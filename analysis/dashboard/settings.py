"""The settings in which runs differ: columns, colours and words of the dashboard by themselves."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from analysis.groups import quantised
from harness.settings.flat import file_of
from harness.settings.said import NAMES, named, worded

PREFIX = "settings/"  # of a setting's column
VARIANT = "variant"  # the column with the method and all that tells its runs apart
# Axes of which a run's settings say whether they are the method's own, and where they stand.
AXES = {
    "format": ("grid.format.",),
    "range": ("grid.range.",),
    "transform": ("transform",),
    "overrides": ("overrides",),
}
# In columns of their own already, or no setting.
ELSEWHERE = {"grid.bits", "grid.group_size", "qep.alpha", "model.name", "method._target_", "own"}


@dataclass(frozen=True)
class Differing:
    """What the page shows of the settings in which runs differ.

    Args:
        columns: as the page's other columns, values as on the command line; the last one is
            ``variant``, "QuantEase (1 % outliers)", where any setting differs.
        heads: what the columns are called.
        said: by run, its differing settings in words.
    """

    columns: list[dict[str, Any]]
    heads: dict[str, str]
    said: list[list[str]]

    @classmethod
    def among(cls, runs: pd.DataFrame) -> Differing:
        """Those of the runs that quantise."""
        settings = chosen(
            one if isinstance(one, Mapping) else {} for one in values_of(runs, "settings")
        )
        methods = values_of(runs, "method")
        keys = differing_keys(
            [(m, one) for m, one in zip(methods, settings, strict=True) if one and quantised(m)]
        )
        columns: list[dict[str, Any]] = [
            {
                "key": f"{PREFIX}{key}",
                "kind": "text",
                "values": [_value(key, one[key]) if key in one else None for one in settings],
            }
            for key in keys
        ]
        said = [
            [worded(key, one[key]) for key in keys if key in one] if quantised(method) else []
            for method, one in zip(methods, settings, strict=True)
        ]
        if keys:
            variants = [
                f"{NAMES.get(method, method)} ({', '.join(words)})"
                if words
                else NAMES.get(method, method)
                for method, words in zip(methods, said, strict=True)
            ]
            columns.append({"key": VARIANT, "kind": "text", "values": variants})
        heads = {f"{PREFIX}{key}": words for key, words in named_apart(keys).items()}
        return cls(columns, heads, said)


def chosen(settings: Iterable[Mapping[str, str]]) -> list[dict[str, str]]:
    """Settings without the axes that are, in all runs, what the method's authors use with it.

    Such an axis is told by the name of the method: awq's search of ranges is no setting beside it.
    """
    found = [dict(one) for one in settings]
    own = [set(one.get("own", "").split(",")) for one in found if one]
    everywhere = set.intersection(*own) if own else set()
    axes = tuple(part for name in everywhere & AXES.keys() for part in AXES[name])
    return [
        {key: one for key, one in run.items() if not (axes and key.startswith(axes))}
        for run in found
    ]


def differing_keys(runs: Iterable[tuple[Any, Mapping[str, str]]]) -> list[str]:
    """The settings that have several values among runs, those of methods among runs of one method.

    What only some runs have (the damping of a correction that is off) differs where it has several
    values; of a method's own options it differs as well where a run of that method lacks it.
    """
    values: dict[tuple[str, Any], set[str | None]] = {}
    methods: dict[Any, list[Mapping[str, str]]] = {}
    keys: dict[str, None] = {}
    for method, one in runs:
        methods.setdefault(method, []).append(one)
        keys |= dict.fromkeys(one)
        for key, value in one.items():
            place = method if key.startswith("method.") else None
            values.setdefault((key, place), set()).add(value)
    for (key, method), found in values.items():
        if method is not None and any(key not in one for one in methods[method]):
            found.add(None)
    several = {key for (key, _), found in values.items() if len(found) > 1}
    return [key for key in keys if key in several and key not in ELSEWHERE]


def _value(key: str, value: str) -> str:
    """A setting as a cell has it: a class by the name of its file."""
    return file_of(value) if key.endswith("._target_") else value


def dotted(config: Any, path: str = "") -> Iterator[str]:
    """The keys of a configuration as the page flattens it."""
    if isinstance(config, Mapping) and config:
        for key, value in config.items():
            yield from dotted(value, f"{path}.{key}" if path else str(key))
    elif path:
        yield path


def named_apart(keys: Iterable[str]) -> dict[str, str]:
    """What settings are called in words; those that words do not tell apart with where they stand.

    ``method.damping`` and ``qep.damping`` are "method damping" and "qep damping".
    """
    names = {key: named(key) for key in keys}
    often = Counter(names.values())
    return {
        key: f"{key.partition('.')[0]} {words}" if often[words] > 1 else words
        for key, words in names.items()
    }


def values_of(frame: pd.DataFrame, key: str) -> list[Any]:
    """The values of a column; None in every row where there is none."""
    return frame[key].tolist() if key in frame else [None] * len(frame)
