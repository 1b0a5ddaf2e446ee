"""Values that no axis has a place for: infinite ones, and on a logarithmic axis zero and less."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from analysis.plotting.style import DIVERGED, FULL_PRECISION

NOTHING = "nothing finite to draw"
NONE_ABOVE = "nothing above zero to draw"


@dataclass(frozen=True)
class Undrawn:
    """How many values are not in a figure: infinite ones, and those at or below zero."""

    diverged: int = 0
    below: int = 0

    def __add__(self, other: Undrawn) -> Undrawn:
        """Of both together."""
        return Undrawn(self.diverged + other.diverged, self.below + other.below)


def undrawn(values: np.ndarray | pd.Series, log: bool = True) -> Undrawn:
    """What an axis has no place for among ``values``."""
    numbers = np.asarray(values, dtype=float)
    finite = np.isfinite(numbers)
    below = int((numbers[finite] <= 0).sum()) if log else 0
    return Undrawn(int((~finite).sum()), below)


def heights(axes: Axes) -> np.ndarray:
    """The finite values of the lines that show measured values."""
    marks = (DIVERGED, FULL_PRECISION)
    lines = [line for line in axes.lines if line.get_gid() not in marks]
    values = [np.asarray(line.get_ydata(), dtype=float) for line in lines]
    joined = np.concatenate([np.empty(0), *values])
    return joined[np.isfinite(joined)]


def empty(axes: Axes, log: bool) -> str:
    """Why nothing can be drawn although values were measured; "" where there is something."""
    drawn = heights(axes)
    if (drawn > 0).any() if log else len(drawn):
        return ""
    if any(line.get_gid() == DIVERGED for line in axes.lines):
        return NOTHING
    return NONE_ABOVE if len(drawn) else ""
