"""AWQ: a scale search, clipped ranges, and rounding to nearest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from harness.methods.base import Composition
from harness.methods.rtn import RTN
from harness.ranges.loss import Loss
from harness.ranges.minmax import MinMax
from harness.transforms.awq import AWQ as ScaleSearch


@dataclass(frozen=True)
class AWQ(RTN):
    """Lin et al. 2024, "AWQ", arXiv 2306.00978, as a composition of parts that serve any method.

    The transform ``awq`` finds a scale for every input column, the range ``loss`` a clipping threshold
    for every group, and each weight goes to its nearest grid point. Queries and keys are left
    unclipped, as the authors do. What differs from their code stands with the two parts.
    """

    composition: ClassVar[Composition] = Composition(
        transforms={"awq": ScaleSearch()},
        range=Loss(),
        ranges={pattern: MinMax() for pattern in ("*q_proj", "*k_proj", "*query*", "*key*")},
    )
