"""The quantisation grid: the only place where weights are rounded, clamped, scaled and shifted.

Uniform affine grids, one per output channel or one per group of input columns:

    lo = min(w, 0)    hi = max(w, 0)    scale = (hi - lo) / (2^bits - 1)    zero = round(-lo / scale)
    codes = clamp(round(w / scale) + zero, 0, 2^bits - 1)
    v     = scale * (codes - zero)

as in Frantar et al. 2022 (GPTQ, reference code). Every method shares this grid, so that a table
compares methods and not grids. Weights are ``[out, in]``.

A symmetric grid has hi = max |w|, lo = −hi and zero = 2^(bits − 1), whatever the signs of w. The
reference code mirrors a range only where it holds a negative weight: the range of positive weights
stays [0, hi] there, while its zero is in the middle all the same, so that half of the codes lie
below every weight and the largest weights are cut to a half. That is not followed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from harness.numerics.storage import Storage

# The shrink search of the GPTQ reference code: 80 ranges from 100 % down to 21 %, |error|^2.4.
MSE_STEPS, MSE_SMALLEST, MSE_NORM = 100, 0.2, 2.4
BITS = range(2, 9)  # of a code: what one byte holds


@dataclass(frozen=True)
class Grid:
    """A fitted grid.

    Args:
        scale: ``[out, groups]``, positive.
        zero: the code of 0, ``[out, groups]``.
        group: the group of every column, ``[in]``.
        bits: of a code.
        symmetric: whether ``zero`` is the same constant everywhere.
    """

    scale: Tensor
    zero: Tensor
    group: Tensor
    bits: int
    symmetric: bool = False

    @property
    def levels(self) -> int:
        """The largest code, 2^bits - 1."""
        return (1 << self.bits) - 1

    def quantize(self, weight: Tensor) -> Tensor:
        """The uint8 codes ``[out, in]`` of the grid points nearest to ``weight [out, in]``."""
        scale, zero = self.expanded()
        codes = torch.round(weight / scale).add_(zero).clamp_(0, self.levels)
        return codes.to(torch.uint8)

    def dequantize(self, codes: Tensor) -> Tensor:
        """The weights ``[out, in]`` that ``codes [out, in]`` stand for."""
        scale, zero = self.expanded()
        return (codes.to(scale.dtype) - zero).mul_(scale)

    def nearest(self, weight: Tensor) -> Tensor:
        """The grid points ``[out, in]`` nearest to ``weight [out, in]``."""
        return self.dequantize(self.quantize(weight))

    def expanded(self) -> tuple[Tensor, Tensor]:
        """Scale and zero per weight, broadcastable to ``[out, in]``."""
        if self.scale.shape[1] == 1:
            return self.scale, self.zero
        return self.scale[:, self.group], self.zero[:, self.group]

    def rows(self, rows: slice) -> Grid:
        """The grid of some of the output channels."""
        return replace(self, scale=self.scale[rows], zero=self.zero[rows])

    @staticmethod
    def stacked(grids: Sequence[Grid]) -> Grid:
        """The grid of some weights' rows one below the other; they share their groups."""
        scale, zero = torch.cat([g.scale for g in grids]), torch.cat([g.zero for g in grids])
        return replace(grids[0], scale=scale, zero=zero)

    @property
    def indexed(self) -> bool:
        """Whether codes can't be read without every column's group: groups are no runs of neighbours."""
        columns, groups = self.group.numel(), self.scale.shape[1]
        return not torch.equal(self.group, neighbours(columns, columns // groups).to(self.group))

    @property
    def storage(self) -> Storage:
        """What a packed linear of this grid consists of."""
        (rows, groups), columns = self.scale.shape, self.group.numel()
        return packed(self.bits, rows, columns, groups, self.symmetric, self.indexed)

    def bits_per_weight(self) -> float:
        """Effective bits: codes, scales, zeros and the columns' groups where they are needed."""
        return self.storage.bits_per_weight


@dataclass(frozen=True)
class GridSpec:
    """What grid to fit.

    Args:
        bits: of a code.
        group_size: input columns that share a scale; None is one grid per output channel.
        symmetric: ranges around 0.
        mse: ranges shrunk to the least sum |v − w|^2.4 instead of min and max.
    """

    bits: int
    group_size: int | None = None
    symmetric: bool = False
    mse: bool = False

    def problems(self) -> list[str]:
        """What is wrong with it, a line each, value and what is allowed."""
        found = []
        if self.bits not in BITS:
            found.append(f"bits={self.bits}: allowed are {BITS[0]} to {BITS[-1]}")
        if self.group_size is not None and self.group_size < 1:
            found.append(
                f"group_size={self.group_size}: must be positive, or null for one grid a row"
            )
        return found

    def storage(self, rows: int, columns: int, indexed: bool = False) -> Storage:
        """What a packed ``[rows, columns]`` linear will consist of.

        Args:
            rows: output channels.
            columns: input columns.
            indexed: whether groups, where there are several, are no runs of neighbouring columns.
        """
        groups = columns // (self.group_size or columns)
        return packed(self.bits, rows, columns, groups, self.symmetric, indexed and groups > 1)

    def groups(self, columns: int) -> Tensor:
        """The group ``[in]`` of every input column; raises ValueError if groups do not divide."""
        size = self.group_size or columns
        if columns % size:
            raise ValueError(f"group_size={size} does not divide the {columns} input columns")
        return neighbours(columns, size)

    def fit(self, weight: Tensor) -> Grid:
        """The grid of ``weight [out, in]``, every group fitted to its own columns."""
        group = self.groups(weight.shape[1]).to(weight.device)
        size = self.group_size or weight.shape[1]
        scale, zero = self.fit_range(weight.reshape(-1, size))
        shape = (weight.shape[0], -1)
        return Grid(scale.reshape(shape), zero.reshape(shape), group, self.bits, self.symmetric)

    def fit_trimmed(self, weight: Tensor, fraction: float) -> Grid:
        """The grid of ``weight [out, in]`` without fraction/2 of every group at either end."""
        size = self.group_size or weight.shape[1]
        groups = weight.reshape(-1, size)
        drop = min(round(size * fraction / 2), (size - 1) // 2)
        ordered = groups.sort(dim=1).values
        trimmed = groups.clamp(ordered[:, drop, None], ordered[:, size - 1 - drop, None])
        return self.fit(trimmed.reshape(weight.shape))

    def fit_range(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Scale and zero ``[rows]`` of one group a row, ``weight [rows, group_size]``."""
        lo = weight.amin(dim=1).clamp(max=0)
        hi = weight.amax(dim=1).clamp(min=0)
        if self.mse:
            return self._search_shrink(weight, lo, hi)
        return self.affine(lo, hi)

    def affine(self, lo: Tensor, hi: Tensor) -> tuple[Tensor, Tensor]:
        """Scale and zero of the ranges ``lo <= 0 <= hi``; an empty range counts as [-1, 1].

        A scale is a normal number: the quotient of a smaller range would underflow, or be a
        subnormal number of few digits, whose multiples miss the end of the range by many steps.
        """
        levels = 2**self.bits - 1
        if self.symmetric:
            hi = torch.maximum(-lo, hi)
            lo = -hi
        empty = (lo == 0) & (hi == 0)
        lo, hi = torch.where(empty, -1.0, lo), torch.where(empty, 1.0, hi)
        width = hi - lo
        scale = torch.where(width.isfinite(), width / levels, hi / levels - lo / levels)
        scale = scale.clamp(min=torch.finfo(scale.dtype).tiny)
        zero = (
            torch.full_like(scale, (levels + 1) / 2)
            if self.symmetric
            else torch.round(-lo / scale)
        )
        return scale, zero

    def _search_shrink(self, weight: Tensor, lo: Tensor, hi: Tensor) -> tuple[Tensor, Tensor]:
        """The shrunk range with the least sum |v - w|^2.4 per row (GPTQ reference code).

        Errors count in units of the row's scale, or their powers would leave the range of floats
        where weights are very large or small.
        """
        best = torch.full_like(lo, torch.inf)
        scale, zero = self.affine(lo, hi)
        unit = scale[:, None]
        group = torch.zeros(weight.shape[1], dtype=torch.long)
        for step in range(int((1 - MSE_SMALLEST) * MSE_STEPS)):
            shrink = 1 - step / MSE_STEPS
            s, z = self.affine(shrink * lo, shrink * hi)
            grid = Grid(s[:, None], z[:, None], group, self.bits)
            error = (grid.nearest(weight) - weight).div_(unit)
            loss = error.abs_().pow_(MSE_NORM).sum(dim=1)
            better = loss < best
            best = torch.where(better, loss, best)
            scale, zero = torch.where(better, s, scale), torch.where(better, z, zero)
        return scale, zero


def neighbours(columns: int, size: int) -> Tensor:
    """The group ``[in]`` of every column where groups are runs of ``size`` neighbours."""
    return torch.arange(columns) // size


def packed(
    bits: int, rows: int, columns: int, groups: int, symmetric: bool, indexed: bool
) -> Storage:
    """What a packed linear without any extras consists of, ``groups`` being those of a row."""
    return Storage(
        bits,
        codes=rows * columns,
        scales=rows * groups,
        zeros=0 if symmetric else rows * groups,
        indices=columns if indexed else 0,
    )
