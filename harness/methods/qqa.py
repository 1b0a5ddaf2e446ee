"""QQA rounding: quasi-quantum annealing over two neighbouring grid points of every weight."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from harness.methods.base import Quantized, RowMethod, check_options
from harness.methods.gptq import GPTQ
from harness.methods.quantease import MARGIN, QuantEase
from harness.methods.rtn import RTN
from harness.numerics.device import there
from harness.numerics.finite import check_finite
from harness.numerics.grid import Grid
from harness.numerics.kernels import map_chunks
from harness.numerics.statistics import Statistics
from harness.numerics.storage import Storage
from harness.ranges.base import GridSpec

# Relaxed variables worked on at a time: bounds the memory, and suits a CPU's cache, or keeps a device busy.
CHUNK, DEVICE_CHUNK = 2**19, 2**26
CHECKS = 4  # how often a round looks at its rounded solutions
BETAS, DECAY, EPSILON = (0.9, 0.95), 0.01, 1e-8  # of AdamW; few steps want a short memory


@dataclass(frozen=True)
class Drawn:
    """The random numbers of a round: ``start [solutions, 1, in]``, ``noise [steps, solutions, 1, in]``."""

    start: Tensor
    noise: Tensor


@dataclass(frozen=True)
class QQA(RowMethod):
    """Rounding by Parallel Quasi-Quantum Annealing (Ichikawa & Arai 2024, arXiv 2409.02135).

    From a quantised V every weight may take one step d_j to a neighbouring grid point: V + d∘p with
    binary p, an integer least-squares problem per row. Relaxed to 0 ≤ p ≤ 1 and solved for S
    solutions at once:

        min  Σ_s [ L(V + d∘p_s) + γ Σ_j k_j (1 − (1 − 2 p_sj)^c) ] − b Σ_j k_j std_s(p_sj)

    L is the layer loss (W* − V) H (W* − V)ᵀ; k_j = d_j² H_jj, the curvature of L in p_j, makes γ
    and b free of units. γ rises from ``gamma_min`` (a negative one favours p = ½) to ``gamma_max``
    (binary p). AdamW steps on the gradient in units of k_j, plus noise; after every few steps p is
    rounded and the best true loss of every row kept. So no row ends worse than its start.

    Rounds re-centre on the best solution. d_j points to where column j alone would like to go, but
    across W*_j in every second round before the last, and in the first one after RTN, where V_j
    and V_j + d_j are then the two neighbours of W*_j.

    Args:
        start: the method whose result is improved, with its default options.
        solutions: S.
        steps: gradient steps in a round.
        rounds: times that d is chosen anew.
        gamma_min: γ at the start of a round.
        gamma_max: γ at the end of a round.
        curve: c, even.
        temperature: T; the noise of a step has variance 2 · lr · T.
        diversity: b, what the spread over solutions is worth.
        lr: step size of AdamW.
        spread: p of solution s = 0, 1, … starts uniform in [0, spread + (1 − spread) · max(s − 1, 0) / S]:
            two in [0, spread], others farther and farther out; 0 is the current V.
        seed: of noise and starting points, which all rows share.
    """

    start: Literal["rtn", "gptq", "quantease"] = "gptq"
    solutions: int = 2
    steps: int = 80
    rounds: int = 1
    gamma_min: float = 0.1
    gamma_max: float = 0.3
    curve: int = 2
    temperature: float = 1e-4
    diversity: float = 0.03
    lr: float = 0.2
    spread: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        starts, finite = ("rtn", "gptq", "quantease"), math.isfinite
        even = self.curve >= 2 and self.curve % 2 == 0
        highest = finite(self.gamma_max) and self.gamma_max >= self.gamma_min
        upwards = "are finite numbers from 0 up"
        check_options(
            ("start", self.start, self.start in starts, "are rtn, gptq, quantease"),
            ("solutions", self.solutions, self.solutions >= 1, "are whole numbers from 1 up"),
            ("steps", self.steps, self.steps >= 1, "are whole numbers from 1 up"),
            ("rounds", self.rounds, self.rounds >= 1, "are whole numbers from 1 up"),
            ("gamma_min", self.gamma_min, finite(self.gamma_min), "are finite numbers"),
            ("gamma_max", self.gamma_max, highest, "are finite numbers from gamma_min up"),
            ("curve", self.curve, even, "are even numbers from 2 up"),
            ("temperature", self.temperature, 0 <= self.temperature < math.inf, upwards),
            ("diversity", self.diversity, 0 <= self.diversity < math.inf, upwards),
            ("lr", self.lr, 0 < self.lr < math.inf, "are finite numbers above 0"),
            ("spread", self.spread, 0 <= self.spread <= 1, "are numbers from 0 to 1"),
            ("seed", self.seed, 0 <= self.seed < 2**32, "are whole numbers from 0 to 2^32 − 1"),
        )

    def flops(self, rows: int, columns: int) -> float:
        """The start's, and one product with H per step and solution."""
        steps = float(self.rounds) * self.steps * self.solutions
        return self._start().flops(rows, columns) + 2.0 * steps * rows * columns**2

    def storage(self, rows: int, columns: int, spec: GridSpec) -> Storage:
        """See :meth:`Method.storage`: the start's, whose grid stays."""
        return self._start().storage(rows, columns, spec)

    def _start(self) -> RowMethod:
        return {"rtn": RTN(), "gptq": GPTQ(), "quantease": QuantEase()}[self.start]

    def quantize_rows(self, weight: Tensor, statistics: Statistics, spec: GridSpec) -> Quantized:
        """See :meth:`RowMethod.quantize_rows`; traces ``loss``, ``penalty`` and ``diversity``."""
        begin = self._start().quantize_rows(weight, statistics, spec)
        chunk = CHUNK if weight.device.type == "cpu" else DEVICE_CHUNK
        size = max(1, chunk // (self.solutions * weight.shape[1]))
        chunks = [slice(first, first + size) for first in range(0, weight.shape[0], size)]
        drawn = self.draw(weight)

        def improve(rows: slice) -> tuple[Tensor, Tensor]:
            codes, grid = begin.codes[rows], begin.grid.rows(rows)
            return self.improve(weight[rows], codes, grid, statistics.hessian, drawn)

        codes, curves = zip(*map_chunks(improve, chunks, weight.device), strict=True)
        final = torch.cat(codes)
        loss, penalty, diversity = torch.cat(curves, dim=2).unbind(0)
        traces = {"loss": loss, "penalty": penalty, "diversity": diversity}
        dense = begin.grid.dequantize(final)
        return replace(begin, weight=dense, codes=final, traces=traces)

    def draw(self, like: Tensor) -> list[Drawn]:
        """What the rounds draw, on the host, for weights ``like [out, in]`` on their device."""
        generator = torch.Generator().manual_seed(self.seed)
        shape = (self.solutions, 1, like.shape[1])
        rounds = []
        for _ in range(self.rounds):
            start = torch.rand(shape, generator=generator)
            count = self.steps if self.temperature else 0
            noise = torch.empty(count, *shape)
            # One after the other: a generator's numbers depend on how many are asked for.
            for step in noise:
                torch.randn(shape, generator=generator, out=step)
            noise = there(noise, like.device).to(like.dtype)
            rounds.append(Drawn(there(start, like.device), noise))
        return rounds

    def improve(
        self, weight: Tensor, codes: Tensor, grid: Grid, hessian: Tensor, drawn: Sequence[Drawn]
    ) -> tuple[Tensor, Tensor]:
        """Codes ``[rows, in]`` and traces ``[3, rounds · steps, rows]`` after all rounds."""
        curves = []
        for index in range(self.rounds):
            delta = weight - grid.dequantize(codes)
            around = (self.rounds - 1 - index) % 2 == 1 or (self.start == "rtn" and index == 0)
            pull = delta if around else delta @ hessian
            sign = torch.where(pull >= 0, 1, -1)
            sign = torch.where(codes == 0, 1, torch.where(codes == grid.codebook.top, -1, sign))
            step = grid.neighbour(codes, sign)
            taken, curve = self.anneal(delta, step, hessian, drawn[index])
            codes = (codes.to(torch.int16) + sign * taken).to(torch.uint8)
            curves.append(curve)
        return codes, torch.cat(curves, dim=1)

    def anneal(
        self, delta: Tensor, step: Tensor, hessian: Tensor, drawn: Drawn
    ) -> tuple[Tensor, Tensor]:
        """Which steps of every row to take, bool ``[rows, in]``, and traces ``[3, steps, rows]``.

        Args:
            delta: W* − V, ``[rows, in]``.
            step: d, ``[rows, in]``.
            hessian: H, ``[in, in]``.
            drawn: starting points and noise.
        """
        order = torch.arange(self.solutions, device=delta.device)
        farther = (order - 1).clamp(min=0) / self.solutions
        widths = self.spread + (1 - self.spread) * farther
        initial = widths[:, None, None] * drawn.start
        relaxed = initial.to(delta.dtype).expand(-1, delta.shape[0], -1).contiguous()
        first, second = torch.zeros_like(relaxed), torch.zeros_like(relaxed)
        diagonal = hessian.diagonal()
        unit = -2 / (step * torch.where(diagonal == 0, 1.0, diagonal))
        best = losses(delta, hessian)
        check_finite("the loss", best)
        taken = torch.zeros_like(delta, dtype=torch.bool)
        curves, check = [], -(-self.steps // CHECKS)
        for index in range(self.steps):
            share = index / max(1, self.steps - 1)
            gamma = self.gamma_min + (self.gamma_max - self.gamma_min) * share
            gradient, curve = self.gradient(relaxed, delta, step, hessian, unit, gamma)
            curves.append(curve)
            first.lerp_(gradient, 1 - BETAS[0])
            second.mul_(BETAS[1]).addcmul_(gradient, gradient, value=1 - BETAS[1])
            size = (second / (1 - BETAS[1] ** (index + 1))).sqrt_().add_(EPSILON)
            relaxed.mul_(1 - self.lr * DECAY)
            relaxed.addcdiv_(first, size, value=-self.lr / (1 - BETAS[0] ** (index + 1)))
            if self.temperature:
                relaxed += math.sqrt(2 * self.lr * self.temperature) * drawn.noise[index]
            relaxed.clamp_(0, 1)
            if (index + 1) % check == 0 or index == self.steps - 1:
                rounded = relaxed > 0.5
                loss, which = losses(delta - step * rounded, hessian).min(dim=0)
                better = loss < best * (1 - MARGIN)
                best = torch.where(better, loss, best)
                chosen = rounded[which, torch.arange(len(which), device=which.device)]
                taken = torch.where(better[:, None], chosen, taken)
        return taken, torch.stack(curves, dim=1)

    def gradient(
        self,
        relaxed: Tensor,
        delta: Tensor,
        step: Tensor,
        hessian: Tensor,
        unit: Tensor,
        gamma: float,
    ) -> tuple[Tensor, Tensor]:
        """The objective's gradient in units of k_j, and loss, penalty and spread ``[3, rows]``.

        With R = W* − V − d∘p: ∂L/∂p_j / k_j = −2 (R H)_j / (d_j H_jj), the penalty adds
        2 c γ (1 − 2 p_j)^(c−1) and the spread −b (p_sj − mean_s p_sj) / (S std_s(p_sj)).
        """
        rest = delta - step * relaxed
        slope = rest @ hessian
        loss = (slope * rest).sum(dim=2)
        gradient = slope.mul_(unit)
        centred = 1 - 2 * relaxed
        power = centred.pow(self.curve - 1)
        gradient.add_(power, alpha=2 * self.curve * gamma)
        penalty = (1 - power * centred).sum(dim=2)
        apart = relaxed - relaxed.mean(dim=0)
        spread = apart.square().mean(dim=0).sqrt_()
        if self.diversity and self.solutions > 1:
            apart /= (spread * self.solutions).clamp_(min=EPSILON)
            gradient.add_(apart, alpha=-self.diversity)
        return gradient, torch.stack([loss.mean(dim=0), penalty.mean(dim=0), spread.sum(dim=1)])


def losses(delta: Tensor, hessian: Tensor) -> Tensor:
    """δ H δᵀ ``[..., rows]`` of every row of ``delta [..., rows, in]``."""
    return ((delta @ hessian) * delta).sum(dim=-1)
