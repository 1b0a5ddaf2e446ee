"""GPTAQ: GPTQ that also makes up for the inputs having changed, column by column."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from harness.methods.base import check_options
from harness.methods.gptq import GPTQ
from harness.numerics.statistics import Statistics


@dataclass(frozen=True)
class GPTAQ(GPTQ):
    """Li et al. 2025, "GPTAQ: asymmetric calibration", arXiv 2504.02692.

    GPTQ minimises ‖(W − V) X̂‖²; here the target is the full-precision output, ‖W X − V X̂‖². With
    E = X − X̂ the output misses Σ_j w_j E_j. Column by column, the columns k > j not yet rounded
    take up the part w_j E_j of column j by least squares on X̂:

        W_:,F ← W_:,F − (w_j − v_j) / U_jj · U_jF + w_j · P_jF                F = {k : k > j}
        P_jF  = a · (E_j X̂_Fᵀ/T) (H_FF)⁻¹ = a · C_jF U_FFᵀ U_FF

    which is P = a · strictly_upper(C Uᵀ) U for all j at once, since (H_FF)⁻¹ = U_FFᵀ U_FF for U
    upper triangular with UᵀU = (H + λI)⁻¹. w_j is column j as updated so far.

    Args:
        strength: a, the share of the input mismatch that is made up for; 0 is GPTQ.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"cross"})

    strength: float = 0.25

    def __post_init__(self) -> None:
        check_options(
            (
                "damping",
                self.damping,
                0 <= self.damping < math.inf,
                "are finite numbers from 0 up",
            ),
            ("strength", self.strength, 0 <= self.strength <= 1, "are numbers from 0 to 1"),
        )

    def carry(self, statistics: Statistics, order: Tensor, factor: Tensor) -> Tensor | None:
        """P ``[in, in]``, strictly upper triangular, in the order of processing."""
        if self.strength == 0:
            return None
        cross = statistics.require_cross()[order][:, order]
        return self.strength * (cross @ factor.T).triu_(1) @ factor
