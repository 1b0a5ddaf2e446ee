"""Dumbbells: compositions in rows, hollow without QEP and filled with it, over full precision."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis.compositions import WITHOUT, Compositions, corpus
from analysis.groups import STRENGTH, Group
from analysis.layout import Row, described
from analysis.noise import Floor
from analysis.plotting import captions
from analysis.plotting.style import (
    COLOURS,
    DIVERGED,
    DOUBLE,
    FARTHEST,
    FULL,
    FULL_LINE,
    FULL_PRECISION,
    GREY,
    folded,
    plain_log,
)
from analysis.plotting.undrawn import NONE_ABOVE, NOTHING, Undrawn
from harness.settings.said import NAMES

LINE, ROW, FRAME = 0.12, 0.07, 0.8  # of a line of text, the room between rows, all else, inches
APART = 0.14  # of a row, between its middle and each of its two marks: one never hides the other
POINT = "point"  # the id of the marks of measured values
KEPT = "\N{NO-BREAK SPACE}"  # lines end between phrases
LABEL = 46  # characters in a line of a row's name
BEYOND, ALL_BEYOND = "beyond", f"all beyond {FARTHEST:g} times full precision"
NOISE: dict[str, Any] = {"alpha": 0.22, "linewidth": 4, "solid_capstyle": "butt", "zorder": 1}
MEANING = (
    "Points are geometric means over seeds, thin bars reach from the lowest to the highest seed, pale "
    "bars as far as another order of summation explains a difference, where that is known."
)


@dataclass(frozen=True)
class Dumbbells:
    """A figure of them.

    Args:
        figure: to be written.
        said: what its caption has to say of points that have no place in it.
    """

    figure: Figure
    said: Sequence[str]


def dumbbells(found: Compositions, parts: Mapping[str, Sequence[Row]]) -> Dumbbells:
    """Panels by part (down, under their titles) and corpus (across), the rows of a part from the top."""
    metrics = list(dict.fromkeys(metric for metric, _ in found.columns.values()))
    full = found.full
    names = [[folded(one, LABEL) for one in _names(rows)] for rows in parts.values()]
    heights = [sum(ROW + LINE * (1 + one.count("\n")) for one in some) for some in names]
    figure = Figure(
        figsize=(DOUBLE, FRAME + sum(height + LINE for height in heights)),
        layout="constrained",
    )
    panels = figure.subplots(
        len(parts), len(metrics), squeeze=False, sharex=True, sharey="row",
        height_ratios=heights,
    )  # fmt: skip
    lost = Undrawn()
    for (title, rows), line, words in zip(parts.items(), panels, names, strict=True):
        for metric, axes in zip(metrics, line, strict=True):
            for place, row in enumerate(rows):
                lost += _dumbbell(axes, place, row, metric, full, found)
        line[0].set_yticks(range(len(rows)), words)
        line[0].set_title(title, loc="left")
        line[0].set_ylim(len(rows) - 0.4, -0.6)
    drawn = [_finished(axes) for axes in panels.flat]
    for metric, axes in zip(metrics, panels[-1], strict=True):
        axes.set_xlabel(f"{corpus(metric)} / full precision")
    figure.legend(handles=_legend(found), loc="outside lower center", ncols=4)
    far = sum(_marks(axes).count(BEYOND) for axes in panels.flat)
    if not any(drawn):
        panels[-1, 0].set_xticks([])  # of all, which share the scale
    nothing = ALL_BEYOND if far else NOTHING if lost.diverged else NONE_ABOVE
    said = [
        "" if any(drawn) else f"{nothing}.".capitalize(),
        captions.beyond(far, FARTHEST),
        captions.diverged(lost.diverged, "of one seed at least: an arrow head at the edge"),
        captions.below(lost),
    ]
    return Dumbbells(figure, said)


def _names(rows: Sequence[Row]) -> list[str]:
    """What tells the rows of a panel apart: the method, where there are several, and the axes."""
    said = described(rows)
    several = len({row.first.method for row in rows}) > 1 or len(rows) == 1
    names = [[NAMES.get(row.first.method, row.first.method)] if several else [] for row in rows]
    phrases = [
        ", ".join([*name, *(one for one in words if one != "–")]).split(", ")
        for name, words in zip(names, said.cells, strict=True)
    ]
    return [", ".join(one.replace(" ", KEPT) for one in some) for some in phrases]


def _dumbbell(
    axes: Axes,
    place: int,
    row: Row,
    metric: str,
    full: dict[tuple[str, str], float],
    found: Compositions,
) -> Undrawn:
    """One row of a panel: two points, what is between them, their spread and noise."""
    ends, lost = [], Undrawn()
    scale = full.get((row.first.model, metric), math.nan)
    for title, group in row.cells.items():
        its, way = found.columns[title]
        if its != metric:
            continue
        colour = COLOURS[0] if way == WITHOUT else COLOURS[1]
        face = "white" if way == WITHOUT else colour
        look: dict[str, Any] = {"color": colour, "markerfacecolor": face}
        height = place + (-APART if way == WITHOUT else APART)
        with np.errstate(divide="ignore", invalid="ignore"):
            ratios = np.divide([*group.values.values()], scale)
        ratio = group.mean / scale if group.whole and scale else math.nan
        if 0 < ratio <= FARTHEST:
            ends.append((ratio, height))
            _noise(axes, ratio, height, colour, group, found.floors[metric])
            axes.plot(
                [ratios.min(), ratios.max()], [height] * 2, color=colour, linewidth=0.8, zorder=2
            )
            axes.plot([ratio], [height], "o", gid=POINT, zorder=3, **look)
        elif ratio <= 0 or (group.whole and group.mean <= 0):
            lost += Undrawn(below=1)
        else:
            beyond = math.isfinite(ratio)
            lost += Undrawn(diverged=0 if beyond else 1)
            axes.plot(
                [0.985], [height], ">", transform=axes.get_yaxis_transform(), clip_on=False,
                gid=BEYOND if beyond else DIVERGED, zorder=4, **look,
            )  # fmt: skip
    if len(ends) == 2:
        axes.plot(*zip(*ends, strict=True), color="0.6", linewidth=0.8, zorder=1.5)
    return lost


def _marks(axes: Axes) -> list[str | None]:
    return [line.get_gid() for line in axes.lines]


def _finished(axes: Axes) -> bool:
    """Scales the axes; whether they show any point, and else they say why there is none."""
    marks = _marks(axes)
    if POINT not in marks:
        why = ALL_BEYOND if BEYOND in marks else NOTHING if DIVERGED in marks else NONE_ABOVE
        axes.text(0.5, 0.5, why, transform=axes.transAxes, ha="center", color=GREY)
        axes.tick_params(axis="x", length=0)
        return False
    axes.set_xscale("log")
    axes.axvline(1.0, gid=FULL_PRECISION, **FULL_LINE)
    axes.grid(visible=False, axis="y")
    plain_log(axes.xaxis)
    return True


def _noise(
    axes: Axes, ratio: float, height: float, colour: str, group: Group, floor: Floor
) -> None:
    """A pale bar as wide as what another order of summation explains of a difference from this figure."""
    seeds = sorted(group.finite)
    limit = floor.limit([(group, seed) for seed in seeds], 1 / len(seeds))
    if math.isfinite(limit):
        axes.plot(np.exp([-limit, limit]) * ratio, [height] * 2, color=colour, **NOISE)


def _legend(found: Compositions) -> list[Line2D]:
    without = Line2D(
        [], [], color=COLOURS[0], marker="o", markerfacecolor="white", linestyle="", label=WITHOUT
    )
    with_it = Line2D(
        [], [], color=COLOURS[1], marker="o", linestyle="", label=f"with QEP, alpha {STRENGTH}"
    )
    noise = [Line2D([], [], color=GREY, label="noise", **NOISE)]
    return [
        without,
        with_it,
        FULL,
        *(noise if any(one.known for one in found.floors.values()) else []),
    ]
