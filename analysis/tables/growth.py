"""Error growth: how far the residual stream has strayed, and how fast, with and without QEP."""

from __future__ import annotations

from analysis.frames import Frames
from analysis.layout import GAIN, SPREAD
from analysis.rowwise import Column, rowwise
from analysis.tables.base import Table

CAPTION = (
    "Relative error of the residual stream behind the last block, and the slope of its logarithm "
    "over the block index; lower is better."
)
NOTES = [
    "held out: on calibration windows that fed no statistic.",
    SPREAD,
    GAIN,
]


def build(frames: Frames) -> Table | None:
    """A row a recipe."""
    columns = [
        Column("last block", "error/last_block", gain="percent"),
        Column("growth a block", "error/growth"),
        Column("last block held out", "error/last_block_heldout", gain="percent"),
        Column("growth held out", "error/growth_heldout"),
    ]
    return rowwise(frames.runs, columns, CAPTION, NOTES)
