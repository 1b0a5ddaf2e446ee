"""GPTQ: column by column, the rounding error is compensated by the columns not yet rounded."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from harness.methods.base import Quantized, RowMethod, check_options
from harness.numerics.cholesky import damped_cholesky
from harness.numerics.grid import Grid
from harness.numerics.kernels import BLOCK, gptq_block, map_rows
from harness.numerics.statistics import Statistics
from harness.numerics.storage import Storage
from harness.ranges.base import GridSpec

SMALL = 192  # triangles up to this size are inverted by substitution


@dataclass(frozen=True)
class Carry:
    """What column j hands on to the columns after it besides its error: + w_j P_j,: + w°_j O_j,: .

    Args:
        updated: P ``[in, in]``, strictly upper triangular; w_j is column j as updated so far.
        original: O likewise; w°_j is column j as it came. None is 0.
    """

    updated: Tensor
    original: Tensor | None = None


@dataclass(frozen=True)
class GPTQ(RowMethod):
    """Frantar et al. 2022, arXiv 2210.17323, algorithm 1.

    With U the upper Cholesky factor of (H + λI)⁻¹ and v_j = Q(w_j), the columns right of j get

        W_:,k ← W_:,k − (w_j − v_j) / U_jj · U_jk        k > j                 (eq. 2 and 3)

    Blocks of 128 columns are finished one after the other ("lazy batch-updates", step 2).
    As in the authors' code: the per-channel grid is fitted first, then dead columns (H_jj = 0) are
    set to zero; the grid of a group is fitted when its block starts, to the weights as of then.

    Args:
        damping: λ as a multiple of mean(diag H).
        act_order: columns in the order of falling H_jj.
        static_groups: grids fitted to the original weight, groups of neighbouring columns;
            otherwise with act_order a group is consecutive columns of the permuted order.
        fresh_groups: fit a group's grid to the fully updated weights (the authors' code does not).
    """

    damping: float = 0.01
    act_order: bool = False
    static_groups: bool = False
    fresh_groups: bool = False

    def __post_init__(self) -> None:
        check_options(
            ("damping", self.damping, 0 <= self.damping < math.inf, "are finite numbers from 0 up")
        )

    def quantize_rows(self, weight: Tensor, statistics: Statistics, spec: GridSpec) -> Quantized:
        """See :meth:`RowMethod.quantize_rows`."""
        return self.sweep(statistics)(weight, statistics.hessian, spec)

    def sweep(self, statistics: Statistics, first: Tensor | None = None) -> Sweep:
        """How the columns of weights with these statistics are gone through."""
        order = column_order(statistics.hessian, self.act_order)
        factor, ridge = inverse_factor(statistics.hessian[order][:, order], self.damping)
        carry = self.carry(statistics, order, factor)
        return Sweep(
            order, factor, ridge, self.static_groups, self.fresh_groups, carry, first,
            self.act_order,
        )  # fmt: skip

    def flops(self, rows: int, columns: int) -> float:
        """The factorisation, the triangular inverse, and an update of half the columns on average."""
        return 2.0 * columns**3 / 3 + float(rows) * columns**2

    def storage(self, rows: int, columns: int, spec: GridSpec) -> Storage:
        """See :meth:`Method.storage`; groups of the permuted order need every column's index."""
        permuted = self.act_order and not self.static_groups and not spec.static
        return spec.storage(rows, columns, indexed=permuted)

    def carry(self, statistics: Statistics, order: Tensor, factor: Tensor) -> Carry | None:
        """What column j hands on to the columns after it besides its error; nothing here."""
        return None


