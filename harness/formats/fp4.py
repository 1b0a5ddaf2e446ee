"""FP4: floating-point numbers of one sign, two exponent and one mantissa bit (E2M1)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from harness.formats.base import ScaledTable

POSITIVE = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
E2M1 = (*(-value for value in POSITIVE[:0:-1]), *POSITIVE)  # 15 values: the two zeros are one


@dataclass(frozen=True)
class FP4(ScaledTable):
    """E2M1 (OCP Microscaling Formats v1.0, section 5.3.3), ties to the even mantissa.

    Args:
        scales: the type that scales are stored and take part in rounding in.
    """

    values: ClassVar[tuple[float, ...]] = E2M1
    even: ClassVar[bool] = True
