"""How far a sweep is and how long the rest will take, from the work that its runs have taken so far."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from harness.command.estimate import Estimator
from harness.command.on_device import duration
from harness.records.record import Record
from harness.settings.config import Config
from harness.walk.weightless import WeightlessError


@dataclass
class Pace:
    """Counts the runs of a sweep as they end.

    A run that is left takes as long for each counted operation as the ended ones of its method did (of
    any method, where none of its own has ended yet), and as many are under way at once as so far.

    Args:
        total: runs of the sweep.
        left: those that are still to do.
        clock: seconds.
    """

    total: int
    left: Sequence[Config]
    clock: Callable[[], float] = time.perf_counter
    _started: float = field(init=False)
    _waiting: dict[str, Config] = field(init=False)
    _work: dict[str, float] = field(init=False)
    _ended: dict[str, list[tuple[float, float]]] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self._waiting = {config.run_id: config for config in self.left}
        self._work = _counted(self.left)
        self._started = self.clock()

    def ended(self, run: str, record: Record | None = None) -> str:
        """``7/18 · about 40 min left``; nothing for a run that is none of the sweep's.

        Args:
            run: which.
            record: with the seconds that it took; None for one that failed or was done elsewhere.
        """
        config = self._waiting.pop(run, None)
        if config is None:
            return ""
        if record is not None:
            measured = (record.seconds.get("total", 0.0), self._work[run])
            self._ended.setdefault(config.method_name, []).append(measured)
        said = f"{self.total - len(self._waiting)}/{self.total}"
        seconds = self.remaining()
        return said if seconds is None else f"{said} · about {duration(seconds)} left"

    def remaining(self) -> float | None:
        """Seconds until all is done; None where no run has ended, or none is left."""
        everything = [one for ended in self._ended.values() for one in ended]
        if not everything or not self._waiting:
            return None
        taken = sum(seconds for seconds, _ in everything)
        at_once = max(1.0, taken / (self.clock() - self._started))
        rest = 0.0
        for run, config in self._waiting.items():
            alike = self._ended.get(config.method_name, everything)
            rest += self._work[run] * sum(s for s, _ in alike) / sum(work for _, work in alike)
        return rest / at_once


def _counted(configs: Sequence[Config]) -> dict[str, float]:
    """Floating-point operations by run; runs of a model that can't be counted weigh the same."""
    estimator = Estimator()
    try:
        counted = {config.run_id: estimator.work(config) for config in configs}
    except WeightlessError:
        counted = {}
    return {config.run_id: counted.get(config.run_id) or 1.0 for config in configs}
