"""The contract of trackers, which show a run elsewhere while it goes on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from harness.records.record import Record


class Tracker(Protocol):
    """Mirrors a run elsewhere. The record on disk is complete without it.

    One that leaves a file MIRROR in the run's directory while it is at work is called again, with the
    record and its rows, by the next start after a kill.
    """

    def start(self, record: Record, directory: Path) -> None:
        """A run begins."""
        ...

    def layer(self, row: Mapping[str, Any]) -> None:
        """A linear was quantised and passed."""
        ...

    def block(self, row: Mapping[str, Any]) -> None:
        """A decoder block was passed."""
        ...

    def finish(self, record: Record) -> None:
        """The run is over; ``record`` is what lies on disk."""
        ...
