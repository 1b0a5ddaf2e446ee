"""QuIP: rounding in a random basis, on one grid for the whole weight."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from harness.methods.base import Composition, Quantized, RowMethod, check_options
from harness.methods.gptq import GPTQ, Sweep, inverse_factor
from harness.numerics.statistics import Statistics
from harness.ranges.base import GridSpec
from harness.ranges.rms import RMS
from harness.transforms.orthogonal import Orthogonal
from harness.transforms.rescale import Rescale


@dataclass(frozen=True)
class QuIP(RowMethod):
    """Chee et al. 2023, "QuIP", arXiv 2307.13304, as a composition of parts that serve any method.

    The transform ``rescale`` balances the columns of weights and activations, ``orthogonal`` mixes
    inputs and outputs, the range ``rms`` gives one scale to the whole weight, and the format is
    ``midrise``. LDLQ rounding feeds errors back by the factor of H; by theorem 6 that is GPTQ, here with
    the columns from the last to the first, as in the authors' code. As there, weights are cut to the
    range before it, so that what is cut off is not fed back.

    The damping is theirs: 0.01 of mean(diag H) once the basis is found and 0.01 of that again. They
    round the result to float16 before they turn it back, and make each linear's rescaling alone; here
    neither is done.

    Args:
        damping: λ as a multiple of mean(diag H).
    """

    composition: ClassVar[Composition] = Composition(
        transforms={"rescale": Rescale(), "orthogonal": Orthogonal(sides="both")},
        range=RMS(),
        form="midrise",
    )

    damping: float = 0.0201

    def __post_init__(self) -> None:
        check_options(
            ("damping", self.damping, 0 <= self.damping < math.inf, "are finite numbers from 0 up")
        )

    def quantize_rows(self, weight: Tensor, statistics: Statistics, spec: GridSpec) -> Quantized:
        """See :meth:`RowMethod.quantize_rows`; grids are fitted to the weight as it comes."""
        hessian = statistics.hessian
        grid = spec.fit(weight, hessian)
        order = torch.arange(hessian.shape[0], device=hessian.device).flip(0)
        sweep = Sweep(order, *inverse_factor(hessian.flip(0, 1), self.damping), permuted=True)
        return sweep(grid.cut(weight), hessian, replace(spec, given=grid))

    def flops(self, rows: int, columns: int) -> float:
        """GPTQ's."""
        return GPTQ().flops(rows, columns)
