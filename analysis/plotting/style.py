"""The one style of all figures: sizes for print, fonts of 7 pt and more, Okabe-Ito colours."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

P = ParamSpec("P")
R = TypeVar("R")

SINGLE, DOUBLE = 3.3, 6.9  # widths of one and of two columns of print, inches
FOLD = 44  # characters of a label in a line
RC: dict[str, Any] = {
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same everywhere
    "font.size": 7.5,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "legend.handlelength": 2.6,
    "legend.columnspacing": 1.4,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.unicode_minus": True,
    "grid.color": "0.9",
    "grid.linewidth": 0.5,
    "lines.linewidth": 1.1,
    "lines.markersize": 3.8,
    "lines.markeredgewidth": 0.8,
    "errorbar.capsize": 1.5,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "figure.constrained_layout.h_pad": 0.03,
    "figure.constrained_layout.w_pad": 0.03,
    "text.parse_math": False,  # what a record says is text, dollars and all
    "figure.dpi": 100,
    "savefig.dpi": 300,
    "pdf.fonttype": 42,
    "svg.fonttype": "path",
    "svg.hashsalt": "qep-bench",
}
DIVERGED = "diverged"  # the id of the marks of values that are not finite
FULL_PRECISION = "full precision"  # that of the lines of the models themselves
FARTHEST = 12.0  # times full precision; what lies beyond has collapsed and stands at the edge
GREY, INK = "0.45", "black"
# Okabe and Ito 2008 without yellow, which is too pale for a line on white, and black.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#7F7F7F")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES = ((0, (3, 1.5)), "-", "-.", ":")  # without QEP, with it, with it in other ways
DIVERGING = "coolwarm"  # perceptually uniform (Moreland 2009), told apart by colour-blind readers


FULL_LINE: dict[str, Any] = {"color": INK, "linestyle": "-", "linewidth": 0.5}
FULL = Line2D([], [], label=FULL_PRECISION, **FULL_LINE)


@dataclass(frozen=True)
class Look:
    """How a series is drawn wherever it appears; the marker tells it apart without colour."""

    colour: str
    marker: str


def looks(names: Iterable[str]) -> dict[str, Look]:
    """A look for each name, in their order.

    Raises:
        ValueError: there are more than can be told apart.
    """
    names = list(names)
    if len(names) > len(COLOURS):
        raise ValueError(f"{len(names)} series: {len(COLOURS)} can be told apart")
    return dict(zip(names, map(Look, COLOURS, MARKERS), strict=False))


def styled(draw: Callable[P, R]) -> Callable[P, R]:
    """``draw`` in the style of the house, whatever style the caller has set."""

    @functools.wraps(draw)
    def inside(*args: P.args, **kwargs: P.kwargs) -> R:
        with mpl.rc_context():
            mpl.rcdefaults()
            mpl.rcParams.update(RC)
            return draw(*args, **kwargs)

    return inside


def folded(text: str, width: int = FOLD) -> str:
    """``text`` in lines of ``width`` characters at most, broken behind commas and spaces if it can be."""
    lines = [""]
    for piece in re.findall(r"[^, ]*[, ]*", text):
        for start in range(0, len(piece), width):
            part = piece[start : start + width]
            if len(lines[-1]) + len(part.rstrip()) > width:
                lines.append("")
            lines[-1] += part
    return "\n".join(line.rstrip() for line in lines)


def whole(axis: Axis) -> None:
    """Whole numbers only: blocks, iterations."""
    axis.set_major_locator(MaxNLocator(6, integer=True))


def plain_log(axis: Axis) -> None:
    """Plain numbers on a logarithmic axis: decades, 1 2 5 10, or round steps where it spans less.

    To be called when the data and with it the limits are there.
    """
    low, high = axis.get_view_interval()
    subs = (1.0, 2.0, 5.0) if high < 500 * low else (1.0,)
    decades = LogLocator(subs=subs, numticks=9)
    axis.set_major_locator(decades if high > 5 * low else MaxNLocator(5, steps=[1, 2, 5, 10]))
    axis.set_major_formatter(FuncFormatter(lambda value, place: f"{value:g}"))
    axis.set_minor_locator(NullLocator())


def at_edge(axes: Axes, x: Sequence[float], look: Look) -> None:
    """Marks values that are not finite at the upper edge of the axes, at ``x``: empty arrow heads."""
    if not len(x):
        return
    axes.plot(
        x, [0.97] * len(x), "^", transform=axes.get_xaxis_transform(), color=look.colour, markersize=5,
        markerfacecolor="none", clip_on=False, zorder=4, gid=DIVERGED,
    )  # fmt: skip


def full_precision(axes: Axes, values: Iterable[float]) -> None:
    """A thin line at the perplexity of each full-precision model that is a number."""
    for value in sorted({value for value in values if math.isfinite(value)}):
        axes.axhline(value, gid=FULL_PRECISION, **FULL_LINE)
