"""Which rounding is best: methods beside each other, as published and with the same axes around them."""

from __future__ import annotations

import pandas as pd

from analysis.compositions import Compositions, compositions
from analysis.figures.base import Drawing
from analysis.frames import Frames
from analysis.groups import STRENGTH
from analysis.layout import Row, around, as_published, runs_of
from analysis.plotting import captions
from analysis.plotting.dumbbells import MEANING, dumbbells
from analysis.plotting.style import styled

LEAST, PARTS = 3, 4  # methods that make a comparison, panels of a column that are legible
PUBLISHED = "as published"


@styled
def draw(frames: Frames) -> Drawing | None:
    """Panels by grid and axes (down) and corpus (across), a row a method; None where all are as published."""
    found = compositions(frames)
    parts = _parts(found)
    if not any(not title.endswith(PUBLISHED) for title in parts):
        return None
    drawn = dumbbells(found, parts)
    shown = [row for rows in parts.values() for row in rows]
    return Drawing(
        drawn.figure,
        captions.joined(
            "Perplexity over that of full precision (1 would be no loss), without QEP and with it at "
            f"alpha {STRENGTH}, of methods as published and with the same basis, range and levels around "
            f"them; the best at the bottom. {MEANING}",
            captions.counted(frames, pd.DataFrame({"run": runs_of(shown)}), corpora=False),
            *drawn.said,
        ),
    )


def _parts(found: Compositions) -> dict[str, list[Row]]:
    """Grid and axes -> rows, where enough methods have these; the parts with the most methods."""
    parts: dict[str, list[Row]] = {}
    for grid, rows in found.grids.items():
        for row in rows:
            axes = PUBLISHED if as_published(row.settings) else around(row.settings)
            parts.setdefault(f"{grid}, {axes}", []).append(row)
    counts = {title: len({row.first.method for row in rows}) for title, rows in parts.items()}
    kept = sorted((one for one in parts if counts[one] >= LEAST), key=lambda one: -counts[one])
    return {title: rows for title, rows in parts.items() if title in kept[:PARTS]}
