"""What a recipe costs: time by phase, counted work, memory, bits, size."""

from __future__ import annotations

import pandas as pd

from analysis.frames import Frames
from analysis.layout import SPREAD
from analysis.rowwise import Column, rowwise
from analysis.tables.base import Table

PHASES = ("walk", "correct", "quantise", "errors", "evaluate", "total")
WORK = ("walk", "correct", "quantise", "errors")
COLUMNS = [
    *[Column(f"{phase} s", f"seconds/{phase}", better=None) for phase in PHASES],
    Column("TFLOP", "work", 1e-12, better=None),
    Column("peak GB", "peak_memory", 1e-9, better=None),
    Column("peak device GB", "peak_device_memory", 1e-9, better=None),
    Column("bits/weight", "bits_per_weight", digits=".3f", better=None),
    Column("checkpoint MB", "checkpoint_bytes", 1e-6, better=None),
]
CAPTION = (
    "Cost: wall seconds by phase, operations counted from shapes (walk to errors), peak resident "
    "memory during the run, effective bits per quantised weight, size of the packed linears."
)


def told_apart(runs: pd.DataFrame) -> pd.DataFrame:
    """The runs with their protocol among their settings: what evaluating costs depends on it."""
    known = list(zip(runs["settings"], runs["recipe"], runs["evaluation"], strict=True))
    return runs.assign(
        settings=[one | {"protocol": told} if told else one for one, _, told in known],
        recipe=[f"{one} {told}" for _, one, told in known],
    )


def build(frames: Frames) -> Table | None:
    """A row a recipe; what is zero everywhere (device memory on a CPU) is left out."""
    counted = [f"flops/{phase}" for phase in WORK if f"flops/{phase}" in frames.runs]
    runs = told_apart(frames.runs.assign(work=frames.runs[counted].sum(axis=1, min_count=1)))
    shown = [one for one in COLUMNS if one.metric in runs and (runs[one.metric] != 0).any()]
    return rowwise(runs, shown, CAPTION, [SPREAD])
