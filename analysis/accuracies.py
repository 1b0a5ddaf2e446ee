"""Zero-shot accuracies in per cent with their standard errors, a column a task."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd

from analysis.groups import Group
from analysis.layout import GAIN
from analysis.rowwise import Column, rowwise
from analysis.tables.base import Cell, Table
from harness.settings.said import NAMES

NOTE = f"± is the standard error over questions, sd the deviation over n seeds. {GAIN}"


def accuracy_table(runs: pd.DataFrame, family: str, caption: str) -> Table | None:
    """The table of one family of metrics, ``accuracy`` or ``accuracy_norm``."""
    tasks = sorted(str(key).split("/", 1)[1] for key in runs if str(key).startswith(f"{family}/"))
    by_run = runs.set_index("run")

    def column(task: str) -> Column:
        errors = by_run.get(f"{family}_stderr/{task}", pd.Series(dtype=float))

        def text(group: Group, shown: Cell) -> Cell:
            """The mean with the standard error of its questions, which more seeds don't shrink."""
            measured = [errors.get(group.runs[seed]) for seed in group.finite]
            known = pd.Series(measured, dtype=float).dropna()
            if known.empty:
                return shown
            words = f"{100 * group.mean:.1f} ± {100 * known.mean():.1f}"
            if len(group.finite) > 1:
                words += f" (n={len(group.finite)}, sd {100 * group.std:.1f})"
            trouble = shown.values.get("trouble")
            words += f", {trouble}" if trouble else ""
            values = {**shown.values, "stderr": 100 * known.mean()}
            return replace(shown, text=words, values=values)

        return Column(
            f"{NAMES.get(task, task)} %",
            f"{family}/{task}",
            100,
            ".1f",
            "higher",
            gain="points",
            text=text,
        )

    return rowwise(runs, [column(task) for task in tasks], caption, [NOTE])
