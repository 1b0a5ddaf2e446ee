"""What a packed checkpoint spends on a quantised linear, number by number."""

from __future__ import annotations

from dataclasses import dataclass

VALUE_BITS = 16  # an outlier
INDEX_BITS = 16  # the group of a column; an outlier's column, or its distance from the one before


@dataclass(frozen=True)
class Storage:
    """How many numbers of each kind a packed linear consists of.

    Args:
        codes: how many there are, one a weight, and the bits of each.
        scales: how many, one a group of a row, and the bits of each.
        zeros: how many, one a group of a row where they are no constant, and the bits of each.
        indices: one a column where groups are not runs of neighbouring columns, and one an outlier
            (or column of outliers).
        values: outliers.
        other: bits of what there is once a linear: a scale of the whole weight, the basis of its codes.
    """

    codes: tuple[int, int]
    scales: tuple[int, int]
    zeros: tuple[int, int] = (0, 0)
    indices: int = 0
    values: int = 0
    other: int = 0

    @property
    def total(self) -> int:
        """All bits of the linear."""
        numbers = sum(count * bits for count, bits in (self.codes, self.scales, self.zeros))
        return numbers + INDEX_BITS * self.indices + VALUE_BITS * self.values + self.other

    @property
    def bits_per_weight(self) -> float:
        """Effective bits."""
        return self.total / self.codes[0]
