"""Changes of basis of a linear: invertible matrices on its inputs and outputs, and what they cost.

With T ``[in, in]`` on the inputs, x' = T⁻ᵀ x, and U ``[out, out]`` on the outputs, a linear W ``[out, in]``
and the statistics of its inputs (:mod:`harness.numerics.statistics`) become

    W' = U W Tᵀ        H' = T⁻ᵀ H T⁻¹        C' and D' likewise        V = U⁻¹ V' T⁻ᵀ

so that V' x' = U V x: a loss in H' of rows that U mixes orthogonally is the loss in H.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from harness.numerics.statistics import Statistics

SEED_BITS = 64  # what a random matrix is made again from


class Operator(ABC):
    """An invertible matrix T ``[n, n]``, applied to the last axis of tensors ``[..., n]``."""

    @abstractmethod
    def forward(self, a: Tensor) -> Tensor:
        """A Tᵀ: weights into the new basis."""

    @abstractmethod
    def backward(self, a: Tensor) -> Tensor:
        """A T⁻ᵀ: weights back from it."""

    @abstractmethod
    def dual(self, a: Tensor) -> Tensor:
        """A T⁻¹: activations into the new basis."""

    @abstractmethod
    def flops(self) -> float:
        """Floating-point operations on one vector: what applying T to activations costs a token."""

    @abstractmethod
    def bits(self) -> int:
        """What a checkpoint has to hold of T."""

    def moment(self, m: Tensor) -> Tensor:
        """T⁻ᵀ M T⁻¹ of a moment ``[n, n]``."""
        return self.dual(self.dual(m).mT).mT.contiguous()


@dataclass(frozen=True)
class Diagonal(Operator):
    """T = diag(s).

    Args:
        scale: s ``[n]``, positive.
        number_bits: what a checkpoint spends on one of its numbers.
    """

    scale: Tensor
    number_bits: int = 16

    def forward(self, a: Tensor) -> Tensor:
        """See :meth:`Operator.forward`."""
        return a * self.scale

    def backward(self, a: Tensor) -> Tensor:
        """See :meth:`Operator.backward`."""
        return a / self.scale

    def dual(self, a: Tensor) -> Tensor:
        """See :meth:`Operator.dual`."""
        return a / self.scale

    def flops(self) -> float:
        """One product a channel."""
        return float(self.scale.numel())

    def bits(self) -> int:
        """A number a channel."""
        return self.number_bits * self.scale.numel()


class Orthogonal(Operator):
    """T⁻¹ = Tᵀ: activations turn like weights."""

    def dual(self, a: Tensor) -> Tensor:
        """See :meth:`Operator.dual`."""
        return self.forward(a)

    def bits(self) -> int:
        """A seed."""
        return SEED_BITS


@dataclass(frozen=True)
class Dense(Orthogonal):
    """Any orthogonal ``matrix [n, n]``."""

    matrix: Tensor

    def forward(self, a: Tensor) -> Tensor:
        """See :meth:`Operator.forward`."""
        return a @ self.matrix.T

    def backward(self, a: Tensor) -> Tensor:
        """See :meth:`Operator.backward`."""
        return a @ self.matrix

    def flops(self) -> float:
        """A product with the matrix."""
        return 2.0 * self.matrix.numel()


@dataclass(frozen=True)
class Kronecker(Orthogonal):
    """T = (A ⊗ B) D P: channels are permuted, signed, and mixed by two small orthogonal matrices.

    Channel i of the product of A ``[a, a]`` and B ``[b, b]``, n = a·b, is (i // b, i % b).

    Args:
        left: A.
        right: B.
        order: P, the old channel at every new place ``[n]``.
        signs: D, ±1 at every new place ``[n]``.
    """

    left: Tensor
    right: Tensor
    order: Tensor
    signs: Tensor

    def forward(self, a: Tensor) -> Tensor:
        """See :meth:`Operator.forward`."""
        mixed = _square(a[..., self.order] * self.signs, len(self.left))
        return (self.left @ (mixed @ self.right.T)).flatten(-2)

    def backward(self, a: Tensor) -> Tensor:
        """See :meth:`Operator.backward`."""
        mixed = _square(a, len(self.left))
        back = (self.left.T @ (mixed @ self.right)).flatten(-2) * self.signs
        return back[..., self._inverse]

    @cached_property
    def _inverse(self) -> Tensor:
        return torch.argsort(self.order)

    def flops(self) -> float:
        """A product with each of the two, unless it is a sign."""
        orders = [len(one) for one in (self.left, self.right) if len(one) > 1]
        return 2.0 * self.order.numel() * sum(orders)


@dataclass(frozen=True)
class Hadamard(Orthogonal):
    """T = (Q ⊗ H_m) D: random signs, a Hadamard transform of m = 2^k neighbours, and a small Q.

    Args:
        small: Q, orthogonal ``[n / m, n / m]``.
        signs: D, ±1 of every channel ``[n]``.
    """

    small: Tensor
    signs: Tensor

    @property
    def power(self) -> int:
        """The order m of Hadamard's matrix."""
        return self.signs.numel() // len(self.small)

    def forward(self, a: Tensor) -> Tensor:
        """See :meth:`Operator.forward`."""
        parts = _square(a * self.signs, len(self.small))
        return (self.small @ hadamard_transform(parts)).flatten(-2)

    def backward(self, a: Tensor) -> Tensor:
        """See :meth:`Operator.backward`."""
        parts = self.small.T @ _square(a, len(self.small))
        return hadamard_transform(parts).flatten(-2) * self.signs

    def flops(self) -> float:
        """log₂ m additions a channel, and a product with Q unless it is a sign."""
        small = len(self.small)
        return self.signs.numel() * (
            (self.power - 1).bit_length() + (2.0 * small if small > 1 else 0.0)
        )


def hadamard_transform(a: Tensor) -> Tensor:
    """A H_m of ``a [..., m]``, m a power of two, H_m = H_{m/2} ⊗ [[1, 1], [1, −1]] / √2.

    As two products with smaller ones: H_m = H_p ⊗ H_q, which a CPU does faster than log₂ m passes.
    """
    m = a.shape[-1]
    p = 1 << ((m.bit_length() - 1) // 2)
    parts = _square(a, p)
    return (_hadamard(p, a) @ (parts @ _hadamard(m // p, a))).flatten(-2)


def _square(a: Tensor, rows: int) -> Tensor:
    """``a [..., n]`` as ``[..., rows, n / rows]``."""
    return a.reshape(*a.shape[:-1], rows, -1)


def _hadamard(m: int, like: Tensor) -> Tensor:
    matrix = like.new_ones(1, 1)
    while len(matrix) < m:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    return matrix / math.sqrt(m)


@dataclass(frozen=True)
class Chain(Operator):
    """T = T_n ⋯ T_1: one operator after the other, the first of ``parts`` first."""

    parts: Sequence[Operator] = ()

    def forward(self, a: Tensor) -> Tensor:
        """See :meth:`Operator.forward`."""
        for part in self.parts:
            a = part.forward(a)
        return a

    def backward(self, a: Tensor) -> Tensor:
        """See :meth:`Operator.backward`."""
        for part in reversed(self.parts):
            a = part.backward(a)
        return a

    def dual(self, a: Tensor) -> Tensor:
        """See :meth:`Operator.dual`."""
        for part in self.parts:
            a = part.dual(a)
        return a

    def flops(self) -> float:
        """Of all parts."""
        return sum(part.flops() for part in self.parts)

    def bits(self) -> int:
        """Of all parts."""
        return sum(part.bits() for part in self.parts)

    def then(self, part: Operator | None) -> Chain:
        """This chain and one more operator."""
        return self if part is None else Chain((*self.parts, part))


@dataclass(frozen=True)
class Basis:
    """The basis of one linear: T on its inputs, U on its outputs."""

    inputs: Chain = Chain()
    outputs: Chain = Chain()

    def into(self, weight: Tensor) -> Tensor:
        """W' = U W Tᵀ, ``[out, in]``."""
        weight = self.inputs.forward(weight)
        return self.outputs.forward(weight.T).T.contiguous() if self.outputs.parts else weight

    def back(self, weight: Tensor) -> Tensor:
        """V = U⁻¹ V' T⁻ᵀ, ``[out, in]``."""
        if self.outputs.parts:  # U⁻¹ V' = (V'ᵀ U⁻ᵀ)ᵀ
            weight = self.outputs.backward(weight.T).T
        return self.inputs.backward(weight).contiguous()

    def then(self, inputs: Operator | None, outputs: Operator | None) -> Basis:
        """This basis and one more change of it."""
        return Basis(self.inputs.then(inputs), self.outputs.then(outputs))

    def bits(self) -> int:
        """What a checkpoint has to hold of T and U."""
        return self.inputs.bits() + self.outputs.bits()

    def flops(self) -> float:
        """Floating-point operations a token, were T and U applied to activations."""
        return self.inputs.flops() + self.outputs.flops()


def transformed(statistics: Statistics, operator: Operator) -> Statistics:
    """The statistics of the inputs in the new basis.

    Mean magnitudes are no function of moments: where channels are mixed, the root mean square
    sqrt(H'_jj) takes their place. K belongs to the outputs as well, and has done its work before: it is
    left behind.
    """

    def moved(moment: Tensor | None) -> Tensor | None:
        return None if moment is None else operator.moment(moment)

    hessian = operator.moment(statistics.hessian)
    magnitude = statistics.magnitude
    if magnitude is not None:
        if isinstance(operator, Diagonal):
            magnitude = operator.dual(magnitude)
        else:
            magnitude = hessian.diagonal().clamp(min=0).sqrt()
    cross, gap = moved(statistics.cross), moved(statistics.gap)
    return replace(
        statistics, hessian=hessian, cross=cross, gap=gap, magnitude=magnitude, residual=None
    )
