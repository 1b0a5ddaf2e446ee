"""What shows a run to a person; the console is one."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping
from typing import Protocol, TypeVar

from harness.inputs.corpora import Tokens
from harness.records.record import Record
from harness.settings.config import Config

T = TypeVar("T")


class Display(Protocol):
    """What shows a run to a person while it goes on."""

    def say(self, line: str, style: str = "") -> None:
        """Tells one line."""
        ...

    def header(self, config: Config) -> None:
        """Says what is about to run."""
        ...

    def windows(self, config: Config, windows: Mapping[str, Tokens], notes: Iterable[str]) -> None:
        """Says what a run reads, by corpus, and what there is to know about it."""
        ...

    def skipped(self, record: Record) -> None:
        """Says that a run is done already."""
        ...

    def finished(self, record: Record) -> None:
        """Says what a run has measured."""
        ...

    def track(
        self, items: Iterable[T], label: str, total: int | None = None
    ) -> Generator[T, None, None]:
        """Yields ``items`` and shows how many are left; ``total`` where they have no length."""
        ...
