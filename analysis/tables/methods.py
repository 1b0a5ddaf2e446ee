"""Perplexity and cost by method x bits x alpha: the table of docs/methods.md and the README."""

from __future__ import annotations

import pandas as pd

KEYS = ["bits", "group_size", "method"]


def methods_table(runs: pd.DataFrame, metric: str) -> str:
    """Markdown: a row a method, a column an alpha, the seconds of correcting and quantising.

    The best of each bit width is bold; what was not measured is a dash.

    Args:
        runs: the runs frame of :func:`analysis.load.load`.
        metric: the column to show, lower is better.

    Raises:
        KeyError: no run has that metric.
    """
    if metric not in runs:
        known = [column for column in runs if column.startswith("perplexity/")]
        raise KeyError(f"{metric}: no run has it; there are {', '.join(known) or 'none'}")
    done = runs[(runs["status"] == "done") & runs[metric].notna()]
    quantised = done[done["method"] != "none"].copy()
    quantised["group_size"] = [
        "–" if pd.isna(size) else str(int(size)) for size in quantised["group_size"]
    ]
    alphas = sorted(quantised["alpha"].unique(), key=lambda a: (a == "auto", a))
    head = ["bits", "group", "method", *[f"alpha {a}" for a in alphas], "seconds"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * 3 + "---:|" * (len(alphas) + 1)]
    for value in done[done["method"] == "none"][metric].unique():
        lines.append(f"| 16 | – | full precision | {value:.4g} |" + " – |" * len(alphas))
    best = quantised.groupby(["bits", "group_size"])[metric].min()
    for (bits, group, method), rows in quantised.groupby(KEYS, sort=False):
        cells = []
        for alpha in alphas:
            values = rows[rows["alpha"] == alpha][metric]
            if values.empty:
                cells.append("–")
                continue
            text = f"{values.mean():.4g}"
            cells.append(f"**{text}**" if values.min() == best[bits, group] else text)
        spent = rows[["seconds/correct", "seconds/quantise"]].sum(axis=1)
        line = [str(bits), str(group), method, *cells, f"{spent.median():.0f}"]
        lines.append("| " + " | ".join(line) + " |")
    return "\n".join(lines) + "\n"
