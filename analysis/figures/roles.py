"""Where the error arises: rounding, local and total error of linears by their role."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from analysis.compositions import WITHOUT
from analysis.figures.base import Drawing
from analysis.frames import Frames
from analysis.plotting import captions, measured
from analysis.plotting.facets import LINES, facets, series
from analysis.plotting.lines import dashes, legend
from analysis.plotting.recipes import recipes
from analysis.plotting.style import Look, at_edge, styled
from analysis.plotting.undrawn import Undrawn, undrawn

KINDS = {
    "rounding_error": "rounding: (W* − V) X̂",
    "local_error": "local: (W − V) X̂",
    "total_error": "total: W X − V X̂",
}
BARS = 4  # with more series in a panel the bars would hide each other: none are drawn
SPREAD = 0.7  # of the room between two roles that the series of one role share


@styled
def draw(frames: Frames) -> Drawing | None:
    """Panels by bits and kind of error; median over blocks, quartiles as bars."""
    runs = recipes(frames.runs)
    runs, alphas = measured.ways(runs[runs["blocks"] == ""])
    data = errors(frames, runs)
    if data.empty:
        return None
    data, styles, others = series(data, most=LINES)
    panels = facets(data, ["model", "setting", "grid"], ["kind"])
    shown = panels.data
    strokes = dashes(shown["way"])
    roles = list(shown["role"].unique())
    lost = Undrawn()
    for _, _, axes, part in panels:
        lost += draw_roles(axes, part, roles, styles, strokes)
        axes.set_xticks(range(len(roles)), roles, rotation=45, ha="right", rotation_mode="anchor")
    panels.log_y()
    panels.label("", "error / signal")
    panels.legend(legend(styles, strokes))
    return Drawing(
        panels.figure,
        captions.joined(
            "Error of the linears of each role relative to their signal ‖W X‖²: what rounding leaves"
            " of the corrected weight W*, what is left of W on the inputs of the quantised model,"
            " and that against the full-precision model. Median over blocks of the mean over seeds"
            f" (bars: quartiles over blocks, in panels of up to {BARS} series).",
            alphas,
            captions.counted(frames, shown),
            captions.undrawn(lost, panels),
            others,
            panels.left_out,
        ),
    )


def errors(frames: Frames, runs: pd.DataFrame) -> pd.DataFrame:
    """A row a linear of ``runs`` and kind of error: role, kind, value relative to the signal."""
    if frames.layers.empty or "signal" not in frames.layers:
        return frames.layers.iloc[:0]
    rows = measured.joined(runs, frames.layers[["run", "block", "role", "signal", *KINDS]])
    rows["role"] = rows["role"].astype(str)
    parts = {title: rows.assign(value=_ratio(rows, key)) for key, title in KINDS.items()}
    return measured.stacked(parts, "kind")


def _ratio(rows: pd.DataFrame, key: str) -> pd.Series:
    """What is not a number has diverged, but nothing of nothing is nothing."""
    return (rows[key] / rows["signal"]).fillna(np.inf).mask(rows[key] == 0, 0.0)


def draw_roles(
    axes: Axes,
    part: pd.DataFrame,
    roles: list[str],
    styles: Mapping[str, Look],
    strokes: Mapping[str, Any],
) -> Undrawn:
    """A marker a role and series, side by side; the medians that the axis does not show."""
    means = measured.over_seeds(part, ["variant", "way", "role", "block"])
    series = list(means.groupby(["variant", "way"], sort=False))
    lost = Undrawn()
    for index, ((variant, way), rows) in enumerate(series):
        look = styles[variant]
        middle = rows.groupby("role", sort=False)["mean"].quantile([0.25, 0.5, 0.75]).unstack()
        middle = middle.reindex([role for role in roles if role in middle.index])
        places = np.array([roles.index(role) for role in middle.index], dtype=float)
        places += SPREAD * ((index + 0.5) / len(series) - 0.5)
        finite = np.isfinite(middle[0.75].to_numpy())
        low, median, high = middle[finite].to_numpy().T
        bars = [median - low, high - median] if len(series) <= BARS else None
        axes.errorbar(
            places[finite], median, yerr=bars, linestyle=strokes[way],
            linewidth=0.6, elinewidth=0.8, color=look.colour, marker=look.marker, capsize=0,
            markerfacecolor="white" if way == WITHOUT else look.colour,
        )  # fmt: skip
        at_edge(axes, places[~finite].tolist(), look)
        lost += Undrawn(int((~finite).sum())) + undrawn(median)
    return lost
