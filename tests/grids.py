"""Grids in one line, for tests that are about something else."""

from harness.formats.base import ScaleType
from harness.formats.int import Int
from harness.ranges.base import GridSpec, Range
from harness.ranges.minmax import MinMax

WHOLE = MinMax()


def uniform(
    bits: int,
    group_size: int | None = None,
    symmetric: bool = False,
    *,
    range: Range = WHOLE,
    scales: ScaleType = "float32",
) -> GridSpec:
    """Integers with float32 scales, as in the authors' codes."""
    return GridSpec(Int(bits, symmetric, scales), range, group_size)
