"""A fitted grid: the only place where weights become codes and codes become weights.

A code c of a weight w ``[out, in]`` stands for

    v = scale · (t_c − zero)          t_c: the c-th value of the grid's codebook

with one scale and zero per output channel or per group of input columns. A uniform codebook has
t_c = c, so that

    codes = clamp(round(w / scale) + zero, 0, 2^bits − 1)        v = scale · (codes − zero)

as in Frantar et al. 2022 (GPTQ, reference code). Any other codebook is a table, and the code is that of
the value nearest to w / scale. Which codebook, scale and zero there are is decided by a format
(:mod:`harness.formats`) and a range (:mod:`harness.ranges`); every method rounds here or in
:mod:`harness.numerics.kernels`, which does the same column by column.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

import torch
from torch import Tensor

from harness.numerics.storage import Storage


@dataclass(frozen=True)
class Codebook:
    """What the codes of a format stand for, and what a packed checkpoint spends on them.

    Args:
        bits: of one code.
        table: the values t ``[codes]`` in rising order, float64; None for the integers 0 … 2^bits − 1.
        even: half way between two values of the table the one is taken that is an even number of steps
            from 0, whose mantissa is even, as floating-point hardware does; else the lower one.
        scale_bits: stored for one scale.
        zero_bits: stored for one zero; 0 where the zero is a constant.
        tensor_bits: stored once for a whole weight.
    """

    bits: int
    table: Tensor | None = None
    even: bool = False
    scale_bits: int = 16
    zero_bits: int = 0
    tensor_bits: int = 0

    @property
    def top(self) -> int:
        """The largest code."""
        return (1 << self.bits) - 1 if self.table is None else len(self.table) - 1

    def values(self, like: Tensor) -> Tensor:
        """The table in the precision and on the device of ``like``."""
        return _placed(self._key, self.even, like.dtype, like.device)[0]

    def edges(self, like: Tensor) -> Tensor:
        """Between neighbouring values of the table ``[codes − 1]``: above an edge the upper one is nearest.

        In the precision of ``like``, where an edge next below the middle sends a tie up.
        """
        return _placed(self._key, self.even, like.dtype, like.device)[1]

    @cached_property
    def _key(self) -> tuple[float, ...]:
        assert self.table is not None
        return tuple(self.table.tolist())

    def encode(self, weight: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
        """The uint8 codes of the values nearest to ``weight``; shapes broadcast."""
        if self.table is None:
            codes = torch.round(weight / scale).add_(zero).clamp_(0, self.top)
        else:
            codes = torch.bucketize((weight / scale).contiguous(), self.edges(weight))
        return codes.to(torch.uint8)

    def decode(self, codes: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
        """The weights that ``codes`` stand for; shapes broadcast."""
        if self.table is None:
            return (codes.to(scale.dtype) - zero).mul_(scale)
        return self.values(scale)[codes.int()] * scale


@lru_cache(maxsize=64)
def _placed(
    values: tuple[float, ...], even: bool, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    """A table and its edges, see :class:`Codebook`; kept, since a copy to a device waits for it."""
    table = torch.tensor(values, dtype=torch.float64)
    edges = ((table[1:] + table[:-1]) / 2).to(dtype)
    if even:
        steps = torch.arange(1, len(table)) - table.abs().argmin()
        below = torch.nextafter(edges, torch.full_like(edges, -torch.inf))
        edges = torch.where(steps % 2 == 0, below, edges)
    return table.to(device, dtype), edges.to(device)


@dataclass(frozen=True)
class Grid:
    """A fitted grid.

    Args:
        scale: ``[out, groups]``.
        zero: ``[out, groups]``.
        group: of every column, ``[in]``.
        codebook: what the codes stand for.
        shared: all output channels have one scale and zero, stored once.
        ends: lo and hi, each ``[out, groups]``, that weights are cut to before they go to the nearest
            point, where the range says so. It matters: the outermost points need not be lo and hi.
        runs: groups are known to be runs of neighbouring columns, so that nobody need look.
    """

    scale: Tensor
    zero: Tensor
    group: Tensor
    codebook: Codebook
    shared: bool = False
    ends: tuple[Tensor, Tensor] | None = None
    runs: bool = False

    def cut(self, weight: Tensor) -> Tensor:
        """``weight [out, in]`` between the ends of the range."""
        if self.ends is None:
            return weight
        return weight.clamp(*(self._wide(end) for end in self.ends))

    def quantize(self, weight: Tensor) -> Tensor:
        """The uint8 codes ``[out, in]`` of the grid points nearest to ``weight [out, in]``, once cut."""
        return self.codebook.encode(self.cut(weight), *self.expanded())

    def dequantize(self, codes: Tensor) -> Tensor:
        """The weights ``[out, in]`` that ``codes [out, in]`` stand for."""
        return self.codebook.decode(codes, *self.expanded())

    def nearest(self, weight: Tensor) -> Tensor:
        """The grid points ``[out, in]`` nearest to ``weight [out, in]``."""
        return self.dequantize(self.quantize(weight))

    def neighbour(self, codes: Tensor, direction: Tensor) -> Tensor:
        """The step ``[out, in]`` from each code to the next one up (direction 1) or down (−1).

        0 where there is no code in that direction.
        """
        there = (codes.to(torch.int16) + direction).clamp(0, self.codebook.top).to(torch.uint8)
        return self.dequantize(there) - self.dequantize(codes)

    def expanded(self) -> tuple[Tensor, Tensor]:
        """Scale and zero per weight, broadcastable to ``[out, in]``."""
        return self._wide(self.scale), self._wide(self.zero)

    def _wide(self, numbers: Tensor) -> Tensor:
        """One of ``numbers [out, groups]`` per weight, broadcastable to ``[out, in]``."""
        return numbers if numbers.shape[1] == 1 else numbers[:, self.group]

    def rows(self, rows: slice) -> Grid:
        """The grid of some of the output channels."""
        ends = self.ends and (self.ends[0][rows], self.ends[1][rows])
        return replace(self, scale=self.scale[rows], zero=self.zero[rows], ends=ends)

    @property
    def indexed(self) -> bool:
        """Whether a column's group has to be stored: several groups, and no runs of neighbours."""
        groups, columns = self.scale.shape[1], self.group.numel()
        if groups == 1 or self.runs:
            return False
        plain = neighbours(columns, columns // groups, self.group.device)
        return not torch.equal(self.group, plain)

    @property
    def storage(self) -> Storage:
        """What the grid and its codes consist of when they are packed."""
        rows, groups = self.scale.shape
        return packed(
            self.codebook, rows, self.group.numel(), groups, self.indexed, shared=self.shared
        )


def neighbours(columns: int, size: int, device: torch.device | str = "cpu") -> Tensor:
    """The group ``[in]`` of every column where groups are runs of ``size`` neighbours."""
    return torch.arange(columns, device=device) // size


def packed(
    codebook: Codebook, rows: int, columns: int, groups: int, indexed: bool, *, shared: bool
) -> Storage:
    """What a packed linear without any extras consists of, ``groups`` being those of a row."""
    scales = groups if shared else rows * groups
    return Storage(
        codes=(rows * columns, codebook.bits),
        scales=(scales, codebook.scale_bits),
        zeros=(scales if codebook.zero_bits else 0, codebook.zero_bits),
        indices=columns if indexed else 0,
        other=codebook.tensor_bits,
    )
