"""Perplexity against alpha, the best of every method marked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from analysis.figures.base import Drawing
from analysis.frames import Frames
from analysis.plotting import captions, measured
from analysis.plotting.facets import facets, series
from analysis.plotting.style import (
    DASHES,
    FULL,
    GREY,
    INK,
    Look,
    at_edge,
    full_precision,
    styled,
)
from analysis.plotting.undrawn import Undrawn, undrawn

CURVE = ["model", "setting", "corpus", "grid", "variant", "blocks"]
LEAST = 3  # alphas that make a curve
AUTO = 1.25  # where on the axis "auto" stands, apart from the numbers
TICKS = {0.0: "0", 0.5: "0.5", 1.0: "1", AUTO: "auto"}


@styled
def draw(frames: Frames) -> Drawing | None:
    """Panels by corpus and bits; a line a method, standard deviations over seeds as bars."""
    data = measured.perplexities(frames)
    if not data.empty:
        data = data[data.groupby(CURVE)["alpha"].transform("nunique") >= LEAST]
    if data.empty:
        return None
    data, styles, others = series(data)
    panels = facets(data, ["model", "setting", "corpus"], ["grid"])
    lost, strokes = Undrawn(), propagations(panels.data)
    unseen = set(panels.data.loc[panels.data["alpha"] != "0", "propagation"]) - set(strokes)
    last = AUTO if (panels.data["alpha"] == "auto").any() else 1.0
    for _, _, axes, part in panels:
        for variant, rows in part.groupby("variant", sort=False):
            for line, stroke in curves(rows, strokes):
                lost += draw_curve(axes, line, styles[variant], stroke)
        full_precision(axes, part["full"])
        ticks = {x: name for x, name in TICKS.items() if x <= last}
        axes.set_xticks(list(ticks), list(ticks.values()))
        axes.set_xlim(-0.06, last + 0.1)
    panels.log_y()
    panels.label("alpha", "perplexity")
    panels.legend(handles(styles, strokes, panels.data))
    return Drawing(
        panels.figure,
        captions.joined(
            "Perplexity (lower is better) against alpha, mean and standard deviation over seeds;"
            " ringed: the best of each curve. auto chooses an alpha for every linear.",
            captions.counted(frames, panels.data, corpora=True),
            captions.undrawn(lost, panels),
            f"Not shown: {'; '.join(sorted(unseen))}." if unseen else "",
            others,
            panels.left_out,
        ),
    )


def propagations(data: pd.DataFrame) -> dict[str, Any]:
    """QEP's options but alpha, in as many ways as there are line styles, the usual one whole."""
    found = data.loc[data["alpha"] != "0", "propagation"].value_counts().index
    return dict(zip(found, DASHES[1:] + DASHES[:1], strict=False))


def curves(rows: pd.DataFrame, strokes: Mapping[str, Any]) -> Iterator[tuple[pd.DataFrame, Any]]:
    """Mean, std and count at every alpha, a curve for each way of QEP; alpha 0 belongs to all."""
    plain = rows["alpha"] == "0"
    for options in rows.loc[~plain, "propagation"].unique() if (~plain).any() else [""]:
        if options not in strokes and (~plain).any():
            continue
        own = rows[plain | (rows["propagation"] == options)]
        line = measured.over_seeds(own, ["alpha", "alpha_value"])
        yield line.assign(x=line["alpha_value"].fillna(AUTO)), strokes.get(options, "-")


def draw_curve(axes: Axes, line: pd.DataFrame, look: Look, stroke: Any) -> Undrawn:
    """Draws means and bars, "auto" apart, a ring around the best; what the axis does not show."""
    finite = np.isfinite(line["mean"])
    for place in line.loc[~finite, "x"]:
        at_edge(axes, [place], look)
    good = line[finite]
    if good.empty:
        return undrawn(line["mean"])
    for part, style in (
        (good[good["alpha"] != "auto"], stroke),
        (good[good["alpha"] == "auto"], ""),
    ):
        axes.errorbar(
            part["x"], part["mean"], yerr=part["std"].fillna(0), linestyle=style or "none",
            color=look.colour, marker=look.marker, elinewidth=0.8,
        )  # fmt: skip
    best = good.loc[good["mean"].idxmin()]
    axes.plot(
        [best["x"]], [best["mean"]], "o", markersize=8, markerfacecolor="none", color=INK,
        markeredgewidth=0.9, zorder=5, gid="best",
    )  # fmt: skip
    return undrawn(line["mean"])


def handles(styles: dict[str, Look], strokes: dict[str, Any], data: pd.DataFrame) -> list[Line2D]:
    """Methods, QEP's options where they differ, the best, full precision."""
    found = [
        Line2D([], [], color=look.colour, marker=look.marker, label=name)
        for name, look in styles.items()
    ]
    if len(strokes) > 1:
        found += [
            Line2D([], [], color=GREY, linestyle=style, label=name or "the default")
            for name, style in strokes.items()
        ]
    found.append(
        Line2D([], [], color=INK, marker="o", linestyle="none", markersize=8, label="best of its curve",
               markerfacecolor="none")
    )  # fmt: skip
    if np.isfinite(data["full"]).any():
        found.append(FULL)
    return found
