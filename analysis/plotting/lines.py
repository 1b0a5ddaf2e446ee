"""Lines of every method with and without QEP: a colour and marker a method, dashes a way."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from analysis.compositions import WITHOUT
from analysis.plotting.style import DASHES, GREY, Look, at_edge
from analysis.plotting.undrawn import Undrawn, undrawn


def dashes(ways: Iterable[str]) -> dict[str, Any]:
    """The line style of every way: broken without QEP, whole with it."""
    with_it = sorted(set(ways) - {WITHOUT})
    return dict(zip([WITHOUT, *with_it], DASHES, strict=False))


def draw_line(
    axes: Axes,
    x: pd.Series,
    y: pd.Series,
    look: Look,
    way: str,
    style: Any,
    marks: tuple[int, int] | list[int] | None = None,
    spread: pd.Series | None = None,
) -> Undrawn:
    """Draws ``y`` over ``x``; values that are not finite go to the edge.

    Args:
        axes: where.
        x: positions.
        y: values.
        look: colour and marker.
        way: empty markers without QEP.
        style: line style.
        marks: first marker and distance between markers, or which; None is one at every value.
        spread: length of the bars, NaN for none.

    Returns:
        The values that a logarithmic axis does not show.
    """
    finite = np.isfinite(y.to_numpy(dtype=float))
    bars = None if spread is None or spread.isna().all() else spread.fillna(0)
    axes.errorbar(
        x, y.where(finite), yerr=bars, linestyle=style, color=look.colour, marker=look.marker,
        markerfacecolor="white" if way == WITHOUT else look.colour, markevery=marks,
        elinewidth=0.8,
    )  # fmt: skip
    at_edge(axes, x[~finite].tolist(), look)
    return undrawn(y)


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
