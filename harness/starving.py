"""Experts that few calibration tokens reach: their statistics come from elsewhere, and say so.

Of an expert with n tokens, fewer than m = ``experts.min_tokens``, the moments M (H, C, D, magnitudes) are

- *blended* where it reads tokens of the layer as they are (its first projection), as if the tokens that
  are missing had been average ones of all tokens of the layer:

      M ← (n M + (m − n) M_layer) / m

- *rounded* further on, where no other expert's tokens are like its own: H = I, C = 0. Then there is no
  correction, and no weight makes up for another one's rounding, whatever the method.

No statistics are ever those of nothing. Held-out tokens, which are fewer, are blended alike; further on
they stay as they are, and ``alpha=auto`` finds nothing to gain where there are none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from harness.numerics.propagation import Corrected, Propagation
from harness.numerics.statistics import Statistics
from harness.walk.measured import Kind
from harness.walk.walk import StageInputs

Fallback = Literal["blended", "rounded"]


@dataclass(frozen=True)
class Fed:
    """A stage with statistics that suffice, and what has been done for that, if anything."""

    inputs: StageInputs
    fallback: Fallback | None = None

    def correct(
        self, propagation: Propagation, writers: tuple[str, ...] = ()
    ) -> dict[str, Corrected]:
        """W* of every linear of the stage."""
        inputs = self.inputs
        if self.fallback == "rounded":
            propagation = replace(propagation, alpha=0.0, overrides={})
        return propagation.correct(inputs.weights, inputs.statistics, inputs.heldout, writers)


def fed(stage: StageInputs, min_tokens: int) -> Fed:
    """``stage``, or the same with statistics of ``min_tokens`` where it is an expert that has fewer."""
    if stage.stage.linears[0].mixture is None:
        return Fed(stage)
    given: dict[Kind, Statistics | None] = {
        "calibration": stage.statistics,
        "heldout": stage.heldout,
        "own": stage.own,
    }
    few = {kind: one for kind, one in given.items() if one and one.tokens < min_tokens}
    starved = "calibration" in few or "own" in few
    if stage.pool is not None and few:
        pool = stage.pool()
        made = {kind: one.blended(pool[kind], min_tokens) for kind, one in few.items()}
        return Fed(_with(stage, made), "blended" if starved else None)
    if not starved:
        return Fed(stage)
    made = {kind: one.of_nothing() for kind, one in few.items() if kind != "heldout"}
    return Fed(_with(stage, made), "rounded")


def _with(stage: StageInputs, made: Mapping[Kind, Statistics]) -> StageInputs:
    """``stage`` with other statistics of some kinds of tokens."""
    return replace(
        stage,
        statistics=made.get("calibration", stage.statistics),
        heldout=made.get("heldout", stage.heldout),
        own=made.get("own", stage.own),
    )
