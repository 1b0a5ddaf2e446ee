"""A folder of records as two tidy frames: one row a run, one row a linear."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from harness.record import LAYERS, RECORD, Record, RecordError, read_record, read_rows

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Frames:
    """``runs``: a row a run; ``layers``: a row a linear, with the name of its run."""

    runs: pd.DataFrame
    layers: pd.DataFrame


def load(folder: str | Path) -> Frames:
    """All records below ``folder``; a damaged or foreign one is named in the log and left out.

    Columns of ``runs``: run, status, the record's summary (model, method, bits, alpha, seed, ...),
    every metric under its own key, ``seconds/<phase>``, ``flops/<phase>``, bits_per_weight,
    peak_memory, checkpoint_bytes, baseline. NaN and infinity are kept as they are.

    Raises:
        FileNotFoundError: there is no such folder.
    """
    root = Path(folder)
    if not root.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder of records")
    runs, layers = [], []
    for path in sorted(root.rglob(RECORD)):
        try:
            record = read_record(path.parent)
            rows = read_rows(path.parent / LAYERS)
        except RecordError as error:
            logger.warning("left out: %s", error)
            continue
        runs.append(run_row(record))
        layers += [{"run": record.run, **row} for row in rows]
    return Frames(pd.DataFrame(runs), pd.DataFrame(layers))


def run_row(record: Record) -> dict[str, Any]:
    """A record as one flat row."""
    return {
        "run": record.run,
        "status": record.status,
        **{key: _label(key, value) for key, value in record.summary.items()},
        **record.metrics,
        **{f"seconds/{key}": value for key, value in record.seconds.items()},
        **{f"flops/{key}": value for key, value in record.flops.items()},
        "bits_per_weight": record.bits_per_weight,
        "peak_memory": record.peak_memory,
        "checkpoint_bytes": record.checkpoint_bytes,
        "baseline": record.baseline,
    }


def _label(key: str, value: Any) -> Any:
    """Alphas are text, since "auto" is one of them."""
    if key != "alpha" or isinstance(value, str):
        return value
    return f"{value:g}"
