"""What every caption says: which model, how many runs, seeds, tokens, and what diverged."""

from __future__ import annotations

from collections import Counter

import pandas as pd

from analysis.frames import Frames
from analysis.plotting.facets import Facets
from analysis.plotting.undrawn import Undrawn
from analysis.protocols import protocols
from harness.settings.said import NAMES


def counted(frames: Frames, shown: pd.DataFrame, corpora: bool = False) -> str:
    """Model, n, seeds, tokens, protocols and, with ``corpora``, evaluation windows of ``shown`` runs."""
    runs = frames.runs[frames.runs["run"].isin(shown["run"])]
    seeds = sorted(int(seed) for seed in runs["seed"].unique())
    parts = [
        f"{_listed('Model', runs['model'].unique())}; n = {_plural(len(runs), 'run')}",
        _listed("seed", seeds),
    ]
    for key, what in (("calibration_tokens", "calibration"), ("heldout_tokens", "held-out")):
        tokens = sorted(runs[key].dropna().unique()) if key in runs else []
        if any(tokens):
            parts.append(f"{' or '.join(f'{int(one):,}' for one in tokens)} {what} tokens")
    if corpora:
        parts += _windows(frames, shown)
    failed = int((frames.runs["status"] != "done").sum())
    return joined(
        f"{', '.join(parts)}.",
        protocols(frames.runs, shown["run"]),
        f"{_plural(failed, 'unfinished run')} left out." if failed else "",
    )


def diverged(
    count: int, where: str = "of one seed at least: an empty arrow head at the edge"
) -> str:
    """A sentence on values that are not finite, or nothing."""
    return f"{_plural(count, 'diverged value')} ({where})." if count else ""


def beyond(count: int, times: float) -> str:
    """A sentence on values that are finite and so large that they stand at the edge, or nothing."""
    said = f"Beyond {times:g} times full precision: {_plural(count, 'value')} (arrow heads at the edge)."
    return said if count else ""


def undrawn(lost: Undrawn, panels: Facets) -> str:
    """Sentences on the values that an axis has no place for, or nothing."""
    shown = len(list(panels))
    empty = [
        f"{words.capitalize()}."
        if count == shown
        else f"{words.capitalize()} in {count} of {shown} panels."
        for words, count in Counter(panels.empty).items()
    ]
    return joined(*empty, diverged(lost.diverged), below(lost))


def below(lost: Undrawn) -> str:
    """A sentence on values that a logarithmic axis has no place for, or nothing."""
    said = f"{_plural(lost.below, 'value')} at or below zero (no place on a logarithmic axis)."
    return said if lost.below else ""


def joined(*parts: str) -> str:
    """Sentences, without the empty ones."""
    return " ".join(part for part in parts if part)


def _windows(frames: Frames, shown: pd.DataFrame) -> list[str]:
    found = []
    for corpus, rows in shown.groupby("corpus", sort=False):
        known = {f"loss/{one}" for one, written in NAMES.items() if written == corpus}
        losses = frames.samples[frames.samples["key"].isin(known | {f"loss/{corpus}"})]
        counts = losses[losses["run"].isin(rows["run"])].groupby("run", observed=True).size()
        if len(counts):
            sizes = " or ".join(str(one) for one in sorted(counts.unique()))
            found.append(f"{sizes} evaluation windows of {corpus}")
    return found


def _plural(count: int, what: str) -> str:
    return f"{count} {what}" + ("" if count == 1 else "s")


def _listed(what: str, values: object) -> str:
    names = [NAMES.get(str(one), str(one)) for one in values]  # type: ignore[attr-defined]
    return f"{what if len(names) == 1 else what + 's'} {', '.join(names)}"
