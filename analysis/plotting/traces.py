"""Curves over the iterations of a method, by the role of the linear."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from analysis.frames import CURVES, Frames
from analysis.plotting import measured
from analysis.plotting.facets import series
from analysis.plotting.recipes import recipes
from analysis.plotting.style import Look, at_edge
from analysis.plotting.undrawn import Undrawn, undrawn

MARKS = 5  # markers on a curve


def traces(frames: Frames, method: str) -> pd.DataFrame:
    """A row a linear of the fully quantised runs of ``method`` that left curves.

    Columns: those of :func:`measured.recipes`, role, block, rows, columns, signal, traces.
    """
    if frames.layers.empty or CURVES not in frames.layers:
        return frames.layers.iloc[:0]
    runs = recipes(frames.runs)
    runs = runs[(runs["method"] == method) & (runs["blocks"] == "")]
    kept = frames.layers[frames.layers[CURVES].notna()]
    rows = measured.joined(
        runs, kept[["run", "block", "role", "rows", "columns", "signal", CURVES]]
    )
    return rows.assign(role=rows["role"].astype(str))


def by_role(frames: Frames, method: str) -> tuple[pd.DataFrame, str, dict[str, Look], str] | None:
    """:func:`traces` of one alpha with a look for every role; None where there are none.

    Rows, a sentence on the alphas, looks by role, a sentence on what is left out.
    """
    data = traces(frames, method)
    if data.empty:
        return None
    data, alphas = measured.one_alpha(data)
    data, styles, others = series(data, "role", ordered=False)
    return data, alphas, styles, others


def scaled(row: Mapping[Any, Any], key: str) -> np.ndarray:
    """A curve without units: the loss by the signal, all else by the number of weights."""
    curve = np.asarray(row[CURVES][key], dtype=float)
    by = row["signal"] if key == "loss" else row["rows"] * row["columns"]
    return np.where(np.isfinite(curve), curve, np.inf) / by


def draw_medians(
    axes: Axes, part: pd.DataFrame, key: str, styles: Mapping[str, Look], period: int = 1
) -> Undrawn:
    """A curve a role, the median over its linears; what the axis, logarithmic for the loss, doesn't show.

    Markers stand at the first and then at multiples of ``period`` iterations.
    """
    lost = Undrawn()
    for role, rows in part.groupby("role", sort=False):
        curves = np.array([scaled(row, key) for row in rows.to_dict("records")])
        middle = np.median(curves, axis=0)
        finite = np.isfinite(middle)
        steps = np.arange(1, len(middle) + 1)
        every = period * max(1, round(len(middle) / MARKS / period))
        look = styles[role]
        axes.plot(
            steps, np.where(finite, middle, np.nan), color=look.colour, marker=look.marker,
            markevery=every, linewidth=1.0,
        )  # fmt: skip
        at_edge(axes, steps[~finite].tolist(), look)
        lost += undrawn(middle, log=key == "loss")
    return lost


def role_legend(styles: Mapping[str, Look]) -> list[Line2D]:
    """A handle a role."""
    return [
        Line2D([], [], color=look.colour, marker=look.marker, label=role)
        for role, look in styles.items()
    ]
