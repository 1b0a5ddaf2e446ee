"""Compositions with QEP by what a weight takes: formats, groups and mixtures at equal effective bits."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pandas as pd

from analysis.compositions import WITH, Compositions, compositions
from analysis.frames import Frames
from analysis.groups import STRENGTH
from analysis.layout import SPREAD, Row, cell, described, is_best, notes, runs_of
from analysis.noise import BOLD, noise_notes
from analysis.protocols import protocols
from analysis.tables.base import MISSING, Cell, Table, label

NEAR = 0.05  # effective bits within which weights are said to take the same


def build(frames: Frames) -> Table | None:
    """A row a composition that ran with QEP, from the most effective bits to the fewest, best last."""
    every = compositions(frames)
    titles = [title for title, (_, way) in every.columns.items() if way == WITH]
    found = [
        Row(row.labels, row.settings, {key: row.cells[key] for key in titles if key in row.cells})
        for row in every.rows
        if row.first.method != "none"
    ]
    classes = _classes([row for row in found if row.cells], frames.runs)
    rows = [row for rivals in classes for row, _ in rivals]
    if not rows:
        return None
    models = len({row.first.model for row in rows}) > 1
    words = described(rows)
    said = iter(words.cells)
    body = []
    for rivals in classes:
        for row, taken in rivals:
            model, _, bits, size, method = row.labels
            spent = Cell(f"{taken:.2f}", values={"": taken})
            names = map(label, [bits, size or "–", method, *next(said)])
            figures = [_cell(row, title, [one for one, _ in rivals], every) for title in titles]
            body.append([*([label(model)] if models else []), spent, *names, *figures])
    head = [
        *(["model"] if models else []),
        "bits/weight",
        "bits",
        "group",
        "method",
        *words.titles,
    ]
    starts = [sum(map(len, classes[:place])) for place in range(1, len(classes))]
    several = any(len(group.finite) > 1 for row in rows for group in row.cells.values())
    floors = [every.floors[every.columns[one][0]] for one in titles]
    return Table(
        f"Perplexity with QEP (alpha {STRENGTH}) by effective bits of a weight, lower is better.",
        [*head, *(title.removesuffix(f" {WITH}") for title in titles)],
        body,
        len(head),
        frozenset(starts),
        [
            *words.notes,
            *notes(rows),
            *([SPREAD] if several else []),
            *noise_notes(floors, BOLD),
        ],
        protocols(frames.runs, runs_of(rows)),
    )


def _classes(rows: Sequence[Row], runs: pd.DataFrame) -> list[list[tuple[Row, float]]]:
    """Rows with their effective bits: of one model and within :data:`NEAR` in one list, the best last."""
    bits = runs.set_index("run")["bits_per_weight"]
    sized = [(row, float(bits.loc[runs_of([row])].mean())) for row in rows]
    found: list[list[tuple[Row, float]]] = []
    for row, taken in sorted(sized, key=lambda one: (one[0].labels[0], -one[1])):
        first = found[-1][0] if found else None
        if first and first[0].labels[0] == row.labels[0] and first[1] - taken <= NEAR:
            found[-1].append((row, taken))
        else:
            found.append([(row, taken)])
    return [sorted(some, key=lambda one: -_loss(one[0])) for some in found]


def _loss(row: Row) -> float:
    """Mean of logarithms over corpora; infinite where a figure is no number."""
    means = [group.mean for group in row.cells.values()]
    return sum(math.log(one) if 0 < one < math.inf else math.inf for one in means) / len(means)


def _cell(row: Row, title: str, rivals: Sequence[Row], every: Compositions) -> Cell:
    if title not in row.cells:
        return MISSING
    group, metric = row.cells[title], every.columns[title][0]
    others = [one.cells[title] for one in rivals if one is not row and title in one.cells]
    best = bool(others) and is_best(group, others, True, every.floors[metric], metric)
    return cell(group, best)
