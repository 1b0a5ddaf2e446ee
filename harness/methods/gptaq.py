"""GPTAQ: GPTQ that also makes up for the inputs having changed, column by column."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from harness.methods.base import check_options
from harness.methods.gptq import GPTQ, Carry
from harness.numerics.statistics import Statistics


@dataclass(frozen=True)
class GPTAQ(GPTQ):
    """Li et al. 2025, "GPTAQ: asymmetric calibration", arXiv 2504.02692.

    GPTQ minimises ‖(W − V) X̂‖²; here the target is the full-precision output, ‖W X − V X̂‖². With
    E = X − X̂ ``[tokens, in]`` the output misses Σ_j w_j E_jᵀ. Column by column, the columns k > j not
    yet rounded take up the part w_j E_jᵀ of column j by least squares on X̂:

        W_:,F ← W_:,F − (w_j − v_j) / U_jj · U_jF + w_j · P_jF                F = {k : k > j}
        P_jF  = a · (E_jᵀ X̂_F / T) (H_FF)⁻¹ = a · C_jF U_FFᵀ U_FF

    which is P = a · strictly_upper(C Uᵀ) U for all j at once, since (H_FF)⁻¹ = U_FFᵀ U_FF for U
    upper triangular with UᵀU = (H + λI)⁻¹. w_j is column j as updated so far.

    ``mode="rescomp"``: once w_j has been updated, w_j X_jᵀ is no longer what column j of the original
    weight, w°_j, gives. Li et al. 2026, "Rethinking residual errors", arXiv 2604.07955, algorithm 1, have
    the columns after it take up that difference as well:

        … + (w°_j − w_j) · R_jF        R = a · strictly_upper((H + C) Uᵀ) U        H + C = XᵀX̂ / T

    Their paper has no factor a; their code has one, of ¼ in either term. What w_j was updated by had
    made up for earlier columns, and is undone in part: with a = 1 total errors are larger than GPTQ's,
    at 2 bits twice as large, with a = ¼ about those of the plain mode.

    Args:
        strength: a, the share of the input mismatch that is made up for; 0 is GPTQ.
        mode: plain, or rescomp.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"cross"})

    strength: float = 0.25
    mode: Literal["plain", "rescomp"] = "plain"

    def __post_init__(self) -> None:
        check_options(
            (
                "damping",
                self.damping,
                0 <= self.damping < math.inf,
                "are finite numbers from 0 up",
            ),
            ("strength", self.strength, 0 <= self.strength <= 1, "are numbers from 0 to 1"),
            ("mode", self.mode, self.mode in ("plain", "rescomp"), "are plain, rescomp"),
        )

    def flops(self, rows: int, columns: int) -> float:
        """GPTQ's; for P, and for R, two products of ``[in, in]`` and a second update of the columns."""
        carried = 0 if self.strength == 0 else 1 if self.mode == "plain" else 2
        own = 4.0 * columns**3 + float(rows) * columns**2
        return super().flops(rows, columns) + carried * own

    def carry(self, statistics: Statistics, order: Tensor, factor: Tensor) -> Carry | None:
        """P and, with ``mode="rescomp"``, R ``[in, in]``, in the order of processing."""
        if self.strength == 0:
            return None

        def spread(moment: Tensor) -> Tensor:
            return self.strength * (moment[order][:, order] @ factor.T).triu_(1) @ factor

        cross = statistics.require_cross()
        if self.mode == "plain":
            return Carry(spread(cross))
        # P w_j + R (w°_j − w_j) = (P − R) w_j + R w°_j, and P − R is linear in C − (H + C)
        return Carry(spread(-statistics.hessian), spread(statistics.hessian + cross))
