"""Scales and zeros once the codes are known: least squares on the layer loss, exact for every row.

With c the codes of a row, D_g the values t_c − zero of group g and 0 elsewhere, V = Σ_g s_g D_g, the loss
(W − V) H (W − V)ᵀ is quadratic in the scales s ``[groups]``. A zero of its own is a second unknown of each
group: with o_g = s_g · zero_g, V = Σ_g (s_g t_g − o_g 1_g). In either case, with the unknowns x, their
features F (t_g and −1_g, or D_g) and x the present ones, the loss at x + δ is

    L − 2 bᵀδ + δᵀ A δ        A_ik = F_i H F_kᵀ        b_i = F_i H (W − V)ᵀ

so that two products with H tell the loss of all scales and zeros. The free zeros are rounded to codes, and
the scales then solved for. Only rows whose loss falls, with scales as they are stored, take the new ones:
no row's loss rises.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from harness.numerics.device import doubt
from harness.numerics.finite import NonFiniteError
from harness.numerics.forms import row_losses
from harness.numerics.grid import Grid

CHUNK = 2**22  # numbers worked on at a time: bounds the memory
MARGIN = 1e-6  # losses are float32: a smaller relative gain may be none


def flops(rows: int, columns: int) -> float:
    """Of refitting ``[rows, columns]``: three products with H."""
    return 6.0 * rows * columns**2


def refit(
    codes: Tensor, grid: Grid, weight: Tensor, hessian: Tensor, stored: Callable[[Tensor], Tensor]
) -> Grid:
    """The grid of least loss for fixed codes.

    Args:
        codes: ``[out, in]``.
        grid: that the codes were made on.
        weight: W* ``[out, in]``.
        hessian: H ``[in, in]``.
        stored: a scale as it is stored.
    """
    order = torch.argsort(grid.group, stable=True)  # groups side by side
    moved = hessian[order][:, order]
    unknowns = grid.scale.shape[1] * (2 if grid.codebook.zero_bits else 1)
    size = max(1, CHUNK // max(weight.shape[1], unknowns**2))
    parts = []
    for start in range(0, weight.shape[0], size):
        rows = slice(start, start + size)
        own = replace(grid.rows(rows), group=grid.group[order], ends=None)
        parts.append(_refitted(codes[rows][:, order], own, weight[rows][:, order], moved, stored))
    scale, zero = (torch.cat([getattr(one, name) for one in parts]) for name in ("scale", "zero"))
    return replace(grid, scale=scale, zero=zero, ends=None)


def _refitted(
    codes: Tensor, grid: Grid, weight: Tensor, hessian: Tensor, stored: Callable[[Tensor], Tensor]
) -> Grid:
    """:func:`refit` of some rows, every group's columns side by side."""
    rest = weight - grid.dequantize(codes)
    loss, form = Quadratic.of(codes, grid, rest, hessian)
    candidates = [_on_zeros(form, grid, grid.zero, stored)]
    if grid.codebook.zero_bits:
        candidates.append(_on_zeros(form, grid, _free_zeros(form, grid), stored))
    changes = torch.stack([form.change(one, grid) for one in candidates])
    first = (changes[0] <= changes[-1])[:, None]
    scale = torch.where(first, candidates[0].scale, candidates[-1].scale)
    zero = torch.where(first, candidates[0].zero, candidates[-1].zero)
    found = row_losses(weight - replace(grid, scale=scale, zero=zero).dequantize(codes), hessian)
    better = (found < loss * (1 - MARGIN))[:, None]
    return replace(
        grid,
        scale=torch.where(better, scale, grid.scale),
        zero=torch.where(better, zero, grid.zero),
    )


