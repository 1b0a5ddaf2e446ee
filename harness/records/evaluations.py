"""How runs were evaluated, by name: what tells a corpus under one protocol from the same under another.

A record's summary names its ``protocol`` (``qep_paper``, or the option of ``eval`` that was chosen) and
how its windows start (``bos``); records made before that name neither. Figures of two protocols are of
two things, whatever the corpus is called, so that nothing may put them into one column.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

PROTOCOL, START = "protocol", "bos"


def labels(summaries: Sequence[Mapping[str, Any]]) -> list[str]:
    """What tells the evaluation of each run from those of others; "" where all are alike.

    The protocol's name where there are several (older records have none); how windows start where
    runs of one model and protocol differ in it.
    """
    several = len({one.get(PROTOCOL) for one in summaries}) > 1
    starts: dict[tuple[Any, Any], set[str]] = {}
    for one in summaries:
        starts.setdefault(_place(one), set()).add(str(one.get(START)))
    found = []
    for one in summaries:
        words = [one[PROTOCOL]] if several and one.get(PROTOCOL) else []
        if len(starts[_place(one)]) > 1 and one.get(START):
            words.append(f"start token {one[START]}")
        found.append(", ".join(words))
    return found


def labelled(key: str, label: str) -> str:
    """A metric, dataset or sample with what tells its evaluation from others: ``c4 (qep_paper)``."""
    return f"{key} ({label})" if label else key


def described(summaries: Iterable[Mapping[str, Any]]) -> str:
    """The protocols in a sentence, with how windows start; "" where no run names one."""
    known: dict[str, set[str]] = {}
    unnamed = False
    for one in summaries:
        name = one.get(PROTOCOL)
        unnamed = unnamed or not name
        if name:
            known.setdefault(str(name), set()).update([str(one[START])] if one.get(START) else [])
    if not known:
        return ""
    parts = [
        f"{name} (start token {' or '.join(sorted(starts))})" if starts else name
        for name, starts in sorted(known.items())
    ]
    parts += ["unnamed in older records"] if unnamed else []
    return f"Protocol{'s' if len(parts) > 1 else ''}: {'; '.join(parts)}."


def _place(summary: Mapping[str, Any]) -> tuple[Any, Any]:
    return summary.get("model"), summary.get(PROTOCOL)
