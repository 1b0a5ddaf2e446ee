"""The shrunk range of least error of the weights themselves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from harness.formats.base import Format
from harness.numerics.shrink import least_error
from harness.ranges.base import Fit, extremes

OPERATIONS = 30  # of one weight on one grid: rounding it, and a power


@dataclass(frozen=True)
class MSE:
    """The shrink search of the GPTQ reference code (Frantar et al. 2022).

        min_p  Σ_j |v_j(p) − w_j|^norm        lo = p · min(w, 0), hi = p · max(w, 0)

    over p = 1, 1 − 1/steps, … down to, but without, ``smallest``; a tie keeps the larger range.

    Args:
        steps: p falls in steps of 1/steps.
        smallest: of p.
        norm: the exponent.
    """

    whole: ClassVar[bool] = False

    steps: int = 100
    smallest: float = 0.2
    norm: float = 2.4

    def __post_init__(self) -> None:
        bad = []
        if self.steps < 1:
            bad.append(f"steps={self.steps}: allowed are whole numbers from 1 up")
        if not 0 <= self.smallest < 1:
            bad.append(f"smallest={self.smallest}: allowed are numbers from 0 to below 1")
        if not 0 < self.norm < float("inf"):
            bad.append(f"norm={self.norm}: allowed are positive numbers")
        if bad:
            raise ValueError("; ".join(bad))

    @property
    def tried(self) -> int:
        """How many ranges are tried."""
        return max(1, int((1 - self.smallest) * self.steps + 1e-9))

    def fit(self, weight: Tensor, form: Format, hessian: Tensor | None) -> Fit:
        """See :meth:`Range.fit`."""
        lo, hi = extremes(weight)
        steps = torch.arange(self.tried, dtype=torch.float64, device=lo.device)
        shrink = (1 - steps / self.steps).to(lo)
        scale, zero = form.bounded(shrink[:, None] * lo, shrink[:, None] * hi)
        best = least_error(weight, scale, zero, form.codebook, self.norm)[None]
        return Fit(scale.gather(0, best)[0], zero.gather(0, best)[0])

    def flops(self, rows: int, columns: int, size: int) -> float:
        """Every weight on every grid."""
        return float(OPERATIONS) * self.tried * rows * columns
