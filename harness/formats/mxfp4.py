"""MXFP4: E2M1 numbers, 32 of which share a power of two."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from harness.formats.base import TableFormat
from harness.formats.fp4 import E2M1
from harness.numerics.grid import Codebook

LARGEST_EXPONENT = 2  # of E2M1: its largest value is 1.5 · 2²
E8M0 = (-127, 127)  # exponents that a scale can have


@dataclass(frozen=True)
class MXFP4(TableFormat):
    """OCP Microscaling Formats v1.0, section 5.2 and 6.3: scale = 2^(⌊log₂ max|w|⌋ − 2), E8M0.

    So a group's largest weight may exceed 6 scales, up to 8, and is cut to 6.
    """

    group: ClassVar[int | None] = 32
    values: ClassVar[tuple[float, ...]] = E2M1
    even: ClassVar[bool] = True

    @property
    def codebook(self) -> Codebook:
        """See :attr:`Format.codebook`."""
        return self._codebook(scale_bits=8)

    def bounded(self, lo: Tensor, hi: Tensor) -> tuple[Tensor, Tensor]:
        """See :meth:`Format.bounded`, but by the rule above: the largest weight may be cut."""
        largest = torch.maximum(hi, -lo)
        exponent = torch.frexp(torch.where(largest == 0, 1.0, largest)).exponent - 1
        scale = _power(exponent - LARGEST_EXPONENT, largest)
        return scale, torch.zeros_like(scale)

    def stored(self, scale: Tensor) -> Tensor:
        """See :meth:`Format.stored`: the nearest power of two by its logarithm."""
        return _power(torch.log2(scale).round(), scale)


def _power(exponent: Tensor, like: Tensor) -> Tensor:
    """2^exponent, as far as E8M0 reaches."""
    return torch.ldexp(torch.ones_like(like), exponent.clamp(*E8M0))
