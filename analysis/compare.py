"""Is a gain real? Two runs on the same windows or questions, with bootstrap intervals.

The interval says how far the difference could be off because these windows or questions were drawn and
not others. It knows nothing of other seeds, calibration sets or summation orders.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import pandas as pd
from scipy import stats

from analysis.frames import Frames
from analysis.groups import Group, groups, twins
from analysis.noise import Floor

RESAMPLES = 4000
LEVEL = 0.95
SEED = 0
CHUNK = 4_000_000  # entries of a matrix of counts that are in memory at once
# What of a record's samples is compared, and how its metric is called.
KINDS = {"loss": "perplexity", "accuracy": "accuracy", "accuracy_norm": "accuracy_norm"}

Verdict = Literal["better", "worse", "unclear", "within noise"]


@dataclass(frozen=True)
class Comparison:
    """The difference first − second in one sample, with its interval.

    Args:
        first: run.
        second: run.
        key: ``loss/<corpus>`` (nats a token), ``accuracy/<task>`` (share).
        n: windows or questions.
        difference: mean over them; infinite where one of the two collapsed (a loss of its is infinite
            or NaN), NaN where both did.
        low: lower end of the interval; NaN below two samples and where the difference is not finite.
        high: its upper end.
        noise: how large a difference another order of summation explains; NaN where nobody knows.
    """

    first: str
    second: str
    key: str
    n: int
    difference: float
    low: float
    high: float
    noise: float = math.nan

    @property
    def verdict(self) -> Verdict:
        """Whether the first run is better: unclear where the interval holds zero, or both collapsed."""
        if abs(self.difference) <= self.noise and math.isfinite(self.difference):
            return "within noise"
        if not (math.isinf(self.difference) or self.low > 0 or self.high < 0):
            return "unclear"
        return "better" if (self.difference < 0) == self.key.startswith("loss/") else "worse"


def intervals(
    differences: np.ndarray,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
    seed: int = SEED,
) -> np.ndarray:
    """Bootstrap intervals of the means of several paired differences.

    A resample draws n of the n windows with replacement; all columns see the same resamples. The
    percentiles are a little wider than the level says, by the factor sqrt(n/(n−1)) and Student's
    quantile in place of the normal one (Hesterberg 2015, section 5.2): plain percentiles are too narrow
    with few windows.

    Args:
        differences: ``[n, columns]``.
        resamples: how many.
        level: of coverage.
        seed: of the resampling.

    Returns:
        ``[2, columns]``: lower and upper ends; NaN where n < 2 or a difference is not finite.
    """
    n, columns = differences.shape
    if n < 2:
        return np.full((2, columns), np.nan)
    generator = np.random.default_rng(seed)
    step = max(1, CHUNK // n)
    with np.errstate(invalid="ignore"):
        means = np.concatenate(
            [
                generator.multinomial(n, np.full(n, 1 / n), min(step, resamples - at))
                @ differences
                for at in range(0, resamples, step)
            ]
        )
        tail = stats.norm.cdf(math.sqrt(n / (n - 1)) * stats.t.ppf((1 - level) / 2, n - 1))
        return np.asarray(np.quantile(means / n, [tail, 1 - tail], axis=0))


def compare(frames: Frames, pairs: Sequence[tuple[str, str]], key: str) -> list[Comparison]:
    """Every pair of runs in one sample, for instance ``loss/wiki``.

    Raises:
        ValueError: a run has no such samples, or two were evaluated on different tokens or questions.
    """
    table = samples(frames, key)
    hashes = dict(zip(frames.runs["run"], frames.runs["hashes"], strict=True))
    for first, second in pairs:
        _check(first, second, key, table, hashes)
    by_length: dict[int, list[tuple[str, str]]] = {}
    for pair in pairs:
        by_length.setdefault(len(table[pair[0]]), []).append(pair)
    found: dict[tuple[str, str], Comparison] = {}
    for n, equal in by_length.items():
        with np.errstate(invalid="ignore"):  # ∞ − ∞: both collapsed
            columns = [table[one] - table[other] for one, other in equal]
            differences = np.stack(columns, axis=1)
            means = differences.mean(axis=0)
        low, high = intervals(differences)
        for i, pair in enumerate(equal):
            figures = float(means[i]), float(low[i]), float(high[i])
            found[pair] = Comparison(*pair, key, n, *figures)
    return [found[pair] for pair in pairs]


def paired(
    frames: Frames, key: str, match: Callable[[list[Group]], list[tuple[Group, Group]]] = twins
) -> list[tuple[Group, Group, int, Comparison]]:
    """Groups that ``match`` puts side by side, compared seed by seed in one sample.

    Pairs without samples (of older records) or without a hash of what was evaluated are left out.
    """
    dataset = key.partition("/")[2]
    known = set(samples(frames, key))
    every = groups(frames.runs, metric_of(key))
    floor = Floor(every)
    found = [
        (one, other, seed)
        for one, other in match(every)
        for seed in sorted(one.values.keys() & other.values.keys())
        if {one.runs[seed], other.runs[seed]} <= known and f"tokens/{dataset}" in one.settings
    ]
    results = compare(frames, [(one.runs[seed], two.runs[seed]) for one, two, seed in found], key)
    return [
        (one, two, seed, replace(result, noise=floor.limit([(one, seed), (two, seed)])))
        for (one, two, seed), result in zip(found, results, strict=True)
    ]


def samples(frames: Frames, key: str) -> dict[str, np.ndarray]:
    """Run -> its values in the order of windows or questions; a loss that is NaN is infinite."""
    chosen = frames.samples[frames.samples["key"] == key].sort_values(["run", "index"])
    if key.startswith("loss/"):
        chosen = chosen.fillna({"value": np.inf})
    grouped = chosen.groupby("run", observed=True)["value"]
    return {str(run): values.to_numpy() for run, values in grouped}


def _check(
    first: str,
    second: str,
    key: str,
    table: Mapping[str, np.ndarray],
    hashes: Mapping[str, Mapping[str, str]],
) -> None:
    dataset = key.partition("/")[2]
    for run in (first, second):
        if run not in table:
            raise ValueError(f"{run}: its record has no samples {key}")
    one, other = (hashes[run].get(dataset, "") for run in (first, second))
    if one != other or not one or len(table[first]) != len(table[second]):
        raise ValueError(
            f"{first} and {second}: evaluated on different {dataset} ({len(table[first])} samples, "
            f"{one[:20] or 'no hash'}; {len(table[second])}, {other[:20] or 'no hash'})"
        )


def metric_of(key: str) -> str:
    """The metric that is the mean of samples: ``perplexity/wiki`` for ``loss/wiki``."""
    kind, _, dataset = key.partition("/")
    return f"{KINDS[kind]}/{dataset}"


def floors(frames: Frames) -> list[Floor]:
    """What is known of the noise of every metric that can be compared sample by sample."""
    return [Floor(groups(frames.runs, metric_of(key))) for key in sampled(frames)]


def sampled(frames: Frames) -> list[str]:
    """The keys of samples that can be compared, perplexities first."""
    known = [str(key) for key in pd.unique(frames.samples["key"])]
    kinds = list(KINDS)
    chosen = [key for key in known if key.partition("/")[0] in KINDS]
    return sorted(chosen, key=lambda key: (kinds.index(key.partition("/")[0]), key))
