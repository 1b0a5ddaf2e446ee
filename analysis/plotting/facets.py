"""Panels by rows and columns: as many as are legible, the rest is named in the caption."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis.plotting.style import COLOURS, DOUBLE, SINGLE, Look, looks

HEIGHT, FRAME = 1.55, 0.75  # of a row of panels, and of all around them, inches
ROWS, COLUMNS = 3, 3  # how many panels are legible at most


@dataclass(frozen=True)
class Facets:
    """A figure of panels, and what they show.

    Args:
        figure: with one axes per panel.
        panels: title of the row, title of the column, axes, rows of the data.
        left_out: a sentence on what does not fit in, or "".
    """

    figure: Figure
    panels: Sequence[tuple[str, str, Axes, pd.DataFrame]]
    left_out: str

    def __iter__(self) -> Iterator[tuple[str, str, Axes, pd.DataFrame]]:
        return iter(self.panels)

    @property
    def data(self) -> pd.DataFrame:
        """All that is shown."""
        return pd.concat([part for *_, part in self.panels])

    def label(self, x: str, y: str) -> None:
        """Titles of columns at the top, ``x`` at the bottom, ``y`` with the row's title on the left."""
        for row, column, axes, _ in self.panels:
            place = axes.get_subplotspec()
            assert place is not None
            if place.is_first_row():
                axes.set_title(column)
            if place.is_last_row():
                axes.set_xlabel(x)
            if place.is_first_col():
                axes.set_ylabel("\n".join(part for part in (row, y) if part))

    def legend(self, handles: Sequence[Line2D]) -> None:
        """One legend for all panels, below them."""
        most = 3 if self.figure.get_figwidth() < DOUBLE else 6
        lines = -(-len(handles) // most)
        columns = -(-len(handles) // lines)
        self.figure.legend(handles=handles, loc="outside lower center", ncols=columns)


def facets(
    data: pd.DataFrame,
    rows: Sequence[str],
    columns: Sequence[str],
    limit: tuple[int, int] = (ROWS, COLUMNS),
    height: float = HEIGHT,
    share: bool = True,
    share_y: bool = True,
) -> Facets:
    """Panels for the values of ``rows`` by those of ``columns``, in the order of the data.

    Where there are more than ``limit``, those with the most runs are kept.

    Args:
        data: not empty; has the columns named, and ``run``.
        rows: columns whose values make a row of panels.
        columns: columns whose values make a column of panels.
        limit: rows and columns at most.
        height: of a row, inches.
        share: whether panels share their axes: x all, y by row.
        share_y: false for panels that show different things side by side.
    """
    tall, kept_tall, said_tall = _kept(data, rows, limit[0])
    data = data[[key in kept_tall for key in tall]]
    wide, kept_wide, said_wide = _kept(data, columns, limit[1])
    data = data[[key in kept_wide for key in wide]]
    size = (SINGLE if len(kept_wide) == 1 else DOUBLE, FRAME + height * len(kept_tall))
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(
        len(kept_tall), len(kept_wide), squeeze=False,
        sharex=share, sharey="row" if share and share_y else False,
    )  # fmt: skip
    titles = [_titles(kept_tall), _titles(kept_wide)]
    tall, wide = _keys(data, rows), _keys(data, columns)
    panels = []
    for i, row in enumerate(kept_tall):
        for j, column in enumerate(kept_wide):
            inside = [a == row and b == column for a, b in zip(tall, wide, strict=True)]
            panels.append((titles[0][i], titles[1][j], grid[i, j], data[inside]))
    return Facets(figure, panels, " ".join(filter(None, (said_tall, said_wide))))


def series(
    data: pd.DataFrame, key: str = "variant", ordered: bool = True
) -> tuple[pd.DataFrame, dict[str, Look], str]:
    """The rows whose ``key`` gets a look of its own, the looks, and a sentence on the others.

    Looks go by the order of names, which is the same in all figures, or else by that of the data.
    """
    keys, kept, said = _kept(data, [key], len(COLOURS))
    names = [name for (name,) in kept]
    return data[[one in kept for one in keys]], looks(sorted(names) if ordered else names), said


def _keys(data: pd.DataFrame, names: Sequence[str]) -> list[tuple[str, ...]]:
    return list(zip(*(data[name] for name in names), strict=True)) or [()] * len(data)


def _kept(
    data: pd.DataFrame, names: Sequence[str], limit: int
) -> tuple[list[tuple[str, ...]], list[tuple[str, ...]], str]:
    """The key of each row of ``data``, the keys to show, and a sentence on the others."""
    keys = _keys(data, names)
    runs: dict[tuple[str, ...], set[str]] = {}
    for key, run in zip(keys, data["run"], strict=True):
        runs.setdefault(key, set()).add(run)
    best = set(sorted(runs, key=lambda key: -len(runs[key]))[:limit])
    kept = [key for key in runs if key in best]
    if len(kept) == len(runs):
        return keys, kept, ""
    titles = dict(zip(runs, _titles(list(runs)), strict=True))
    others = [titles[key] or "the default" for key in runs if key not in best]
    some = ", ".join(others[:3]) + (", …" if len(others) > 3 else "")
    return keys, kept, f"Not shown ({len(others)} of {len(runs)}, fewest runs): {some}."


def _titles(keys: Sequence[tuple[str, ...]]) -> list[str]:
    """What tells the keys apart; of a single one its last part."""
    if len(keys) == 1:
        return [keys[0][-1] if keys[0] else ""]
    differ = [len(set(parts)) > 1 for parts in zip(*keys, strict=True)]
    return [
        ", ".join(part for part, yes in zip(key, differ, strict=True) if yes and part)
        for key in keys
    ]
