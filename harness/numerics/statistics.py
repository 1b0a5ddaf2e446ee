"""Second-moment statistics of a linear's inputs and the errors they give in closed form.

``X [tokens, in]`` are the inputs in the full-precision model, ``X̂ [tokens, in]`` those in the
partly quantised one, ``T`` the number of tokens:

    H = X̂ᵀX̂ / T        C = (X − X̂)ᵀ X̂ / T        D = (X − X̂)ᵀ(X − X̂) / T        [in, in]

and where the output is added to a stream, R and R̂ ``[tokens, out]`` in the two models,

    K = (R − R̂)ᵀ X̂ / T        [out, in]

For weights ``W [out, in]`` and their quantised form ``V [out, in]``:

    rounding error   tr((W*−V) H (W*−V)ᵀ)                         W*: the weight handed to the method
    local error      ‖(W − V) X̂‖² / T = tr((W−V) H (W−V)ᵀ)
    total error      ‖W X − V X̂‖² / T = tr((W−V) H (W−V)ᵀ) + 2 tr((W−V) Cᵀ Wᵀ) + tr(W D Wᵀ)
    signal           ‖W X‖² / T       = tr(W (H + C + Cᵀ + D) Wᵀ)
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from harness.numerics.device import read
from harness.numerics.forms import FORM_PANEL, Distance, form, forms, panels
from harness.numerics.precision import exact

PANEL = 128  # columns per panel of a symmetric product: narrow ones waste less of it


@dataclass(frozen=True)
class Statistics:
    """Token means ``H``, ``C`` and ``D`` (each ``[in, in]``); ``C`` and ``D`` only where asked for."""

    hessian: Tensor
    tokens: int
    cross: Tensor | None = None
    gap: Tensor | None = None
    magnitude: Tensor | None = None  # mean |x̂| per column [in], asked for by AWQ
    reference_magnitude: Tensor | None = None  # mean |x|, collected beside D
    residual: Tensor | None = None  # K, of linears whose output is added to the residual stream

    @property
    def columns(self) -> int:
        """The number of input columns."""
        return self.hessian.shape[0]

    def only(self, needs: Collection[str]) -> Statistics:
        """H, and of all else what is named."""
        others = ("cross", "gap", "magnitude", "residual")
        return replace(self, **dict.fromkeys(set(others) - set(needs)))  # type: ignore[arg-type]

    def require_cross(self) -> Tensor:
        """C, or a ValueError where it was not collected."""
        if self.cross is None:
            raise ValueError(
                "these statistics hold no cross moment C: collect it with reference inputs"
            )
        return self.cross

    def of_reference(self) -> Statistics:
        """The same of the reference stream: XᵀX / T = H + C + Cᵀ + D; needs C and D."""
        if self.gap is None:
            raise ValueError("these statistics hold no gap moment D: collect it with gap=True")
        cross = self.require_cross()
        hessian = self.hessian + cross + cross.T + self.gap
        return replace(self, hessian=hessian, magnitude=self.reference_magnitude)

    def blended(self, pool: Statistics, wanted: int) -> Statistics:
        """(n M + (wanted − n) M_pool) / wanted for every moment M of these n tokens, fewer than wanted."""
        own = self.tokens / wanted

        def mixed(name: str) -> Tensor | None:
            mine: Tensor | None = getattr(self, name)
            return None if mine is None else torch.lerp(getattr(pool, name), mine, own)

        names = ("hessian", "cross", "gap", "magnitude", "reference_magnitude")
        return replace(self, **{name: mixed(name) for name in names})  # type: ignore[arg-type]

    def of_nothing(self) -> Statistics:
        """Those of inputs that nothing is known of: H = I, C = D = 0, magnitudes of 1."""
        zeros, ones = ("cross", "gap", "residual"), ("magnitude", "reference_magnitude")
        known = {name: getattr(self, name) for name in (*zeros, *ones)}
        blank = {
            name: torch.full_like(one, float(name in ones))
            for name, one in known.items()
            if one is not None
        }
        eye = torch.eye(self.columns, dtype=self.hessian.dtype, device=self.hessian.device)
        return replace(self, hessian=eye, **blank)  # type: ignore[arg-type]

    def require_residual(self) -> Tensor:
        """K, or a ValueError where it was not collected."""
        if self.residual is None:
            raise ValueError(
                "these statistics hold nothing of the residual stream: collect them with what it has lost"
            )
        return self.residual

    def require_magnitude(self) -> Tensor:
        """Mean |x̂| per column, or a ValueError where it was not collected."""
        if self.magnitude is None:
            raise ValueError(
                "these statistics hold no magnitudes: collect them with magnitude=True"
            )
        return self.magnitude

    def local_error(self, weight: Tensor, quantized: Tensor) -> float:
        """‖(W − V) X̂‖² / T; with the corrected weight for W this is the rounding error."""
        return forms([Distance(self.hessian, weight, quantized)])[0][0]

    def total_error(self, weight: Tensor, quantized: Tensor) -> float:
        """‖W X − V X̂‖² / T, evaluated in float64 since its terms cancel; needs C and D."""
        if self.gap is None:
            raise ValueError("these statistics hold no gap moment D: collect it with gap=True")
        wide = torch.float64
        delta = weight.to(wide) - quantized
        cross = self.require_cross()
        mixed = torch.zeros((), dtype=wide, device=weight.device)
        for start, end in panels(self.columns, FORM_PANEL):  # one is in float64 at a time
            product = delta @ cross[start:end].to(wide).T
            mixed += 2 * (product * weight[:, start:end]).sum()
        parts = [form(delta, self.hessian, wide), mixed, form(weight, self.gap, wide)]
        return max(math.fsum(value for (value,) in read(parts)), 0.0)  # NaN stays


class Accumulator:
    """Sums the statistics over batches of activations; nothing of a batch is kept."""

    def __init__(
        self,
        columns: int,
        *,
        cross: bool = False,
        gap: bool = False,
        magnitude: bool = False,
        residual: int = 0,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        def zeros(wanted: bool, *shape: int) -> Tensor | None:
            return torch.zeros(shape, device=device, dtype=dtype) if wanted else None

        self.hessian = torch.zeros(columns, columns, device=device, dtype=dtype)
        self.cross = zeros(cross, columns, columns)
        self.gap = zeros(gap, columns, columns)
        self.magnitude = zeros(magnitude, columns)
        self.reference_magnitude = zeros(magnitude and gap, columns)
        self.residual = zeros(residual > 0, residual, columns)
        self.tokens = 0

    def add(
        self,
        inputs: Tensor,
        reference: Tensor | None = None,
        lost: Tensor | None = None,
    ) -> None:
        """Adds ``inputs`` X̂ and ``reference`` X, each ``[..., in]``, and ``lost`` R − R̂ ``[..., out]``."""
        with exact():
            self._add(inputs, reference, lost)

    def _add(self, inputs: Tensor, reference: Tensor | None, lost: Tensor | None) -> None:
        x = _rows(inputs, self.hessian)
        add_gram(self.hessian, x)
        self.tokens += x.shape[0]
        if self.magnitude is not None:
            self.magnitude += x.abs().sum(dim=0)
        if self.residual is not None:
            if lost is None:
                raise ValueError("K needs what the residual stream has lost")
            self.residual.addmm_(_rows(lost, self.hessian).T, x)
        if self.cross is None and self.gap is None:
            return
        if reference is None:
            raise ValueError("C and D need the reference inputs")
        other = _rows(reference, self.hessian)
        if self.reference_magnitude is not None:
            self.reference_magnitude += other.abs().sum(dim=0)
        difference = other - x
        if self.cross is not None:
            self.cross.addmm_(difference.T, x)
        if self.gap is not None:
            add_gram(self.gap, difference)

    def merge(self, other: Accumulator) -> None:
        """Adds the sums of ``other``, which collects the same moments of other tokens."""
        self.tokens += other.tokens
        for name in ("hessian", "cross", "gap", "magnitude", "reference_magnitude", "residual"):
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine is not None:
                mine += theirs

    def mean(self) -> Statistics:
        """The statistics of all that was added, zeros of nothing; the sums are used up."""
        for moment in (self.hessian, self.gap):
            if moment is not None:
                mirror_upper(moment)
        means = (self.magnitude, self.reference_magnitude, self.residual)
        for moment in (self.hessian, self.cross, self.gap, *means):
            if moment is not None:
                moment /= max(1, self.tokens)
        return Statistics(self.hessian, self.tokens, self.cross, self.gap, *means)


def collect(
    inputs: Tensor, reference: Tensor | None = None, lost: Tensor | None = None, **wanted: bool
) -> Statistics:
    """The statistics of one batch of activations ``[tokens, in]``, in their precision; K of ``lost``."""
    rows = 0 if lost is None else lost.shape[-1]
    accumulator = Accumulator(
        inputs.shape[-1], residual=rows, device=inputs.device, dtype=inputs.dtype, **wanted
    )
    accumulator.add(inputs, reference, lost)
    return accumulator.mean()


def _rows(activations: Tensor, like: Tensor) -> Tensor:
    return activations.reshape(-1, activations.shape[-1]).to(like.dtype)


def add_gram(moment: Tensor, x: Tensor) -> None:
    """Adds xᵀx to the block-upper triangle of ``moment [in, in]``: half a product's work."""
    for start, end in panels(moment.shape[0], PANEL):
        moment[start:end, start:].addmm_(x[:, start:end].T, x[:, start:])


def mirror_upper(moment: Tensor) -> None:
    """Copies the block-upper triangle of ``moment [in, in]`` onto the lower one."""
    for start, end in panels(moment.shape[0], PANEL):
        moment[start:end, :start] = moment[:start, start:end].T
