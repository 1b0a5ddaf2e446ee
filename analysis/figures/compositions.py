"""What decides at a glance: every composition without and with QEP, relative to full precision."""

from __future__ import annotations

from collections import Counter

import pandas as pd

from analysis.compositions import Compositions, compositions
from analysis.figures.base import Drawing
from analysis.frames import Frames
from analysis.groups import STRENGTH
from analysis.layout import Row, runs_of
from analysis.plotting import captions
from analysis.plotting.dumbbells import MEANING, dumbbells
from analysis.plotting.style import styled
from harness.settings.said import NAMES

MOST, GRIDS = 14, 4  # rows of a panel and panels of a column that are legible


@styled
def draw(frames: Frames) -> Drawing | None:
    """Panels by grid (down) and corpus (across): hollow without QEP, filled with it, bars over seeds."""
    found = compositions(frames)
    grids = _grids(found)
    if not grids:
        return None
    drawn = dumbbells(found, grids)
    shown = [row for rows in grids.values() for row in rows]
    methods = {NAMES.get(row.first.method, row.first.method) for row in shown}
    left_out = len([row for row in found.rows if row.first.method != "none"]) - len(shown)
    return Drawing(
        drawn.figure,
        captions.joined(
            "Perplexity over that of full precision (1 would be no loss), without QEP and with it at "
            f"alpha {STRENGTH}; each row is a composition of method, basis, range, levels and target, the "
            f"best at the bottom. {MEANING}",
            f"Method: {methods.pop()}." if len(methods) == 1 else "",
            captions.counted(frames, pd.DataFrame({"run": runs_of(shown)}), corpora=False),
            *drawn.said,
            f"Not shown: {left_out} more compositions." if left_out else "",
        ),
    )


def _grids(found: Compositions) -> dict[str, list[Row]]:
    """The grids with the most rows both without and with QEP; in each the best at the end.

    Where a grid has more rows than are legible, only those of the method with the most of them count.
    """
    rows = {title: list(every) for title, every in found.grids.items()}
    if any(len(every) > MOST for every in rows.values()):
        counts = Counter(row.first.method for every in rows.values() for row in every)
        method = counts.most_common(1)[0][0]
        rows = {
            title: [row for row in every if row.first.method == method]
            for title, every in rows.items()
        }
    rows = {title: every for title, every in rows.items() if every}

    def worth(title: str) -> tuple[int, int]:
        ways = [{found.columns[one][1] for one in row.cells} for row in rows[title]]
        return sum(len(one) > 1 for one in ways), len(rows[title])

    kept = sorted(rows, key=worth, reverse=True)[:GRIDS]
    return {title: every[-MOST:] for title, every in rows.items() if title in kept}
