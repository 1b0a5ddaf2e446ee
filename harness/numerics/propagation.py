"""Quantization Error Propagation: correct a weight for the errors of the layers before it.

Arai & Ichikawa, "Quantization Error Propagation", NeurIPS 2025, arXiv 2504.09629. The full-precision
layer computes W X; the quantised model offers X̂ instead. Before any base method runs, W becomes

    W* = W + α · M        M = W C (H + λI)⁻¹        λ = damping · mean(diag H)

with H, C of :mod:`harness.numerics.statistics`. α = 1 without damping is the least-squares fit of W X from
X̂; α = 0 is no propagation. For 0 ≤ α ≤ 1 and any damping the total error before rounding falls.

``alpha="auto"``: before rounding the total error is quadratic in α, with its minimum at

    α° = tr(M C'ᵀ Wᵀ) / tr(M H' Mᵀ)

(clipped to [0, 1]); H' and C' are statistics of held-out calibration tokens, since on its own
tokens M is always best uncut. The damping is chosen from ``dampings`` by the same error.

``target="residual"``: what the model sees of a linear whose output is added to the residual stream is
the stream. With R and R̂ the streams that it is added to, W* then answers for what they have lost too
(LoaQ, arXiv 2509.06297; LPCD, arXiv 2512.01546):

    min ‖(R + W X) − (R̂ + W* X̂)‖²        M = [W C + K] (H + λI)⁻¹        K = (R − R̂)ᵀ X̂ / T

so that W C + K takes the place of W C everywhere above, and no such linear is skipped. Other linears keep
the plain target.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatch
from typing import Literal

import torch
from torch import Tensor

from harness.numerics.cholesky import damped_cholesky
from harness.numerics.forms import Distance, forms
from harness.numerics.statistics import Statistics

Target = Literal["input", "residual"]


@dataclass(frozen=True)
class Corrected:
    """A corrected weight ``[out, in]``, the α and damping that made it, and what it answers for."""

    weight: Tensor
    alpha: float
    damping: float
    ridge: float = 0.0
    target: Target = "input"


def missing(weight: Tensor, statistics: Statistics) -> Tensor:
    """W C, or W C + K of linears that write to the residual stream: ``[out, in]``."""
    carried = weight @ statistics.require_cross()
    return carried if statistics.residual is None else carried + statistics.residual


def correction(
    weight: Tensor, statistics: Statistics, damping: float, carried: Tensor | None = None
) -> tuple[Tensor, float]:
    """M = [W C + K] (H + λI)⁻¹ ``[out, in]`` and the ridge λ; arXiv 2504.09629, W* at α = 1.

    The triangular systems are solved for the smaller of C ``[in, in]`` and W C + K ``[out, in]``.

    Args:
        weight: W ``[out, in]``.
        statistics: H, C, and K if the target is the residual stream.
        damping: λ as a multiple of mean(diag H).
        carried: W C + K, where it is known already.
    """
    factor = damped_cholesky(statistics.hessian, damping)
    if weight.shape[0] > weight.shape[1] and statistics.residual is None:
        cross = statistics.require_cross()
        return weight @ torch.cholesky_solve(cross.T, factor.lower).T, factor.ridge
    carried = missing(weight, statistics) if carried is None else carried
    return torch.cholesky_solve(carried.T, factor.lower).T, factor.ridge


def correction_flops(rows: int, columns: int) -> float:
    """The Cholesky factor of H + λI, two triangular systems per row of C or W C, a product with W."""
    return columns**3 / 3 + 2.0 * min(rows, columns) * columns**2 + 2.0 * rows * columns**2


@dataclass(frozen=True)
class Propagation:
    """Which linears are corrected, and by how much.

    Args:
        alpha: share of the correction, in [0, 1], or "auto" (needs held-out calibration windows).
        damping: λ as a multiple of mean(diag H); 1.0 as in the authors' script.
        skip: glob patterns of linears left uncorrected (the authors skip the MLP's last projection).
        overrides: α by glob pattern; the last match wins, also over ``skip``.
        dampings: what "auto" chooses the damping from.
        statistics: the stream whose activations feed the base method's H.
        target: what a corrected weight answers for: its input having changed, or, where its output is
            added to the residual stream, that stream; see the module's docstring.
    """

    alpha: float | Literal["auto"] = 0.5
    damping: float = 1.0
    skip: tuple[str, ...] = ()
    overrides: Mapping[str, float | Literal["auto"]] = field(default_factory=dict)
    dampings: tuple[float, ...] = (1.0, 0.3, 0.1, 0.03, 0.01, 0.003)
    statistics: Literal["quantized", "reference"] = "quantized"
    target: Target = "input"

    def __post_init__(self) -> None:
        problems = [
            f"{name}={value!r}: allowed are 'auto' and numbers from 0 to 1"
            for name, value in [("alpha", self.alpha)]
            + [(f"overrides[{pattern}]", value) for pattern, value in self.overrides.items()]
            if value != "auto" and not 0 <= value <= 1
        ]
        problems += [
            f"{name}={value!r}: must be finite and at least 0"
            for name, value in [
                ("damping", self.damping),
                *(("dampings", d) for d in self.dampings),
            ]
            if not 0 <= value < float("inf")
        ]
        if not self.dampings:
            problems.append("dampings=(): auto needs at least one to choose from")
        if problems:
            raise ValueError("; ".join(problems))

    @property
    def automatic(self) -> bool:
        """Whether any linear's α is chosen on held-out tokens."""
        return "auto" in (self.alpha, *self.overrides.values())

    def alpha_of(self, name: str, target: Target = "input") -> float | Literal["auto"]:
        """The α of the linear ``name``: overrides, then skip (not of its stream), then alpha."""
        skipped = target == "input" and any(fnmatch(name, pattern) for pattern in self.skip)
        alpha = 0.0 if skipped or self.alpha == 0 else self.alpha
        for pattern, value in self.overrides.items():
            if fnmatch(name, pattern):
                alpha = value
        return alpha

    def corrects(self, name: str, target: Target = "input") -> bool:
        """Whether the linear ``name`` is corrected."""
        return self.alpha_of(name, target) != 0

    def correct(
        self,
        weights: Mapping[str, Tensor],
        statistics: Statistics,
        heldout: Statistics | None = None,
        writers: Collection[str] = (),
    ) -> dict[str, Corrected]:
        """W* of every linear of a stage; α = 0 hands W on untouched.

        Args:
            weights: W by linear name, each ``[out, in]``.
            statistics: of the inputs that they share.
            heldout: of held-out tokens, for "auto".
            writers: those whose target is the residual stream; the statistics then hold K.
        """
        others = {name: weight for name, weight in weights.items() if name not in writers}
        result = self._correct(
            others, _without(statistics), heldout and _without(heldout), "input"
        )
        for name in writers:  # each by itself: K has the rows of one output
            for one in (statistics, heldout):
                if one is not None:
                    one.require_residual()
            result |= self._correct({name: weights[name]}, statistics, heldout, "residual")
        return {name: result[name] for name in weights}

    def _correct(
        self,
        weights: Mapping[str, Tensor],
        statistics: Statistics,
        heldout: Statistics | None,
        target: Target,
    ) -> dict[str, Corrected]:
        """W* of linears of one target."""
        alphas = {name: self.alpha_of(name, target) for name in weights}
        result = {
            name: Corrected(weight, 0.0, self.damping, target=target)
            for name, weight in weights.items()
        }
        fixed = {name: alpha for name, alpha in alphas.items() if alpha not in (0, "auto")}
        if fixed:
            stacked = torch.cat([weights[name] for name in fixed])
            direction, ridge = correction(stacked, statistics, self.damping)
            parts = torch.split(direction, [weights[name].shape[0] for name in fixed])
            for (name, alpha), part in zip(fixed.items(), parts, strict=True):
                assert alpha != "auto"
                moved = weights[name].add(part, alpha=alpha)
                result[name] = Corrected(moved, float(alpha), self.damping, ridge, target)
        automatic = [name for name, alpha in alphas.items() if alpha == "auto"]
        if automatic:
            if heldout is None:
                raise ValueError("qep.alpha=auto needs held-out tokens: set calibration.holdout")
            chosen = self._choose({name: weights[name] for name in automatic}, statistics, heldout)
            result |= {name: replace(one, target=target) for name, one in chosen.items()}
        return result

    def _choose(
        self, weights: Mapping[str, Tensor], statistics: Statistics, heldout: Statistics
    ) -> dict[str, Corrected]:
        """Per linear the α and damping of the least held-out total error before rounding."""
        stacked = torch.cat(list(weights.values()))
        sizes = [weight.shape[0] for weight in weights.values()]
        few = stacked.shape[0] <= stacked.shape[1]
        carried = missing(stacked, statistics) if few else None
        wanted = torch.split(missing(stacked, heldout), sizes)
        best = {
            name: (0.0, Corrected(weight, 0.0, self.damping)) for name, weight in weights.items()
        }
        for damping in self.dampings:
            direction, ridge = correction(stacked, statistics, damping, carried)
            parts = torch.split(direction, sizes)
            chosen = best_alphas(wanted, parts, heldout.hessian)
            for (name, weight), part, (alpha, change) in zip(
                weights.items(), parts, chosen, strict=True
            ):
                if change < best[name][0]:
                    best[name] = (
                        change,
                        Corrected(weight.add(part, alpha=alpha), alpha, damping, ridge),
                    )
        return {name: corrected for name, (_, corrected) in best.items()}


def _without(statistics: Statistics) -> Statistics:
    """The statistics without K: those of linears whose target is their input."""
    return replace(statistics, residual=None)


def best_alphas(
    carried: Sequence[Tensor], directions: Sequence[Tensor], hessian: Tensor
) -> list[tuple[float, float]]:
    """α° in [0, 1] for each direction M, and what it changes in the total error before rounding (≤ 0).

    Of W + αM the total error is α² tr(M H' Mᵀ) − 2α tr(M (W C' + K')ᵀ) + const, K' being 0 but for the
    residual stream.

    Args:
        carried: W C' + K' ``[out, in]`` of held-out tokens.
        directions: M ``[out, in]``.
        hessian: H' ``[in, in]`` of held-out tokens.
    """
    gains = [
        (mine * one).sum(dtype=torch.float64)
        for mine, one in zip(carried, directions, strict=True)
    ]
    curvatures, (found,) = forms(
        [Distance(hessian, one) for one in directions], [torch.stack(gains)]
    )
    return [_least(gain, curvature) for gain, curvature in zip(found, curvatures, strict=True)]


def _least(gain: float, curvature: float) -> tuple[float, float]:
    """The α in [0, 1] of least α² · curvature − 2α · gain, and this."""
    if gain <= 0 or curvature <= 0:
        return 0.0, 0.0
    alpha = min(gain / curvature, 1.0)
    return alpha, alpha**2 * curvature - 2 * alpha * gain
