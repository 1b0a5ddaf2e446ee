"""QuIP's random orthogonal transform: a permutation and a Kronecker product of two small matrices."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from harness.numerics.basis import SEED_BITS, Kronecker
from harness.numerics.device import there
from harness.numerics.statistics import Statistics
from harness.ranges.base import GridSpec
from harness.transforms.base import (
    Found,
    Sides,
    check_sides,
    generator,
    random_orthogonal,
    turning,
)


@dataclass(frozen=True)
class Orthogonal:
    """T = (A ⊗ B) P, Chee et al. 2023, "QuIP", arXiv 2307.13304, section 4.1.

    P is a random permutation, A and B are uniformly random orthogonal matrices whose orders are the two
    nearest factors of n.

    Args:
        sides: input, output or both.
        seed: of the matrices.
    """

    needs: ClassVar[frozenset[str]] = frozenset()

    sides: Sides = "input"
    seed: int = 0

    def __post_init__(self) -> None:
        check_sides(self.sides)

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

    def _operator(self, size: int, side: int, like: Tensor) -> Kronecker:
        source = generator(2 * self.seed + side, size)
        left, right = factors(size)
        order = there(torch.randperm(size, generator=source), like.device)
        a, b = (random_orthogonal(one, source, like) for one in (left, right))
        return Kronecker(a, b, order, like.new_ones(size))

    def bits(self, rows: int, columns: int) -> int:
        """See :meth:`Transform.bits`: a seed a side."""
        return SEED_BITS * (2 if self.sides == "both" else 1)

    def flops(self, rows: int, columns: int) -> float:
        """See :meth:`Transform.flops`: products with both factors."""
        return turning(self.sides, rows, columns, lambda size: 2.0 * size * sum(factors(size)))


def factors(size: int) -> tuple[int, int]:
    """The two factors of ``size`` nearest to each other, the smaller one first."""
    left = next(one for one in range(int(size**0.5), 0, -1) if size % one == 0)
    return left, size // left
