"""The noise floor: how far the figures of a run spread when only the order of summation changes.

Runs that differ in nothing but ``noise.seed`` are records of their own. That of seed 0 gets, for each
of its metrics m_0 and those m_1, …, m_{N−1} of the seeds 1 to N−1,

    noise/<metric> = sqrt( Σ_k (x_k − x̄)² / (N − 1) )        x = ln m for a perplexity, else m

with N in ``summary["noise_repeats"]``. Seeds count up to the first that is not done.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from itertools import count

from harness.records.locks import exclusive
from harness.records.record import Record, write_record
from harness.settings.config import Config

FAMILY = "noise"
REPEATS = "noise_repeats"
LOGARITHMIC = ("perplexity",)  # metric families whose differences are ratios


def spread(runs: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """``noise/<metric>`` over the metrics of two or more runs.

    Standard errors have none, and a figure that some run lacks or that is not finite there.
    """
    found = {}
    for metric in runs[0]:
        family = metric.split("/")[0]
        values = [run.get(metric, math.nan) for run in runs]
        if family == FAMILY or family.endswith("_stderr") or not all(map(math.isfinite, values)):
            continue
        points = [math.log(value) for value in values] if family in LOGARITHMIC else values
        found[f"{FAMILY}/{metric}"] = statistics.stdev(points)
    return found


def add_noise(record: Record, config: Config) -> bool:
    """Adds the spread over the finished repeats to the ``record`` of a run, if it is that of seed 0.

    A repeat of other weights, windows or questions is none. Returns whether anything changed.
    """
    if config.noise.seed or not config.quantizes:
        return False
    runs = [record.metrics]
    for seed in count(1):
        repeat = config.repeat(seed).settled()
        if repeat is None or repeat.status != "done" or repeat.hashes != record.hashes:
            break
        runs.append(repeat.metrics)
    if len(runs) == 1:
        return False
    before = dict(record.metrics), dict(record.summary)
    kept = {key: value for key, value in record.metrics.items() if key.split("/")[0] != FAMILY}
    record.metrics = kept | spread(runs)
    record.summary[REPEATS] = len(runs)
    return before != (record.metrics, record.summary)


def update_noise(config: Config) -> Record | None:
    """Brings the record of this run's ``noise.seed=0`` on disk up to date; the record if it changed."""
    first = config.repeat(0)
    record = first.settled()
    if record is None or record.status != "done" or not add_noise(record, first):
        return None
    with exclusive(first.directory):
        record = first.settled()  # another process may have been at work on it
        if record is None or not add_noise(record, first):
            return None
        write_record(first.directory, record)
    return record
