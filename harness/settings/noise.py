"""How far a figure is a matter of rounding: the same run with another order of summation."""

from __future__ import annotations

from dataclasses import dataclass

MOST = 1000  # repeats: each is a run


@dataclass(frozen=True)
class Noise:
    """Other batches of the same calibration windows: in exact arithmetic the run would not change.

    Args:
        seed: 0 takes the windows as they come, in batches of ``batch_tokens``; any other number
            draws their order and a size of batches (:func:`harness.inputs.batches.split_windows`).
        repeats: how many runs the command line makes of this one, with seeds from 0 up; no part of
            a run's identity.
    """

    seed: int = 0
    repeats: int = 1

    def __post_init__(self) -> None:
        problems = []
        if self.seed < 0:
            problems.append(f"seed={self.seed}: must be at least 0")
        if self.repeats < 1:
            problems.append(f"repeats={self.repeats}: must be at least 1")
        if self.repeats > MOST:
            problems.append(f"repeats={self.repeats}: at most {MOST}")
        if problems:
            raise ValueError("; ".join(problems))
