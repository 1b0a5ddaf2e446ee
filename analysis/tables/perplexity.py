"""The main table: perplexity by method x bits x alpha, with what QEP gains."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pandas as pd

from analysis.frames import Frames
from analysis.groups import Group, groups, quantised, twins
from analysis.layout import (
    GAIN,
    SPREAD,
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
from harness.records.record import PERPLEXITY

PHASES = ["seconds/correct", "seconds/quantise"]


def build(frames: Frames) -> Table | None:
    """A row a method, a column an alpha; corpora under each other.

    The best of each model, corpus, bit width and group size is bold.
    """
    metrics = sorted(str(column) for column in frames.runs if str(column).startswith(PERPLEXITY))
    found = {metric: groups(frames.runs, metric) for metric in metrics}
    rows = [row for metric in metrics for row in _rows(metric, found[metric])]
    if not rows:
        return None
    floors = {metric: Floor(found[metric]) for metric in metrics}
    gains = {
        id(group): gained(group, twin, floors[metric], metric)
        for metric in metrics
        for group, twin in twins(found[metric])
    }
    return _table(frames.runs, sorted(rows, key=_order), gains, floors)


def _rows(metric: str, found: list[Group]) -> list[Row]:
    corpus = metric.removeprefix(PERPLEXITY)
    return lay_out(
        ((group.model, corpus, group.bits, group.group_size, group.method), group.alpha, group)
        for group in found
    )


def _order(row: Row) -> tuple[Any, ...]:
    model, corpus, bits, size, method = row.labels
    settings = sorted(row.settings.items())
    return model, corpus, quantised(method), -bits, -(size or math.inf), method, settings


def gained(group: Group, twin: Group, floor: Floor, metric: str) -> str:
    """What QEP changes in per cent, with a mark where that is within the noise."""
    mine, other = shared(group, twin)
    gain = signed(100 * (mine / other - 1), ".0f", " %") if other else ""
    return marked(gain, group, twin, floor, metric)


def _table(
    runs: pd.DataFrame, rows: list[Row], gains: Mapping[int, str], floors: Mapping[str, Floor]
) -> Table:
    alphas = sorted({alpha for row in rows for alpha in row.cells}, key=_alpha)
    several = [len({row.labels[i] for row in rows}) > 1 for i in (0, 1)]
    said = described(rows)
    head = [name for name, shown in zip(("model", "corpus"), several, strict=True) if shown]
    head += ["bits", "group", "method", *said.titles]
    spent = runs.set_index("run").reindex(columns=PHASES).sum(axis=1, min_count=1)
    body: list[list[Cell]] = []
    for row, words in zip(rows, said.cells, strict=True):
        model, corpus, bits, size, method = row.labels
        names = [name for name, shown in zip((model, corpus), several, strict=True) if shown]
        names += [bits, size or "–", method]
        names += words
        peers = [one for one in rows if one.labels[:4] == row.labels[:4] and quantised(method)]
        rivals = [group for one in peers for group in one.cells.values()]
        metric = f"{PERPLEXITY}{corpus}"
        cells = [
            _cell(row.cells.get(alpha), rivals, gains, floors[metric], metric) for alpha in alphas
        ]
        body.append([*map(label, names), *cells, _seconds(row, spent)])
    breaks = [i for i in range(1, len(rows)) if rows[i].labels[:2] != rows[i - 1].labels[:2]]
    where = "" if several[1] else f" on {rows[0].labels[1]}"
    return Table(
        f"Perplexity{where}, lower is better; seconds of correcting and quantising.",
        [*head, *[f"alpha {alpha}" for alpha in alphas], "seconds"],
        body,
        len(head),
        frozenset(breaks),
        [
            *said.notes,
            *notes(rows),
            *_below(rows, gains),
            *noise_notes(floors.values(), BOLD),
        ],
        protocols(runs, runs_of(rows)),
    )


def _below(rows: list[Row], gains: Mapping[int, str]) -> list[str]:
    seeds = any(len(group.finite) > 1 for row in rows for group in row.cells.values())
    return [*([SPREAD] if seeds else []), *([GAIN] if gains else [])]


def _alpha(alpha: str) -> float:
    return math.inf if alpha == "auto" else float(alpha)


def _cell(
    group: Group | None, rivals: list[Group], gains: Mapping[int, str], floor: Floor, metric: str
) -> Cell:
    if group is None:
        return MISSING
    best = is_best(group, rivals, True, floor, metric)
    return cell(group, best, gains.get(id(group), ""))


def _seconds(row: Row, spent: pd.Series) -> Cell:
    if not row.first.quantised:
        return MISSING
    runs = [run for group in row.cells.values() for run in group.runs.values()]
    median = float(spent.loc[runs].median())
    return MISSING if math.isnan(median) else Cell(f"{median:.0f}", values={"": median})
