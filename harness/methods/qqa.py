"""QQA rounding: parallel quasi-quantum annealing over the two nearest grid points of every weight."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from harness.grid import Grid, GridSpec
from harness.methods.base import Quantized, RowMethod, check_options
from harness.methods.gptq import GPTQ
from harness.methods.quantease import MARGIN, QuantEase
from harness.methods.rtn import RTN
from harness.statistics import Statistics

CHUNK = 2**19  # relaxed variables worked on at a time: bounds the memory, and fits the cache
CHECKS = 4  # how often a round looks at its rounded solutions
MOMENTS, DECAY, EPSILON = (0.9, 0.999), 0.01, 1e-8  # of AdamW, its defaults


@dataclass(frozen=True)
class Problem:
    """Binary least squares of some rows: Δ = W* − V now, one ``step`` per weight that may be taken.

    ``delta`` and ``step`` are ``[rows, in]``; H is ``[in, in]``.
    """

    delta: Tensor
    step: Tensor
    hessian: Tensor

    def losses(self, taken: Tensor) -> Tensor:
        """L = (Δ − step∘p) H (Δ − step∘p)ᵀ ``[solutions, rows]`` for p ``[solutions, rows, in]``."""
        rest = self.delta - self.step * taken
        return ((rest @ self.hessian) * rest).sum(dim=2)


@dataclass(frozen=True)
class QQA(RowMethod):
    """..."""

    start: Literal["rtn", "gptq", "quantease"] = "gptq"
    solutions: int = 4
    steps: int = 24
    rounds: int = 2
    gamma_min: float = -0.5
    gamma_max: float = 0.5
    curve: int = 2
    temperature: float = 1e-4
    diversity: float = 0.1
    lr: float = 0.1
    seed: int = 0
    init: float = 0.5
    side: str = "u"

    def quantize_rows(self, weight: Tensor, statistics: Statistics, spec: GridSpec) -> Quantized:
        starts = {"rtn": RTN(), "gptq": GPTQ(), "quantease": QuantEase()}
        begin = starts[self.start].quantize_rows(weight, statistics, spec)
        grid, codes = begin.grid, begin.codes
        size = max(1, CHUNK // (self.solutions * weight.shape[1]))
        traces = []
        parts = []
        for first in range(0, weight.shape[0], size):
            rows = slice(first, first + size)
            c, tr = self.improve(weight[rows], codes[rows], grid.rows(rows), statistics.hessian)
            parts.append(c)
            traces.append(tr)
        codes = torch.cat(parts)
        curves = torch.cat(traces, dim=2)
        return Quantized(
            grid.dequantize(codes),
            codes,
            grid,
            traces=dict(zip(("loss", "penalty", "diversity"), curves)),
        )

    def improve(self, weight, codes, grid, hessian):
        generator = torch.Generator().manual_seed(self.seed)
        traces = []
        scale, _ = grid.expanded()
        diagonal = hessian.diagonal()
        diagonal = torch.where(diagonal == 0, 1.0, diagonal)
        for r in range(self.rounds):
            delta = weight - grid.dequantize(codes)
            if self.side == "u" or (self.side == "alt" and r % 2 == 1):
                pull = delta @ hessian
            else:
                pull = delta
            up = torch.where(pull >= 0, 1, -1)
            up = torch.where((codes == 0) & (up < 0), 1, up)
            up = torch.where((codes == grid.levels) & (up > 0), -1, up)
            problem = Problem(delta, up * scale, hessian)
            taken, trace = self.anneal(problem, diagonal, generator)
            codes = (codes.to(torch.int16) + up * taken).to(torch.uint8)
            traces.append(trace)
        return codes, torch.cat(traces, dim=1)

    def anneal(self, problem, diagonal, generator):
        S = self.solutions
        rows, n = problem.delta.shape
        noise = lambda: torch.randn(S, 1, n, generator=generator)
        p = (self.init + 0.1 * noise()).expand(S, rows, n).clamp(0, 1).contiguous()
        m = torch.zeros_like(p)
        v = torch.zeros_like(p)
        best = ((problem.delta @ problem.hessian) * problem.delta).sum(1)
        taken = torch.zeros(rows, n, dtype=torch.bool)
        pre = 2 / (problem.step * diagonal)
        curves = []
        every = max(1, self.steps // CHECKS)
        for t in range(self.steps):
            gamma = self.gamma_min + (self.gamma_max - self.gamma_min) * t / max(1, self.steps - 1)
            rest = problem.delta - problem.step * p
            g0 = rest @ problem.hessian
            loss = (g0 * rest).sum(2)
            grad = g0.mul_(-pre)
            x = 1 - 2 * p
            pen = (1 - x**self.curve).sum(2)
            grad += gamma * 2 * self.curve * x ** (self.curve - 1)
            mean = p.mean(0)
            std = p.std(0, unbiased=False)
            if self.diversity:
                grad -= self.diversity * (p - mean) / (std * S).clamp(min=1e-3)
            curves.append(torch.stack([loss.mean(0), pen.mean(0), std.sum(1)]))
            b1, b2 = MOMENTS
            m.lerp_(grad, 1 - b1)
            v.mul_(b2).addcmul_(grad, grad, value=1 - b2)
            c1 = 1 - b1 ** (t + 1)
            c2 = 1 - b2 ** (t + 1)
            p.mul_(1 - self.lr * DECAY)
            p.addcdiv_(m, (v / c2).sqrt_().add_(EPSILON), value=-self.lr / c1)
            if self.temperature:
                p += math.sqrt(2 * self.lr * self.temperature) * noise()
            p.clamp_(0, 1)
            if (t + 1) % every == 0 or t == self.steps - 1:
                cand = p > 0.5
                L, which = problem.losses(cand).min(0)
                better = L < best * (1 - MARGIN)
                best = torch.where(better, L, best)
                taken[better] = cand[which, torch.arange(rows)][better]
        return taken, torch.stack(curves, 1)
