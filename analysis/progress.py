"""Progress on standard error, for whatever takes longer than a second."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import TypeVar

import rich.console
from rich.progress import Progress

T = TypeVar("T")
PATIENCE = 1.0  # seconds before anything is shown


def track(items: Sequence[T], label: str) -> Iterator[T]:
    """Yields ``items``; after a second a bar with the time left, on a terminal.

    Elsewhere one plain line says what took how long.
    """
    out = rich.console.Console(stderr=True, highlight=False, soft_wrap=True)
    start = time.perf_counter()
    with Progress(console=out, transient=True, disable=not out.is_terminal) as progress:
        task = progress.add_task(f"{label:<16}", total=len(items), visible=False)
        for item in items:
            yield item
            progress.update(task, advance=1, visible=time.perf_counter() - start > PATIENCE)
    spent = time.perf_counter() - start
    if spent > PATIENCE:
        out.print(f"{label}: {len(items)} in {spent:.1f} s", style="dim", markup=False)
