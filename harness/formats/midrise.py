"""Evenly spaced levels around zero, none of which is zero: QuIP's grid."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor

from harness.formats.base import LEAST_HALF, SCALE_BITS, ScaleType, bounding_scale, stored_scale
from harness.formats.int import BITS
from harness.numerics.grid import Codebook


@dataclass(frozen=True)
class MidRise:
    """v = scale · (2c / (2^bits − 1) − 1), c = 0 … 2^bits − 1 (Chee et al. 2023, QuIP, reference code).

    Args:
        bits: of a code.
        scales: the type that scales are stored and take part in rounding in.
    """

    group: ClassVar[int | None] = None
    whole: ClassVar[bool] = False

    bits: int
    scales: ScaleType = "float16"

    def __post_init__(self) -> None:
        if self.bits not in BITS:
            raise ValueError(f"bits={self.bits}: allowed are {BITS[0]} to {BITS[-1]}")

    @property
    def codebook(self) -> Codebook:
        """See :attr:`Format.codebook`."""
        return Codebook(self.bits, self.values(), scale_bits=SCALE_BITS[self.scales])

    def values(self) -> Tensor:
        """The levels in units of the outermost one, in rising order, float64 ``[2^bits]``."""
        top: int = 2**self.bits - 1
        return 2 * torch.arange(top + 1, dtype=torch.float64) / top - 1

    def of_weight(self, weight: Tensor) -> Self:
        """See :meth:`Format.of_weight`: nothing."""
        return self

    def bounded(self, lo: Tensor, hi: Tensor) -> tuple[Tensor, Tensor]:
        """See :meth:`Format.bounded`; the zero is the constant 0.

        No level is zero, so that an empty range has the smallest scale that can be stored.
        """
        reach = torch.maximum(hi, -lo)
        least = LEAST_HALF if self.scales == "float16" else torch.finfo(reach.dtype).tiny
        scale = bounding_scale(torch.where(reach == 0, least, reach), self.scales)
        return scale, torch.zeros_like(scale)

    def stored(self, scale: Tensor) -> Tensor:
        """See :meth:`Format.stored`."""
        return stored_scale(scale, self.scales)