@dataclass(frozen=True)
class Quadratic:
    """How the loss of rows hangs on their scales and zeros, in float64.

    Args:
        matrix: A ``[out, unknowns, unknowns]``: those of all groups' first features, then of the second.
        slope: b ``[out, unknowns]``.
    """

    matrix: Tensor
    slope: Tensor

    @staticmethod
    def of(codes: Tensor, grid: Grid, rest: Tensor, hessian: Tensor) -> tuple[Tensor, Quadratic]:
        """Every row's loss ``[out]`` and its form about the present scales and zeros."""
        if grid.codebook.zero_bits:
            features = [codes.to(rest), -torch.ones_like(rest)]
        else:
            features = [replace(grid, scale=torch.ones_like(grid.scale)).dequantize(codes)]
        rows, groups = rest.shape[0], grid.scale.shape[1]

        def by_group(columns: Tensor) -> Tensor:
            return columns.reshape(rows, groups, -1).sum(dim=2).double()

        seen = rest @ hessian
        slope = torch.cat([by_group(seen * one) for one in features], dim=1)
        matrix = slope.new_empty(rows, slope.shape[1], slope.shape[1])
        size = rest.shape[1] // groups
        for i, mine in enumerate(features):
            for g in range(groups):
                own = slice(g * size, (g + 1) * size)
                if i == 0:
                    product = mine[:, own] @ hessian[own]
                else:  # the same for all rows
                    product = -hessian[own].sum(dim=0, keepdim=True).expand_as(rest)
                for k, other in enumerate(features):
                    to = slice(k * groups, (k + 1) * groups)
                    matrix[:, i * groups + g, to] = by_group(product * other)
        return (seen * rest).sum(dim=1, dtype=torch.float64), Quadratic(matrix, slope)

    def point(self, scale: Tensor, zero: Tensor) -> Tensor:
        """The unknowns ``[out, unknowns]`` that scales and zeros ``[out, groups]`` are."""
        parts = [scale, scale * zero] if self.slope.shape[1] > scale.shape[1] else [scale]
        return torch.cat(parts, dim=1).double()

    def at(self, step: Tensor) -> Tensor:
        """The slope b after a step δ ``[out, unknowns]``."""
        return self.slope - (self.matrix @ step[:, :, None])[:, :, 0]

    def change(self, other: Grid, grid: Grid) -> Tensor:
        """What ``other`` in place of ``grid`` changes in every row's loss, ``[out]``."""
        step = self.point(other.scale, other.zero) - self.point(grid.scale, grid.zero)
        return -((self.slope + self.at(step)) * step).sum(dim=1)


def _on_zeros(
    form: Quadratic, grid: Grid, zero: Tensor, stored: Callable[[Tensor], Tensor]
) -> Grid:
    """The grid of the best scales for the given zeros ``[out, groups]``."""
    groups = grid.scale.shape[1]
    ray = form.point(torch.ones_like(grid.scale), zero)  # the unknowns of a group go along it
    start = form.point(grid.scale, zero) - form.point(grid.scale, grid.zero)
    pulled = form.matrix * ray[:, :, None] * ray[:, None, :]
    slope = form.at(start) * ray
    count = ray.shape[1] // groups
    pulled = pulled.reshape(-1, count, groups, count, groups).sum(dim=(1, 3))
    scale = grid.scale + _solved(pulled, slope.reshape(-1, count, groups).sum(dim=1), grid.scale)
    usable = (scale > 0) & scale.isfinite()
    return replace(grid, scale=stored(torch.where(usable, scale, grid.scale)), zero=zero)


def _free_zeros(form: Quadratic, grid: Grid) -> Tensor:
    """The codes nearest to the zeros of least loss, ``[out, groups]``."""
    step, groups = _solved(form.matrix, form.slope, grid.scale), grid.scale.shape[1]
    offset = grid.scale * grid.zero + step[:, groups:]
    zero = torch.round(offset / (grid.scale + step[:, :groups]))
    return torch.where(zero.isfinite(), zero.clamp(0, grid.codebook.top), grid.zero)


def _solved(matrix: Tensor, slope: Tensor, like: Tensor) -> Tensor:
    """A⁻¹ b ``[out, n]`` in the precision of ``like``.

    With a unit diagonal, and a ridge of what the precision of A's entries is: what has no say in the loss
    stays as it is.
    """
    diagonal = matrix.diagonal(dim1=1, dim2=2)
    unit = torch.where(diagonal > 0, diagonal, 1.0).rsqrt()
    scaled = matrix * unit[:, :, None] * unit[:, None, :]
    ridge = 10 * torch.finfo(like.dtype).eps
    scaled.diagonal(dim1=1, dim2=2).copy_(torch.full_like(unit, 1 + ridge))
    found, info = torch.linalg.solve_ex(scaled, slope * unit)
    doubt(
        (info != 0).any(), lambda: NonFiniteError("scales can't be refitted: A x = b is singular")
    )
    refitted: Tensor = found * unit
    return refitted.to(like)
