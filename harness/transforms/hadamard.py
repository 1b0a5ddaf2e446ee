"""A randomised Hadamard transform, of any width."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from harness.numerics import basis
from harness.transforms.base import (
    Turning,
    generator,
    random_orthogonal,
    random_signs,
    turning,
)


@dataclass(frozen=True)
class Hadamard(Turning):
    """T = (Q ⊗ H_m) D: random signs D, Hadamard's matrix of order m = 2^k, a small random orthogonal Q.

    n = m · q with q odd, or m smaller by what makes q at least ``smallest``: Q mixes what the power of
    two leaves apart. After Tseng et al. 2024, "QuIP#", arXiv 2402.04396, section 3, which takes
    Hadamard matrices of other orders where n is no power of two.

    Args:
        sides: input, output or both.
        seed: of signs and Q.
        smallest: order of Q, at least, where n is no power of two.
    """

    smallest: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.smallest < 1:
            raise ValueError(f"smallest={self.smallest}: allowed are whole numbers from 1 up")

    def _operator(self, size: int, side: int, like: Tensor) -> basis.Hadamard:
        source = generator(2 * self.seed + side, size)
        signs = random_signs(size, source, like)
        small = random_orthogonal(size // self._order(size), source, like)
        return basis.Hadamard(small, signs)

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
