"""Is this gain real? Every run with QEP against its twin without, on the same windows and questions."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from analysis.compare import LEVEL, Comparison, floors, paired, sampled
from analysis.frames import Frames
from analysis.groups import Group
from analysis.layout import COLLAPSED, row_of, settled, signed, times
from analysis.noise import noise_notes
from analysis.protocols import protocols
from analysis.tables.base import Cell, Table, label

CAPTION = (
    "Is the gain of QEP real? Each run against the same run without QEP, on the same windows and "
    "questions: the ratio of perplexities (below 1 is better), the difference of accuracies in points "
    f"(above 0 is better), with {100 * LEVEL:.0f} % bootstrap intervals."
)
NOTE = (
    "The interval covers the choice of windows and questions, not other seeds, calibration sets or "
    "summation orders; unclear: it holds no change."
)
HEAD = [
    "on",
    "bits",
    "group",
    "method",
    "alpha",
    "seed",
    "n",
    "difference",
    "low",
    "high",
    "real?",
]


def build(frames: Frames) -> Table | None:
    """A row a run and dataset."""
    rows = [
        (key, one, seed, result)
        for key in sampled(frames)
        for one, _, seed, result in sorted(paired(frames, key), key=_order)
    ]
    if not rows:
        return None
    apart, explained = settled([row_of(one, key) for key, one, _, _ in rows])
    models = len({one.model for _, one, _, _ in rows}) > 1
    body = []
    for (key, one, seed, result), words in zip(rows, apart, strict=True):
        names = [*([one.model] if models else []), *([words or "–"] if any(apart) else [])]
        body.append([*map(label, names), *_cells(key, one, seed, result)])
    breaks = [i for i in range(1, len(rows)) if rows[i][0] != rows[i - 1][0]]
    head = [*(["model"] if models else []), *(["settings"] if any(apart) else []), *HEAD]
    collapsed = any(not math.isfinite(result.difference) for *_, result in rows)
    below = [*explained, NOTE, *([COLLAPSED] if collapsed else [])]
    below += noise_notes(floors(frames), "within noise")
    runs = [run for *_, result in rows for run in (result.first, result.second)]
    said = protocols(frames.runs, runs)
    return Table(CAPTION, head, body, len(head) - 5, frozenset(breaks), below, said)


def _order(row: tuple[Group, Group, int, Comparison]) -> tuple[Any, ...]:
    one, _, seed, _ = row
    alpha = math.inf if one.alpha == "auto" else float(one.alpha)
    return one.model, -one.bits, -(one.group_size or math.inf), one.method, alpha, seed


def _cells(key: str, one: Group, seed: int, result: Comparison) -> list[Cell]:
    ratio = key.startswith("loss/")
    name = key.removeprefix("loss/") if ratio else key
    names = [name, one.bits, one.group_size or "–", one.method, one.alpha, seed]
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
