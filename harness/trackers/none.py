"""No tracker: the record on disk is all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.records.record import Record


@dataclass(frozen=True)
class NoTracker:
    """Mirrors nothing."""

    def start(self, record: Record, directory: Path) -> None:
        """Does nothing."""

    def layer(self, row: Mapping[str, Any]) -> None:
        """Does nothing."""

    def block(self, row: Mapping[str, Any]) -> None:
        """Does nothing."""

    def finish(self, record: Record) -> None:
        """Does nothing."""
