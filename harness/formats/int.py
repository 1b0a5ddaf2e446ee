"""Integers: evenly spaced levels with a scale and a zero."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor

from harness.formats.base import SCALE_BITS, ScaleType, bounding_scale, stored_scale
from harness.numerics.grid import Codebook

BITS = range(2, 9)  # of a code: what one byte holds


@dataclass(frozen=True)
class Int:
    """Uniform affine grids, as in Frantar et al. 2022 (GPTQ, reference code).

        scale = (hi − lo) / (2^bits − 1)        zero = round(−lo / scale)            lo ≤ 0 ≤ hi

    A symmetric grid has hi = max |w|, lo = −hi and zero = 2^(bits − 1), whatever the signs of w. The
    reference code mirrors a range only where it holds a negative weight: the range of positive weights
    stays [0, hi] there, while its zero is in the middle all the same, so that half of the codes lie
    below every weight and the largest weights are cut to a half. That is not followed.

    Args:
        bits: of a code.
        symmetric: ranges around 0; the zero is then a constant and costs nothing.
        scales: the type that scales are stored and take part in rounding in.
    """

    group: ClassVar[int | None] = None
    whole: ClassVar[bool] = False

    bits: int
    symmetric: bool = False
    scales: ScaleType = "float16"

    def __post_init__(self) -> None:
        if self.bits not in BITS:
            raise ValueError(f"bits={self.bits}: allowed are {BITS[0]} to {BITS[-1]}")

    @property
    def codebook(self) -> Codebook:
        """See :attr:`Format.codebook`."""
        zero_bits = 0 if self.symmetric else self.bits
        return Codebook(self.bits, scale_bits=SCALE_BITS[self.scales], zero_bits=zero_bits)

    def of_weight(self, weight: Tensor) -> Self:
        """See :meth:`Format.of_weight`: nothing."""
        return self

    def bounded(self, lo: Tensor, hi: Tensor) -> tuple[Tensor, Tensor]:
        """See :meth:`Format.bounded`; an empty range counts as [-1, 1]."""
        levels = 2**self.bits - 1
        if self.symmetric:
            hi = torch.maximum(-lo, hi)
            lo = -hi
        empty = (lo == 0) & (hi == 0)
        lo, hi = torch.where(empty, -1.0, lo), torch.where(empty, 1.0, hi)
        width = hi - lo
        scale = torch.where(width.isfinite(), width / levels, hi / levels - lo / levels)
        scale = bounding_scale(scale, self.scales)
        if self.symmetric:
            return scale, torch.full_like(scale, (levels + 1) / 2)
        return scale, torch.round(-lo / scale).clamp_(0, levels)

    def stored(self, scale: Tensor) -> Tensor:
        """See :meth:`Format.stored`."""
        return stored_scale(scale, self.scales)
