"""Quadratic forms tr(Δ M Δᵀ) of differences of weights, by which all errors are measured."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from harness.numerics.device import read

SLICE = 2048  # rows at once
FORM_PANEL = 256  # columns at once: wide panels keep threads busy, narrow ones waste less


@dataclass(frozen=True)
class Distance:
    """tr(Δ M Δᵀ) with Δ = W − V, or W alone: not computed yet, so that no Δ is kept."""

    moment: Tensor
    weight: Tensor
    other: Tensor | None = None

    def form(self, dtype: torch.dtype | None = None) -> Tensor:
        """See :func:`form`."""
        delta = self.weight if self.other is None else self.weight - self.other
        return form(delta, self.moment, dtype)


def forms(
    distances: Sequence[Distance], others: Sequence[Tensor] = ()
) -> tuple[list[float], list[list[float]]]:
    """The value of every distance, and what ``others`` hold; waits once for their device.

    What is too large for float32 is computed again in float64. The form of a second moment is no less than
    zero: what rounding has made negative is 0, which is nearer; NaN stays.
    """
    found = read([*(one.form() for one in distances), *others])
    values = [
        value
        if math.isfinite(value) or one.weight.dtype == torch.float64
        else read([one.form(torch.float64)])[0][0]
        for (value,), one in zip(found, distances, strict=False)
    ]
    return [max(value, 0.0) for value in values], found[len(distances) :]


def form(delta: Tensor, moment: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """tr(Δ M Δᵀ), float64 ``[]``, for a symmetric ``moment [in, in]``: half a product's work.

    With Δ_p the columns of panel p and Δ_< those left of it, it is the sum over panels of
    (Δ_p M_pp + 2 Δ_< M_<p) · Δ_p. Rows go in slices that stay in cache.

    Args:
        delta: Δ ``[out, in]``.
        moment: M ``[in, in]``.
        dtype: what a panel is computed in, if not as it comes; there is never more than one in it.
    """
    total = torch.zeros((), dtype=torch.float64, device=delta.device)
    for part in torch.split(delta, SLICE):
        rows = part.to(dtype or part.dtype)
        for start, end in panels(delta.shape[1], FORM_PANEL):
            panel = rows[:, start:end]
            above = moment[:end, start:end].to(rows.dtype)
            product = panel @ above[start:]
            product.addmm_(rows[:, :start], above[:start], alpha=2)
            total += product.mul_(panel).sum()
    return total


def row_losses(delta: Tensor, moment: Tensor) -> Tensor:
    """δ M δᵀ of every row δ of ``delta [out, in]``, float64 ``[out]``."""
    return ((delta @ moment) * delta).sum(dim=1, dtype=torch.float64)


def panels(columns: int, width: int) -> Iterator[tuple[int, int]]:
    """The bounds of all panels of ``width`` columns; the last one may be narrower."""
    for start in range(0, columns, width):
        yield start, min(start + width, columns)
