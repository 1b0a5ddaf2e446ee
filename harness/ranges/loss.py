"""The clipped range of least error of the group's own part of the output."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from harness.formats.base import Format
from harness.numerics.finite import check_finite
from harness.ranges.base import Fit, extremes


@dataclass(frozen=True)
class Loss:
    """The clip search of AWQ (Lin et al. 2024, arXiv 2306.00978, reference code), for any method.

        min_b  e H_gg eᵀ        e = V(b) − W of the group's columns, the range cut to [−b, b]

    over b = max |w| · (1, 1 − 1/steps, … down to, but without, 1 − ``shrink``), with H_gg the block of
    H that belongs to the group; a tie keeps the larger range. Weights are cut to the range before they
    are rounded to nearest.

    Args:
        steps: b falls in steps of 1/steps.
        shrink: b stays above 1 − shrink.
    """

    whole: ClassVar[bool] = False

    steps: int = 20
    shrink: float = 0.5

    def __post_init__(self) -> None:
        bad = []
        if self.steps < 1:
            bad.append(f"steps={self.steps}: allowed are whole numbers from 1 up")
        if not 0 < self.shrink <= 1:
            bad.append(f"shrink={self.shrink}: allowed are numbers above 0 up to 1")
        if bad:
            raise ValueError("; ".join(bad))

    @property
    def tried(self) -> int:
        """How many ranges are tried."""
        return max(1, int(self.shrink * self.steps + 1e-9))

    def fit(self, weight: Tensor, form: Format, hessian: Tensor | None) -> Fit:
        """See :meth:`Range.fit`.

        Raises:
            ValueError: nothing is known of H.
            NonFiniteError: no range has a finite loss.
        """
        if hessian is None:
            raise ValueError("range=loss weighs errors with H, which this method does not know")
        lo, hi = extremes(weight)
        widest = torch.maximum(hi, -lo)
        best = torch.full_like(widest, torch.inf)
        chosen = [*form.bounded(lo, hi), lo, hi]
        book = form.codebook
        for step in range(self.tried):
            bound = widest * (1 - step / self.steps)
            ends = torch.maximum(lo, -bound), torch.minimum(hi, bound)
            found = [*form.bounded(*ends), *ends]
            scale, zero, bottom, top = (one[:, None] for one in found)
            cut = weight.clamp(bottom, top)
            error = book.decode(book.encode(cut, scale, zero), scale, zero) - weight
            loss = ((error @ hessian) * error).sum(dim=1)
            better = loss < best
            best = torch.where(better, loss, best)
            chosen = [torch.where(better, *pair) for pair in zip(found, chosen, strict=True)]
        check_finite("the loss", best)
        scale, zero, lo, hi = chosen
        return Fit(scale, zero, (lo, hi))

    def flops(self, rows: int, columns: int, size: int) -> float:
        """A product with the group's block of H per range."""
        return 2.0 * self.tried * rows * columns * size
