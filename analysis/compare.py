"""Is a gain real? Two recipes on the same windows or questions, with intervals over these and over seeds.

An interval says how far the difference could be off because these windows and these seeds were drawn and
not others; of recipes that were run with one seed it knows nothing of other seeds and calibration sets.
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
        pairs: the two runs, of every seed.
        key: ``loss/<corpus>`` (nats a token), ``accuracy/<task>`` (share).
        n: windows or questions.
        difference: mean over them and the seeds; infinite where one of the two collapsed (a loss of its
            is infinite or NaN), NaN where both did.
        low: lower end of the interval; NaN below two samples and where the difference is not finite.
        high: its upper end.
        noise: how large a difference another order of summation explains; NaN where nobody knows.
    """

    pairs: tuple[tuple[str, str], ...]
    key: str
    n: int
    difference: float
    low: float
    high: float
    noise: float = math.nan

    @property
    def verdict(self) -> Verdict:
        """Whether the first is better: unclear where the interval holds zero, or both collapsed."""
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
    """Two-level bootstrap intervals of the means of several paired differences d_sw.

    Every seed s has seen the same windows w (crossed factors; Owen 2007, The pigeonhole bootstrap), so
    that a resample moves the mean d by two independent parts, a window's and a seed's:

        d + sqrt(n/(n−1)) t_{n−1}/z (Σ_w c_w d_·w / n − d)  +  t* sd_s(d_s·)/sqrt(S)

    with counts c of n draws from the n windows, d_·w the mean over seeds and d_s· that over windows. The
    factor widens plain percentiles, which are too narrow with few windows (Hesterberg 2015, section
    5.2). The few seeds cannot be resampled: three of them have ten resamples, none beyond the extremes.
    Their part is drawn from Student's t with S − 1 degrees of freedom instead (t*), so that with three
    seeds and no difference between windows the interval is d ± 4.3 sd/sqrt(3), as it has to be. What is
    of a seed and a window together is in both parts, which errs on the wide side.

    Args:
        differences: ``[S, n, columns]``, or ``[n, columns]`` of one seed, whose part is missing then.
        resamples: how many.
        level: of coverage.
        seed: of the resampling.

    Returns:
        ``[2, columns]``: lower and upper ends; NaN where a difference is not finite and where there is
        one seed and one window.
    """
    stack = differences[None] if differences.ndim == 2 else differences
    seeds, n, columns = stack.shape
    if max(seeds, n) < 2:
        return np.full((2, columns), np.nan)
    generator = np.random.default_rng(seed)
    with np.errstate(invalid="ignore"):
        mean = stack.mean(axis=(0, 1))
        moved = np.tile(mean, (resamples, 1))
        if n > 1:
            widened = math.sqrt(n / (n - 1)) * _student(n, level) / stats.norm.ppf((1 + level) / 2)
            moved += widened * (_resampled(stack.mean(axis=0), resamples, generator) - mean)
        if seeds > 1:
            shares = (np.arange(resamples) + 0.5) / resamples
            drawn = generator.permutation(stats.t.ppf(shares, seeds - 1))
            moved += drawn[:, None] * (stack.mean(axis=1).std(axis=0, ddof=1) / math.sqrt(seeds))
        return np.asarray(np.quantile(moved, [(1 - level) / 2, (1 + level) / 2], axis=0))


def _student(n: int, level: float) -> float:
    return float(stats.t.ppf((1 + level) / 2, n - 1))


def _resampled(values: np.ndarray, resamples: int, generator: np.random.Generator) -> np.ndarray:
    """Means ``[resamples, columns]`` of n draws with replacement from ``[n, columns]``."""
    n = len(values)
    step = max(1, CHUNK // n)
    drawn = [
        generator.multinomial(n, np.full(n, 1 / n), min(step, resamples - at)) @ values
        for at in range(0, resamples, step)
    ]
    return np.asarray(np.concatenate(drawn) / n)


def compare(
    frames: Frames, pairs: Sequence[Sequence[tuple[str, str]]], key: str
) -> list[Comparison]:
    """Recipes by pairs in one sample, for instance ``loss/wiki``.

    Args:
        frames: with the samples of all.
        pairs: of each comparison the two runs of every seed.
        key: of the sample.

    Raises:
        ValueError: a run has no such samples, or two were evaluated on different tokens or questions.
    """
    table = samples(frames, key)
    hashes = dict(zip(frames.runs["run"], frames.runs["hashes"], strict=True))
    by_shape: dict[tuple[int, int], list[int]] = {}
    for place, seeds in enumerate(pairs):
        for run in {run for pair in seeds for run in pair}:
            _check(seeds[0][0], run, key, table, hashes)
        by_shape.setdefault((len(seeds), len(table[seeds[0][0]])), []).append(place)
    found: dict[int, Comparison] = {}
    for (_, n), places in by_shape.items():
        with np.errstate(invalid="ignore"):  # ∞ − ∞: both collapsed
            columns = [
                np.stack([table[one] - table[other] for one, other in pairs[place]])
                for place in places
            ]
            differences = np.stack(columns, axis=2)
            means = differences.mean(axis=(0, 1))
        low, high = intervals(differences)
        for i, place in enumerate(places):
            figures = float(means[i]), float(low[i]), float(high[i])
            found[place] = Comparison(tuple(pairs[place]), key, n, *figures)
    return [found[place] for place in range(len(pairs))]


def paired(
    frames: Frames, key: str, match: Callable[[list[Group]], list[tuple[Group, Group]]] = twins
) -> list[tuple[Group, Group, tuple[int, ...], Comparison]]:
    """Groups that ``match`` puts side by side, compared in one sample over the seeds of both.

    Pairs without samples (of older records) or without a hash of what was evaluated are left out.
    """
    dataset = key.partition("/")[2]
    known = set(samples(frames, key))
    every = groups(frames.runs, metric_of(key))
    floor = Floor(every)
    found = []
    for one, other in match(every):
        both = sorted(one.values.keys() & other.values.keys())
        seeds = tuple(seed for seed in both if {one.runs[seed], other.runs[seed]} <= known)
        if seeds and f"tokens/{dataset}" in one.settings:
            found.append((one, other, seeds))
    pairs = [[(one.runs[seed], two.runs[seed]) for seed in seeds] for one, two, seeds in found]
    return [
        (one, two, seeds, replace(result, noise=floor.of(one, two, seeds)))
        for (one, two, seeds), result in zip(found, compare(frames, pairs, key), strict=True)
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
