"""Perplexity against effective bits per weight, with the front that no other point beats."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from analysis.figures.base import Drawing
from analysis.frames import Frames
from analysis.plotting import captions, measured
from analysis.plotting.facets import facets, series
from analysis.plotting.lines import dashes, draw_line, legend
from analysis.plotting.style import FARTHEST, FULL, full_precision, styled
from analysis.plotting.undrawn import Undrawn

KEYS = ["grid", "variant", "way"]
PLACE = ["model", "setting", "corpus"]
MARGIN = 0.3  # bits to the left and right of the points
FRONT: dict[str, Any] = {"color": "0.8", "linewidth": 3.0}


@styled
def draw(frames: Frames) -> Drawing | None:
    """Panels by corpus; a colour a method, empty without QEP, a step line along the front."""
    data = measured.perplexities(frames)
    if data.empty:
        return None
    data, unsized = sized(data)
    data, alphas = measured.ways(data)
    grids = data.groupby(["model", "setting"], observed=True)["grid"].transform("nunique")
    every = data[grids > 1]  # one grid is points above each other
    if every.empty:
        return None
    data, styles, others = series(every)
    panels = facets(data, ["model", "setting"], ["corpus"], height=2.2, share=False)
    strokes = dashes(panels.data["way"])
    lost, collapsed = Undrawn(), 0
    for _, _, axes, part in panels:
        points = means(part)
        axes.set_xlim(
            points["bits_per_weight"].min() - MARGIN, points["bits_per_weight"].max() + MARGIN
        )
        same = (every[PLACE] == part[PLACE].iloc[0]).all(axis=1)
        draw_front(axes, means(every[same]))
        for (variant, way), line in points.groupby(["variant", "way"], sort=False):
            line = line.sort_values("bits_per_weight", kind="stable")
            x, y = line["bits_per_weight"], line["mean"]
            far = np.isfinite(y) & (y > FARTHEST * part["full"].iloc[0])
            collapsed, y = collapsed + int(far.sum()), y.mask(far, np.inf)
            lost += draw_line(axes, x, y, styles[variant], way, strokes[way], spread=line["std"])
        full_precision(axes, part["full"])
    panels.log_y()
    panels.label("effective bits per weight", "perplexity")
    known = [FULL] if np.isfinite(panels.data["full"]).any() else []
    front_line = Line2D([], [], label="Pareto front", **FRONT)
    panels.legend([*legend(styles, strokes), front_line, *known])
    return Drawing(
        panels.figure,
        captions.joined(
            "Perplexity (lower is better) against effective bits per quantised weight (with scales,"
            " zeros and outliers), mean and standard deviation over seeds. Pareto front: no other"
            " composition, drawn or not, has at most as many bits and a lower perplexity.",
            alphas,
            captions.counted(frames, panels.data, corpora=True),
            captions.beyond(collapsed, FARTHEST),
            captions.undrawn(replace(lost, diverged=lost.diverged - collapsed), panels),
            unsized,
            others,
            panels.left_out,
        ),
    )


def sized(data: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """The rows of runs whose effective bits are known, and a sentence on the others."""
    known = np.isfinite(data["bits_per_weight"].to_numpy(dtype=float))
    others = sorted(data.loc[~known, "run"].unique())
    return data[known], f"Effective bits unknown: {', '.join(others)}." if others else ""


def means(part: pd.DataFrame) -> pd.DataFrame:
    """Mean and std of the perplexity, and effective bits, of every grid, method and way."""
    bits = part.groupby(KEYS, sort=False)["bits_per_weight"].mean().reset_index()
    return measured.over_seeds(part, KEYS).merge(bits, on=KEYS)


def draw_front(axes: Axes, points: pd.DataFrame) -> None:
    """Steps along the front, on to the right edge."""
    best = front(points)
    if len(best):
        x = [*best["bits_per_weight"], axes.get_xlim()[1]]
        y = [*best["mean"], best["mean"].iloc[-1]]
        axes.plot(x, y, drawstyle="steps-post", zorder=1, gid="front", **FRONT)


def front(points: pd.DataFrame) -> pd.DataFrame:
    """The points that no other has at most as many bits as and a lower perplexity than."""
    finite = points[np.isfinite(points["mean"])]
    ordered = finite.sort_values(["bits_per_weight", "mean"], kind="stable")
    return ordered[ordered["mean"] < ordered["mean"].cummin().shift(fill_value=np.inf)]
