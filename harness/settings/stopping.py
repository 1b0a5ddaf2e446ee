"""How a run may end before its end: given up as hopeless, or killed and gone on with later."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Stop:
    """Ends a run whose residual stream is lost already; its record says so and keeps its rows.

    No part of a run's identity: a run that is not stopped does not depend on it. A stopped run is
    left alone by a start that would stop it too, and done by one that would not.

    Args:
        error: bound on a block's relative error of the residual stream; None never stops.
        after: blocks that are passed before the first look.
    """

    error: float | None = None
    after: int = 1

    def __post_init__(self) -> None:
        problems = []
        if self.error is not None and not self.error > 0:
            problems.append(f"error={self.error}: must be positive, or null to stop no run")
        if self.after < 1:
            problems.append(f"after={self.after}: must be at least 1")
        if problems:
            raise ValueError("; ".join(problems))

    def verdict(self, row: Mapping[str, Any]) -> dict[str, Any] | None:
        """Why the run ends at the block of ``row`` (as in blocks.jsonl); None if it goes on."""
        block, found = row["block"], row["relative_error"]
        if self.error is None or block + 1 < self.after or found <= self.error:
            return None  # NaN, the error of a stream that has overflowed, is below no bound
        return {"block": block, "relative_error": found, "error": self.error, "after": self.after}

    def agrees(self, stopped: Mapping[str, Any]) -> bool:
        """Whether these bounds would have ended the run as well, at that block at the latest."""
        return self.verdict(stopped) is not None


@dataclass(frozen=True)
class Checkpoint:
    """How often a run keeps what it has: a killed one goes on from there, with equal results.

    Args:
        every: decoder blocks between two checkpoints; None keeps none.
    """

    every: int | None = None

    def __post_init__(self) -> None:
        if self.every is not None and self.every < 1:
            raise ValueError(f"every={self.every}: must be at least 1, or null for no checkpoints")
