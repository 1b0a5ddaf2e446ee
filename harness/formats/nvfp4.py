"""NVFP4: E2M1 numbers, 16 of which share an E4M3 scale, and one float32 scale for all."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar, Self

import torch
from torch import Tensor

from harness.formats.base import TableFormat
from harness.formats.fp4 import E2M1
from harness.numerics.grid import Codebook

LARGEST = torch.finfo(torch.float8_e4m3fn).max  # 448
SMALLEST = 2.0**-9  # the least positive E4M3 number


@dataclass(frozen=True)
class NVFP4(TableFormat):
    """NVIDIA 2025, "Pretraining large language models with NVFP4", arXiv 2509.25149, section 2.

    The scale of the whole weight is max|w| / (6 · 448), so that the largest group scale is the
    largest E4M3 number; a group's scale is E4M3(max|w_g| / 6 / whole) · whole.

    Args:
        tensor: the scale of the whole weight, taken from each weight as it comes.
    """

    group: ClassVar[int | None] = 16
    whole: ClassVar[bool] = True
    values: ClassVar[tuple[float, ...]] = E2M1
    even: ClassVar[bool] = True

    tensor: float | None = field(default=None, metadata={"identity": False})

    @property
    def codebook(self) -> Codebook:
        """See :attr:`Format.codebook`."""
        return self._codebook(scale_bits=8, tensor_bits=32)

    def of_weight(self, weight: Tensor) -> Self:
        """See :meth:`Format.of_weight`: the scale of the whole weight, in float32."""
        if self.tensor is not None:
            return self
        largest = weight.abs().max().float() / (self.values[-1] * LARGEST)
        return replace(self, tensor=largest.item() or 1.0)

    def stored(self, scale: Tensor) -> Tensor:
        """See :meth:`TableFormat.stored`."""
        if self.tensor is None:
            raise ValueError("format=nvfp4 takes a scale from the whole weight: see of_weight")
        narrow = (scale / self.tensor).clamp(SMALLEST, LARGEST).to(torch.float8_e4m3fn)
        return narrow.to(scale) * self.tensor
