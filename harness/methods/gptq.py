"""GPTQ: column by column, the rounding error is compensated by the columns not yet rounded."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from harness.methods.base import Quantized, RowMethod, check_options
from harness.numerics.grid import Grid, GridSpec
from harness.numerics.kernels import BLOCK, gptq_block, map_rows
from harness.numerics.statistics import Statistics, damped_cholesky
from harness.numerics.storage import Storage

SMALL = 192  # triangles up to this size are inverted by substitution


@dataclass(frozen=True)
class GPTQ(RowMethod):
    """Frantar et al. 2022, arXiv 2210.17323, algorithm 1.

    With U the upper Cholesky factor of (H + λI)⁻¹ and v_j = Q(w_j), the columns right of j get

        W_:,k ← W_:,k − (w_j − v_j) / U_jj · U_jk        k > j                 (eq. 2 and 3)

    Blocks of 128 columns are finished one after the other ("lazy batch updates", section 3.3).
    As in the authors' code: the per-channel grid is fitted first, then dead columns (H_jj = 0) are
    set to zero; the grid of a group is fitted when its block starts, to the weights as of then.

    Args:
        damping: λ as a multiple of mean(diag H).
        act_order: columns in the order of falling H_jj.
        static_groups: grids fitted to the original weight, groups of neighbouring columns;
            otherwise with act_order a group is consecutive columns of the permuted order.
        refit: fit a group's grid to the fully updated weights (the authors' code does not).
    """

    damping: float = 0.01
    act_order: bool = False
    static_groups: bool = False
    refit: bool = False

    def __post_init__(self) -> None:
        check_options(
            ("damping", self.damping, 0 <= self.damping < math.inf, "are finite numbers from 0 up")
        )

    def quantize_rows(self, weight: Tensor, statistics: Statistics, spec: GridSpec) -> Quantized:
        """See :meth:`RowMethod.quantize_rows`."""
        grid, static = spec.fit(weight), self.static_groups or spec.group_size is None
        weight, hessian = zero_dead(weight, statistics.hessian), statistics.hessian
        order = column_order(hessian, self.act_order)
        if self.act_order:
            weight, hessian = weight[:, order], hessian[order][:, order]
        group = grid.group[order] if static else grid.group
        factor = inverse_factor(hessian, self.damping)
        carry = self.carry(statistics, order, factor)

        def swept(rows: slice) -> tuple[Tensor, Grid]:
            own = replace(grid.rows(rows), group=group)
            return sweep_columns(
                weight[rows], factor, own, spec, not static, refit=self.refit, carry=carry
            )

        parts, grids = zip(*map_rows(swept, weight), strict=True)
        codes, grid = torch.cat(parts), Grid.stacked(grids)
        if self.act_order:
            inverse = torch.argsort(order)
            codes, grid = codes[:, inverse], replace(grid, group=grid.group[inverse])
        codes = codes.contiguous()
        return Quantized(grid.dequantize(codes), codes, grid)

    def flops(self, rows: int, columns: int) -> float:
        """The factorisation, the triangular inverse, and an update of half the columns on average."""
        return 2.0 * columns**3 / 3 + float(rows) * columns**2

    def storage(self, rows: int, columns: int, spec: GridSpec) -> Storage:
        """See :meth:`Method.storage`; groups of the permuted order need every column's index."""
        return spec.storage(rows, columns, indexed=self.act_order and not self.static_groups)

    def carry(self, statistics: Statistics, order: Tensor, factor: Tensor) -> Tensor | None:
        """What column j hands on to the columns after it besides its error; nothing here."""
        return None


def zero_dead(weight: Tensor, hessian: Tensor) -> Tensor:
    """W* with the columns of inputs that were never active (H_jj = 0) set to zero."""
    alive = hessian.diagonal() != 0
    return weight if alive.all() else weight * alive


def column_order(hessian: Tensor, act_order: bool) -> Tensor:
    """The order in which columns are rounded, ``[in]``."""
    if act_order:
        return torch.argsort(hessian.diagonal(), descending=True, stable=True)
    return torch.arange(hessian.shape[0], device=hessian.device)


def inverse_factor(hessian: Tensor, damping: float) -> Tensor:
    """U, upper triangular with UᵀU = (H + λI)⁻¹, ``[in, in]``.

    With P the reversal of the order of columns and P (H + λI) P = L Lᵀ, U = P L⁻¹ P: one Cholesky
    factorisation and one triangular inverse, where inverting H and factoring the inverse takes
    three times the work.
    """
    lower = damped_cholesky(hessian.flip(0, 1), damping).lower
    return triangular_inverse(lower).flip(0, 1).contiguous()


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


def sweep_columns(
    weight: Tensor,
    factor: Tensor,
    grid: Grid,
    spec: GridSpec,
    fit_groups: bool,
    *,
    refit: bool = False,
    carry: Tensor | None = None,
) -> tuple[Tensor, Grid]:
    """Codes ``[out, in]`` and the grid used, columns left to right, in blocks of 128.

    Args:
        weight: W* in the order of processing, ``[out, in]``.
        factor: U, ``[in, in]``.
        grid: the grid; with ``fit_groups`` its scales are fitted anew as groups start.
        spec: what grid to fit.
        fit_groups: fit every group to the weights as of the start of its block.
        refit: let every group start a block.
        carry: P ``[in, in]`` of GPTAQ: after column j the columns to the right get + w_j · P_j,: .
    """
    columns = weight.shape[1]
    size = spec.group_size or columns
    block = min(BLOCK, size) if fit_groups and refit else BLOCK
    work = weight.T.clone(memory_format=torch.contiguous_format)  # W* is the caller's
    scale, zero = grid.scale.T.contiguous(), grid.zero.T.contiguous()
    codes = torch.empty(work.shape, dtype=torch.uint8, device=work.device)
    for start in range(0, columns, block):
        end = min(start + block, columns)
        if fit_groups:
            for first in range(-(-start // size) * size, end, size):
                g = first // size
                scale[g], zero[g] = spec.fit_range(work[first : first + size].T)
        inside = None if carry is None else carry[start:end, start:end]
        codes[start:end], error = gptq_block(
            work[start:end], factor[start:end, start:end], scale, zero, grid.group[start:end],
            grid.levels, inside,
        )  # fmt: skip
        work[end:].addmm_(factor[start:end, end:].T, error, alpha=-1)
        if carry is not None:
            work[end:].addmm_(carry[start:end, end:].T, work[start:end])
    return codes.T, replace(grid, scale=scale.T.contiguous(), zero=zero.T.contiguous())
