"""Differences that another order of summation explains: marked, counted for neither side, and explained."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from records import leave
from scipy import stats

from analysis import claims, load
from analysis.__main__ import built
from analysis.claims_page import NEITHER, page
from analysis.compare import paired
from analysis.evidence import Evidence, judged
from analysis.groups import Group, groups
from analysis.noise import BORROWED, MARK, Floor, Noise
from analysis.tables import accuracy, growth, perplexity, real
from analysis.tables.base import Table

WIKI = "perplexity/wiki"


def run(
    folder: Path,
    alpha: float | str,
    value: float,
    noise: float | None = None,
    repeats: int = 5,
    method: str = "gptq",
    **more: Any,
) -> None:
    """A run with this perplexity, the same in every window, and the noise of its logarithm."""
    metrics = {WIKI: value} | ({} if noise is None else {f"noise/{WIKI}": noise})
    about = {} if noise is None else {"noise_repeats": repeats}
    samples = {"loss/wiki": [math.log(value)] * 10}
    leave(
        folder,
        method,
        more.pop("bits", 3),
        alpha,
        metrics=metrics,
        samples=samples,
        about=about,
        **more,
    )


def shown(table: Table | None) -> dict[tuple[str, ...], tuple[str, bool, str]]:
    """Labels of the row and title of the column -> text, bold or not, small text."""
    assert table is not None
    return {
        (*(cell.text for cell in row[: table.labels]), title): (cell.text, cell.best, cell.small)
        for row in table.rows
        for title, cell in zip(table.header[table.labels :], row[table.labels :], strict=True)
    }


def group(*noises: Noise | None, method: str = "rtn", bits: int = 3) -> Group:
    seeds = dict(enumerate(noises))
    noise = {seed: one for seed, one in seeds.items() if one is not None}
    return Group("m", method, bits, None, "0", {}, values=dict.fromkeys(seeds, 1.0), noise=noise)


def test_the_limit_is_students_with_welchs_degrees_of_freedom() -> None:
    a, b = group(Noise("a", 0.1, 5)), group(Noise("b", 0.2, 3))
    limit = Floor([a, b]).limit([(a, 0), (b, 0)])
    freedom = (0.01 + 0.04) ** 2 / (0.01**2 / 4 + 0.04**2 / 2)
    assert limit == pytest.approx(stats.t.ppf(0.975, freedom) * math.sqrt(0.05), rel=1e-12)
    many = group(Noise("c", 0.1, 10**6)), group(Noise("d", 0.1, 10**6))
    assert Floor(many).limit([(one, 0) for one in many]) == pytest.approx(2 * math.sqrt(0.02))
    lone = group(Noise("a", 0.1, 5)), group(None)  # one estimate for both: four degrees of freedom
    found = Floor(lone).limit([(one, 0) for one in lone])
    assert found == pytest.approx(stats.t.ppf(0.975, 4) * 0.1 * math.sqrt(2))
    means = group(Noise("a", 0.1, 5), Noise("b", 0.1, 5))  # of two seeds, against no noise at all
    still = group(Noise("c", 0.0, 5), Noise("d", 0.0, 5))
    members = [(one, seed) for one in (means, still) for seed in (0, 1)]
    assert Floor([means, still]).limit(members, 0.5) == pytest.approx(
        stats.t.ppf(0.975, 8) * 0.1 / math.sqrt(2)
    )


def test_where_noise_comes_from_if_a_run_was_not_repeated() -> None:
    plain, twin = group(None), group(None)
    small, large = (group(Noise(name, s, 5)) for name, s in (("a", 0.1), ("b", 0.3)))
    other = group(Noise("c", 9.0, 5), bits=2)
    quantile = stats.t.ppf(0.975, 4) * math.sqrt(2)

    def limit(one: Group, two: Group, *rest: Group) -> float:
        return Floor([one, two, *rest, other]).limit([(one, 0), (two, 0)]) / quantile

    assert limit(plain, twin, small, large) == pytest.approx(0.3)  # the largest at the same bits
    assert limit(plain, small, large) == pytest.approx(0.1)  # that of the other of the two
    assert math.isnan(limit(plain, twin))  # 2 bits say nothing of 3
    turned = [replace(one, settings={"transform": "orthogonal"}) for one in (plain, twin, small)]
    assert limit(*turned, large) == pytest.approx(0.1)  # the largest in the same basis
    seeds = group(Noise("a", 0.2, 5), None)
    assert Floor([seeds, large]).limit([(seeds, 1)]) == pytest.approx(0.2 * stats.t.ppf(0.975, 4))
    assert Floor([plain, small]).limit([(plain, 0), (group(None), 0)]) / quantile == pytest.approx(
        0.1
    )
    broken = group(Noise("d", math.inf, 5))
    assert limit(broken, small) == math.inf
    exact = group(Noise("e", 0.0, 5)), group(Noise("f", 0.0, 5))
    assert limit(*exact) == 0.0


def test_the_main_table_marks_what_is_within_the_noise(tmp_path: Path) -> None:
    run(tmp_path, 0.0, 20.0, 0.02)
    run(tmp_path, 0.5, 19.5, 0.02)  # ln 0.975 = −0.025; the limit is 2.3 · 0.028
    run(tmp_path, 1.0, 10.0, 0.02)
    run(tmp_path, 0.0, 10.1, method="rtn")
    run(tmp_path, 0.5, 12.0, method="rtn")
    table = perplexity.build(load(tmp_path))
    assert shown(table) == {
        ("3", "–", "GPTQ", "alpha 0"): ("20", False, ""),
        ("3", "–", "GPTQ", "alpha 0.5"): ("19.5", False, f"−3 % {MARK}"),
        ("3", "–", "GPTQ", "alpha 1"): ("10", True, "−50 %"),
        ("3", "–", "GPTQ", "seconds"): ("2", False, ""),
        ("3", "–", "RTN", "alpha 0"): ("10.1", True, ""),  # no worse than the best
        ("3", "–", "RTN", "alpha 0.5"): ("12", False, "+19 %"),
        ("3", "–", "RTN", "alpha 1"): ("–", False, ""),
        ("3", "–", "RTN", "seconds"): ("2", False, ""),
    }
    assert table is not None and table.notes[-1] == BORROWED
    assert table.notes[-3].startswith(f"Within the noise ({MARK}): a difference of no more than")
    assert r"$\approx$" in table.latex()


def test_without_repeats_nothing_is_marked_or_said(tmp_path: Path) -> None:
    run(tmp_path, 0.0, 20.0)
    run(tmp_path, 0.5, 20.0)
    frames = load(tmp_path)
    for table in built(frames).values():
        assert MARK not in table.markdown() and "noise" not in table.markdown()
    said = page(frames, "x")
    assert "Within noise" not in said and "| within noise |" not in said


def test_all_repeated_borrows_nothing(tmp_path: Path) -> None:
    run(tmp_path, 0.0, 20.0, 0.02)
    run(tmp_path, 0.5, 19.9, 0.02)
    leave(tmp_path, "none", 16, perplexity=10.0)  # full precision is not quantised: no repeats
    table = perplexity.build(load(tmp_path))
    assert table is not None and BORROWED not in table.notes and MARK in table.notes[-2]


def test_other_metrics_are_compared_as_they_are(tmp_path: Path) -> None:
    for alpha, score, error in ((0.0, 0.40, 0.20), (0.5, 0.42, 0.10)):
        metrics = {
            "accuracy/quiz": score,
            "noise/accuracy/quiz": 0.01,
            "noise/error/last_block": 0.001,
        }
        leave(
            tmp_path, alpha=alpha, metrics=metrics, errors=[0.1, error], about={"noise_repeats": 9}
        )
    frames = load(tmp_path)
    cells = shown(accuracy.build(frames))
    assert cells["3", "–", "RTN", "0.5", "quiz %"] == ("42.0", True, f"+2.0 {MARK}")
    assert cells["3", "–", "RTN", "0", "quiz %"][1]  # as good
    cells = shown(growth.build(frames))
    assert cells["3", "–", "RTN", "0.5", "last block"] == ("0.100", True, "−50 %")
    assert not cells["3", "–", "RTN", "0", "last block"][1]


CASES = [(0.02, "within noise", "undecided"), (0.001, "better", "holds")]


@pytest.mark.parametrize(("noise", "verdict", "judgement"), CASES)
def test_claims_count_what_is_within_the_noise_for_neither_side(
    tmp_path: Path, noise: float, verdict: str, judgement: str
) -> None:
    run(tmp_path, 0.0, 20.0, noise)
    run(tmp_path, 0.5, 19.5)  # borrows that of the other
    frames = load(tmp_path)
    (found,) = claims.qep_improves_gptq(frames)
    assert (found.verdict, judged([found])) == (verdict, judgement)
    assert [result.verdict for *_, result in paired(frames, "loss/wiki")] == [verdict]
    table = real.build(frames)
    assert table is not None and [row[-1].text for row in table.rows] == [verdict]
    assert table.notes[-2].startswith("Within the noise (≈): ") and table.notes[-1] == BORROWED
    said = page(frames, "x")
    within = verdict == "within noise"
    assert ("| within noise |" in said) == within
    counts = "0 of 1" if within else "1 of 1"
    assert f"| QEP improves GPTQ | QEP | {judgement} ({counts}) |" in said
    assert NEITHER in said and "Within the noise (≈): a difference of no more than" in said


@pytest.mark.parametrize(
    ("value", "verdict"), [(20.3, "better"), (20.6, "within noise"), (22.0, "worse")]
)
def test_as_good_is_what_ends_below_a_margin(tmp_path: Path, value: float, verdict: str) -> None:
    run(tmp_path, 0.5, 20.0, 0.02)
    run(tmp_path, "auto", value)
    assert [one.verdict for one in claims.auto_is_as_good(load(tmp_path))] == [verdict]


def test_gains_at_two_bit_widths(tmp_path: Path) -> None:
    def found(noise: float) -> Evidence:
        folder = tmp_path / str(noise)
        for bits, values in ((3, (20.0, 15.0)), (4, (20.0, 15.5))):
            for alpha, value in zip((0.0, 0.5), values, strict=True):
                run(folder, alpha, value, noise, bits=bits)
        (gain,) = claims.low_bits_gain_most(load(folder))
        return gain

    assert found(0.02).verdict == "within noise"
    assert found(0.0001).verdict == "better"


def test_a_collapse_is_no_noise(tmp_path: Path) -> None:
    run(tmp_path, 0.0, 20.0, math.inf)
    leave(
        tmp_path,
        "gptq",
        alpha=0.5,
        metrics={WIKI: math.inf},
        samples={"loss/wiki": [math.inf] * 10},
    )
    assert [one.verdict for one in claims.qep_improves_gptq(load(tmp_path))] == ["worse"]


def test_repeats_are_no_rows_of_their_own(tmp_path: Path) -> None:
    run(tmp_path, 0.0, 20.0, 0.02, finished="2026-01-01")
    run(tmp_path, 0.5, 19.0, 0.02, finished="2026-01-01")
    for seed, value in ((1, 19.7), (2, 20.3)):
        leave(tmp_path, "gptq", metrics={WIKI: value}, about={"noise_seed": seed}, finished="2026-01-02",
              changes={"noise.seed": seed})  # fmt: skip
    frames = load(tmp_path)
    found = groups(frames.runs, WIKI)
    assert sorted(one.mean for one in found) == [19.0, 20.0] and all(
        len(one.values) == 1 for one in found
    )
    assert len(built(frames)["perplexity"].rows) == 1
    for path in tmp_path.glob("*a0.0*"):
        record = (path / "record.json").read_text()
        if '"noise_seed"' not in record:
            (path / "record.json").unlink()
    (left,) = [one for one in groups(load(tmp_path).runs, WIKI) if not one.corrects]
    assert left.values == {0: 19.7}  # the lowest repeat where the first is not there
