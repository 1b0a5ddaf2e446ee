"""AWQ: scale the columns of large activations up before rounding, then clip every range."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from typing import ClassVar

import torch
from torch import Tensor

from harness.methods.base import Quantized, check_options
from harness.numerics.grid import GridSpec
from harness.numerics.statistics import (
    NonFiniteError,
    Statistics,
    check_finite,
    quadratic_form,
)
from harness.numerics.storage import Storage

SMALLEST_SCALE = 1e-4  # before normalisation, as in the authors' code


@dataclass(frozen=True)
class AWQ:
    """Lin et al. 2024, "AWQ", arXiv 2306.00978, section 3.2 (eq. 4 and 5), and its clip search.

    One scale per input column for all linears of a stage, from the mean activation magnitude m:

        s = m^r / sqrt(max(m^r) · min(m^r))        r = 0, 1/n, …, (n−1)/n         n = n_grid
        V = Q(W* diag(s)) diag(s)⁻¹

    with the r of least Σ_linears tr((W* − V) H (W* − V)ᵀ); a tie keeps the smaller r. Then every
    row of every group gets the largest of the ranges shrunk to 1, 1 − 1/clip_grid, … of max|w s|
    that has the least error of the group's own contribution to the output.

    The authors measure the first loss at the output of the attention or MLP module and fold s into
    the operator before, which only some linears have; here H is enough, and every linear takes
    part. For a linear alone in its stage whose own output they look at, the losses are the same.

    Args:
        n_grid: number of exponents r tried.
        clip: search for clipping thresholds.
        clip_grid: the range shrinks in steps of 1/clip_grid.
        max_shrink: ranges down to, but without, 1 − max_shrink.
        skip_clip: glob patterns of linears left unclipped (queries and keys, as the authors do).
    """

    needs: ClassVar[frozenset[str]] = frozenset({"magnitude"})
    quantizes: ClassVar[bool] = True

    n_grid: int = 20
    clip: bool = True
    clip_grid: int = 20
    max_shrink: float = 0.5
    skip_clip: tuple[str, ...] = ("*q_proj", "*k_proj", "*query*", "*key*")

    def __post_init__(self) -> None:
        check_options(
            ("n_grid", self.n_grid, self.n_grid >= 1, "are whole numbers from 1 up"),
            ("clip_grid", self.clip_grid, self.clip_grid >= 1, "are whole numbers from 1 up"),
            ("max_shrink", self.max_shrink, 0 < self.max_shrink <= 1, "are 0 < max_shrink <= 1"),
        )

    def quantize(
        self, weights: Mapping[str, Tensor], statistics: Statistics, spec: GridSpec
    ) -> dict[str, Quantized]:
        """See :meth:`Method.quantize`."""
        scale = self.best_scale(torch.cat(list(weights.values())), statistics, spec)
        hessian = statistics.hessian / scale / scale[:, None]
        result = {}
        for name, weight in weights.items():
            scaled = weight * scale
            if self.clip and not any(fnmatch(name, pattern) for pattern in self.skip_clip):
                scaled = self.clipped(scaled, hessian, spec)
            grid = spec.fit(scaled)
            codes = grid.quantize(scaled)
            result[name] = Quantized(grid.dequantize(codes) / scale, codes, grid, scale)
        return result

    def flops(self, rows: int, columns: int) -> float:
        """One quadratic form per scale tried and one product per clipping range, groups aside."""
        ranges = int(self.max_shrink * self.clip_grid) if self.clip else 0
        return (self.n_grid + 2.0 * ranges) * rows * columns**2

    def storage(self, rows: int, columns: int, spec: GridSpec) -> Storage:
        """See :meth:`Method.storage`: the grid's numbers and a scale a column."""
        plain = spec.storage(rows, columns)
        return replace(plain, scales=plain.scales + columns)

    def best_scale(self, weight: Tensor, statistics: Statistics, spec: GridSpec) -> Tensor:
        """The s ``[in]`` of least loss for the stacked weights ``[out, in]`` of a stage."""
        best, chosen = float("inf"), weight.new_ones(weight.shape[1])
        for step in range(self.n_grid):
            scale = column_scale(statistics.require_magnitude(), step / self.n_grid)
            scaled = weight * scale
            delta = weight - spec.fit(scaled).nearest(scaled) / scale
            loss = quadratic_form(delta, statistics.hessian)
            if loss < best:
                best, chosen = loss, scale
        if best == float("inf"):
            raise NonFiniteError("the losses of all scales are infinite or no numbers")
        return chosen

    def clipped(self, scaled: Tensor, hessian: Tensor, spec: GridSpec) -> Tensor:
        """``W* s [out, in]`` clamped to the best range of every row and group.

        The loss of a row's group is e H_gg eᵀ, with H_gg the block of diag(s)⁻¹ H diag(s)⁻¹ that
        belongs to the group's columns and e the change of its weights.
        """
        rows, columns = scaled.shape
        size = spec.group_size or columns
        shape = (rows, columns // size, size)
        starts = range(0, columns, size)
        blocks = torch.stack([hessian[a : a + size, a : a + size] for a in starts])
        widest = scaled.reshape(shape).abs().amax(dim=2)
        best = torch.full_like(widest, torch.inf)
        chosen = widest
        steps = int(self.max_shrink * self.clip_grid)
        for step in range(steps):
            bound = widest * (1 - step / self.clip_grid)
            narrow = clamped(scaled, bound)
            error = (spec.fit(narrow).nearest(narrow) - scaled).reshape(shape).transpose(0, 1)
            loss = (torch.bmm(error, blocks) * error).sum(dim=2).T
            better = loss < best
            best, chosen = torch.where(better, loss, best), torch.where(better, bound, chosen)
        if steps:
            check_finite("the loss", best)
        return clamped(scaled, chosen)


def column_scale(magnitude: Tensor, exponent: float) -> Tensor:
    """m^r / sqrt(max(m^r) · min(m^r)), ``[in]``, for the mean magnitudes m ``[in]``."""
    power = magnitude.pow(exponent).clamp(min=SMALLEST_SCALE)
    return power / (power.max() * power.min()).sqrt()


def clamped(weight: Tensor, bound: Tensor) -> Tensor:
    """``weight [out, in]`` clamped to ± ``bound [out, groups]`` of its group."""
    wide = bound.repeat_interleave(weight.shape[1] // bound.shape[1], dim=1)
    return weight.clamp(-wide, wide)
