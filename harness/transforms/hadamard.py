"""A randomised Hadamard transform, of any width."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from harness.numerics import basis
from harness.numerics.statistics import Statistics
from harness.ranges.base import GridSpec
from harness.transforms.base import (
    Found,
    Sides,
    check_sides,
    generator,
    random_orthogonal,
    random_signs,
    turning,
)


@dataclass(frozen=True)
class Hadamard:
    """T = (Q ⊗ H_m) D: random signs D, Hadamard's matrix of order m = 2^k, a small random orthogonal Q.

    n = m · q with q odd, or m smaller by what makes q at least ``smallest``: Q mixes what the power of
    two leaves apart. After Tseng et al. 2024, "QuIP#", arXiv 2402.04396, section 3, which takes
    Hadamard matrices of other orders where n is no power of two.

    Args:
        sides: input, output or both.
        seed: of signs and Q.
        smallest: order of Q, at least, where n is no power of two.
    """

    needs: ClassVar[frozenset[str]] = frozenset()

    sides: Sides = "input"
    seed: int = 0
    smallest: int = 1

    def __post_init__(self) -> None:
        check_sides(self.sides)
        if self.smallest < 1:
            raise ValueError(f"smallest={self.smallest}: allowed are whole numbers from 1 up")

    def find(self, weights: Mapping[str, Tensor], statistics: Statistics, spec: GridSpec) -> Found:
        """See :meth:`Transform.find`."""
        inputs, outputs = None, {}
        if self.sides != "output":
            inputs = self._operator(statistics.columns, 0, statistics.hessian)
        if self.sides != "input":
            outputs = {
                name: self._operator(weight.shape[0], 1, weight)
                for name, weight in weights.items()
            }
        return Found(inputs, outputs)

    def _operator(self, size: int, side: int, like: Tensor) -> basis.Hadamard:
        source = generator(2 * self.seed + side, size)
        signs = random_signs(size, source, like)
        small = random_orthogonal(size // self._order(size), source, like)
        return basis.Hadamard(small, signs)

    def bits(self, rows: int, columns: int) -> int:
        """See :meth:`Transform.bits`: a seed a side."""
        return basis.SEED_BITS * (2 if self.sides == "both" else 1)

    def flops(self, rows: int, columns: int) -> float:
        """See :meth:`Transform.flops`: products with two matrices of about √m and with Q."""

        def cost(size: int) -> float:
            order = self._order(size)
            return 2.0 * size * (2 * math.sqrt(order) + size / order)

        return turning(self.sides, rows, columns, cost)

    def _order(self, size: int) -> int:
        """The order m of the Hadamard matrix for ``size`` channels."""
        order = size & -size  # the largest power of two in it
        while size // order < self.smallest and order > 1 and size != order:
            order //= 2
        return order
