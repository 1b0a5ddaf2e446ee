"""Tables with a row a recipe (bits x method x alpha) and a column a measure."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd

from analysis.groups import Group, groups, quantised, twins
from analysis.layout import (
    Row,
    cell,
    described,
    is_best,
    lay_out,
    marked,
    notes,
    runs_of,
    shared,
    signed,
)
from analysis.noise import BOLD, Floor, noise_notes
from analysis.protocols import protocols
from analysis.tables.base import MISSING, Cell, Table, label

NAMES = ("bits", "group", "method", "alpha")


@dataclass(frozen=True)
class Column:
    """One measure.

    Args:
        title: with its unit.
        metric: a column of the runs frame.
        scale: what the metric is multiplied by.
        digits: format of the mean; "": three significant digits.
        better: which direction is better; None: nothing is marked best.
        gain: how the difference from the twin without QEP is shown, if at all.
        text: what is printed for a group instead of :func:`analysis.layout.cell`.
    """

    title: str
    metric: str
    scale: float = 1.0
    digits: str = ""
    better: Literal["lower", "higher"] | None = "lower"
    gain: Literal["percent", "points"] | None = None
    text: Callable[[Group, Cell], Cell] | None = None


def rowwise(
    runs: pd.DataFrame, columns: Sequence[Column], caption: str, below: Sequence[str] = ()
) -> Table | None:
    """The measures of every recipe; None where no run has any of them.

    Columns that nobody has are left out. The best of each model, bit width and group size is bold.
    """
    found = {one.title: groups(runs, one.metric) for one in columns if one.metric in runs}
    columns = [one for one in columns if found.get(one.title)]
    if not columns:
        return None
    rows = lay_out((_labels(group), title, group) for title in found for group in found[title])
    rows.sort(key=_order)
    pairs = {id(group): twin for every in found.values() for group, twin in twins(every)}
    floors = {title: Floor(every) for title, every in found.items()}
    said = described(rows)
    models = len({row.labels[0] for row in rows}) > 1
    head = [*(["model"] if models else []), *NAMES, *said.titles]
    body = []
    for row, words in zip(rows, said.cells, strict=True):
        model, _, bits, size, method, alpha = row.labels
        full = not quantised(method)
        names = [*([model] if models else []), bits, size or "–"]
        names += [method, "–" if full else alpha]
        names += words
        peers = [one for one in rows if one.labels[:4] == row.labels[:4] and not full]
        body.append(
            [*map(label, names), *[_cell(row, one, peers, pairs, floors) for one in columns]]
        )
    breaks = [i for i in range(1, len(rows)) if rows[i].labels[:4] != rows[i - 1].labels[:4]]
    return Table(
        caption,
        [*head, *[one.title for one in columns]],
        body,
        len(head),
        frozenset(breaks),
        [*said.notes, *notes(rows), *below, *noise_notes(floors.values(), BOLD)],
        protocols(runs, runs_of(rows)),
    )


def _labels(group: Group) -> tuple[Any, ...]:
    return group.model, "", group.bits, group.group_size, group.method, group.alpha


def _order(row: Row) -> tuple[Any, ...]:
    model, _, bits, size, method, alpha = row.labels
    strength = math.inf if alpha == "auto" else float(alpha)
    settings = sorted(row.settings.items())
    return model, quantised(method), -bits, -(size or math.inf), method, strength, settings


def _cell(
    row: Row,
    column: Column,
    peers: Sequence[Row],
    pairs: Mapping[int, Group],
    floors: Mapping[str, Floor],
) -> Cell:
    group, floor = row.cells.get(column.title), floors[column.title]
    if group is None:
        return MISSING
    rivals = [one.cells[column.title] for one in peers if column.title in one.cells]
    shown = cell(
        group,
        column.better is not None
        and is_best(group, rivals, column.better == "lower", floor, column.metric),
        _gain(group, pairs.get(id(group)), column, floor),
        column.scale,
        column.digits,
    )
    return column.text(group, shown) if column.text else shown


def _gain(group: Group, twin: Group | None, column: Column, floor: Floor) -> str:
    if twin is None or column.gain is None:
        return ""
    mine, other = shared(group, twin)
    if column.gain == "points":
        gain = signed(column.scale * (mine - other), ".1f", "")
    else:
        gain = signed(100 * (mine / other - 1), ".0f", " %") if other else ""
    return marked(gain, group, twin, floor, column.metric)
