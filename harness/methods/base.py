"""What a base method is: it turns the weights of one stage into quantised weights.

A method is a frozen dataclass whose fields are its options, in a file of its own, with a YAML of
the same name in ``conf/method`` that carries its ``_target_``. Nothing else has to be edited.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from harness.numerics.basis import Basis
from harness.numerics.forms import row_losses
from harness.numerics.grid import Grid
from harness.numerics.refit import refit
from harness.numerics.statistics import Statistics
from harness.numerics.storage import Storage
from harness.ranges.base import GridSpec, Range
from harness.ranges.minmax import MinMax
from harness.transforms.base import Transform


@dataclass(frozen=True)
class Quantized:
    """A quantised linear.

    Args:
        weight: the dense V (plus outliers) that the model computes with, ``[out, in]``.
        codes: uint8 ``[out, in]``; ``grid.dequantize(codes)`` is V, without outliers, in ``basis``.
        grid: the grid of the codes.
        basis: that of codes and outliers; ``weight`` itself is in the model's.
        outliers: full-precision part S ``[out, in]``, zero almost everywhere, else None.
        outlier_columns: whether the outliers are whole columns (one index a column).
        traces: curves over iterations, each ``[points, out]``: summed over rows when recorded.
        ridge: λ of the factor of H + λI that rounding took, in ``basis``; 0 where it takes none.
    """

    weight: Tensor
    codes: Tensor
    grid: Grid
    basis: Basis = Basis()
    outliers: Tensor | None = None
    outlier_columns: bool = False
    traces: Mapping[str, Tensor] = field(default_factory=dict)
    ridge: float = 0.0

    @property
    def storage(self) -> Storage:
        """What the linear consists of when it is packed: the grid's numbers and what came to them."""
        found = self.grid.storage
        found = replace(found, other=found.other + self.basis.bits())
        if self.outliers is not None:
            mask = self.outliers != 0
            kept = mask.any(dim=0) if self.outlier_columns else mask
            found = with_outliers(found, int(kept.sum()), self.outlier_rows)
        return found

    @property
    def outlier_rows(self) -> int:
        """How many values an outlier has: all of its column, or one."""
        return self.weight.shape[0] if self.outlier_columns else 1

    @property
    def bits_per_weight(self) -> float:
        """Effective bits, see :class:`harness.numerics.storage.Storage`."""
        return self.storage.bits_per_weight

    def on(self, grid: Grid) -> Quantized:
        """The same codes on another grid."""
        dense = grid.dequantize(self.codes)
        return replace(
            self, grid=grid, weight=dense if self.outliers is None else dense + self.outliers
        )

    def or_better(self, other: Quantized, weight: Tensor, hessian: Tensor) -> Quantized:
        """Every row from whichever of the two has the smaller loss on H; traces are of the first."""
        ours, theirs = (row_losses(one.weight - weight, hessian) for one in (self, other))
        better = (theirs < ours)[:, None]

        def pick(mine: Tensor, its: Tensor) -> Tensor:
            return torch.where(better, its, mine)

        grid = replace(
            self.grid,
            scale=pick(self.grid.scale, other.grid.scale),
            zero=pick(self.grid.zero, other.grid.zero),
        )
        outliers = self.outliers
        if outliers is not None and other.outliers is not None:
            outliers = pick(outliers, other.outliers)
        return replace(
            self, weight=pick(self.weight, other.weight), codes=pick(self.codes, other.codes),
            grid=grid, outliers=outliers,
        )  # fmt: skip

    def rows(self, rows: slice) -> Quantized:
        """The part of this result that belongs to some of the output channels."""
        return replace(
            self,
            weight=self.weight[rows],
            codes=self.codes[rows],
            grid=self.grid.rows(rows),
            outliers=None if self.outliers is None else self.outliers[rows],
            traces={name: curve[:, rows] for name, curve in self.traces.items()},
        )


def with_outliers(storage: Storage, count: int, values: int) -> Storage:
    """``storage`` and ``count`` outliers of so many values, which have one index each."""
    return replace(
        storage, values=storage.values + count * values, indices=storage.indices + count
    )


