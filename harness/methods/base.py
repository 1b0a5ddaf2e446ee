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

from harness.numerics.grid import Grid, GridSpec
from harness.numerics.statistics import Statistics
from harness.numerics.storage import Storage


@dataclass(frozen=True)
class Quantized:
    """A quantised linear.

    Args:
        weight: the dense V (plus outliers) that the model computes with, ``[out, in]``.
        codes: uint8 ``[out, in]``; ``grid.dequantize(codes)`` is V up to ``column_scale``.
        grid: the grid of the codes.
        column_scale: s ``[in]`` where the codes stand for V · s (AWQ), else None.
        outliers: full-precision part S ``[out, in]``, zero almost everywhere, else None.
        outlier_columns: whether the outliers are whole columns (one index a column).
        traces: curves over iterations, each ``[points, out]``: summed over rows when recorded.
    """

    weight: Tensor
    codes: Tensor
    grid: Grid
    column_scale: Tensor | None = None
    outliers: Tensor | None = None
    outlier_columns: bool = False
    traces: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def storage(self) -> Storage:
        """What the linear consists of when it is packed: the grid's numbers and what came to them."""
        found = self.grid.storage
        if self.column_scale is not None:
            found = replace(found, scales=found.scales + self.column_scale.numel())
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


class Method(Protocol):
    """A base method; ``needs`` names the statistics beyond H that it reads."""

    needs: ClassVar[frozenset[str]]
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
    quantizes: ClassVar[bool] = True

    def quantize(
        self, weights: Mapping[str, Tensor], statistics: Statistics, spec: GridSpec
    ) -> dict[str, Quantized]:
        """See :meth:`Method.quantize`."""
        stacked = torch.cat(parts) if len(parts := list(weights.values())) > 1 else parts[0]
        whole = self.quantize_rows(stacked, statistics, spec)
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

    @abstractmethod
    def quantize_rows(self, weight: Tensor, statistics: Statistics, spec: GridSpec) -> Quantized:
        """The quantised form of ``weight [out, in]``."""
