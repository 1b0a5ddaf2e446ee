"""Runs that collapsed, in tables, comparisons, claims and the whole command: worse than any, never best."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from records import leave
from test_dashboard import block_of

from analysis import __main__ as command
from analysis import claims, load
from analysis.claims_page import page
from analysis.compare import compare, paired
from analysis.evidence import judged, of_logs
from analysis.layout import COLLAPSED, times
from analysis.plotting import style
from analysis.tables import growth, heldout, perplexity, real

INF, NAN = math.inf, math.nan
# Losses of a run and of its twin -> what the run is: collapsed in one window is collapsed.
PAIRS: list[tuple[list[float], list[float], str]] = [
    ([3.0, 3.1], [2.0, 2.1], "worse"),
    ([3.0, INF], [2.0, 2.1], "worse"),
    ([NAN, 3.1], [2.0, 2.1], "worse"),
    ([3.0, 3.1], [2.0, INF], "better"),
    ([3.0, 3.1], [NAN, NAN], "better"),
    ([INF, 3.1], [2.0, INF], "unclear"),
    ([INF, INF], [INF, INF], "unclear"),
    ([NAN, 3.1], [INF, 2.0], "unclear"),
    ([INF], [2.0], "worse"),
    ([3.0], [2.0], "unclear"),  # one window says nothing
]


def pair(
    folder: Path, mine: list[float], other: list[float], method: str = "rtn", **more: Any
) -> None:
    """A run with QEP and its twin without, with these losses."""
    for alpha, losses in ((0.5, mine), (0.0, other)):
        with np.errstate(over="ignore"):
            metrics = {"perplexity/wiki": float(np.exp(np.mean(losses)))}
        samples = {"loss/wiki": losses}
        name = f"{method}-{more.get('bits', 3)}-{alpha}"
        leave(folder, method, alpha=alpha, metrics=metrics, samples=samples, name=name, **more)


@pytest.mark.parametrize(("mine", "other", "verdict"), PAIRS)
def test_a_run_that_collapsed_is_worse_than_one_that_did_not(
    tmp_path: Path, mine: list[float], other: list[float], verdict: str
) -> None:
    pair(tmp_path, mine, other)
    frames = load(tmp_path)
    (result,) = compare(frames, [[("rtn-3-0.5", "rtn-3-0.0")]], "loss/wiki")
    assert result.verdict == verdict
    (evidence,) = claims.qep_improves_rtn(frames)
    assert evidence.verdict == verdict
    finite = all(map(math.isfinite, [*mine, *other]))
    assert math.isfinite(result.difference) == finite
    if not finite:
        assert math.isnan(result.low) and math.isnan(result.high)
        assert COLLAPSED in page(frames, "x")
    table = real.build(frames)
    assert table is not None and [row[-1].text for row in table.rows] == [verdict]
    assert (COLLAPSED in table.notes) != finite
    shown = {"worse": "∞", "better": "1/∞", "unclear": "–"}[verdict]
    assert finite or [cell.text for cell in table.rows[0][-4:-1]] == [shown, "–", "–"]


def test_ratios_of_what_is_not_finite() -> None:
    for logs, verdict, text in (
        ([0.5, INF], "worse", "∞"),
        ([-INF, -0.5], "better", "1/∞"),
        ([INF, -INF], "unclear", "–"),
        ([NAN, 0.5], "unclear", "–"),
        ([-0.1, -0.1], "better", "0.905"),
    ):
        found = of_logs("x", np.array([logs]))
        assert (found.verdict, times(found.ratio)) == (verdict, text)
    assert of_logs("x", np.array([[-0.1]])).verdict == "unclear"  # one figure decides nothing


@pytest.mark.parametrize("lost", [INF, NAN])
def test_claims_over_depth_count_a_stream_that_overflowed(tmp_path: Path, lost: float) -> None:
    for seed in (0, 1):
        leave(tmp_path, seed=seed, errors=[0.1, 0.2, lost])
        leave(tmp_path, seed=seed, alpha=0.5, errors=[0.1, 0.2, 0.3])
        leave(tmp_path, "gptq", seed=seed, errors=[0.1, 0.2, 0.3])
        leave(tmp_path, "gptq", alpha=0.5, seed=seed, errors=[0.1, 0.2, lost])
    frames = load(tmp_path)
    (first, second) = claims.errors_accumulate(frames)
    assert {first.verdict, second.verdict} == {"better"}
    for claim in (claims.qep_lowers_last_error, claims.qep_slows_growth):
        by_method = {one.what.split(",")[0]: one.verdict for one in claim(frames)}
        assert by_method == {"RTN": "better", "GPTQ": "worse"}
    table = growth.build(frames)
    assert table is not None
    texts = {(row[2].values[""], row[3].text): row[4] for row in table.rows}
    assert texts["rtn", "0"].text == texts["gptq", "0.5"].text == "2 diverged"
    assert [cell.best for cell in texts.values()].count(True) == 2  # the equal finite ones


@pytest.mark.parametrize("lost", [INF, NAN])
def test_a_layer_that_overflowed_is_no_better_layer(tmp_path: Path, lost: float) -> None:
    for method, losses in (("gptq", (1.0, 1.1)), ("quantease", (0.5, lost))):
        rows = [{"name": f"q{i}", "rounding_error": one} for i, one in enumerate(losses)]
        leave(tmp_path, method, errors=[0.1], layers=rows)
    (evidence,) = claims.quantease_beats_gptq_in_layer_loss(load(tmp_path))
    assert (evidence.verdict, evidence.ratio, evidence.n) == ("worse", INF, 2)


def test_gains_at_low_bits_with_collapsed_runs(tmp_path: Path) -> None:
    pair(tmp_path, [2.0, 2.1], [INF, INF], "gptq")  # QEP rescues 3 bits
    pair(tmp_path, [2.0, 2.1], [2.2, 2.3], "gptq", bits=4)
    (evidence,) = claims.low_bits_gain_most(load(tmp_path))
    assert (evidence.verdict, evidence.ratio) == ("better", 0.0)
    pair(tmp_path / "both", [INF, INF], [INF, INF], "gptq")
    pair(tmp_path / "both", [2.0, 2.1], [2.2, 2.3], "gptq", bits=4)
    found = claims.low_bits_gain_most(load(tmp_path / "both"))
    assert [one.verdict for one in found] == ["unclear"] and judged(found) == "undecided"


def test_infinity_is_never_bold_and_equals_are_bold_together(tmp_path: Path) -> None:
    for method, value in (
        ("rtn", INF),
        ("gptq", NAN),
        ("awq", 20.0),
        ("qqa", 20.0),
        ("gptaq", 30.0),
    ):
        leave(tmp_path, method, perplexity=value)
    table = perplexity.build(load(tmp_path))
    assert table is not None
    shown = {row[2].values[""]: (row[3].text, row[3].best) for row in table.rows}
    assert shown == {
        "rtn": ("inf", False), "gptq": ("nan", False), "awq": ("20", True), "qqa": ("20", True),
        "gptaq": ("30", False),
    }  # fmt: skip


def test_a_median_over_linears_counts_what_overflowed(tmp_path: Path) -> None:
    def rows(losses: list[float]) -> list[dict[str, Any]]:
        return [
            {"name": f"{i}", "rounding_error": one, "signal": 1.0, "rounding_error_heldout": one,
             "total_error_heldout": one, "signal_heldout": 1.0} for i, one in enumerate(losses)
        ]  # fmt: skip

    leave(tmp_path, "rtn", layers=rows([1.0, NAN, NAN]))
    leave(tmp_path, "gptq", layers=rows([1.0, 2.0, NAN]))
    table = heldout.build(load(tmp_path))
    assert table is not None
    texts = {row[2].values[""]: row[-1].text for row in table.rows}
    assert texts == {"gptq": "200", "rtn": "inf"}


def test_a_run_without_times_has_no_seconds(tmp_path: Path) -> None:
    leave(tmp_path, perplexity=20.0, seconds={})
    leave(tmp_path, "none", 16, perplexity=10.0, seconds={"total": 1.0})
    table = perplexity.build(load(tmp_path))
    assert table is not None and [row[-1].text for row in table.rows] == ["–", "–"]


def test_the_whole_command_where_no_run_has_seconds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(style.RC, "savefig.dpi", 30)
    monkeypatch.setattr("analysis.dashboard.get_plotlyjs", lambda: "")
    leave(tmp_path, "none", 16, perplexity=10.0, seconds={})
    for alpha in (0.0, 0.5):
        leave(tmp_path, alpha=alpha, perplexity=20.0, seconds={}, errors=[0.1, 0.2])
    assert command.main([str(tmp_path)]) == 0
    said = capsys.readouterr()
    assert "error:" not in said.err and "3 runs: " in said.out
    table = (tmp_path / "tables" / "perplexity.md").read_text()
    assert "20" in table and "nan" not in table
    assert not [key for key in load(tmp_path).runs if key.startswith("seconds/")]


SETS: dict[str, list[tuple[str, float, dict[str, float]]]] = {
    "nothing finite": [
        ("none", 0.0, {"wiki": INF}),
        ("rtn", 0.0, {"wiki": INF}),
        ("rtn", 0.5, {"wiki": NAN}),
    ],
    "some": [
        ("rtn", 0.0, {"wiki": INF}),
        ("rtn", 0.5, {"wiki": 20.0, "web": NAN}),
        ("gptq", 0.5, {"web": 9.0}),
    ],
    "one run": [("rtn", 0.0, {"wiki": NAN})],
    "zero": [("rtn", 0.0, {"wiki": 0.0})],
}


@pytest.mark.parametrize("name", SETS)
def test_the_whole_command_on_what_is_not_finite(
    name: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(style.RC, "savefig.dpi", 30)  # quicker, and as good for this
    monkeypatch.setattr("analysis.dashboard.get_plotlyjs", lambda: "")
    for method, alpha, figures in SETS[name]:
        metrics = {f"perplexity/{corpus}": value for corpus, value in figures.items()}
        with np.errstate(divide="ignore"):
            samples = {f"loss/{c}": [float(np.log(v))] * 3 for c, v in figures.items()}
        error = figures.get("wiki", 1.0) / 100
        leave(tmp_path, method, 3, alpha, metrics=metrics, samples=samples, bits_per_weight=3.0,
              errors=[] if method == "none" else [error, error])  # fmt: skip
    status = {"status": "failed", "error": {"type": "E", "message": "inf", "traceback": ""}}
    leave(tmp_path, "awq", perplexity=INF, **status)
    out = tmp_path / "out"
    assert command.main([str(tmp_path), "--out", str(out)]) == 0
    assert command.main(["claims", str(tmp_path), "--out", str(out / "claims.md")]) == 0
    said = capsys.readouterr()
    assert "error:" not in said.err and "figures and a dashboard" in said.out
    data = json.loads(block_of((out / "dashboard.html").read_text(), "runs-data"))
    assert "perplexity/wiki" in [column["key"] for column in data["columns"]]
    captions = [path.read_text() for path in (out / "figures").glob("*.txt")]
    if name in ("nothing finite", "one run"):
        assert captions and all("Nothing finite to draw." in one for one in captions)
    assert not any("**inf**" in path.read_text() or "**nan**" in path.read_text()
                   for path in (out / "tables").glob("*.md"))  # fmt: skip


def test_pairs_are_found_with_infinite_figures_too(tmp_path: Path) -> None:
    pair(tmp_path, [INF, INF], [2.0, 2.1])
    assert [result.verdict for *_, result in paired(load(tmp_path), "loss/wiki")] == ["worse"]
