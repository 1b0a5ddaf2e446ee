"""QuIP's diagonal rescaling: between the sizes of weights and of activations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from harness.formats.base import SCALE_BITS, ScaleType, stored_scale
from harness.numerics.basis import Diagonal
from harness.numerics.statistics import Statistics
from harness.ranges.base import GridSpec
from harness.transforms.base import Found

SMALLEST = 1e-8  # of both diagonals, H's in units of max|H|, as in the authors' code


@dataclass(frozen=True)
class Rescale:
    """T = diag(s), s_j = (H_jj / ‖W_:,j‖²)^¼, Chee et al. 2023, "QuIP", arXiv 2307.13304, section 4.2.

    One s for all linears of a stage, with W their rows one below the other; the authors take each
    linear by itself.

    Args:
        scales: the type that s is stored and takes part in.
    """

    needs: ClassVar[frozenset[str]] = frozenset()

    scales: ScaleType = "float16"

    def find(self, weights: Mapping[str, Tensor], statistics: Statistics, spec: GridSpec) -> Found:
        """See :meth:`Transform.find`."""
        hessian = statistics.hessian
        largest = hessian.abs().max()
        size = (hessian.diagonal() / torch.where(largest == 0, 1.0, largest)).clamp(min=SMALLEST)
        norms = torch.stack([one.double().square().sum(dim=0) for one in weights.values()]).sum(
            dim=0
        )
        scale = stored_scale((size / norms.clamp(min=SMALLEST)).pow(0.25).to(size), self.scales)
        return Found(Diagonal(scale, SCALE_BITS[self.scales]))

    def bits(self, rows: int, columns: int) -> int:
        """See :meth:`Transform.bits`: a scale a column."""
        return SCALE_BITS[self.scales] * columns

    def flops(self, rows: int, columns: int) -> float:
        """Products with a diagonal: next to none."""
        return 0.0