def check_options(*checks: tuple[str, object, bool, str]) -> None:
    """Raises one ValueError naming every bad option; checks are (name, value, fine, allowed)."""
    problems = [
        f"{name}={value!r}: allowed {allowed}" for name, value, fine, allowed in checks if not fine
    ]
    if problems:
        raise ValueError("; ".join(problems))


@dataclass(frozen=True)
class Composition:
    """Transforms, range and format that belong to a named method.

    Args:
        transforms: by name, the first one first.
        range: of all linears that no pattern of ``ranges`` fits.
        ranges: by glob pattern on the linear's name.
        form: name of the format.
    """

    transforms: Mapping[str, Transform] = field(default_factory=dict)
    range: Range = MinMax()
    ranges: Mapping[str, Range] = field(default_factory=dict)
    form: str = "int"


class Method(Protocol):
    """A base method; ``needs`` names the statistics beyond H that it reads.

    ``composition`` is what its authors use with it, for the axes that a run leaves to the method.
    """

    needs: ClassVar[frozenset[str]]
    composition: ClassVar[Composition]
    quantizes: ClassVar[bool]  # False marks a full-precision run: there is nothing to calibrate

    def quantize(
        self, weights: Mapping[str, Tensor], statistics: Statistics, spec: GridSpec
    ) -> dict[str, Quantized]:
        """The quantised form of every linear of a stage: all read the same input tensor.

        Args:
            weights: W* by module name, each ``[out, in]``, in the precision of the statistics.
            statistics: of the inputs that the linears share.
            spec: the grid to round to.
        """
        ...

    def flops(self, rows: int, columns: int) -> float:
        """Floating-point operations of a stage of ``rows`` stacked output channels, counted."""
        ...

    def storage(self, rows: int, columns: int, spec: GridSpec) -> Storage:
        """What :attr:`Quantized.storage` of a ``[rows, columns]`` linear will be, from its shape."""
        ...


class RowMethod(ABC):
    """A method that treats every output channel by itself: a stage is one tall matrix."""

    needs: ClassVar[frozenset[str]] = frozenset()
    composition: ClassVar[Composition] = Composition()
    quantizes: ClassVar[bool] = True

    def quantize(
        self, weights: Mapping[str, Tensor], statistics: Statistics, spec: GridSpec
    ) -> dict[str, Quantized]:
        """See :meth:`Method.quantize`."""
        if spec.whole:  # a scale of a whole weight: no linear may be added to another
            return {
                name: self.refined(weight, statistics, spec.of_weight(weight))
                for name, weight in weights.items()
            }
        stacked = torch.cat(parts) if len(parts := list(weights.values())) > 1 else parts[0]
        whole = self.refined(stacked, statistics, spec)
        result, start = {}, 0
        for name, weight in weights.items():
            result[name] = whole.rows(slice(start, start + weight.shape[0]))
            start += weight.shape[0]
        return result

    def flops(self, rows: int, columns: int) -> float:
        """See :meth:`Method.flops`; a method that only rounds has next to none."""
        return 0.0

    def storage(self, rows: int, columns: int, spec: GridSpec) -> Storage:
        """See :meth:`Method.storage`; a method without extras has what its grid has."""
        return spec.storage(rows, columns)

    def refined(self, weight: Tensor, statistics: Statistics, spec: GridSpec) -> Quantized:
        """The quantised form of ``weight [out, in]``, its scales refitted where the range says so."""
        found = self.quantize_rows(weight, statistics, spec)
        if spec.refit == "none":
            return found
        hessian = statistics.hessian
        found = found.on(self._refitted(found, weight, hessian, spec))
        if spec.refit == "round":
            again = self.quantize_rows(weight, statistics, replace(spec, given=found.grid))
            again = again.on(self._refitted(again, weight, hessian, spec))
            found = found.or_better(again, weight, hessian)
        return found

    def _refitted(self, found: Quantized, weight: Tensor, hessian: Tensor, spec: GridSpec) -> Grid:
        dense = weight if found.outliers is None else weight - found.outliers
        return refit(found.codes, found.grid, dense, hessian, spec.form.stored)

    @abstractmethod
    def quantize_rows(self, weight: Tensor, statistics: Statistics, spec: GridSpec) -> Quantized:
        """The quantised form of ``weight [out, in]``."""
