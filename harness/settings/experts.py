"""What is done for the experts of a mixture that few calibration tokens reach."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Experts:
    """See :mod:`harness.starving`.

    Args:
        min_tokens: fewer calibration tokens than that are too few for statistics of an expert's own.
    """

    min_tokens: int = 128

    def __post_init__(self) -> None:
        if self.min_tokens < 1:
            raise ValueError(f"min_tokens={self.min_tokens}: must be at least 1")
