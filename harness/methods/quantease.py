"""QuantEase: cyclic coordinate descent on the layer loss, with or without outliers kept apart."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from harness.methods.base import Quantized, RowMethod, check_options, with_outliers
from harness.methods.gptq import GPTQ, column_order
from harness.numerics.finite import check_finite
from harness.numerics.grid import Grid
from harness.numerics.kernels import BLOCK, map_rows, quantease_block
from harness.numerics.statistics import Statistics
from harness.numerics.storage import Storage
from harness.ranges.base import GridSpec

LAST_RELAXED = 25  # sweeps after this one are never relaxed, as in the authors' code
MARGIN = 1e-6  # losses are followed in float32: a smaller relative gain may be none


@dataclass(frozen=True)
class Outliers:
    """How much of the weight stays in full precision: W* ≈ V + S, S zero almost everywhere.

    Args:
        fraction: share of S that may be non-zero, round(fraction · n) of n; 0 is no outliers.
        structured: whole columns instead of single weights.
    """

    fraction: float = 0.0
    structured: bool = False

    def __post_init__(self) -> None:
        check_options(
            ("fraction", self.fraction, 0 <= self.fraction < 1, "are numbers from 0 to below 1")
        )

    def count(self, candidates: int) -> int:
        """How many of n = ``candidates`` weights, or columns, are outliers: round(fraction · n)."""
        return round(candidates * self.fraction)


@dataclass(frozen=True)
class QuantEase(RowMethod):
    """Behdin et al. 2023, "QuantEase", arXiv 2309.01885, algorithm 2; with outliers algorithm 3.

    A sweep minimises L(V) = tr((W* − V) H (W* − V)ᵀ) over one column after the other (lemma 1):

        u = V_j + [(W* − V) H]_j / H_jj        V_j ← Q(u)

    On sweeps with index % 3 == 1 (``relax_every``) V_j ← u instead, except on the last sweep and
    after sweep 25. The result is the last state, as in the authors' code, or with ``keep="best"``
    for every row the rounded state of least loss that it went through. Where GPTQ is the start no
    row ends with a larger loss than there.

    Args:
        iterations: sweeps over all columns.
        relax_every: n of "index % n == 1", the sweeps left unrounded; 0 rounds in all.
        act_order: columns in the order of falling H_jj.
        init: V before the first sweep: W* itself, or GPTQ's result, whose grid is then kept.
        keep: the last state, or the best of every row (with outliers: of the whole linear).
        damping: λ as a multiple of mean(diag H); H + λI then takes the place of H in L.
        outliers: the part kept in full precision.
    """

    iterations: int = 20
    relax_every: int = 3
    act_order: bool = False
    init: Literal["original", "gptq"] = "original"
    keep: Literal["last", "best"] = "last"
    damping: float = 0.0
    outliers: Outliers = Outliers()

    def __post_init__(self) -> None:
        relax = self.relax_every
        fits = self.outliers.fraction == 0 or self.init == "original"
        check_options(
            ("iterations", self.iterations, self.iterations >= 1, "are whole numbers from 1 up"),
            ("relax_every", relax, relax == 0 or relax >= 2, "are 0 and whole numbers from 2 up"),
            ("init", self.init, self.init in ("original", "gptq"), "are original, gptq"),
            ("init", self.init, fits, "with outliers is original"),
            ("keep", self.keep, self.keep in ("last", "best"), "are last, best"),
            (
                "damping",
                self.damping,
                0 <= self.damping < math.inf,
                "are finite numbers from 0 up",
            ),
        )

    def quantize(
        self, weights: Mapping[str, Tensor], statistics: Statistics, spec: GridSpec
    ) -> dict[str, Quantized]:
        """See :meth:`Method.quantize`; outliers are counted within each linear."""
        if self.outliers.fraction == 0:
            return super().quantize(weights, statistics, spec)
        return {
            name: self.refined(weight, statistics, spec.of_weight(weight))
            for name, weight in weights.items()
        }

    def flops(self, rows: int, columns: int) -> float:
        """One product with H per sweep, one more per step of S, and GPTQ's where it starts there."""
        start = GPTQ().flops(rows, columns) if self.init == "gptq" else 0.0
        products = self.iterations * (2 if self.outliers.fraction else 1)
        return start + 2.0 * products * rows * columns**2

    def storage(self, rows: int, columns: int, spec: GridSpec) -> Storage:
        """See :meth:`Method.storage`; GPTQ's grid is kept where it is the start."""
        if self.init == "gptq":
            return GPTQ(act_order=self.act_order).storage(rows, columns, spec)
        outliers = self.outliers
        count = outliers.count(columns if outliers.structured else rows * columns)
        plain = super().storage(rows, columns, spec)
        return with_outliers(plain, count, rows if outliers.structured else 1)

    def quantize_rows(self, weight: Tensor, statistics: Statistics, spec: GridSpec) -> Quantized:
        """See :meth:`RowMethod.quantize_rows`; the trace ``loss`` has one point a sweep."""
        order = column_order(statistics.hessian, self.act_order)
        inverse = torch.argsort(order)
        hessian = ridged(statistics.hessian, self.damping)[order][:, order].contiguous()
        if self.outliers.fraction:
            return self._with_outliers(weight, hessian, order, spec, statistics.hessian)
        if self.init == "gptq":
            begin = GPTQ(act_order=self.act_order).quantize_rows(weight, statistics, spec)
            start, codes, grid, ridge = begin.weight, begin.codes, begin.grid, begin.ridge
        else:
            grid, ridge = spec.fit(weight, statistics.hessian), 0.0
            start, codes = weight, torch.zeros_like(weight, dtype=torch.uint8)

        def descended(rows: slice) -> tuple[Tensor, Tensor]:
            own = grid.rows(rows)
            return self._descend(weight[rows], start[rows], codes[rows], own, hessian, order)

        parts, curves = zip(*map_rows(descended, weight), strict=True)
        codes = torch.cat(parts, dim=1).T[:, inverse].contiguous()
        traces = {"loss": torch.cat(curves, dim=1)}
        return Quantized(grid.dequantize(codes), codes, grid, traces=traces, ridge=ridge)

    def _descend(
        self,
        weight: Tensor,
        start: Tensor,
        codes: Tensor,
        grid: Grid,
        hessian: Tensor,
        order: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Algorithm 2 from ``start``: codes ``[in, out]`` in ``order``, losses ``[sweeps, out]``.

        ``codes [out, in]`` are what a row keeps that finds nothing better than its start.
        """
        target, current = transposed(weight, order), transposed(start, order)
        shifted = reordered(grid, order)
        loss = row_losses(target - current, hessian)
        codes = transposed(codes, order)
        best = loss if self.init == "gptq" else torch.full_like(loss, torch.inf)
        curve = []
        for index in range(self.iterations):
            proposal, change = sweep(target, current, hessian, shifted, self.relaxed(index))
            loss = loss + change
            curve.append(loss)
            if self.counts(index):
                better = loss < best * (1 - MARGIN)
                best = torch.where(better, loss, best)
                codes = torch.where(better, proposal, codes)
        check_finite("the loss", best)
        return codes, torch.stack(curve)

    def _with_outliers(
        self, weight: Tensor, hessian: Tensor, order: Tensor, spec: GridSpec, moment: Tensor
    ) -> Quantized:
        """Algorithm 3, W* ≈ V + S by turns: a sweep for V, then a projected gradient step for S.

        With G = (W* − V − S) H, the loss's gradient in S being −2 G, the step is

            S ← keep(S − ∇L / (2 λmax(H))) = keep(S + G / λmax(H))

        where keep holds on to the largest entries, or columns by norm. The grid does not see the
        outliers: its range is trimmed, or with whole columns fitted to the other columns.
        ``hessian`` is damped and in ``order``, ``moment`` is H as it came.
        """
        structured, inverse = self.outliers.structured, torch.argsort(order)
        target = transposed(weight, order)
        sparse = keep_largest(target, self.outliers)
        current = target - sparse
        grid = trimmed_fit(weight, spec, moment, self.outliers.fraction)
        largest = torch.linalg.eigvalsh(hessian)[-1]
        largest = torch.where(largest == 0, 1.0, largest)  # H = 0 has no gradient either
        best = torch.full_like(target[0, 0], torch.inf, dtype=torch.float64)
        codes = torch.zeros_like(target, dtype=torch.uint8)
        chosen = [codes, sparse, grid.scale, grid.zero, *(grid.ends or ())]
        curve = []
        for index in range(self.iterations):
            if structured:
                kept = (sparse == 0).all(dim=1)[inverse]
                grid = spec.fit(weight * kept, moment)
            proposal, current = self._sweep_parts(
                target - sparse, current, hessian, reordered(grid, order), index
            )
            delta = target - current - sparse
            gradient = hessian @ delta
            moved = keep_largest(sparse + gradient / largest, self.outliers)
            curve.append(losses_after(delta, gradient, moved - sparse, hessian))
            sparse = moved
            if self.counts(index):
                loss = curve[-1].sum()
                better = loss < best * (1 - MARGIN)
                best = torch.where(better, loss, best)
                found = [proposal, sparse, grid.scale, grid.zero, *(grid.ends or ())]
                chosen = [torch.where(better, *pair) for pair in zip(found, chosen, strict=True)]
        check_finite("the loss", best)
        codes, sparse, scale, zero, *ends = chosen
        grid = replace(grid, scale=scale, zero=zero, ends=(ends[0], ends[1]) if ends else None)
        codes = codes.T[:, inverse].contiguous()
        outliers = sparse.T[:, inverse].contiguous()
        return Quantized(
            grid.dequantize(codes) + outliers, codes, grid,
            outliers=outliers, outlier_columns=structured, traces={"loss": torch.stack(curve)},
        )  # fmt: skip

    def _sweep_parts(
        self, target: Tensor, current: Tensor, hessian: Tensor, grid: Grid, index: int
    ) -> tuple[Tensor, Tensor]:
        """Codes and V after sweep ``index``, each ``[in, out]``, the rows shared out to threads."""

        def swept(rows: slice) -> tuple[Tensor, Tensor]:
            own = current[:, rows].clone(memory_format=torch.contiguous_format)
            codes, _ = sweep(target[:, rows], own, hessian, grid.rows(rows), self.relaxed(index))
            return codes, own

        codes, values = zip(*map_rows(swept, target.T), strict=True)
        return torch.cat(codes, dim=1), torch.cat(values, dim=1)

    def relaxed(self, index: int) -> bool:
        """Whether sweep ``index`` (from 0) leaves the weights unrounded."""
        due = self.relax_every > 0 and index % self.relax_every == 1
        return due and index < self.iterations - 1 and index <= LAST_RELAXED

    def counts(self, index: int) -> bool:
        """Whether the state after sweep ``index`` may be the result."""
        if self.keep == "best":
            return not self.relaxed(index)
        return index == self.iterations - 1


def sweep(
    target: Tensor, current: Tensor, hessian: Tensor, grid: Grid, relax: bool
) -> tuple[Tensor, Tensor]:
    """One sweep; returns the codes ``[in, out]`` and the change of every row's loss ``[out]``.

    The gradient of a block of columns is taken afresh from W* − V when the block starts ("left-
    looking"): the same work as carrying it along, and no rounding piles up over the sweeps. With
    the block's steps S and its gradient G = H (W* − V) the loss changes by tr(SᵀHS) − 2 tr(SᵀG).

    Args:
        target: W*ᵀ, ``[in, out]``.
        current: Vᵀ, ``[in, out]``, contiguous; updated in place.
        hessian: H, ``[in, in]``.
        grid: the grid, its ``group`` in the order of the columns here.
        relax: leave V unrounded.
    """
    scale, zero = grid.scale.T.contiguous(), grid.zero.T.contiguous()
    delta = target - current
    codes = torch.empty(current.shape, dtype=torch.uint8, device=current.device)
    change = torch.zeros(current.shape[1], dtype=torch.float64, device=current.device)
    for start in range(0, current.shape[0], BLOCK):
        block = slice(start, start + BLOCK)
        diagonal = hessian[block, block]
        gradient = hessian[block] @ delta
        codes[block], step = quantease_block(
            current[block], gradient, alive(diagonal), scale, zero, grid.group[block], grid.codebook,
            relax,
        )  # fmt: skip
        delta[block] = target[block] - current[block]
        change += (step * (diagonal @ step - 2 * gradient)).sum(dim=0, dtype=torch.float64)
    return codes, change


def ridged(hessian: Tensor, damping: float) -> Tensor:
    """H + λI ``[in, in]`` with λ = damping · mean(diag H)."""
    result = hessian.clone()
    result.diagonal().add_(damping * hessian.diagonal().mean())
    return result


def alive(block: Tensor) -> Tensor:
    """The block of H with H_jj = 1 for columns that were never active.

    Their gradient is zero, so that they are simply rounded, as in the authors' code.
    """
    result = block.clone(memory_format=torch.contiguous_format)
    result.diagonal().masked_fill_(block.diagonal() == 0, 1.0)
    return result


def row_losses(delta: Tensor, hessian: Tensor) -> Tensor:
    """δ_r H δ_rᵀ of every row, ``[out]`` in float64, from ``delta`` Δᵀ ``[in, out]``."""
    return (delta * (hessian @ delta)).sum(dim=0, dtype=torch.float64)


def losses_after(delta: Tensor, gradient: Tensor, step: Tensor, hessian: Tensor) -> Tensor:
    """Every row's loss ``[out]`` once S has taken a sparse step P, from Δ and G = H Δ.

    (δ_r − p_r) H (δ_r − p_r)ᵀ = (δ_r − 2 p_r) g_rᵀ + p_r H p_rᵀ, the last product sparse: no third
    full one. All but H are ``[in, out]``.
    """
    rows = step.T
    carried = torch.sparse.mm(rows.to_sparse(), hessian)
    linear: Tensor = ((delta - 2 * step) * gradient).sum(dim=0, dtype=torch.float64)
    square: Tensor = (rows * carried).sum(dim=1, dtype=torch.float64)
    return linear + square


def transposed(weight: Tensor, order: Tensor) -> Tensor:
    """``weight [out, in]`` as ``[in, out]`` with its columns in ``order``."""
    return weight.T[order].contiguous()


def reordered(grid: Grid, order: Tensor) -> Grid:
    """The grid of the same weights with their columns in ``order``."""
    return replace(grid, group=grid.group[order], runs=False)


def keep_largest(dense: Tensor, outliers: Outliers) -> Tensor:
    """``dense [in, out]`` with all but its largest entries (or columns, by norm) set to zero."""
    size = dense.norm(dim=1) if outliers.structured else dense.abs().flatten()
    mask = torch.zeros_like(size, dtype=torch.bool)
    mask[torch.topk(size, outliers.count(size.numel())).indices] = True
    return dense * (mask[:, None] if outliers.structured else mask.reshape(dense.shape))


def trimmed_fit(weight: Tensor, spec: GridSpec, hessian: Tensor, fraction: float) -> Grid:
    """The grid of ``weight [out, in]`` without fraction/2 of every group at either end."""
    size = spec.size(weight.shape[1])
    groups = weight.reshape(-1, size)
    drop = min(round(size * fraction / 2), (size - 1) // 2)
    ordered = groups.sort(dim=1).values
    trimmed = groups.clamp(ordered[:, drop, None], ordered[:, size - 1 - drop, None])
    return spec.fit(trimmed.reshape(weight.shape), hessian)
