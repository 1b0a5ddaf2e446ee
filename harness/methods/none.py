"""No quantisation: the full-precision baseline as an ordinary run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from harness.methods.base import Composition, Quantized
from harness.numerics.statistics import Statistics
from harness.numerics.storage import Storage
from harness.ranges.base import GridSpec


@dataclass(frozen=True)
class FullPrecision:
    """Leaves the model as it is: a run sees ``quantizes = False`` and goes on to evaluation."""

    needs: ClassVar[frozenset[str]] = frozenset()
    composition: ClassVar[Composition] = Composition()
    quantizes: ClassVar[bool] = False

    def quantize(
        self, weights: Mapping[str, Tensor], statistics: Statistics, spec: GridSpec
    ) -> dict[str, Quantized]:
        """Never called by a run.

        Raises:
            ValueError: always.
        """
        raise ValueError("method=none quantises nothing: evaluate the model as it is")

    def flops(self, rows: int, columns: int) -> float:
        """None."""
        return 0.0

    def storage(self, rows: int, columns: int, spec: GridSpec) -> Storage:
        """Never asked for by a run.

        Raises:
            ValueError: always.
        """
        raise ValueError("method=none packs nothing")
