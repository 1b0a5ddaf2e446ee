"""The quantisation grid: the only place where weights are rounded, clamped, scaled and shifted.

Uniform affine grids, one per output channel or one per group of input columns:

    lo = min(w, 0)    hi = max(w, 0)    scale = (hi - lo) / (2^bits - 1)    zero = round(-lo / scale)
    codes = clamp(round(w / scale) + zero, 0, 2^bits - 1)
    v     = scale * (codes - zero)

as in Frantar et al. 2022 (GPTQ, reference code). Every method shares this grid, so that a table
compares methods and not grids. Weights are ``[out, in]``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

# The shrink search of the GPTQ reference code: 80 ranges from 100 % down to 21 %, |error|^2.4.
MSE_STEPS, MSE_SMALLEST, MSE_NORM = 100, 0.2, 2.4
SCALE_BITS = 16  # what a packed checkpoint spends on one scale


@dataclass(frozen=True)
class Grid:
    """A fitted grid: ``scale`` and ``zero`` are ``[out, groups]``, ``group`` maps column to group."""

    scale: Tensor
    zero: Tensor
    group: Tensor
    bits: int

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
        return Grid(self.scale[rows], self.zero[rows], self.group, self.bits)

    @staticmethod
    def stacked(grids: Sequence[Grid]) -> Grid:
        """The grid of some weights' rows one below the other; they share their groups."""
        scale, zero = torch.cat([g.scale for g in grids]), torch.cat([g.zero for g in grids])
        return replace(grids[0], scale=scale, zero=zero)

    def bits_per_weight(self) -> float:
        """Bits a packed weight costs: its code and its share of 16-bit scale and ``bits``-bit zero."""
        columns = self.group.numel()
        return self.bits + self.scale.shape[1] * (SCALE_BITS + self.bits) / columns


@dataclass(frozen=True)
class GridSpec:
    """What grid to fit: ``group_size=None`` is one grid per output channel."""

    bits: int
    group_size: int | None = None
    symmetric: bool = False
    mse: bool = False

    def groups(self, columns: int) -> Tensor:
        """The group ``[in]`` of every input column; raises ValueError if groups do not divide."""
        size = self.group_size or columns
        if columns % size:
            raise ValueError(f"group_size={size} does not divide the {columns} input columns")
        return torch.arange(columns) // size

    def fit(self, weight: Tensor) -> Grid:
        """The grid of ``weight [out, in]``, every group fitted to its own columns."""
        group = self.groups(weight.shape[1]).to(weight.device)
        size = self.group_size or weight.shape[1]
        scale, zero = self.fit_range(weight.reshape(-1, size))
        shape = (weight.shape[0], -1)
        return Grid(scale.reshape(shape), zero.reshape(shape), group, self.bits)

    def fit_range(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Scale and zero ``[rows]`` of one group a row, ``weight [rows, group_size]``."""
        lo = weight.amin(dim=1).clamp(max=0)
        hi = weight.amax(dim=1).clamp(min=0)
        if self.mse:
            return self._search_shrink(weight, lo, hi)
        return self.affine(lo, hi)

    def affine(self, lo: Tensor, hi: Tensor) -> tuple[Tensor, Tensor]:
        """Scale and zero of the ranges ``lo <= 0 <= hi``; an empty range counts as [-1, 1]."""
        levels = 2**self.bits - 1
        if self.symmetric:
            hi = torch.maximum(-lo, hi)
            lo = torch.where(lo < 0, -hi, lo)
        empty = (lo == 0) & (hi == 0)
        lo, hi = torch.where(empty, -1.0, lo), torch.where(empty, 1.0, hi)
        scale = (hi - lo) / levels
        zero = (
            torch.full_like(scale, (levels + 1) / 2)
            if self.symmetric
            else torch.round(-lo / scale)
        )
        return scale, zero

    def _search_shrink(self, weight: Tensor, lo: Tensor, hi: Tensor) -> tuple[Tensor, Tensor]:
        """The shrunk range with the least sum |v - w|^2.4 per row (GPTQ reference code)."""
        best = torch.full_like(lo, torch.inf)
        scale, zero = self.affine(lo, hi)
        for step in range(int((1 - MSE_SMALLEST) * MSE_STEPS)):
            shrink = 1 - step / MSE_STEPS
            s, z = self.affine(shrink * lo, shrink * hi)
            grid = Grid(
                s[:, None], z[:, None], torch.zeros(weight.shape[1], dtype=torch.long), self.bits
            )
            loss = (grid.nearest(weight) - weight).abs_().pow_(MSE_NORM).sum(dim=1)
            better = loss < best
            best = torch.where(better, loss, best)
            scale, zero = torch.where(better, s, scale), torch.where(better, z, zero)
        return scale, zero
