"""The main table: perplexity by method x bits x alpha, with what QEP gains."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd

from analysis.frames import Frames
from analysis.groups import Group, groups, twins
from analysis.layout import (
    GAIN,
    SPREAD,
    Row,
    cell,
    is_best,
    lay_out,
    notes,
    runs_of,
    settled,
    shared,
    signed,
)
from analysis.protocols import protocols
from analysis.tables.base import MISSING, Cell, Table, label

FAMILY = "perplexity/"
PHASES = ["seconds/correct", "seconds/quantise"]


def build(frames: Frames) -> Table | None:
    """A row a method, a column an alpha; corpora under each other.

    The best of each model, corpus, bit width and group size is bold.
    """
    metrics = sorted(str(column) for column in frames.runs if str(column).startswith(FAMILY))
    found = {metric: groups(frames.runs, metric) for metric in metrics}
    rows = [row for metric in metrics for row in _rows(metric, found[metric])]
    if not rows:
        return None
    gains = {id(group): twin for metric in metrics for group, twin in twins(found[metric])}
    return _table(frames.runs, sorted(rows, key=_order), gains)


def _rows(metric: str, found: list[Group]) -> list[Row]:
    corpus = metric.removeprefix(FAMILY)
    return lay_out(
        ((group.model, corpus, group.bits, group.group_size, group.method), group.alpha, group)
        for group in found
    )


def _order(row: Row) -> tuple[Any, ...]:
    model, corpus, bits, size, method = row.labels
    settings = sorted(row.settings.items())
    return model, corpus, method != "none", -bits, -(size or math.inf), method, settings


def _table(runs: pd.DataFrame, rows: list[Row], gains: dict[int, Group]) -> Table:
    alphas = sorted({alpha for row in rows for alpha in row.cells}, key=_alpha)
    several = [len({row.labels[i] for row in rows}) > 1 for i in (0, 1)]
    said, explained = settled(rows)
    head = [name for name, shown in zip(("model", "corpus"), several, strict=True) if shown]
    head += ["bits", "group", "method", *(["settings"] if any(said) else [])]
    spent = runs.set_index("run").reindex(columns=PHASES).sum(axis=1, min_count=1)
    body: list[list[Cell]] = []
    for row, words in zip(rows, said, strict=True):
        model, corpus, bits, size, method = row.labels
        names = [name for name, shown in zip((model, corpus), several, strict=True) if shown]
        names += [bits, size or "–", "full precision" if method == "none" else method]
        names += [words or "–"] if any(said) else []
        peers = [one for one in rows if one.labels[:4] == row.labels[:4] and method != "none"]
        rivals = [group for one in peers for group in one.cells.values()]
        cells = [_cell(row.cells.get(alpha), rivals, gains) for alpha in alphas]
        body.append([*map(label, names), *cells, _seconds(row, spent)])
    breaks = [i for i in range(1, len(rows)) if rows[i].labels[:2] != rows[i - 1].labels[:2]]
    where = "" if several[1] else f" on {rows[0].labels[1]}"
    return Table(
        f"Perplexity{where}, lower is better; seconds of correcting and quantising.",
        [*head, *[f"alpha {alpha}" for alpha in alphas], "seconds"],
        body,
        len(head),
        frozenset(breaks),
        [*explained, *notes(rows), *_below(rows, gains)],
        protocols(runs, runs_of(rows)),
    )


def _below(rows: list[Row], gains: dict[int, Group]) -> list[str]:
    seeds = any(len(group.finite) > 1 for row in rows for group in row.cells.values())
    return [*([SPREAD] if seeds else []), *([GAIN] if gains else [])]


def _alpha(alpha: str) -> float:
    return math.inf if alpha == "auto" else float(alpha)


def _cell(group: Group | None, rivals: list[Group], gains: dict[int, Group]) -> Cell:
    if group is None:
        return MISSING
    twin = gains.get(id(group))
    mine, other = shared(group, twin) if twin else (math.nan, math.nan)
    gain = signed(100 * (mine / other - 1), ".0f", " %") if other else ""
    return cell(group, is_best(group, rivals, lower=True), gain)


def _seconds(row: Row, spent: pd.Series) -> Cell:
    if row.first.method == "none":
        return MISSING
    runs = [run for group in row.cells.values() for run in group.runs.values()]
    median = float(spent.loc[runs].median())
    return MISSING if math.isnan(median) else Cell(f"{median:.0f}", values={"": median})
