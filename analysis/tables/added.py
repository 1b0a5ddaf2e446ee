"""Metrics of evaluators that the schema of records does not know, as they come."""

from __future__ import annotations

from analysis.frames import Frames
from analysis.groups import added_families
from analysis.layout import SPREAD
from analysis.rowwise import Column, rowwise
from analysis.tables.base import Table


def build(frames: Frames) -> Table | None:
    """A row a recipe, a column a metric; None where no evaluator has added any."""
    families = added_families(frames.runs)
    metrics = [str(key) for key in frames.runs if str(key).split("/")[0] in families]
    columns = [Column(key, key, better=families[key.split("/")[0]]) for key in sorted(metrics)]
    said = [f"{name}: {better} is better" for name, better in sorted(families.items())]
    return rowwise(frames.runs, columns, f"{'; '.join(said)}.".capitalize(), [SPREAD])
