"""What a packed checkpoint spends on a quantised linear, number by number."""

from __future__ import annotations

from dataclasses import dataclass

SCALE_BITS = 16  # a scale: of a group of a row, or of a column (AWQ)
VALUE_BITS = 16  # an outlier
INDEX_BITS = 16  # the group of a column; an outlier's column, or its distance from the one before


@dataclass(frozen=True)
class Storage:
    """How many numbers of each kind a packed linear consists of.

    Args:
        bits: what a code takes, and a zero.
        codes: one a weight.
        scales: one a group of a row, and one a column where columns were scaled.
        zeros: one a group of a row; none of a symmetric grid, whose zero is a constant.
        indices: one a column where groups are not runs of neighbouring columns, and one an outlier
            (or column of outliers).
        values: outliers.
    """

    bits: int
    codes: int
    scales: int
    zeros: int = 0
    indices: int = 0
    values: int = 0

    @property
    def total(self) -> int:
        """All bits of the linear."""
        return (
            self.bits * (self.codes + self.zeros)
            + SCALE_BITS * self.scales
            + INDEX_BITS * self.indices
            + VALUE_BITS * self.values
        )

    @property
    def bits_per_weight(self) -> float:
        """Effective bits."""
        return self.total / self.codes
