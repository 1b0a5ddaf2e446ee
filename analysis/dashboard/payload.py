"""The frames as the page reads them: columns instead of rows, packed into a few megabytes."""

from __future__ import annotations

import base64
import gzip
import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from analysis.dashboard.settings import Differing, dotted, named_apart, values_of
from analysis.groups import added_families
from analysis.load import Frames
from analysis.protocols import protocols
from harness.records.record import BETTER, METRICS
from harness.settings.said import NAMES

DIGITS = 4  # of errors per linear and per block; metrics keep all theirs
# Shown one run at a time, no columns.
DETAILS = ("command", "config", "hashes", "contents", "environment")
# Columns have the metrics and the protocol, config the settings.
ELSEWHERE = ("metrics", "settings", "recipe", "evaluation")
ERRORS = ("total_error", "local_error", "rounding_error")


def pack(text: str) -> str:
    """``text`` deflated and as base64: no character of it means anything to HTML."""
    return base64.b64encode(gzip.compress(text.encode(), compresslevel=6, mtime=0)).decode()


def pack_json(data: Mapping[str, Any]) -> str:
    """``data`` as packed JSON; numbers that JSON lacks must be text by now."""
    return pack(json.dumps(data, separators=(",", ":"), ensure_ascii=False, allow_nan=False))


def runs_payload(frames: Frames) -> dict[str, Any]:
    """Every column of ``runs``, the commands and configurations, and the errors over depth.

    Settings in which runs differ are columns as well, see :mod:`analysis.dashboard.settings`.
    ``recipes`` numbers the configurations without seed, repeat and propagation, ``curves`` those
    without seed, repeat and alpha: the runs that one line over alpha may join, all of one checkpoint
    and of the same inputs. Where alpha is 0 nothing else of the propagation counts, so that run's
    curve is null: it starts every curve of its recipe.
    """
    runs = frames.runs
    details = {key: [_plain(value) for value in values_of(runs, key)] for key in DETAILS}
    keys = [key for key in runs.columns if key not in (*DETAILS, *ELSEWHERE, BETTER)]
    differing = Differing.among(runs)
    return {
        "columns": [*(_encoded(runs, key) for key in keys), *differing.columns],
        "heads": differing.heads,
        "written": NAMES,
        "names": named_apart(key for config in details["config"] for key in dotted(config)),
        "details": details | {"said": differing.said},
        "recipes": _numbered(_without(config, "seed", "noise", "qep") for config in _held(runs)),
        "curves": _numbered(_curve(config) for config in _held(runs)),
        "protocols": protocols(runs, runs["run"]),
        "families": {key: {"unit": unit, "better": b} for key, (unit, b) in METRICS.items()}
        | {key: {"unit": "", "better": b} for key, b in added_families(runs).items()},
        "blocks": _series(frames.blocks, runs, ["block"], _present(frames.blocks, "relative_")),
    }


def layers_payload(frames: Frames) -> dict[str, Any]:
    """Per linear: each error relative to the signal ‖W X‖²/T, and alpha as applied."""
    layers = frames.layers
    relative = layers[[key for key in ("run", "name", "block", "role", "alpha") if key in layers]]
    errors = [key for key in ERRORS if key in layers and "signal" in layers]
    relative = relative.assign(**{key: layers[key] / layers["signal"] for key in errors})
    columns = errors + (["alpha"] if "alpha" in relative else [])
    return _series(relative, frames.runs, ["block", "role", "name"], columns)


