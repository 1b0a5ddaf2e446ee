"""Compositions of axes without and with QEP, corpora side by side: what a table and a figure show."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from analysis.frames import Frames
from analysis.groups import STRENGTH, Group, groups, twins
from analysis.layout import Row, lay_out
from analysis.noise import Floor
from harness.records.record import PERPLEXITY
from harness.settings.said import NAMES

WITHOUT, WITH = "without QEP", "with QEP"
WAYS = {"0": WITHOUT, STRENGTH: WITH}
CORPORA = 2  # the most that fit side by side


@dataclass(frozen=True)
class Compositions:
    """Rows from the worst to the best of a grid.

    Args:
        rows: a composition each; a cell is a corpus without or with QEP, by its title.
        columns: title -> metric and way, :data:`WITHOUT` or :data:`WITH`.
        twins: id of a group with QEP -> the one without.
        floors: metric -> what is known of its noise.
    """

    rows: Sequence[Row]
    columns: Mapping[str, tuple[str, str]]
    twins: Mapping[int, Group]
    floors: Mapping[str, Floor]

    @property
    def full(self) -> dict[tuple[str, str], float]:
        """Model and metric -> the perplexity of full precision."""
        return {
            (row.first.model, self.columns[title][0]): group.mean
            for row in self.rows
            if row.first.method == "none"
            for title, group in row.cells.items()
        }

    @property
    def grids(self) -> dict[str, list[Row]]:
        """Title -> the rows of one model, bit width and group size; without full precision."""
        models = len({row.first.model for row in self.rows}) > 1
        found: dict[str, list[Row]] = {}
        for row in self.rows:
            model, _, bits, size, _ = row.labels
            if row.first.quantised:
                title = f"{bits:g} bits" + (f", groups of {size}" if size else "")
                named = f"{NAMES.get(model, model)}, {title}" if models else title
                found.setdefault(named, []).append(row)
        return found

    def rivals(self, row: Row, metric: str) -> list[Group]:
        """All that is compared with a row's figure: the quantised models of its grid."""
        return [
            group
            for peer in self.rows
            if peer.labels[:4] == row.labels[:4]
            for title, group in peer.cells.items()
            if self.columns[title][0] == metric and group.quantised
        ]


def compositions(frames: Frames) -> Compositions:
    """The runs without QEP and with alpha 0.5 by composition; no rows where nothing is quantised."""
    metrics = sorted(str(key) for key in frames.runs if str(key).startswith(PERPLEXITY))[:CORPORA]
    found = {metric: groups(frames.runs, metric) for metric in metrics}
    columns = {
        f"{corpus(metric)} {way}": (metric, way) for metric in metrics for way in WAYS.values()
    }
    titles = {place: title for title, place in columns.items()}
    rows = lay_out(
        (_labels(group), titles[metric, WAYS[alpha]], group)
        for metric, every in found.items()
        for group in every
        if group.quantised or group.method == "none"
        if (alpha := group.alpha if group.quantised else "0") in WAYS
    )
    if not any(row.first.quantised for row in rows):
        rows = []
    return Compositions(
        sorted(rows, key=_order),
        columns,
        {id(one): twin for every in found.values() for one, twin in twins(every)},
        {metric: Floor(every) for metric, every in found.items()},
    )


def corpus(metric: str) -> str:
    """What a perplexity was measured on, as it is written."""
    name = metric.removeprefix(PERPLEXITY)
    return NAMES.get(name, name)


def _labels(group: Group) -> tuple[Any, ...]:
    return group.model, "", group.bits, group.group_size, group.method


def _order(row: Row) -> tuple[Any, ...]:
    model, _, bits, size, method = row.labels
    best = min((one.mean for one in row.cells.values() if one.finite), default=math.inf)
    return model, method != "none", -bits, -(size or math.inf), -best, sorted(row.settings.items())
