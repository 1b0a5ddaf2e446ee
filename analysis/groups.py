"""Which runs belong together: equal but for the seed, or equal but for QEP.

Runs are averaged only over seeds. Everything else that makes a run this run (method options, damping,
calibration, grid, checkpoint, the very tokens of the evaluation) keeps groups apart.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import PurePath
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import pandas as pd

from analysis.noise import LOGARITHMIC, Noise
from harness.records.record import BETTER, CODES, METRICS
from harness.settings.flat import file_and_class, flat, short

# Metric families whose figures depend on evaluation tokens or questions.
EVALUATED = tuple(family for family in METRICS if family not in ("error", "noise"))
NOISE, REPEATS, NOISE_SEED = "noise/", "noise_repeats", "noise_seed"
# Columns of the runs frame that decide where a run belongs.
NEEDED = (
    *("run", "status", "model", "method", "bits", "group_size", "alpha", "seed"),
    *("finished", "metrics", "config", "settings", "recipe", "hashes", "contents"),
)
HOLDOUT = "calibration.holdout"
STRENGTH = "0.5"  # the alpha of the authors of QEP


def settings(
    config: Mapping[str, Any], contents: Mapping[str, str] = MappingProxyType({})
) -> dict[str, str]:
    """A configuration flat, ``qep.damping -> "1"``, without seed, repeat and evaluation.

    A class is named by its file and itself, which folder that lies in is no setting. What names files
    is their name with what they held, ``cal.txt@1a2b3c4d``, where the record knows.
    """
    known = flat({k: v for k, v in config.items() if k not in ("seed", "noise", "eval")})
    for key, value in known.items():
        if key.endswith("_target_"):
            known[key] = file_and_class(value)
        elif key in contents:
            known[key] = f"{PurePath(value).name}@{short(contents[key])}"
    return known


def recipe(known: Mapping[str, str]) -> str:
    """A short name of :func:`settings`: equal for runs that differ in seed and evaluation only."""
    return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()[:12]


def added_families(runs: pd.DataFrame) -> dict[str, Literal["lower", "higher"]]:
    """The metric families that evaluators have added to those of the schema, with their directions."""
    known = runs.get(BETTER, ())
    return {name: b for one in known if isinstance(one, Mapping) for name, b in one.items()}


def evaluated(metric: str, added: Collection[str] = ()) -> tuple[str, str]:
    """What comes before the corpus or task in the name of a metric, and that; "" where there is none.

    ``added`` are the families that evaluators have added to those of the schema.
    """
    family, _, dataset = metric.removeprefix(NOISE).partition("/")
    return metric.removesuffix(dataset), dataset if family in (*EVALUATED, *added) else ""


@dataclass(frozen=True)
class Group:
    """Runs that differ in their seeds only, and what one metric says of them.

    Args:
        model: its name.
        method: base method, ``none`` for full precision, ``codes (gguf)`` for a checkpoint of codes.
        bits: of the grid, or effective bits where they were spread under a budget.
        group_size: of the grid; None is one grid a row.
        alpha: of QEP, as text.
        settings: see :func:`settings`; ``tokens/<dataset>`` and ``checkpoint`` name contents by hash.
        values: seed -> the metric as measured, infinite or NaN where the run diverged.
        lost: seed -> "failed" or "stopped".
        runs: seed -> run.
        noise: seed -> how far the metric moves with the order of summation, where that is known.
        logarithmic: means are of the logarithm, as with perplexities, whose logarithm is measured.
    """

    model: str
    method: str
    bits: int | float
    group_size: int | None
    alpha: str
    settings: Mapping[str, str]
    values: dict[int, float] = field(default_factory=dict)
    lost: dict[int, str] = field(default_factory=dict)
    runs: dict[int, str] = field(default_factory=dict)
    noise: dict[int, Noise] = field(default_factory=dict)
    logarithmic: bool = False

    @property
    def quantised(self) -> bool:
        """See :func:`quantised`."""
        return quantised(self.method)

    @property
    def corrects(self) -> bool:
        """Whether QEP takes part: without it the record names no damping of the correction."""
        return self.quantised and (
            "qep.damping" in self.settings
            or ("qep.alpha" not in self.settings and self.alpha != "0")
        )

    @cached_property
    def finite(self) -> dict[int, float]:
        """The values that are numbers."""
        return {seed: value for seed, value in self.values.items() if math.isfinite(value)}

    @property
    def whole(self) -> bool:
        """Whether every seed was measured and none diverged."""
        return bool(self.values) and not self.lost and len(self.finite) == len(self.values)

    @cached_property
    def mean(self) -> float:
        """Mean over the seeds that did not diverge; NaN where there is none."""
        return self.average(self.finite) if self.finite else math.nan

    def average(self, seeds: Iterable[int]) -> float:
        """Mean over these seeds, geometric where the logarithm is what is measured."""
        values = [self.finite[seed] for seed in seeds]
        if not self.logarithmic or min(values) <= 0:
            return float(np.mean(values))
        # A mean of logarithms would round the figure of a single seed.
        return values[0] if len(set(values)) == 1 else float(np.exp(np.mean(np.log(values))))

    @property
    def std(self) -> float:
        """Standard deviation over seeds (n − 1); NaN below two. Of logarithms it is in units of the mean."""
        values = list(self.finite.values())
        if len(values) < 2:
            return math.nan
        if len(set(values)) == 1:  # the mean is rounded, and the distance from it would be noise
            return 0.0
        if self.logarithmic and min(values) > 0:
            return self.mean * float(np.std(np.log(values), ddof=1))
        return float(np.std(values, ddof=1))

    @cached_property
    def measured(self) -> tuple[tuple[str, str], ...]:
        """Checkpoint and tokens by hash: only figures of the same ones may be ranked."""
        return tuple(
            (key, value)
            for key, value in self.settings.items()
            if key == "checkpoint" or key.startswith("tokens/")
        )

    @property
    def place(self) -> tuple[Any, ...]:
        """What a table's row or column names anyway."""
        return self.model, self.method, self.bits, self.group_size


