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
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from harness.numerics.device import doubt, read
from harness.numerics.precision import exact

SLICE = 2048  # rows of a quadratic form at once
# Columns per panel of a symmetric product: narrow ones waste less of it, wide ones keep threads busy.
PANEL, FORM_PANEL = 128, 256


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
        for start, end in _panels(self.columns, FORM_PANEL):  # one is in float64 at a time
            product = delta @ cross[start:end].to(wide).T
            mixed += 2 * (product * weight[:, start:end]).sum()
        parts = [form(delta, self.hessian, wide), mixed, form(weight, self.gap, wide)]
        return math.fsum(value for (value,) in read(parts))


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


def _panels(columns: int, width: int = PANEL) -> Iterator[tuple[int, int]]:
    for start in range(0, columns, width):
        yield start, min(start + width, columns)


def add_gram(moment: Tensor, x: Tensor) -> None:
    """Adds xᵀx to the block-upper triangle of ``moment [in, in]``: half a product's work."""
    for start, end in _panels(moment.shape[0]):
        moment[start:end, start:].addmm_(x[:, start:end].T, x[:, start:])


def mirror_upper(moment: Tensor) -> None:
    """Copies the block-upper triangle of ``moment [in, in]`` onto the lower one."""
    for start, end in _panels(moment.shape[0]):
        moment[start:end, :start] = moment[:start, start:end].T


def quadratic_form(delta: Tensor, moment: Tensor) -> float:
    """tr(Δ M Δᵀ) for ``delta [out, in]`` and a symmetric ``moment [in, in]``."""
    return forms([Distance(moment, delta)])[0][0]


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

    What is too large for float32 is computed again in float64.
    """
    found = read([*(one.form() for one in distances), *others])
    values = [
        value
        if math.isfinite(value) or one.weight.dtype == torch.float64
        else read([one.form(torch.float64)])[0][0]
        for (value,), one in zip(found, distances, strict=False)
    ]
    return values, found[len(distances) :]


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
        for start, end in _panels(delta.shape[1], FORM_PANEL):
            panel = rows[:, start:end]
            above = moment[:end, start:end].to(rows.dtype)
            product = panel @ above[start:]
            product.addmm_(rows[:, :start], above[:start], alpha=2)
            total += product.mul_(panel).sum()
    return total


def row_losses(delta: Tensor, moment: Tensor) -> Tensor:
    """δ M δᵀ of every row δ of ``delta [out, in]``, float64 ``[out]``."""
    return ((delta @ moment) * delta).sum(dim=1, dtype=torch.float64)


@dataclass(frozen=True)
class Factor:
    """A Cholesky factor of a damped matrix and the ridge that it took."""

    lower: Tensor
    ridge: float


class IndefiniteError(ValueError):
    """A damped Hessian that stays indefinite."""


class NonFiniteError(ArithmeticError):
    """Weights, activations or losses that are not finite; the message names what they belong to."""


def check_finite(name: str, values: Tensor) -> None:
    """Doubts that all of ``values`` are finite; see :func:`harness.numerics.device.doubt`.

    Raises:
        NonFiniteError: any is infinite or no number.
    """

    def error() -> NonFiniteError:
        lost = values.numel() - int(values.isfinite().sum())
        return NonFiniteError(
            f"{name} is not finite: {lost} of {values.numel()} values are infinite or no numbers"
        )

    low, high = values.aminmax()  # one pass, and NaN comes through
    doubt(~(low.isfinite() & high.isfinite()), error)


def damped_cholesky(matrix: Tensor, damping: float, retries: int = 4) -> Factor:
    """L Lᵀ = M + λI with λ = damping · mean(diag M), ``matrix [in, in]``.

    A column that was never active (M_jj = 0) gets M_jj = 1, which nothing else depends on; it does
    not enter the mean as 1, as it does in the authors' code, where λ then depends on H's scale.
    A failing factorisation is tried again with ten times the damping (at least 1e-6) up to
    ``retries`` times; the ridge that succeeded is returned, so that it can be recorded.

    Raises:
        IndefiniteError: M is not finite, or stays indefinite.
    """
    diagonal = matrix.diagonal()
    mean = diagonal.mean().double()
    for _ in range(retries + 1):
        ridge = damping * mean
        damped = matrix.clone()
        damped.diagonal().copy_(torch.where(diagonal == 0, 1.0, diagonal) + ridge)
        lower, info = torch.linalg.cholesky_ex(damped)
        fine = [diagonal.isfinite().all(), (info == 0) & lower.diagonal().isfinite().all()]
        (known,), (worked,), (size,) = read([*fine, ridge])
        if not known:
            raise IndefiniteError("the Hessian holds values that are not finite")
        if worked:
            return Factor(lower, size)
        damping = max(10 * damping, 1e-6)
    raise IndefiniteError(
        f"the Hessian stays indefinite at damping {damping / 10:g} · mean(diag H)"
    )
