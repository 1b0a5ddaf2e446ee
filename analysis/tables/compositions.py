"""What compositions of axes bring, without and with QEP: a row a composition, corpora side by side."""

from __future__ import annotations

from analysis.compositions import Compositions, compositions
from analysis.frames import Frames
from analysis.groups import STRENGTH
from analysis.layout import GAIN, SPREAD, Row, cell, described, is_best, notes, runs_of
from analysis.noise import BOLD, noise_notes
from analysis.protocols import protocols
from analysis.tables.base import MISSING, Cell, Table, label
from analysis.tables.perplexity import gained


def build(frames: Frames) -> Table | None:
    """A row a composition, from the worst to the best; columns are corpora without and with QEP."""
    found = compositions(frames)
    rows = found.rows
    if not rows:
        return None
    said = described(rows)
    models = len({row.first.model for row in rows}) > 1
    body = []
    for row, words in zip(rows, said.cells, strict=True):
        model, _, bits, size, method = row.labels
        names = [*([model] if models else []), bits, size or "–", method, *words]
        body.append([*map(label, names), *[_cell(row, title, found) for title in found.columns]])
    several = any(len(one.finite) > 1 for row in rows for one in row.cells.values())
    head = [*(["model"] if models else []), "bits", "group", "method", *said.titles]
    return Table(
        f"Perplexity without QEP and with it (alpha {STRENGTH}), lower is better.",
        [*head, *found.columns],
        body,
        len(head),
        frozenset(i for i in range(1, len(rows)) if rows[i].labels[:4] != rows[i - 1].labels[:4]),
        [
            *said.notes,
            *notes(rows),
            *([SPREAD] if several else []),
            *([GAIN] if found.twins else []),
            *noise_notes(found.floors.values(), BOLD),
        ],
        protocols(frames.runs, runs_of(rows)),
    )


def _cell(row: Row, title: str, found: Compositions) -> Cell:
    group = row.cells.get(title)
    if group is None:
        return MISSING
    metric, _ = found.columns[title]
    floor, twin = found.floors[metric], found.twins.get(id(group))
    best = is_best(group, found.rivals(row, metric), True, floor, metric)
    return cell(group, best, gained(group, twin, floor, metric) if twin else "")
