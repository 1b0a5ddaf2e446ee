"""How runs were evaluated, by name: what tells a corpus under one protocol from the same under another.

A record's summary names its ``protocol`` (``qep_paper``, or what else of ``eval`` was chosen) and, by
corpus, what windows begin with (``bos``); records made before that name neither. Figures of two
protocols are of two things, whatever the corpus is called: nothing may put them into one column.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

PROTOCOL, START = "protocol", "bos"
CALIBRATION = "calibration"  # whose windows are named beside those of the corpora

Summary = Mapping[str, Any]


class Evaluations:
    """What tells the evaluations of several runs apart."""

    def __init__(self, summaries: Iterable[Summary]) -> None:
        known = list(summaries)
        self._several = len({protocol(one) for one in known}) > 1
        self._starts: dict[tuple[Any, ...], set[str]] = {}
        for one in known:
            for dataset, start in starts(one).items():
                self._starts.setdefault((*_place(one), dataset), set()).add(start)

    def label(self, summary: Summary, dataset: str = "") -> str:
        """What tells a run's figures on ``dataset`` from others of that name; "" where nothing has to.

        The protocol's name where there are several (older records have none); what windows begin with
        where runs of one model and protocol differ in it.
        """
        words = [protocol(summary)] if self._several and protocol(summary) else []
        if len(self._starts.get((*_place(summary), dataset), ())) > 1:
            words.append(f"start token: {starts(summary).get(dataset, 'unknown')}")
        return ", ".join(words)

    def named(self, summary: Summary, key: str) -> str:
        """A metric or sample, ``perplexity/c4``, with its label: ``perplexity/c4 (qep_paper)``."""
        return labelled(key, self.label(summary, key.partition("/")[2]))


def labelled(name: str, label: str) -> str:
    """``c4 (qep_paper)``, or ``c4`` without a label."""
    return f"{name} ({label})" if label else name


def protocol(summary: Summary) -> str:
    """Its name; "" where it is not known."""
    name = summary.get(PROTOCOL)
    return name if isinstance(name, str) else ""


def starts(summary: Summary) -> dict[str, str]:
    """What windows begin with, by corpus and for the calibration set: every, first, none."""
    found = summary.get(START)
    return (
        {str(key): str(start) for key, start in found.items()}
        if isinstance(found, Mapping)
        else {}
    )


def described(summaries: Iterable[Summary]) -> str:
    """The protocols in a sentence, with what windows begin with; "" where no run names one."""
    known: dict[str, tuple[set[str], set[str]]] = {}
    for one in summaries:
        evaluated, calibrated = known.setdefault(protocol(one), (set(), set()))
        for dataset, start in starts(one).items():
            (calibrated if dataset == CALIBRATION else evaluated).add(start)
    unnamed = known.pop("", None) is not None
    if not known:
        return ""
    parts = [labelled(name, _starts_said(*known[name])) for name in sorted(known)]
    parts += ["unnamed in older records"] if unnamed else []
    return f"Protocol{'s' if len(parts) > 1 else ''}: {'; '.join(parts)}."


def _starts_said(evaluated: set[str], calibrated: set[str]) -> str:
    said = [f"start token: {' or '.join(sorted(evaluated))}"] if evaluated else []
    if calibrated and calibrated != evaluated:
        said.append(f"in calibration: {' or '.join(sorted(calibrated))}")
    return ", ".join(said)


def _place(summary: Summary) -> tuple[Any, Any]:
    return summary.get("model"), protocol(summary)