def quantised(method: str) -> bool:
    """Whether a method quantised a model: it is neither in full precision nor made of codes on disk."""
    return method != "none" and not method.startswith(CODES)


def _bits(value: float) -> int | float:
    """3 for 3.0, so that tables say it so."""
    if math.isnan(value):
        return math.nan  # the very same, which equals itself in a tuple
    return int(value) if value == int(value) else float(value)


def groups(runs: pd.DataFrame, metric: str) -> list[Group]:
    """The runs that have ``metric``, or that failed on the way to it, by what they have in common.

    A run made twice with the same seed (under other evaluations, say) counts once: the later one; of
    its repeats with another order of summation the first, which has their spread.
    A failed run counts where a run with the same evaluation has the metric.
    """
    dataset = evaluated(metric, added_families(runs))[1]
    names = f"tokens/{dataset}"
    found: dict[tuple[str, str, str], Group] = {}
    lost, evaluations = [], set()
    columns = [*NEEDED, *(key for key in (metric, REPEATS, NOISE_SEED) if key in runs)]
    rows: Any = in_order(runs[columns]).to_dict("records")
    for row in rows:
        if row["status"] != "done":
            lost.append(row)
        elif metric in row["metrics"] or not (dataset or pd.isna(row.get(metric))):
            checkpoint, tokens = row["hashes"].get("model", ""), row["hashes"].get(dataset, "")
            key = (row["recipe"], checkpoint, tokens)
            group = found.setdefault(
                key, _group(row, metric, {"checkpoint": checkpoint, names: tokens})
            )
            evaluations.add(_evaluation(row))
            group.values[_seed(row)] = float(row[metric])
            group.runs[_seed(row)] = row["run"]
            group.noise.pop(_seed(row), None)
            deviation = row["metrics"].get(f"{NOISE}{metric}")
            if deviation is not None:
                group.noise[_seed(row)] = _noise(row, deviation)
    for row in lost:
        if _evaluation(row) not in evaluations:
            continue
        same = [key for key in found if key[0] == row["recipe"]]
        key = same[0] if len(same) == 1 else (row["recipe"], "", "")
        group = found.setdefault(key, _group(row, metric, {}))
        if _seed(row) not in group.values:
            group.lost[_seed(row)] = row["status"]
            group.runs[_seed(row)] = row["run"]
    return list(found.values())


def in_order(runs: pd.DataFrame) -> pd.DataFrame:
    """The runs so that of several with the same recipe and seed the last one counts."""
    repeat = runs[NOISE_SEED].fillna(0) if NOISE_SEED in runs else 0
    ordered = runs.assign(repeat=repeat).sort_values("finished", kind="stable")
    return ordered.sort_values("repeat", ascending=False, kind="stable").drop(columns="repeat")


def _noise(row: Mapping[str, Any], deviation: float) -> Noise:
    repeats = row.get(REPEATS)
    known = int(repeats) if repeats is not None and repeats >= 2 else 2
    return Noise(row["run"], math.inf if math.isnan(deviation) else deviation, known)


def _evaluation(row: Mapping[str, Any]) -> str:
    """What a run was to be evaluated on: the configuration, and what the files in it held."""
    held = {key: value for key, value in row["contents"].items() if key.startswith("eval.")}
    return str((row["config"].get("eval"), sorted(held.items())))


def _seed(row: Mapping[str, Any]) -> int:
    return 0 if pd.isna(row.get("seed")) else int(row["seed"])


def _group(row: Mapping[str, Any], metric: str, hashes: Mapping[str, str]) -> Group:
    contents = {key: value.rsplit(": ", 1)[-1][:8] for key, value in hashes.items() if value}
    size = row["group_size"]
    return Group(
        row["model"],
        row["method"],
        _bits(row["bits"]),
        None if pd.isna(size) else int(size),
        row["alpha"],
        row["settings"] | contents,
        logarithmic=metric.startswith(LOGARITHMIC),
    )


def twins(found: Iterable[Group]) -> list[tuple[Group, Group]]:
    """Every group with QEP beside the one that differs from it by having none.

    ``alpha=auto`` sets some calibration windows aside to choose on; where no run without QEP did the
    same, the twin is the one that calibrates on all of them.
    """
    found = list(found)
    plain = {_base(one): one for one in found if one.quantised and not one.corrects}
    loose = {_base(one, HOLDOUT): one for one in plain.values()}
    pairs = []
    for one in found:
        if not one.corrects:
            continue
        twin = plain.get(_base(one))
        if twin is None and one.alpha == "auto":
            twin = loose.get(_base(one, HOLDOUT))
        if twin is not None:
            pairs.append((one, twin))
    return pairs


def _base(group: Group, without: str = "") -> tuple[Any, ...]:
    """All that a group and its twin without QEP have in common."""
    kept = {
        key: value
        for key, value in group.settings.items()
        if key != without and (key == "qep.statistics" or not key.startswith("qep."))
    }
    return *group.place, tuple(sorted(kept.items()))
