"""Errors over depth, every token alike: the mean of the tokens' own relative errors."""

from __future__ import annotations

from analysis.figures.base import Drawing
from analysis.figures.depth import draw_error
from analysis.frames import Frames

EACH = (
    "Relative error of every token in the residual stream, ‖y − ŷ‖²/‖y‖², after every decoder block,"
    " mean over tokens"
)


def draw(frames: Frames) -> Drawing | None:
    """As :mod:`analysis.figures.depth`, which a token of great norm may rule."""
    return draw_error(frames, "relative_error_token", EACH)
