"""Lines of every method with and without QEP: a colour and marker a method, dashes a way."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from analysis.plotting.measured import WITHOUT
from analysis.plotting.style import DASHES, GREY, Look, at_edge


def dashes(ways: Iterable[str]) -> dict[str, Any]:
    """The line style of every way: broken without QEP, whole with it."""
    with_it = sorted(set(ways) - {WITHOUT})
    return dict(zip([WITHOUT, *with_it], DASHES, strict=False))


def draw_line(
    axes: Axes, x: pd.Series, y: pd.Series, look: Look, way: str, style: Any, marks: Any = None
) -> int:
    """Draws ``y`` over ``x``; values that are not finite go to the edge, and are counted."""
    finite = np.isfinite(y.to_numpy(dtype=float))
    axes.plot(
        x, y.where(finite), linestyle=style, color=look.colour, marker=look.marker,
        markerfacecolor="white" if way == WITHOUT else look.colour, markevery=marks,
    )  # fmt: skip
    for place in x[~finite]:
        at_edge(axes, place, look)
    return int((~finite).sum())


def legend(styles: Mapping[str, Look], ways: Mapping[str, Any]) -> list[Line2D]:
    """A handle a method, then one a way."""
    return [
        Line2D([], [], color=look.colour, marker=look.marker, label=name)
        for name, look in styles.items()
    ] + [
        Line2D(
            [], [], color=GREY, linestyle=style, marker="o", label=way,
            markerfacecolor="white" if way == WITHOUT else GREY,
        )
        for way, style in ways.items()
    ]  # fmt: skip
