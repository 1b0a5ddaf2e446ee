"""Round to nearest."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from harness.methods.base import Quantized, RowMethod
from harness.numerics.statistics import Statistics
from harness.ranges.base import GridSpec


@dataclass(frozen=True)
class RTN(RowMethod):
    """V = Q(W*): every weight goes to its nearest grid point.

    The QEP authors round RTN and AWQ on a second grid whose range need not hold zero; it differs
    from ours only for rows of one sign.
    """

    def quantize_rows(self, weight: Tensor, statistics: Statistics, spec: GridSpec) -> Quantized:
        """See :meth:`RowMethod.quantize_rows`; only a range may look at the statistics."""
        grid = spec.fit(weight, statistics.hessian)
        codes = grid.quantize(weight)
        return Quantized(grid.dequantize(codes), codes, grid)
