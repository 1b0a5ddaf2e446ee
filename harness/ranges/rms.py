"""One range for a whole weight, a multiple of its root mean square: QuIP's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from harness.formats.base import Format
from harness.ranges.base import Fit


@dataclass(frozen=True)
class RMS:
    """hi = −lo = factor · sqrt(mean w²) over all of the weight (Chee et al. 2023, QuIP, reference code).

    Weights beyond are cut to it. Meant for weights in a basis that makes them normally distributed. With
    groups the mean is over the group's columns of all rows.

    Args:
        factor: 2.4 in the authors' code.
    """

    whole: ClassVar[bool] = True

    factor: float = 2.4

    def __post_init__(self) -> None:
        if not 0 < self.factor < float("inf"):
            raise ValueError(f"factor={self.factor}: allowed are positive numbers")

    def fit(self, weight: Tensor, form: Format, hessian: Tensor | None) -> Fit:
        """See :meth:`Range.fit`."""
        bound = self.factor * weight.square().mean().sqrt().expand(weight.shape[0])
        return Fit(*form.bounded(-bound, bound), ends=(-bound, bound))

    def flops(self, rows: int, columns: int, size: int) -> float:
        """A square a weight."""
        return 2.0 * rows * columns
