"""AWQ's scale search: columns of large activations are scaled up before rounding."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from harness.formats.base import SCALE_BITS, ScaleType, stored_scale
from harness.numerics.basis import Diagonal
from harness.numerics.device import read
from harness.numerics.finite import NonFiniteError
from harness.numerics.forms import form
from harness.numerics.statistics import Statistics
from harness.ranges.base import GridSpec
from harness.ranges.minmax import MinMax
from harness.transforms.base import Found

SMALLEST_SCALE = 1e-4  # before normalisation, as in the authors' code


@dataclass(frozen=True)
class AWQ:
    """Lin et al. 2024, "AWQ", arXiv 2306.00978, section 3.2 (eq. 4 and 5): T = diag(s).

    One scale per input column for all linears of a stage, from the mean activation magnitude m:

        s = m^r / sqrt(max(m^r) · min(m^r))        r = 0, 1/steps, …, (steps−1)/steps
        V = Q(W* diag(s)) diag(s)⁻¹

    with the r of least Σ_linears tr((W* − V) H (W* − V)ᵀ), Q rounding to nearest in min-max ranges; a
    tie keeps the smaller r.

    The authors measure the loss at the output of the attention or MLP module and fold s into the
    operator before, which only some linears have; here H is enough, and every linear takes part.
    For a linear alone in its stage whose own output they look at, the losses are the same.

    Args:
        steps: number of exponents r tried.
        scales: the type that s is stored and takes part in.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"magnitude"})

    steps: int = 20
    scales: ScaleType = "float16"

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps={self.steps}: allowed are whole numbers from 1 up")

    def find(self, weights: Mapping[str, Tensor], statistics: Statistics, spec: GridSpec) -> Found:
        """See :meth:`Transform.find`.

        Raises:
            NonFiniteError: no scale has a finite loss.
        """
        # what the format takes from a whole weight it takes from each linear
        parts = list(weights.values())
        parts = parts if spec.form.whole else [torch.cat(parts)]
        plain = GridSpec(spec.form, MinMax(), spec.group_size)
        magnitude = statistics.require_magnitude()

        def scale_of(step: int) -> Tensor:
            return stored_scale(column_scale(magnitude, step / self.steps), self.scales)

        def loss(step: int, dtype: torch.dtype | None = None) -> Tensor:
            scale = scale_of(step)
            deltas = (
                part - plain.fit(part * scale).nearest(part * scale) / scale for part in parts
            )
            return torch.stack([form(one, statistics.hessian, dtype) for one in deltas]).sum()

        best, chosen = float("inf"), None
        for step, (found,) in enumerate(read([loss(step) for step in range(self.steps)])):
            if not math.isfinite(found):  # too large for float32
                ((found,),) = read([loss(step, torch.float64)])
            if found < best:
                best, chosen = found, step
        if chosen is None:
            raise NonFiniteError("the losses of all scales are infinite or no numbers")
        return Found(Diagonal(scale_of(chosen), SCALE_BITS[self.scales]))

    def bits(self, rows: int, columns: int) -> int:
        """See :meth:`Transform.bits`: a scale a column."""
        return SCALE_BITS[self.scales] * columns

    def flops(self, rows: int, columns: int) -> float:
        """A quadratic form per scale tried."""
        return float(self.steps) * rows * columns**2


def column_scale(magnitude: Tensor, exponent: float) -> Tensor:
    """m^r / sqrt(max(m^r) · min(m^r)), ``[in]``, for the mean magnitudes m ``[in]``."""
    power = magnitude.pow(exponent).clamp(min=SMALLEST_SCALE)
    return power / (power.max() * power.min()).sqrt()
