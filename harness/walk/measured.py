"""What the walk measures of outputs: sums where the outputs are, and the numbers that they become."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from torch import Tensor

from harness.numerics.device import read
from harness.walk.routing import Agreement, Counts

# What the tokens of a batch are for: the statistics of calibration; only to be measured; statistics of
# the method's own, from the reference stream alone.
Kind = Literal["calibration", "heldout", "own"]


@dataclass(frozen=True)
class OutputError:
    """Sums over tokens: ‖y − ŷ‖², ‖y‖² and their quotients, of a linear (without bias) or a block."""

    error: float = 0.0
    signal: float = 0.0
    quotients: float = 0.0
    tokens: int = 0

    @property
    def relative(self) -> float:
        """‖y − ŷ‖² / ‖y‖²."""
        return self.error / self.signal if self.signal else float("nan")

    @property
    def relative_token(self) -> float:
        """The mean over tokens of ‖y_t − ŷ_t‖² / ‖y_t‖², which no token of great norm rules."""
        return self.quotients / self.tokens


@dataclass(frozen=True)
class Measured:
    """An output error on calibration tokens and on held-out tokens."""

    calibration: OutputError = OutputError()
    heldout: OutputError = OutputError()


Key = str | int  # a linear by its name, a block by its index
Side = Literal["calibration", "heldout"]


@dataclass
class Sums:
    """The numbers of an :class:`OutputError` in the making, ``sums [3]`` where the outputs are."""

    sums: Tensor
    tokens: int

    def merge(self, other: Sums) -> None:
        """Adds those of ``other``."""
        self.sums = self.sums + other.sums
        self.tokens += other.tokens


def merge(into: dict[Any, Any], more: Mapping[Any, Any]) -> None:
    """Adds the sums of a lane to those of the lanes before it."""
    for key, one in more.items():
        if key in into:
            into[key].merge(one)
        else:
            into[key] = one


def settled(
    sums: Mapping[tuple[Key, Side], Sums], counts: Mapping[tuple[int, Kind], Counts]
) -> tuple[dict[Key, Measured], dict[int, dict[Kind, Agreement]]]:
    """The numbers of sums, and of counts by block, read all at once."""
    numbers = iter(
        read([one.sums for one in sums.values()] + [one.counts for one in counts.values()])
    )
    measured: dict[Key, Measured] = {}
    for (key, side), one in sums.items():
        error, signal, quotients = next(numbers)
        made = {side: OutputError(error, signal, quotients, one.tokens)}
        measured[key] = replace(measured.get(key, Measured()), **made)
    agreements: dict[int, dict[Kind, Agreement]] = {}
    for (block, kind), found in counts.items():
        same, borrowed = map(int, next(numbers))
        agreed = Agreement(same, found.choices, borrowed, found.total)
        agreements.setdefault(block, {})[kind] = agreed
    return measured, agreements
