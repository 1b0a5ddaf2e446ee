"""QuIP's random orthogonal transform: a permutation and a Kronecker product of two small matrices."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from harness.numerics.basis import Kronecker
from harness.numerics.device import there
from harness.transforms.base import Turning, generator, random_orthogonal, turning


@dataclass(frozen=True)
class Orthogonal(Turning):
    """T = (A ⊗ B) P, Chee et al. 2023, "QuIP", arXiv 2307.13304, section 4.1.

    P is a random permutation, A and B are uniformly random orthogonal matrices whose orders are the two
    nearest factors of n.

    Args:
        sides: input, output or both.
        seed: of the matrices.
    """

    def _operator(self, size: int, side: int, like: Tensor) -> Kronecker:
        source = generator(2 * self.seed + side, size)
        left, right = factors(size)
        order = there(torch.randperm(size, generator=source), like.device)
        a, b = (random_orthogonal(one, source, like) for one in (left, right))
        return Kronecker(a, b, order, like.new_ones(size))

    def flops(self, rows: int, columns: int) -> float:
        """See :meth:`Transform.flops`: products with both factors."""
        return turning(self.sides, rows, columns, lambda size: 2.0 * size * sum(factors(size)))


def factors(size: int) -> tuple[int, int]:
    """The two factors of ``size`` nearest to each other, the smaller one first."""
    left = next(one for one in range(int(size**0.5), 0, -1) if size % one == 0)
    return left, size // left
