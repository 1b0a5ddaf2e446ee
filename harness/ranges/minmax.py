"""The range that holds every weight."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from harness.formats.base import Format
from harness.ranges.base import Fit, extremes


@dataclass(frozen=True)
class MinMax:
    """lo = min(w, 0), hi = max(w, 0)."""

    whole: ClassVar[bool] = False

    def fit(self, weight: Tensor, form: Format, hessian: Tensor | None) -> Fit:
        """See :meth:`Range.fit`."""
        return Fit(*form.bounded(*extremes(weight)))

    def flops(self, rows: int, columns: int, size: int) -> float:
        """None: only comparisons."""
        return 0.0
