"""The papers' claims that this harness can test, judged by rule.

A claim is a function from frames to evidence. The first line of its docstring is the claim, the rest says
what counts as evidence; the verdict is :func:`analysis.evidence.judged` for all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pandas as pd

from analysis.evidence import (
    Evidence,
    by_perplexity,
    curves,
    losses,
    matched,
    named,
    of_logs,
    told_apart,
)
from analysis.frames import Frames
from analysis.groups import HOLDOUT, STRENGTH, Group, groups, twins
from analysis.noise import Floor
from harness.settings.said import NAMES

QEP = "QEP"
QUANTEASE = "QuantEase"
OURS = "this harness"

FRACTION = "method.outliers.fraction"
MARGIN = 1.02  # of non-inferiority: what nobody would mind


def _improved(frames: Frames, *methods: str) -> list[Evidence]:
    return by_perplexity(
        frames,
        lambda found: [
            (one, twin)
            for one, twin in twins(found)
            if one.method in methods and one.alpha == STRENGTH
        ],
    )


def qep_improves_rtn(frames: Frames) -> list[Evidence]:
    """QEP improves RTN.

    The perplexity of every RTN run with alpha 0.5, relative to the same run without QEP.
    """
    return _improved(frames, "rtn")


def qep_improves_gptq(frames: Frames) -> list[Evidence]:
    """QEP improves GPTQ.

    The perplexity of every GPTQ run with alpha 0.5, relative to the same run without QEP.
    """
    return _improved(frames, "gptq")


def qep_improves_awq(frames: Frames) -> list[Evidence]:
    """QEP improves AWQ.

    The perplexity of every AWQ run with alpha 0.5, relative to the same run without QEP.
    """
    return _improved(frames, "awq")


def qep_improves_others(frames: Frames) -> list[Evidence]:
    """QEP improves any layer-wise method: here QuantEase, QQA and GPTAQ.

    The perplexity of every such run with alpha 0.5, relative to the same run without QEP.
    """
    return _improved(frames, "quantease", "qqa", "gptaq")


def low_bits_gain_most(frames: Frames) -> list[Evidence]:
    """QEP gains most at low bits.

    The ratio of perplexities that alpha 0.5 brings at a bit width, relative to the ratio that it brings
    at the next higher one; same method, group size and settings.
    """
    found = []
    for corpus, values, every in losses(frames):
        floor = Floor(every)
        pairs = [pair for pair in twins(every) if pair[0].alpha == STRENGTH]
        for one, twin in pairs:
            higher = [other for other in pairs if _same_but_bits(one, other[0])]
            if not higher:
                continue
            next_one, next_twin = min(higher, key=lambda pair: pair[0].bits)
            four = (one, twin, next_one, next_twin)
            both = sorted(set.intersection(*(set(group.values) for group in four)))
            seeds = [seed for seed in both if all(group.runs[seed] in values for group in four)]
            if seeds:
                a, b, c, d = (
                    np.stack([values[group.runs[seed]] for seed in seeds]) for group in four
                )
                what = f"{NAMES.get(corpus, corpus)}: {named(one, seeds)} against {next_one.bits} bits"
                with np.errstate(invalid="ignore"):  # ∞ − ∞
                    logs = (a - b) - (c - d)
                members = [(group, seed) for group in four for seed in seeds]
                found.append(of_logs(what, logs, floor.limit(members, 1 / len(seeds))))
    return found


def _same_but_bits(one: Group, other: Group) -> bool:
    alike = (one.model, one.method, one.group_size) == (
        other.model,
        other.method,
        other.group_size,
    )
    rest = [
        {key: value for key, value in group.settings.items() if key != "grid.bits"}
        for group in (one, other)
    ]
    return alike and rest[0] == rest[1] and other.bits > one.bits


def errors_accumulate(frames: Frames) -> list[Evidence]:
    """Without QEP, quantisation errors accumulate over depth.

    The mean relative error of a token in the residual stream behind the first block, relative to that
    behind the last, on held-out tokens where there are some; runs without QEP that quantise every block.
    The curve may fall in between where the stream itself jumps in size.
    """
    found = []
    known = curves(frames)
    plain = [
        one
        for one in groups(frames.runs, "error/last_block")
        if one.quantised and not one.corrects
    ]
    for one, more in zip(plain, told_apart([(one, one) for one in plain]), strict=True):
        seeds = [seed for seed in sorted(one.values) if one.runs[seed] in known]
        if seeds:
            logs = [-_growth(known[one.runs[seed]]) for seed in seeds]
            found.append(of_logs(f"{named(one, seeds)}{more}", np.array(logs)[:, None]))
    return found


def qep_slows_growth(frames: Frames) -> list[Evidence]:
    """QEP slows the accumulation of errors.

    How many times a token's mean relative error behind the last block is that behind the first, with
    alpha 0.5, relative to the same run without QEP.
    """
    return _over_depth(frames, lambda one, other: _growth(one) - _growth(other))


def qep_lowers_errors(frames: Frames) -> list[Evidence]:
    """QEP lowers the errors of the residual stream, on average over depth.

    The geometric mean over blocks of a token's mean relative error with alpha 0.5, relative to that of
    the same run without QEP behind the same block.
    """
    return _over_depth(frames, lambda one, other: float(np.mean(_log(one) - _log(other))))


def qep_lowers_last_error(frames: Frames) -> list[Evidence]:
    """QEP lowers the error that leaves the last block.

    A token's mean relative error in the residual stream behind the last block with alpha 0.5, relative to
    the same run without QEP.
    """
    return _over_depth(frames, lambda one, other: float((_log(one) - _log(other))[-1]))


def _over_depth(
    frames: Frames, figure: Callable[[np.ndarray, np.ndarray], float]
) -> list[Evidence]:
    """The logarithm of a ratio of two curves, of runs with alpha 0.5 and without QEP."""
    found = []
    known, every = curves(frames), groups(frames.runs, "error/last_block")
    pairs = [pair for pair in twins(every) if pair[0].alpha == STRENGTH]
    for (one, twin), more in zip(pairs, told_apart(pairs), strict=True):
        both = sorted(one.values.keys() & twin.values.keys())
        seeds = [seed for seed in both if {one.runs[seed], twin.runs[seed]} <= known.keys()]
        if seeds:
            with np.errstate(invalid="ignore"):  # ∞ − ∞
                logs = [figure(known[one.runs[s]], known[twin.runs[s]]) for s in seeds]
            found.append(of_logs(f"{named(one, seeds)}{more}", np.array(logs)[:, None]))
    return found


def _log(curve: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore"):
        return np.log(curve)


def _growth(curve: np.ndarray) -> float:
    """The logarithm of how many times the last error is the first; NaN for ∞/∞ and 0/0."""
    with np.errstate(invalid="ignore"):
        return float(_log(curve)[-1] - _log(curve)[0])


def _is_quantease(group: Group) -> bool:
    return group.method == "quantease" and group.settings.get(FRACTION, "0") == "0"


def _against_gptq(found: list[Group]) -> list[tuple[Group, Group]]:
    return matched(found, _is_quantease, lambda one: one.method == "gptq", ("method.",))


def quantease_beats_gptq_in_layer_loss(frames: Frames) -> list[Evidence]:
    """QuantEase reaches a lower layer loss than GPTQ, without inverting H.

    The geometric mean over linears of tr((W* − V) H (W* − V)ᵀ), relative to GPTQ's in the same linear;
    runs without QEP and outliers; a linear in which one of them has no loss at all is left out. From the
    second stage on the two see different inputs. The interval is over linears.
    """
    found = []
    pairs = _against_gptq(groups(frames.runs, "error/last_block"))
    pairs = [pair for pair in pairs if not pair[0].corrects]
    table = {
        str(run): rows.set_index("name")["rounding_error"].fillna(np.inf)
        for run, rows in frames.layers.groupby("run", observed=True)
    }
    for (one, other), more in zip(pairs, told_apart(pairs), strict=True):
        both = sorted(one.values.keys() & other.values.keys())
        seeds = [seed for seed in both if {one.runs[seed], other.runs[seed]} <= table.keys()]
        if not seeds:
            continue
        losses = pd.concat(
            [table[group.runs[seed]] for seed in seeds for group in (one, other)],
            axis=1,
            join="inner",
        ).to_numpy()
        losses = losses[(losses > 0).all(axis=1)].T.reshape(len(seeds), 2, -1)
        if losses.size:
            with np.errstate(invalid="ignore"):  # ∞ − ∞
                logs = np.log(losses[:, 0]) - np.log(losses[:, 1])
            found.append(of_logs(f"{named(one, seeds)}{more}", logs))
    return found


def quantease_beats_gptq_in_perplexity(frames: Frames) -> list[Evidence]:
    """QuantEase reaches a lower perplexity than GPTQ.

    The perplexity of QuantEase without outliers, relative to GPTQ's with equal settings, with and
    without QEP.
    """
    return by_perplexity(frames, _against_gptq)


def outliers_rescue_three_bits(frames: Frames) -> list[Evidence]:
    """Outliers in full precision rescue 3 bits.

    The perplexity of QuantEase with outliers at 3 bits, relative to the same run without; the effective
    bits are higher.
    """
    return by_perplexity(
        frames,
        lambda found: matched(
            [one for one in found if one.method == "quantease" and one.bits == 3],
            lambda one: not _is_quantease(one),
            _is_quantease,
            ("method.outliers.",),
        ),
    )


def auto_is_as_good(frames: Frames) -> list[Evidence]:
    """Choosing alpha and damping per linear is no worse than alpha 0.5.

    The perplexity of alpha=auto, relative to alpha 0.5 with equal settings; auto sets some calibration
    windows aside. For the claim speaks an interval that ends below 1.02 (a margin of two per cent),
    against it one that begins above 1.
    """
    found = by_perplexity(
        frames,
        lambda every: matched(
            every,
            lambda one: one.alpha == "auto",
            lambda one: one.alpha == STRENGTH,
            ("qep.alpha", HOLDOUT),
        ),
    )
    return [replace(one, verdict="better") if one.high < MARGIN else one for one in found]


CLAIMS = (
    (QEP, qep_improves_rtn),
    (QEP, qep_improves_gptq),
    (QEP, qep_improves_awq),
    (QEP, qep_improves_others),
    (QEP, low_bits_gain_most),
    (QEP, errors_accumulate),
    (QEP, qep_slows_growth),
    (QEP, qep_lowers_errors),
    (QEP, qep_lowers_last_error),
    (QUANTEASE, quantease_beats_gptq_in_layer_loss),
    (QUANTEASE, quantease_beats_gptq_in_perplexity),
    (QUANTEASE, outliers_rescue_three_bits),
    (OURS, auto_is_as_good),
)
