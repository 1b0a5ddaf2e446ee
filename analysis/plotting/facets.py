"""Panels by rows and columns: as many as are legible, the rest is named in the caption."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis.plotting.style import (
    COLOURS,
    DIVERGED,
    DOUBLE,
    GREY,
    SINGLE,
    Look,
    folded,
    looks,
    plain_log,
)
from analysis.plotting.undrawn import empty, heights
from harness.settings.said import NAMES

HEIGHT, FRAME = 1.55, 0.75  # of a row of panels, and of all around them, inches
ROOM = 0.12  # share of the axis that is kept free for what diverged
LINES = 4  # methods that can be followed where each has a line without and one with QEP
ROWS, COLUMNS = 3, 3  # how many panels are legible at most
WIDE, TALL = 36, 28  # characters in a line of the title of a column and of a row
KEY_LINE, KEY_GAP = 0.12, 0.07  # a line of a legend and the room between two entries, inches
LETTERS, KEY = 18.5, 8  # characters of a legend in an inch; the room of its key, in characters


@dataclass(frozen=True)
class Facets:
    """A figure of panels, and what they show.

    Args:
        figure: with one axes per panel.
        panels: title of the row, title of the column, axes, rows of the data.
        left_out: a sentence on what does not fit in, or "".
        empty: why nothing can be drawn, of the panels in which that is so.
    """

    figure: Figure
    panels: Sequence[tuple[str, str, Axes, pd.DataFrame]]
    left_out: str
    empty: list[str] = field(default_factory=list)

    def __iter__(self) -> Iterator[tuple[str, str, Axes, pd.DataFrame]]:
        """The panels that have something to show."""
        return (panel for panel in self.panels if len(panel[-1]))

    @property
    def data(self) -> pd.DataFrame:
        """All that is shown."""
        return pd.concat([part for *_, part in self.panels])

    def log_y(self, *columns: str) -> None:
        """Makes the vertical axes (of these columns) logarithmic, with room at the edge for what diverged.

        To be called when everything is drawn. Axes on which nothing can be drawn say so; where that is
        so of all that share a scale, there is none.
        """
        chosen = [axes for _, column, axes, _ in self.panels if not columns or column in columns]
        for _, column, axes, _ in self:
            said = empty(axes, log=not columns or column in columns)
            if said:
                axes.text(0.5, 0.5, said, transform=axes.transAxes, ha="center", color=GREY)
                self.empty.append(said)
        scaled = [axes for axes in chosen if any((heights(one) > 0).any() for one in _alike(axes))]
        for axes in chosen:
            if axes in scaled:
                axes.set_yscale("log")
            else:
                axes.set_yticks([])
        for axes in scaled:
            lost = any(line.get_gid() == DIVERGED for line in axes.lines)
            if lost and axes.get_autoscaley_on():
                bottom, top = axes.get_ylim()
                axes.set_ylim(bottom, top * (top / bottom) ** ROOM)
        for axes in scaled:
            plain_log(axes.yaxis)

    def label(self, x: str, y: str) -> None:
        """Titles of columns at the top, ``x`` at the bottom, ``y`` with the row's title on the left."""
        for row, column, axes, _ in self.panels:
            place = axes.get_subplotspec()
            assert place is not None
            if place.is_first_row():
                axes.set_title(folded(column, WIDE))
            if place.is_last_row():
                axes.set_xlabel(x)
            if place.is_first_col():
                axes.set_ylabel("\n".join(part for part in (folded(row, TALL), y) if part))

    def legend(self, handles: Sequence[Line2D]) -> None:
        """One legend for all panels, below them, in as many columns as there is room for."""
        labels = [folded(str(one.get_label())) for one in handles]
        for one, text in zip(handles, labels, strict=True):
            one.set_label(text)
        longest = max(len(line) for text in labels for line in text.split("\n"))
        room = round(LETTERS * self.figure.get_figwidth()) // (longest + KEY)
        most = min(3 if self.figure.get_figwidth() < DOUBLE else 6, max(1, room))
        lines = -(-len(handles) // most)
        columns = -(-len(handles) // lines)
        height = sum(
            KEY_GAP + KEY_LINE * max(text.count("\n") + 1 for text in labels[row::lines])
            for row in range(lines)
        )
        # The frame has room for one line; more would be taken from the panels.
        more = max(0.0, height - KEY_GAP - KEY_LINE)
        self.figure.set_figheight(self.figure.get_figheight() + more)
        self.figure.legend(handles=handles, loc="outside lower center", ncols=columns)


def _alike(axes: Axes) -> list[Axes]:
    """All axes that share the vertical scale of this one."""
    return axes.get_shared_y_axes().get_siblings(axes)


def facets(
    data: pd.DataFrame,
    rows: Sequence[str],
    columns: Sequence[str],
    limit: tuple[int, int] = (ROWS, COLUMNS),
    height: float = HEIGHT,
    share: bool = True,
    share_y: bool = True,
    broad: bool = False,
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
        broad: two columns of print even for one column of panels.
    """
    data, tall, said_tall = _kept(data, rows, limit[0])
    data, wide, said_wide = _kept(data, columns, limit[1])
    size = (DOUBLE if broad or len(wide) > 1 else SINGLE, FRAME + height * len(tall))
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(
        len(tall), len(wide), squeeze=False,
        sharex=share, sharey="row" if share and share_y else False,
    )  # fmt: skip
    parts = dict(list(data.groupby([*rows, *columns], sort=False, observed=True)))
    panels = [
        (row_title, title, grid[i, j], parts.get((*row, *column), data.iloc[:0]))
        for i, (row, row_title) in enumerate(zip(tall, _titles(tall), strict=True))
        for j, (column, title) in enumerate(zip(wide, _titles(wide), strict=True))
    ]
    for _, _, axes, part in panels:
        if part.empty:
            axes.text(0.5, 0.5, "not measured", transform=axes.transAxes, ha="center", color=GREY)
    return Facets(figure, panels, " ".join(filter(None, (said_tall, said_wide))))


def series(
    data: pd.DataFrame, key: str = "variant", ordered: bool = True, most: int = len(COLOURS)
) -> tuple[pd.DataFrame, dict[str, Look], str]:
    """The rows whose ``key`` gets a look of its own, the looks, and a sentence on the others.

    Looks go by the order of names, which is the same in all figures, or else by that of the data. ``most``
    are as many as can be followed where each has several lines.
    """
    data, kept, said = _kept(data, [key], most)
    names = [name for (name,) in kept]
    return data, looks(sorted(names) if ordered else names), said


def _kept(
    data: pd.DataFrame, names: Sequence[str], limit: int
) -> tuple[pd.DataFrame, list[tuple[str, ...]], str]:
    """The rows of the ``limit`` keys with the most runs, these keys, and a sentence on the others."""
    counts = data.groupby(list(names), sort=False, observed=True)["run"].nunique()
    runs = {key if isinstance(key, tuple) else (key,): n for key, n in counts.items()}
    if len(runs) <= limit:
        return data, list(runs), ""
    best = set(sorted(runs, key=lambda key: -runs[key])[:limit])
    titles = dict(zip(runs, _titles(list(runs)), strict=True))
    others = [titles[key] or "the default" for key in runs if key not in best]
    some = "; ".join(others[:3]) + ("; …" if len(others) > 3 else "")
    kept = [key for key in runs if key in best]
    inside = pd.MultiIndex.from_frame(data[list(names)]).isin(kept)
    return data[inside], kept, f"Not shown ({len(others)} of {len(runs)}, fewest runs): {some}."


def _titles(keys: Sequence[tuple[str, ...]]) -> list[str]:
    """What tells the keys apart; of a single one its last part."""
    keys = [tuple(NAMES.get(part, part) for part in key) for key in keys]
    if len(keys) == 1:
        return [keys[0][-1] if keys[0] else ""]
    differ = [len(set(parts)) > 1 for parts in zip(*keys, strict=True)]
    return [
        ", ".join(part for part, yes in zip(key, differ, strict=True) if yes and part)
        for key in keys
    ]