@dataclass(frozen=True)
class Sweep:
    """One pass over all columns, each rounded in its turn.

    Args:
        order: in which they are, ``[in]``. All else is in that order.
        factor: U, ``[in, in]``.
        ridge: λ that U took.
        static: whether all grids are fitted to the weight as it comes.
        fresh_groups: whether every group starts a block, so that its grid sees all updates.
        carry: what a column hands on besides its error, ``[in, in]``.
        first: what the first column is rounded from in place of its weight, ``[out]``, see Qronos.
        permuted: whether ``order`` is any but that of the weight.
    """

    order: Tensor
    factor: Tensor
    ridge: float = 0.0
    static: bool = False
    fresh_groups: bool = False
    carry: Carry | None = None
    first: Tensor | None = None
    permuted: bool = False

    def __call__(self, weight: Tensor, hessian: Tensor, spec: GridSpec) -> Quantized:
        """The quantised form of ``weight [out, in]`` for inputs with H ``[in, in]``."""
        static, spec = self.static or spec.static, spec.of_weight(weight)
        grid = spec.fit(weight, hessian) if static else spec.blank(weight)
        group = grid.group[self.order] if static else grid.group
        weight = zero_dead(weight, hessian)[:, self.order]
        moved = hessian[self.order][:, self.order]

        def swept(rows: slice) -> tuple[Tensor, Tensor, Tensor]:
            own = replace(grid.rows(rows), group=group)
            begin = None if self.first is None else self.first[rows]
            return self._columns(weight[rows], own, None if static else spec, moved, begin)

        codes, scale, zero = map(torch.cat, zip(*map_rows(swept, weight), strict=True))
        inverse = torch.argsort(self.order)
        runs = static or not self.permuted
        grid = replace(grid, scale=scale, zero=zero, group=group[inverse], runs=runs)
        codes = codes[:, inverse].contiguous()
        return Quantized(grid.dequantize(codes), codes, grid, ridge=self.ridge)

    def _columns(
        self,
        weight: Tensor,
        grid: Grid,
        spec: GridSpec | None,
        hessian: Tensor,
        first: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Codes ``[out, in]``, scales and zeros ``[out, groups]``, columns left to right, in blocks of 128.

        Args:
            weight: W* ``[out, in]``.
            grid: the grid; with ``spec`` its scales are fitted as groups start.
            spec: how to fit every group to the weights as of the start of its block; None: not at all.
            hessian: H ``[in, in]``.
            first: of these rows.
        """
        columns = weight.shape[1]
        size = columns // grid.scale.shape[1]
        block = min(BLOCK, size) if spec is not None and self.fresh_groups else BLOCK
        work = _copied(weight.T)  # W* is the caller's
        updated, original = (
            (self.carry.updated, self.carry.original) if self.carry else (None, None)
        )
        came = None if original is None else work.clone()
        scale, zero = _copied(grid.scale.T), _copied(grid.zero.T)  # groups are fitted into them
        codes = torch.empty(work.shape, dtype=torch.uint8, device=work.device)
        for start in range(0, columns, block):
            own, after = slice(start, min(start + block, columns)), slice(start + block, None)
            if spec is not None:
                for begin in range(-(-start // size) * size, own.stop, size):
                    part, g = slice(begin, begin + size), begin // size
                    fit = spec.range.fit(work[part].T, spec.form, hessian[part, part])
                    scale[g], zero[g] = fit.scale, fit.zero
            if start == 0 and first is not None:
                self._begin(work, grid, scale, zero, first)
            if original is not None and came is not None:
                work[own].addmm_(original[own, own].T, came[own])
            inside = None if updated is None else updated[own, own]
            codes[own], error = gptq_block(
                work[own],
                self.factor[own, own],
                scale,
                zero,
                grid.group[own],
                grid.codebook,
                inside,
            )
            work[after].addmm_(self.factor[own, after].T, error, alpha=-1)
            for matrix, column in ((updated, work), (original, came)):
                if matrix is not None and column is not None:
                    work[after].addmm_(matrix[own, after].T, column[own])
        return codes.T, scale.T, zero.T

    def _begin(self, work: Tensor, grid: Grid, scale: Tensor, zero: Tensor, first: Tensor) -> None:
        """Rounds ``first`` in the first column's place and compensates it in ``work``, Wᵀ."""
        own = scale[grid.group[0]], zero[grid.group[0]]
        value = grid.codebook.decode(grid.codebook.encode(first, *own), *own)
        error = (work[0] - value) / self.factor[0, 0]
        work[1:].addr_(self.factor[0, 1:], error, alpha=-1)
        work[0] = value


def _copied(values: Tensor) -> Tensor:
    """A contiguous copy, also of what is contiguous already: of one row, or of one group."""
    return values.clone(memory_format=torch.contiguous_format)


def zero_dead(weight: Tensor, hessian: Tensor) -> Tensor:
    """W* with the columns of inputs that were never active (H_jj = 0) set to zero."""
    return weight * (hessian.diagonal() != 0)


def column_order(hessian: Tensor, act_order: bool) -> Tensor:
    """The order in which columns are rounded, ``[in]``."""
    if act_order:
        return torch.argsort(hessian.diagonal(), descending=True, stable=True)
    return torch.arange(hessian.shape[0], device=hessian.device)


def inverse_factor(hessian: Tensor, damping: float) -> tuple[Tensor, float]:
    """U, upper triangular with UᵀU = (H + λI)⁻¹, ``[in, in]``, and the λ that it took.

    With P the reversal of the order of columns and P (H + λI) P = L Lᵀ, U = P L⁻¹ P: one Cholesky
    factorisation and one triangular inverse, where inverting H and factoring the inverse takes
    three times the work.
    """
    found = damped_cholesky(hessian.flip(0, 1), damping)
    return triangular_inverse(found.lower).flip(0, 1).contiguous(), found.ridge


def triangular_inverse(lower: Tensor) -> Tensor:
    """L⁻¹ of a lower triangular ``[n, n]`` by halves: mostly matrix products, and no work on zeros.

    With L = [[A, 0], [B, D]], L⁻¹ = [[A⁻¹, 0], [−D⁻¹ B A⁻¹, D⁻¹]].
    """
    n = lower.shape[0]
    if n <= SMALL:
        identity = torch.eye(n, dtype=lower.dtype, device=lower.device)
        solved: Tensor = torch.linalg.solve_triangular(lower, identity, upper=False)
        return solved
    half = n // 2
    first, last = triangular_inverse(lower[:half, :half]), triangular_inverse(lower[half:, half:])
    inverse = torch.zeros_like(lower)
    inverse[:half, :half], inverse[half:, half:] = first, last
    torch.mm(last @ lower[half:, :half], first, out=inverse[half:, :half]).neg_()
    return inverse
