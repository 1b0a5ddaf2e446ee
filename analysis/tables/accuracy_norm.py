"""Zero-shot accuracy by likelihood per character."""

from __future__ import annotations

from analysis.accuracies import accuracy_table
from analysis.frames import Frames
from analysis.tables.base import Table


def build(frames: Frames) -> Table | None:
    """A row a recipe, a column a task."""
    caption = (
        "Zero-shot accuracy in per cent, choices by likelihood per character; higher is better."
    )
    return accuracy_table(frames.runs, "accuracy_norm", caption)
