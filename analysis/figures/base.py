"""What a figure returns."""

from __future__ import annotations

from dataclasses import dataclass

from matplotlib.figure import Figure


@dataclass(frozen=True)
class Drawing:
    """A figure, and the caption that goes beside it: what is shown, n, seeds."""

    figure: Figure
    caption: str
