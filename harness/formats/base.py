"""What a number format is: which values codes stand for, and how their scale is stored.

A format is a frozen dataclass in a file of its own, with a YAML of the same name in ``conf/format`` that
carries its ``_target_``. The column loops never see it, only the codebook, scales and zeros that it makes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol, Self

import torch
from torch import Tensor

from harness.numerics.device import doubt
from harness.numerics.grid import Codebook

# The type that a scale is stored in; float32 stands for the precision that the weights are worked with in.
ScaleType = Literal["float16", "float32"]
SCALE_BITS = {"float16": 16, "float32": 32}
HALF = torch.finfo(torch.float16)
LEAST_HALF = HALF.smallest_normal * HALF.eps  # the least positive float16


class Format(Protocol):
    """A number format.

    ``group`` is the group size that the format prescribes, None where any will do; ``whole`` says that
    a scale of the whole weight takes part, so that every linear is a matter of its own.
    """

    group: ClassVar[int | None]
    whole: ClassVar[bool]

    @property
    def bits(self) -> int:
        """Of one code."""
        ...

    @property
    def codebook(self) -> Codebook:
        """What the codes stand for."""
        ...

    def of_weight(self, weight: Tensor) -> Self:
        """The format with what it takes from the whole ``weight [out, in]``, mostly nothing.

        What it has taken once it keeps.
        """
        ...

    def bounded(self, lo: Tensor, hi: Tensor) -> tuple[Tensor, Tensor]:
        """Scale and zero, as stored, whose values span ``lo <= 0 <= hi``; shapes stay.

        Raises:
            ValueError: the range takes a scale that cannot be stored.
        """
        ...

    def stored(self, scale: Tensor) -> Tensor:
        """Positive scales as they come back from a checkpoint: the nearest that can be stored."""
        ...


class TableFormat(ABC):
    """A format of a fixed table of values and one scale a group; a base for such formats."""

    group: ClassVar[int | None] = None
    whole: ClassVar[bool] = False
    values: ClassVar[tuple[float, ...]]  # in rising order
    even: ClassVar[bool] = False  # see Codebook

    @property
    def bits(self) -> int:
        """Of one code."""
        return (len(self.values) - 1).bit_length()

    def of_weight(self, weight: Tensor) -> Self:
        """See :meth:`Format.of_weight`: nothing."""
        return self

    def bounded(self, lo: Tensor, hi: Tensor) -> tuple[Tensor, Tensor]:
        """See :meth:`Format.bounded`; the zero is the constant 0, an empty range is any."""
        scale = self.bounding(torch.maximum(hi / self.values[-1], lo / self.values[0]))
        return scale, torch.zeros_like(scale)

    def bounding(self, scale: Tensor) -> Tensor:
        """The stored form of scales that just span a range, 0 where it is empty."""
        return self.stored(torch.where(scale == 0, 1.0, scale))

    @abstractmethod
    def stored(self, scale: Tensor) -> Tensor:
        """``scale`` as the format stores it."""

    def _codebook(self, scale_bits: int, tensor_bits: int = 0) -> Codebook:
        values = torch.tensor(self.values, dtype=torch.float64)
        return Codebook(self.bits, values, self.even, scale_bits, tensor_bits=tensor_bits)


@dataclass(frozen=True)
class ScaledTable(TableFormat):
    """A table whose scales are stored as they are: a base for such formats.

    Args:
        scales: the type that scales are stored and take part in rounding in.
    """

    scales: ScaleType = "float16"

    @property
    def codebook(self) -> Codebook:
        """See :attr:`Format.codebook`."""
        return self._codebook(SCALE_BITS[self.scales])

    def bounding(self, scale: Tensor) -> Tensor:
        """See :meth:`TableFormat.bounding`."""
        return bounding_scale(scale, self.scales)

    def stored(self, scale: Tensor) -> Tensor:
        """See :meth:`TableFormat.stored`."""
        return stored_scale(scale, self.scales)


def stored_scale(scale: Tensor, kind: ScaleType) -> Tensor:
    """Positive scales as they come back from a checkpoint of type ``kind``: the nearest of that type."""
    if kind == "float32":
        return scale
    return scale.clamp(LEAST_HALF, HALF.max).to(torch.float16).to(scale)


def check_scale(scale: Tensor, scale_bits: int, weight: Tensor) -> None:
    """Doubts a weight so small that its largest scale is the least that float16 holds.

    Raises:
        ValueError: the weight is not zero, and its codes would be.
    """
    largest = weight.abs().max()
    doubt(
        (scale_bits == 16) & (scale.max() <= LEAST_HALF) & (largest > 0),
        lambda: ValueError(
            f"scales=float16: weights of {largest.item():.3g} at most need scales below {LEAST_HALF:.2g}; "
            "allowed is scales=float32"
        ),
    )


def bounding_scale(scale: Tensor, kind: ScaleType) -> Tensor:
    """The stored form of scales that just span a range, 0 where it is empty.

    A scale is a normal number of the weights' precision: a subnormal one has few digits, and its
    multiples miss the end of a range by many steps. In float16, whose normal numbers end at 6e-5, it is
    rounded up instead.

    Raises:
        ValueError: a scale is beyond float16.
    """
    scale = torch.where(scale == 0, 1.0, scale).clamp(min=torch.finfo(scale.dtype).tiny)
    if kind == "float32":
        return scale
    largest = scale.max()
    doubt(
        largest > HALF.max,
        lambda: ValueError(
            f"scales=float16: a scale of {largest.item():.3g} is beyond {HALF.max:g}; "
            "allowed is scales=float32"
        ),
    )
    narrow = stored_scale(scale, kind)
    short = (narrow < scale) & (scale < HALF.smallest_normal)
    return torch.where(short, narrow + LEAST_HALF, narrow)