def _series(
    rows: pd.DataFrame, runs: pd.DataFrame, keys: list[str], columns: list[str]
) -> dict[str, Any]:
    """Long rows as lists of numbers per run, beside the few layouts of keys that runs share.

    Returns:
        ``layouts``: each a list of key rows; ``layout``: per run the index of its own, or null;
        ``values``: per column and run the numbers in that layout's order.
    """
    layouts: dict[tuple[Any, ...], int] = {}
    layout: list[int | None] = []
    values: dict[str, list[list[Any]]] = {column: [] for column in columns}
    places = rows.groupby("run", observed=True).indices if len(rows) else {}
    labels = [rows[key].to_numpy(dtype=object) for key in keys]
    numbers = {column: rounded(rows[column].to_numpy(dtype=float)) for column in columns}
    for run in values_of(runs, "run"):
        mine = places.get(run)
        if mine is None:
            layout.append(None)
        else:
            order = tuple(zip(*(label[mine].tolist() for label in labels), strict=True))
            layout.append(layouts.setdefault(order, len(layouts)))
        for column, lists in values.items():
            found = [] if mine is None else numbers[column][mine].tolist()
            lists.append([x if math.isfinite(x) else str(_number(x) or "NaN") for x in found])
    return {"layouts": list(layouts), "layout": layout, "values": values}


def _encoded(runs: pd.DataFrame, key: str) -> dict[str, Any]:
    """A column with its kind: numbers stay numbers, everything else is text.

    A frame has NaN both where a run diverged and where nothing was measured; the run's own
    metrics tell which it is.
    """
    values = runs[key].tolist()
    if any(not _missing(value) and not _is_number(value) for value in values):
        texts = [None if _missing(value) else _text(value) for value in values]
        return {"key": key, "kind": "text", "values": texts}
    numbers = [
        "NaN" if _missing(value) and key in metrics else _number(value)
        for metrics, value in zip(runs["metrics"], values, strict=True)
    ]
    return {"key": key, "kind": "number", "values": numbers}


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(_plain(value), ensure_ascii=False)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _missing(value: Any) -> bool:
    return value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value))


def _number(value: Any) -> int | float | str | None:
    """JSON has no infinities: they travel as text."""
    if _missing(value):
        return None
    if isinstance(value, float) and math.isinf(value):
        return "Infinity" if value > 0 else "-Infinity"
    return int(value) if isinstance(value, int) else float(value)


def rounded(values: np.ndarray) -> np.ndarray:
    """``values`` to :data:`DIGITS` significant digits, so that each is written with no more.

    An integer divided by a power of ten is the double nearest to that decimal (above 1e-19).
    """
    with np.errstate(all="ignore"):
        places = DIGITS - 1 - np.floor(np.log10(np.abs(values)))
        up, down = 10.0 ** np.clip(places, 0, None), 10.0 ** np.clip(-places, 0, None)
        short = np.rint(values * up / down) * down / up
    return np.where(np.isfinite(values) & (values != 0), short, values)


def _plain(value: Any) -> Any:
    """JSON-ready: non-finite numbers and foreign objects as their text."""
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    return str(value)


def _held(runs: pd.DataFrame) -> list[dict[str, Any]]:
    """The configurations with what the files in them held, and with the hash of the checkpoint."""
    columns = (values_of(runs, key) for key in ("config", "contents", "hashes"))
    return [
        _plain(config or {}) | {"held": [contents, (hashes or {}).get("model")]}
        for config, contents, hashes in zip(*columns, strict=True)
    ]


def _without(config: Mapping[str, Any] | None, *keys: str) -> dict[str, Any]:
    return {key: value for key, value in (config or {}).items() if key not in keys}


def _curve(config: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """What stays the same along a line over alpha; None where alpha is 0."""
    qep = (config or {}).get("qep") or {}
    if qep.get("alpha") == 0:
        return None
    return _without(config, "seed", "noise") | {"qep": _without(qep, "alpha")}


def _numbered(values: Iterable[Any]) -> list[int | None]:
    """Equal values get equal numbers, None stays."""
    known: dict[str, int] = {}
    return [
        None if value is None else known.setdefault(json.dumps(value, sort_keys=True), len(known))
        for value in values
    ]


def _present(frame: pd.DataFrame, start: str) -> list[str]:
    return [str(key) for key in frame.columns if str(key).startswith(start)]
