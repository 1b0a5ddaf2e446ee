"""What speaks for a claim and what against it: comparisons of runs that differ in one thing."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from analysis.compare import Comparison, Verdict, intervals, paired, sampled, samples
from analysis.frames import Frames
from analysis.groups import Group, groups
from analysis.layout import around, as_published, differences, row_of
from analysis.noise import AROUND
from harness.settings.said import NAMES

Judgement = Literal["holds", "holds in part", "fails", "mixed", "undecided", "not testable here"]
Pairs = list[tuple[Group, Group]]
LOSS = "loss/"
CURVES = ("relative_error_token_heldout", "relative_error_token")  # the first that was measured


@dataclass(frozen=True)
class Evidence:
    """One comparison, as a ratio: below 1 speaks for the claim.

    Args:
        what: dataset, method, bits, alpha, and whatever else tells it from others.
        ratio: the figure; infinite or 0 where one of the two collapsed, NaN where both did.
        low: lower end of its interval; NaN where there is none.
        high: upper end.
        verdict: "better" speaks for the claim, "worse" against it, "within noise" for neither.
        n: windows, linears or blocks of every seed.
    """

    what: str
    ratio: float
    low: float
    high: float
    verdict: Verdict
    n: int

    @property
    def counts(self) -> bool:
        """Whether anything is decided: one figure of one seed has no interval and decides nothing."""
        return not math.isfinite(self.ratio) or math.isfinite(self.low)


def judged(evidence: Sequence[Evidence]) -> Judgement:
    """The rule of all verdicts.

    Holds: every comparison that has an interval speaks for the claim. Holds in part: some do, none speaks
    against it. Fails: at least one against it, none for it. Mixed: some for it, some against. Undecided:
    none either way. Not testable here: no comparison with an interval.
    """
    verdicts = {one.verdict for one in evidence if one.counts}
    if not verdicts:
        return "not testable here"
    if verdicts == {"better"}:
        return "holds"
    if not verdicts & {"better", "worse"}:
        return "undecided"
    if "worse" not in verdicts:
        return "holds in part"
    return "fails" if "better" not in verdicts else "mixed"


def matched(
    found: Iterable[Group],
    first: Callable[[Group], bool],
    second: Callable[[Group], bool],
    apart: tuple[str, ...],
) -> Pairs:
    """Groups of two kinds whose settings agree but for those that start with one of ``apart``."""

    def rest(group: Group) -> tuple[Any, ...]:
        kept = [item for item in group.settings.items() if not item[0].startswith(apart)]
        alpha = () if "qep.alpha" in apart else (group.alpha,)
        return group.model, group.bits, group.group_size, *alpha, *sorted(kept)

    every = list(found)
    others = [one for one in every if second(one)]
    return [
        (one, other) for one in every if first(one) for other in others if rest(one) == rest(other)
    ]


def by_perplexity(frames: Frames, match: Callable[[list[Group]], Pairs]) -> list[Evidence]:
    """The ratio of perplexities of every pair that ``match`` makes, on every corpus."""
    rows = [
        (key.removeprefix(LOSS), one, other, seeds, result)
        for key in sampled(frames)
        if key.startswith(LOSS)
        for one, other, seeds, result in paired(frames, key, match)
    ]
    extra = told_apart([(one, other) for _, one, other, _, _ in rows])
    return [
        of_losses(f"{NAMES.get(corpus, corpus)}: {named(one, seeds)}{more}", result)
        for (corpus, one, _, seeds, result), more in zip(rows, extra, strict=True)
    ]


def of_losses(what: str, result: Comparison) -> Evidence:
    """A difference of log-perplexities as a ratio of perplexities."""
    return _exp(what, [result.difference, result.low, result.high], result.verdict, result.n)


def named(group: Group, seeds: Sequence[int]) -> str:
    """``GPTQ, 3 bits g64, alpha 0.5, 3 seeds``."""
    size = f" g{group.group_size}" if group.group_size else ""
    method = NAMES.get(group.method, group.method)
    words = [method, f"{group.bits} bits{size}", f"alpha {group.alpha}"]
    if len(seeds) > 1:
        words.append(f"{len(seeds)} seeds")
    elif seeds[0]:
        words.append(f"seed {seeds[0]}")
    return ", ".join(words)


def told_apart(pairs: Pairs) -> list[str]:
    """Model, axes that were chosen, and settings that tell pairs with the same name apart, in parentheses."""
    several = len({one.model for one, _ in pairs}) > 1
    sides = [
        [_words(group, said) for group, said in _said(side)] for side in zip(*pairs, strict=True)
    ]
    merged = []
    for (one, _), mine, others in zip(pairs, *(sides or ([], [])), strict=True):
        rest = [word for word in others if word not in mine]
        parts = [*mine, *([f"against {', '.join(rest)}"] if rest else [])]
        if several:
            parts = [NAMES.get(one.model, one.model), *parts]
        merged.append(f" ({', '.join(parts)})" if parts else "")
    return merged


def _said(side: Sequence[Group]) -> list[tuple[Group, str]]:
    """Groups with the settings in which they differ, but for the axes."""
    rows = [row_of(group, "") for group in side]
    return list(zip(side, differences(rows, leave=AROUND), strict=True))


def _words(group: Group, said: str) -> list[str]:
    axes = [] if as_published(group.settings) else [around(group.settings)]
    return [*axes, *filter(None, said.split(", "))]


def of_logs(what: str, logs: np.ndarray, noise: float = math.nan) -> Evidence:
    """The geometric mean of ratios given by their logarithms ``[seeds, n]``, with its bootstrap interval.

    An infinite one decides without an interval; where they point both ways nothing is decided. ``noise``
    is how large a logarithm the order of summation explains. One figure of one seed (n = 1) has no
    interval and decides nothing.
    """
    with np.errstate(invalid="ignore"):
        mean = float(logs.mean())
    low, high = intervals(logs[:, :, None])[:, 0]
    ends = (mean, mean) if math.isinf(mean) else (low, high)
    verdict: Verdict = "better" if ends[1] < 0 else "worse" if ends[0] > 0 else "unclear"
    if math.isfinite(mean) and abs(mean) <= noise:
        verdict = "within noise"
    return _exp(what, [mean, low, high], verdict, logs.shape[1])


def _exp(what: str, logs: list[float], verdict: Verdict, n: int) -> Evidence:
    with np.errstate(over="ignore"):  # beyond float64 a ratio is infinite
        ratio, low, high = np.exp(logs).tolist()
    return Evidence(what, ratio, low, high, verdict, n)


def losses(frames: Frames) -> list[tuple[str, dict[str, np.ndarray], list[Group]]]:
    """Corpus, run -> losses of its windows, groups of runs; of every corpus."""
    return [
        (
            key.removeprefix(LOSS),
            samples(frames, key),
            groups(frames.runs, f"perplexity/{key[5:]}"),
        )
        for key in sampled(frames)
        if key.startswith(LOSS)
    ]


def curves(frames: Frames) -> dict[str, np.ndarray]:
    """Run -> relative error of the residual stream by block, of runs that quantise every block.

    The mean over tokens of each token's own relative error, on held-out tokens where a run has them: the
    paper's ‖Y − Ŷ‖²/‖Y‖² is on many models that of one token (docs/metrics.md). A run that measured none
    of them has no curve. NaN, the error of a stream that overflowed, is infinite.
    """
    settings = dict(zip(frames.runs["run"], frames.runs["settings"], strict=True))
    found = {}
    for run, rows in frames.blocks.sort_values(["run", "block"]).groupby("run", observed=True):
        if settings[str(run)].get("quantize.blocks", "null") != "null":
            continue
        for key in CURVES:
            # What has diverged has no error of any kind; what is older than a kind lacks that one.
            whole = rows[key.replace("_token", "")]
            if (
                key in rows
                and (rows[key].notna() | whole.isna()).all()
                and rows[key].notna().any()
            ):
                found[str(run)] = rows[key].fillna(np.inf).to_numpy()
                break
    return found
