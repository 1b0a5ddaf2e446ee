"""Is this gain real? Every run with QEP against its twin without, on the same windows and questions."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from analysis.compare import LEVEL, Comparison, floors, paired, sampled
from analysis.frames import Frames
from analysis.groups import Group
from analysis.layout import COLLAPSED, described, row_of, signed, times
from analysis.noise import noise_notes
from analysis.protocols import protocols
from analysis.tables.base import Cell, Table, label

CAPTION = (
    "Is the gain of QEP real? Each run against the same run without QEP, on the same windows and "
    "questions: the ratio of perplexities (below 1 is better), the difference of accuracies in points "
    f"(above 0 is better), with {100 * LEVEL:.0f} % bootstrap intervals over windows or questions and seeds."
)
NOTE = (
    "The interval covers the choice of windows and questions and, where there are several seeds, of "
    "these; with one seed it knows nothing of other calibration sets. Unclear: it holds no change."
)
HEAD = [
    "on",
    "bits",
    "group",
    "method",
    "alpha",
    "seeds",
    "n",
    "difference",
    "low",
    "high",
    "real?",
]


def build(frames: Frames) -> Table | None:
    """A row a recipe and dataset."""
    rows = [
        (key, one, seeds, result)
        for key in sampled(frames)
        for one, _, seeds, result in sorted(paired(frames, key), key=_order)
    ]
    if not rows:
        return None
    said = described([row_of(one, key) for key, one, _, _ in rows])
    models = len({one.model for _, one, _, _ in rows}) > 1
    body = []
    for (key, one, seeds, result), words in zip(rows, said.cells, strict=True):
        names = [*([one.model] if models else []), *words]
        body.append([*map(label, names), *_cells(key, one, seeds, result)])
    breaks = [i for i in range(1, len(rows)) if rows[i][0] != rows[i - 1][0]]
    head = [*(["model"] if models else []), *said.titles, *HEAD]
    collapsed = any(not math.isfinite(result.difference) for *_, result in rows)
    below = [*said.notes, NOTE, *([COLLAPSED] if collapsed else [])]
    below += noise_notes(floors(frames))
    runs = [run for *_, result in rows for pair in result.pairs for run in pair]
    where = protocols(frames.runs, runs)
    return Table(CAPTION, head, body, len(head) - 5, frozenset(breaks), below, where)


def _order(row: tuple[Group, Group, tuple[int, ...], Comparison]) -> tuple[Any, ...]:
    one, _, seeds, _ = row
    alpha = math.inf if one.alpha == "auto" else float(one.alpha)
    return one.model, -one.bits, -(one.group_size or math.inf), one.method, alpha, seeds


def _cells(key: str, one: Group, seeds: tuple[int, ...], result: Comparison) -> list[Cell]:
    ratio = key.startswith("loss/")
    name = key.removeprefix("loss/") if ratio else key
    names = [name, one.bits, one.group_size or "–", one.method, one.alpha, len(seeds)]
    figures = np.array([result.difference, result.low, result.high])
    with np.errstate(over="ignore"):  # beyond float64 a ratio is infinite
        numbers = (np.exp(figures) if ratio else 100 * figures).tolist()
    texts = [times(x) if ratio else signed(x, ".1f", "") or "–" for x in numbers]
    return [
        *map(label, names),
        Cell(str(result.n), values={"": result.n}),
        *[Cell(text, values={"": x}) for text, x in zip(texts, numbers, strict=True)],
        Cell(result.verdict, best=result.verdict == "better", values={"": result.verdict}),
    ]
