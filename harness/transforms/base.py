"""What a transform is: it finds the basis in which the linears of a stage are quantised.

A transform is a frozen dataclass in a file of its own, with a YAML of the same name in
``conf/transform`` that carries its ``_target_`` under its own name. Several make a chain:
``transform=[rescale,orthogonal]``, each in the basis that the ones before have made. Nothing is folded
into neighbouring operators, so that every linear of every architecture takes part; what the basis would
cost at inference is recorded.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal, Protocol

import torch
from torch import Tensor

from harness.numerics.basis import SEED_BITS, Basis, Operator, transformed
from harness.numerics.device import there
from harness.numerics.statistics import Statistics
from harness.ranges.base import GridSpec

Sides = Literal["input", "output", "both"]


@dataclass(frozen=True)
class Found:
    """What a transform has found: T of the inputs that a stage shares, U of every linear's outputs."""

    inputs: Operator | None = None
    outputs: Mapping[str, Operator] = field(default_factory=dict)


class Transform(Protocol):
    """Finds a basis; ``needs`` names the statistics beyond H that it reads."""

    needs: ClassVar[frozenset[str]]

    def find(self, weights: Mapping[str, Tensor], statistics: Statistics, spec: GridSpec) -> Found:
        """The operators for a stage, whose linears read the same inputs.

        Args:
            weights: by module name, each ``[out, in]``, in the basis found so far.
            statistics: of the inputs, in the basis found so far.
            spec: the grid that will be rounded to.
        """
        ...

    def bits(self, rows: int, columns: int) -> int:
        """What a checkpoint will have to hold of it for one ``[rows, columns]`` linear."""
        ...

    def flops(self, rows: int, columns: int) -> float:
        """Floating-point operations of finding it and of changing basis there and back."""
        ...


@dataclass(frozen=True)
class Turning(ABC):
    """A random orthogonal operator on either side, made from a seed alone: a base for such transforms.

    Args:
        sides: input, output or both.
        seed: of the operators.
    """

    needs: ClassVar[frozenset[str]] = frozenset()

    sides: Sides = "input"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.sides not in ("input", "output", "both"):
            raise ValueError(f"sides={self.sides!r}: allowed are input, output, both")

    @abstractmethod
    def _operator(self, size: int, side: int, like: Tensor) -> Operator:
        """T of ``size`` channels, inputs (side 0) or outputs (1), in the precision of ``like`` and there."""

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

    def bits(self, rows: int, columns: int) -> int:
        """See :meth:`Transform.bits`: a seed a side."""
        return SEED_BITS * (2 if self.sides == "both" else 1)


def find_bases(
    transforms: Sequence[Transform],
    weights: Mapping[str, Tensor],
    statistics: Statistics,
    spec: GridSpec,
) -> tuple[dict[str, Basis], dict[str, Tensor], Statistics]:
    """Every linear's basis by a chain of transforms, its weight there, and the stage's statistics."""
    bases = {name: Basis() for name in weights}
    turned = dict(weights)
    for transform in transforms:
        found = transform.find(turned, statistics, spec)
        for name, weight in turned.items():
            outputs = found.outputs.get(name)
            turned[name] = Basis().then(found.inputs, outputs).into(weight)
            bases[name] = bases[name].then(found.inputs, outputs)
        if found.inputs is not None:
            statistics = transformed(statistics, found.inputs)
    return bases, turned, statistics


def turning(sides: Sides, rows: int, columns: int, cost: Callable[[int], float]) -> float:
    """Floating-point operations of W there and back and of H, one vector of n costing ``cost(n)``."""
    inputs = (2 * rows + 2 * columns) * cost(columns) if sides != "output" else 0.0
    return inputs + (2 * columns * cost(rows) if sides != "input" else 0.0)


def generator(seed: int, size: int) -> torch.Generator:
    """The source of a random matrix: equal for all linears of one width."""
    return torch.Generator().manual_seed(seed * 1_000_003 + size)


def random_orthogonal(size: int, source: torch.Generator, like: Tensor) -> Tensor:
    """A uniformly random orthogonal matrix ``[size, size]``: Q of a Gaussian one, signs by R's diagonal."""
    gaussian = torch.randn(size, size, generator=source, dtype=torch.float64)
    q, r = torch.linalg.qr(gaussian)
    signed: Tensor = q * r.diagonal().sign()
    return there(signed.to(like.dtype), like.device)


def random_signs(size: int, source: torch.Generator, like: Tensor) -> Tensor:
    """±1, ``[size]``."""
    signs = 2.0 * torch.randint(0, 2, (size,), generator=source) - 1
    return there(signs.to(like.dtype), like.device)
