"""Which runs belong together, as short labels: what ``analysis.groups`` tells apart, in columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from analysis.groups import HOLDOUT, in_order, quantised
from analysis.layout import AXES, PLAIN, UNSAID, axis_word
from harness.settings.said import NAMES, worded

GRID = ("grid.bits", "grid.group_size")
BLOCKS, STATISTICS = "quantize.blocks", "qep.statistics"
OWN = {*GRID, BLOCKS, "qep.alpha", "model.name", "method._target_"}  # in a column of their own
RECIPE = ["model", "setting", "grid", "variant", "blocks", "propagation", "alpha"]
ORDER = ["model", "setting", "bits", "group_size", "grid", "variant", "alpha_value", "propagation"]


def recipes(runs: pd.DataFrame, corpus: str | None = None) -> pd.DataFrame:
    """The finished runs that quantise, with their recipe as columns of text.

    Runs with equal columns ``RECIPE`` differ by their seed; of two with the same seed (made for
    different evaluations, say) the later one counts. A label names an option only
    where runs differ in it:

        setting      checkpoint, calibration, statistics, selection of linears, evaluation tokens
        grid         "3 bits", "2 bits, groups of 64"
        variant      the method, with its options and axes: "GPTQ (damping 0.1, orthogonal, mse)"
        blocks       ``quantize.blocks``, "" for all of them
        propagation  QEP's options but alpha; "" for alpha 0, which has none

    ``alpha_value`` is alpha as a number, NaN for "auto". The order is that of model, setting, bits,
    group size, variant, alpha.

    Args:
        runs: the frame of :func:`analysis.load`.
        corpus: of its perplexity; without it the evaluation is no part of the setting.
    """
    chosen = runs[(runs["status"] == "done") & runs["method"].map(quantised).astype(bool)].copy()
    options, hashes = list(chosen["settings"]), list(chosen["hashes"])
    plain = (chosen["alpha"] == "0").tolist()
    places = []
    for one, contents in zip(options, hashes, strict=True):
        place = part(one, "model.", "calibration.", "quantize.", STATISTICS)
        place["checkpoint"] = contents.get("model", "")[:8]
        if corpus:
            place[f"tokens/{corpus}"] = contents.get(corpus, "").rsplit(": ", 1)[-1][:8]
        places.append(place)
    join_auto(places, (chosen["alpha"] == "auto").tolist())
    corrections = [
        {} if none else {k: v for k, v in part(one, "qep.").items() if k != STATISTICS}
        for one, none in zip(options, plain, strict=True)
    ]
    chosen["setting"] = within(chosen["model"].tolist(), places)
    chosen["grid"] = [grid_label(one) for one in options]
    methods = chosen["method"].tolist()
    axes = ("method.", "grid.", "transform", "overrides")  # its own are told by its name
    differ = within(methods, [part(one, *axes) for one in options])
    chosen["variant"] = [
        f"{NAMES.get(method, method)} ({text})" if text else NAMES.get(method, method)
        for method, text in zip(methods, differ, strict=True)
    ]
    chosen["blocks"] = [one.get(BLOCKS, "null").replace("null", "") for one in options]
    chosen["propagation"] = labels(corrections, among=[not none for none in plain])
    chosen["alpha_value"] = pd.to_numeric(chosen["alpha"], errors="coerce")
    chosen = in_order(chosen)
    chosen = chosen.drop_duplicates([*RECIPE, "seed"], keep="last")
    return chosen.sort_values([*ORDER, "seed"], na_position="last", kind="stable")


def part(options: Mapping[str, str], *prefixes: str) -> dict[str, str]:
    """The options that begin with one of ``prefixes`` and have no column of their own."""
    return {k: v for k, v in options.items() if k.startswith(prefixes) and k not in OWN}


def join_auto(places: Sequence[dict[str, str]], auto: Sequence[bool]) -> None:
    """Lets ``alpha=auto`` stand beside the other alphas although it sets calibration windows aside.

    Only where all runs with auto agree on how many they set aside, and so do all without.
    """
    aside = [{one.get(HOLDOUT, "0") for one, of in zip(places, auto, strict=True) if of == kind}
             for kind in (True, False)]  # fmt: skip
    if all(len(values) == 1 for values in aside):
        for one in places:
            one.pop(HOLDOUT, None)


def grid_label(options: Mapping[str, str]) -> str:
    """Bits and groups in words."""
    bits, group = (options.get(key, "null") for key in GRID)
    return f"{bits} bits" + (f", groups of {group}" if group != "null" else "")


def within(names: Sequence[str], options: Sequence[Mapping[str, str]]) -> list[str]:
    """For every row the options in which it differs from others of the same name."""
    found = [""] * len(names)
    for name in dict.fromkeys(names):
        rows = [i for i, one in enumerate(names) if one == name]
        for i, text in zip(rows, labels([options[i] for i in rows]), strict=True):
            found[i] = text
    return found


def labels(rows: Sequence[Mapping[str, str]], among: Sequence[bool] | None = None) -> list[str]:
    """A text for every row, equal for equal rows only, of as few options as tell them apart.

    ``name`` comes first, then the axes; an option that divides the rows no further is left out.

    Args:
        rows: option -> value.
        among: the rows to be told apart; the others have no options, and an empty text.
    """
    told = [row for i, row in enumerate(rows) if among is None or among[i]]
    known = list(dict.fromkeys(key for row in told for key in row))
    known.sort(key=lambda key: key.rsplit(".", 1)[-1] != "name")
    whole = _count(told, known)
    used: list[str] = []
    for key in known:
        if _count(told, used) == whole:
            break
        if _count(told, [*used, key]) > _count(told, used):
            used.append(key)
    order = list(AXES.values())
    used.sort(key=lambda key: order.index(key) if key in order else len(order))
    said = [[_said(key, row[key]) for key in used if key in row] for row in rows]
    silent = (PLAIN["none"], UNSAID)
    return [", ".join(one for one in words if one not in silent) for words in said]


def _count(rows: Sequence[Mapping[str, Any]], keys: Sequence[str]) -> int:
    return len({tuple(row.get(key) for key in keys) for row in rows})


def _said(key: str, value: str) -> str:
    if key in AXES.values():
        return axis_word(value)
    return value if key.rsplit(".", 1)[-1] == "name" else worded(key, value)
