"""What the figures show, in long form: a row a value, with the recipe of its run.

A value that is not finite was measured all the same: NaN becomes infinity and is never dropped.
What was not measured has no row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from analysis.compositions import WITH, WITHOUT
from analysis.frames import Frames
from analysis.plotting.recipes import RECIPE, recipes
from harness.records.record import PERPLEXITY
from harness.settings.said import NAMES

SIDES = {"": "calibration", "_heldout": "held-out"}
LABELS = [*RECIPE, "run", "seed", "method", "settings", "way"]  # what rows know of their run


def perplexities(frames: Frames) -> pd.DataFrame:
    """The perplexity of every fully quantised run on every corpus.

    Columns: those of :func:`recipes`, corpus, value, and full, which is that of the baseline (NaN
    where it is unknown).
    """
    parts = []
    for metric in [str(one) for one in frames.runs if str(one).startswith(PERPLEXITY)]:
        corpus = metric.removeprefix(PERPLEXITY)
        measured = frames.runs[[metric in metrics for metrics in frames.runs["metrics"]]]
        part = recipes(measured, corpus)
        full = frames.runs.set_index("run")[metric]
        part["corpus"], part["value"] = NAMES.get(corpus, corpus), part[metric].fillna(np.inf)
        part["full"] = part["baseline"].map(full)
        parts.append(part[part["blocks"] == ""])
    return pd.concat(parts) if parts else pd.DataFrame(columns=[*RECIPE, "run"])


def depths(frames: Frames, runs: pd.DataFrame, error: str = "relative_error") -> pd.DataFrame:
    """An error of the residual stream after every block of the ``runs`` that measured it.

    Columns: those of :func:`recipes`, block, side (calibration or held-out), value.
    """
    parts = {}
    for suffix, side in SIDES.items():
        key = f"{error}{suffix}"
        if key in frames.blocks:
            blocks = frames.blocks
            # What has diverged has no error of either kind; what is older than a kind lacks that one.
            known = blocks[key].notna() | blocks[f"relative_error{suffix}"].isna()
            rows = blocks.loc[known, ["run", "block", key]].rename(columns={key: "value"})
            part = joined(runs if not suffix else held_out(runs), rows)
            parts[side] = part.assign(value=part["value"].fillna(np.inf))
    return stacked(parts, "side") if parts else runs.iloc[:0]


def held_out(runs: pd.DataFrame) -> pd.DataFrame:
    """The runs that measured on held-out windows."""
    return runs[runs["heldout_tokens"] > 0] if "heldout_tokens" in runs else runs.iloc[:0]


def joined(runs: pd.DataFrame, rows: pd.DataFrame) -> pd.DataFrame:
    """``rows`` (of layers or blocks) of these runs, in their order, with what labels the runs."""
    labels = runs[[one for one in LABELS if one in runs]].astype({"run": object})
    rows = rows[rows["run"].isin(labels["run"])].astype({"run": object})
    return labels.merge(rows, on="run", sort=False)


def over_seeds(data: pd.DataFrame, keys: Sequence[str]) -> pd.DataFrame:
    """Mean, standard deviation (NaN of one) and number of ``value`` by ``keys``, in their order.

    The mean is infinite where one of them is.
    """
    with np.errstate(invalid="ignore"):
        groups = data.groupby(list(keys), sort=False, dropna=False, observed=True)["value"]
        return groups.agg(["mean", "std", "count"]).reset_index()


def stacked(parts: Mapping[str, pd.DataFrame], name: str) -> pd.DataFrame:
    """The parts under each other, with their keys as column ``name``."""
    return pd.concat([part.assign(**{name: key}) for key, part in parts.items()])


def chosen_alpha(data: pd.DataFrame) -> str | None:
    """The alpha that stands for "with QEP": of those in most recipes the one nearest to 0.5."""
    ways = data[data["alpha"] != "0"].drop_duplicates(RECIPE)
    if ways.empty:
        return None
    counts = ways.groupby("alpha").size()
    best = counts[counts == counts.max()].index
    return min(best, key=lambda alpha: (alpha == "auto", abs(_number(alpha) - 0.5)))


def one_alpha(data: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """The rows without QEP, or if there are none those of one alpha, and that in words."""
    kept = "0" if (data["alpha"] == "0").any() else chosen_alpha(data)
    others = [alpha for alpha in data["alpha"].unique() if alpha != kept]
    left_out = f" ({', '.join(sorted(others))}: not shown)" if others else ""
    return data[data["alpha"] == kept], f"Alpha {kept}{left_out}."


def ways(data: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """The rows without QEP and those with it at one alpha, as column ``way``, and that in words.

    Where runs differ in QEP's other options as well, those that a method was run with most often stand
    for it.
    """
    alpha = chosen_alpha(data)
    kept, others = usual(data[data["alpha"].isin(["0", alpha])])
    kept = kept.assign(way=np.where(kept["alpha"] == "0", WITHOUT, WITH))
    if alpha is None:
        return kept, "No run uses QEP."
    others = [*sorted(set(data["alpha"]) - {"0", alpha}), *others]
    left_out = f" ({'; '.join(others)}: not shown)" if others else ""
    return kept, f"With QEP: alpha {alpha}{left_out}."


def usual(data: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """The rows without QEP, and of each recipe those with its most frequent options of QEP.

    Returns:
        The rows, and the options of the others, in words.
    """
    data = data.reset_index(drop=True)
    corrected = data["alpha"] != "0"
    place = ["model", "setting", "grid", "variant", "blocks"]
    kept, others = ~corrected, set[str]()
    for _, rows in data[corrected].groupby(place, sort=False, observed=True):
        counts = rows.groupby("propagation", sort=False)["run"].nunique()
        chosen = counts.index[counts == counts.max()][-1]
        kept |= data.index.isin(rows.index[rows["propagation"] == chosen])
        others |= set(counts.index) - {chosen}
    return data[kept], sorted(others)


def _number(alpha: str) -> float:
    return 0.5 if alpha == "auto" else float(alpha)
