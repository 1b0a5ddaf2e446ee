"""Qronos: least squares on the full-precision output first, then GPTQ's steps."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from harness.methods.base import Quantized
from harness.methods.gptq import GPTQ, column_order, zero_dead
from harness.numerics.propagation import correction, correction_flops
from harness.numerics.statistics import Statistics
from harness.ranges.base import GridSpec


@dataclass(frozen=True)
class Qronos(GPTQ):
    """Zhang et al. 2025, "Qronos", arXiv 2505.11695, algorithm 1.

    It minimises ‖W X − V X̂‖² column by column: each column is rounded to where it alone would do best,
    and all later columns are then set by least squares. For the first column j = 1 in the order of
    processing, the others still at W,

        q = Q(w_1 + [W C]_1 / H_11)        since  X̂_1ᵀ(W X − W_>1 X̂_>1) / (T H_11) = w_1 + [W C]_1 / H_11

    After it the least squares of the rest, q being fixed, are those of W* = W + W C (H + λI)⁻¹, the weight
    that QEP corrects with α = 1, less GPTQ's step for the error of the first column,

        W_>1 ← W*_>1 − (w*_1 − q) / U_11 · U_1,>1

    and from there on each step is GPTQ's on W*. So qep.alpha=0 belongs to it: the correction is its own.
    Grids are fitted to W*, as those of GPTQ on it would be.

    The authors' code takes 1e-6 of the largest eigenvalue of H for λ, which fits long calibration sets;
    with few tokens a larger one does better, as for QEP.

    Args:
        damping: λ as a multiple of mean(diag H), the same in both.
        act_order: columns in the order of falling H_jj, as in the paper.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"cross"})

    damping: float = 0.01
    act_order: bool = True

    def quantize_rows(self, weight: Tensor, statistics: Statistics, spec: GridSpec) -> Quantized:
        """See :meth:`RowMethod.quantize_rows`."""
        hessian, own = statistics.hessian, replace(statistics, residual=None)
        direction, ridge = correction(weight, own, self.damping)
        first = column_order(hessian, self.act_order)[0]
        curvature = hessian[first, first]
        moved = weight @ own.require_cross()[:, first] / torch.where(curvature > 0, curvature, 1.0)
        alone = zero_dead(weight, hessian)[:, first] + moved
        found = self.sweep(statistics, alone)(weight + direction, hessian, spec)
        return replace(found, ridge=max(ridge, found.ridge))  # columns are in another order there

    def flops(self, rows: int, columns: int) -> float:
        """GPTQ's, and those of the correction."""
        return super().flops(rows, columns) + correction_flops(rows, columns)
