"""Which differences another order of summation explains: the noise floor of a figure.

At few bits a run is chaotic: a weight at a rounding edge goes either way with the last bit of a sum.
``noise/<metric>`` of a record is the standard deviation s of that metric over runs that differ in their
order of summation only (of its logarithm for a perplexity), ``noise_repeats`` says over how many.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from scipy import stats

from harness.records.record import PERPLEXITY

if TYPE_CHECKING:
    from analysis.groups import Group

LEVEL = 0.95
LEAST = 2.0  # standard deviations of a difference that are within the noise however many repeats there are
LOGARITHMIC = (PERPLEXITY,)
# The axes around a rounding, that a run's noise goes with.
AROUND = ("transform", "grid.range._target_", "grid.format._target_")
MARK = "≈"
BOLD = "Bold: the best, and what lies within the noise of it."
RULE = (
    "a difference of no more than q·sqrt(s² + s′²), where s and s′ are the two runs' standard deviations "
    "over repeats with another order of summation (for perplexities of the logarithm) and q is Student's "
    f"{100 * (1 + LEVEL) / 2:g} % quantile, {LEAST:g} at least"
)
WITHIN = f"Within the noise ({MARK}): {RULE}."
BORROWED = (
    "A run that was not repeated has the s of the one that it is compared with, or else the largest of "
    "the runs with its bits, groups, basis, range and levels, or else with its bits and groups."
)


@dataclass(frozen=True)
class Noise:
    """How far a figure of a run moves by itself.

    Args:
        run: that was repeated.
        deviation: s; infinite if a repeat diverged.
        repeats: runs behind it, two at least.
    """

    run: str
    deviation: float
    repeats: int


class Floor:
    """What is known of the noise of one metric."""

    def __init__(self, found: Iterable[Group]) -> None:
        self._groups = list(found)
        self._largest: dict[tuple[object, ...], Noise] = {}
        for group, place in ((one, place) for one in self._groups for place in _places(one)):
            every = [*group.noise.values(), self._largest.get(place)]
            known = [one for one in every if one is not None]
            if known:
                self._largest[place] = max(known, key=lambda one: one.deviation)

    def limit(self, members: Sequence[tuple[Group, int]], share: float = 1.0) -> float:
        """How large a difference of figures may be and yet be noise; NaN where none is known.

            q sqrt(Σ_i s_i² share²)        q = Student's quantile for Welch's degrees of freedom,

        (Σ_i v_i)² / Σ_i v_i²/(n_i − 1) with v_i the variance that comes from one repeated run.

        Args:
            members: group and seed of every figure that takes part.
            share: what each counts in the difference, 1/n for means over n seeds.
        """
        noises = [self._of(group, seed, members) for group, seed in members]
        known = [one for one in noises if one is not None]
        if len(known) < len(members):
            return math.nan
        variances: dict[Noise, float] = {}
        for one in known:
            variances[one] = variances.get(one, 0.0) + (one.deviation * share) ** 2
        total = sum(variances.values())
        if not 0 < total < math.inf:
            return total
        freedom = total**2 / sum(v**2 / (one.repeats - 1) for one, v in variances.items())
        return max(LEAST, float(stats.t.ppf((1 + LEVEL) / 2, freedom))) * math.sqrt(total)

    def of(self, one: Group, other: Group, seeds: Sequence[int]) -> float:
        """:meth:`limit` for the difference of two groups' means over these seeds."""
        members = [(group, seed) for group in (one, other) for seed in seeds]
        return self.limit(members, 1 / len(seeds))

    def explains(self, one: Group, other: Group, metric: str) -> bool:
        """Whether the means of two groups over the seeds of both differ within the noise."""
        seeds = sorted(one.finite.keys() & other.finite.keys())
        if not seeds:
            return False
        first, second = one.average(seeds), other.average(seeds)
        if metric.startswith(LOGARITHMIC):
            if min(first, second) <= 0:
                return False
            first, second = math.log(first), math.log(second)
        return abs(first - second) <= self.of(one, other, seeds)

    @property
    def known(self) -> bool:
        """Whether any run was repeated."""
        return bool(self._largest)

    @property
    def borrows(self) -> bool:
        """Whether noise is known, but not of every quantised run."""
        quantised = [group for group in self._groups if group.method != "none"]
        lacking = any(group.values.keys() - group.noise.keys() for group in quantised)
        return self.known and lacking

    def _of(self, group: Group, seed: int, members: Sequence[tuple[Group, int]]) -> Noise | None:
        """The noise of a figure: its own, or that of another seed, a fellow member, another recipe."""
        if seed in group.noise:
            return group.noise[seed]
        near, far = _places(group)
        fellows = [one for one, _ in members if far in _places(one)]
        for some in ([group], fellows):
            known = [noise for one in some for noise in one.noise.values()]
            if known:
                return max(known, key=lambda one: one.deviation)
        return self._largest.get(near, self._largest.get(far))


def noise_notes(floors: Iterable[Floor], *more: str) -> list[str]:
    """What noise means below figures with these floors, and ``more``; nothing where no run was repeated."""
    floors = list(floors)
    said = [WITHIN, *more] if any(one.known for one in floors) else []
    return [*said, *([BORROWED] if any(one.borrows for one in floors) else [])]


def _places(group: Group) -> tuple[tuple[object, ...], tuple[object, ...]]:
    """Where runs are about as noisy: on the same grid in the same axes, or at the same bits and groups."""
    far = group.model, group.bits, group.group_size
    return (*far, *(group.settings.get(axis) for axis in AROUND)), far
