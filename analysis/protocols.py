"""The protocols of the runs in a table or figure, for its caption."""

from __future__ import annotations

from collections.abc import Iterable

import pandas as pd

from harness.records.evaluations import PROTOCOL, START, described


def protocols(runs: pd.DataFrame, names: Iterable[str]) -> str:
    """A sentence on the protocols of the runs of these names, and on what windows begin with.

    "" where their records, which are older, name none.
    """
    chosen = runs[runs["run"].isin(set(names))]
    columns = chosen.reindex(columns=[PROTOCOL, START])
    return described(columns.to_dict("records"))
