"""Every claim on runs in which it holds, in which it fails, and without runs that could tell."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from records import leave

from analysis import claims, load
from analysis.claims_page import page
from analysis.evidence import Evidence, judged

World = Callable[[Path, bool], object]


def noise(level: float) -> list[float]:
    """Ten losses around ``level``, the same deviations for everyone."""
    return [level + 0.01 * (i % 5) * (-1) ** i for i in range(10)]


def runs(
    folder: Path, method: str, losses: Mapping[Any, float], bits: int = 3, **more: Any
) -> None:
    for alpha, loss in losses.items():
        metrics = {"perplexity/wiki": 20.0}
        samples = {"loss/wiki": noise(loss)}
        leave(folder, method, bits, alpha, metrics=metrics, samples=samples, **more)


def improved(method: str) -> World:
    return lambda folder, true: runs(folder, method, {0.0: 3.0, 0.5: 2.0 if true else 4.0})


def low_bits(folder: Path, true: bool) -> None:
    runs(folder, "gptq", {0.0: 5.0, 0.5: 3.0}, bits=3)
    runs(folder, "gptq", {0.0: 3.0, 0.5: 2.8 if true else 0.5}, bits=4)


def accumulate(folder: Path, true: bool) -> None:
    for seed in (0, 1):
        leave(folder, seed=seed, errors=[0.1, 0.2, 0.4] if true else [0.4, 0.2, 0.1])


def slows(folder: Path, true: bool) -> None:
    for seed in (0, 1):
        leave(folder, seed=seed, errors=[0.1, 0.2, 0.4])
        leave(folder, seed=seed, alpha=0.5, errors=[0.1, 0.2, 0.3 if true else 0.5])


def layer_loss(folder: Path, true: bool) -> None:
    for method, factor in (("gptq", 1.0), ("quantease", 0.8 if true else 1.2)):
        rows = [
            {"name": f"q{i}", "rounding_error": factor * (1 + 0.01 * i % 0.03)} for i in range(8)
        ]
        leave(folder, method, errors=[0.1], layers=rows)


def quantease(folder: Path, true: bool) -> None:
    runs(folder, "gptq", {0.0: 3.0})
    runs(folder, "quantease", {0.0: 2.0 if true else 4.0})


def outliers(folder: Path, true: bool) -> None:
    runs(folder, "quantease", {0.0: 3.0}, changes={"method.outliers.fraction": 0.0})
    loss = 2.0 if true else 4.0
    runs(folder, "quantease", {0.0: loss}, changes={"method.outliers.fraction": 0.01})


def automatic(folder: Path, true: bool) -> None:
    runs(folder, "gptq", {0.5: 3.0, "auto": 3.0 if true else 4.0})


WORLDS: dict[Callable[..., list[Evidence]], World] = {
    claims.qep_improves_rtn: improved("rtn"),
    claims.qep_improves_gptq: improved("gptq"),
    claims.qep_improves_awq: improved("awq"),
    claims.qep_improves_others: improved("qqa"),
    claims.low_bits_gain_most: low_bits,
    claims.errors_accumulate: accumulate,
    claims.qep_slows_growth: slows,
    claims.qep_lowers_errors: slows,
    claims.qep_lowers_last_error: slows,
    claims.quantease_beats_gptq_in_layer_loss: layer_loss,
    claims.quantease_beats_gptq_in_perplexity: quantease,
    claims.outliers_rescue_three_bits: outliers,
    claims.auto_is_as_good: automatic,
}


def test_every_claim_is_tested() -> None:
    assert [function for _, function in claims.CLAIMS] == list(WORLDS)


@pytest.mark.parametrize("claim", WORLDS, ids=lambda claim: claim.__name__)
def test_verdicts(tmp_path: Path, claim: Callable[..., list[Evidence]]) -> None:
    for true, verdict in ((True, "holds"), (False, "fails")):
        WORLDS[claim](tmp_path / verdict, true)
        found = claim(load(tmp_path / verdict))
        assert judged(found) == verdict and len(found) == 1
    leave(tmp_path / "other", "none", 16, perplexity=10.0)
    assert judged(claim(load(tmp_path / "other"))) == "not testable here"


def test_a_claim_that_holds_for_some_is_mixed(tmp_path: Path) -> None:
    runs(tmp_path, "gptq", {0.0: 3.0, 0.5: 2.0})
    runs(tmp_path, "gptq", {0.0: 3.0, 0.5: 4.0}, bits=4)
    found = claims.qep_improves_gptq(load(tmp_path))
    assert [one.verdict for one in found] == ["worse", "better"] or judged(found) == "mixed"
    assert judged(found) == "mixed"


def test_runs_that_differ_otherwise_are_no_evidence(tmp_path: Path) -> None:
    runs(tmp_path, "gptq", {0.0: 3.0})
    runs(tmp_path, "gptq", {0.5: 2.0}, changes={"calibration.windows": 128})
    runs(tmp_path, "quantease", {0.0: 2.0}, changes={"grid.symmetric": True})
    frames = load(tmp_path)
    assert claims.qep_improves_gptq(frames) == []
    assert claims.quantease_beats_gptq_in_perplexity(frames) == []


def test_partly_quantised_models_say_nothing_about_depth(tmp_path: Path) -> None:
    leave(tmp_path, errors=[0.1, 0.2], changes={"quantize.blocks": "0:1"})
    assert claims.errors_accumulate(load(tmp_path)) == []


def test_pairs_with_the_same_name_are_told_apart(tmp_path: Path) -> None:
    for windows in (16, 32):
        runs(tmp_path, "rtn", {0.0: 3.0, 0.5: 2.0}, changes={"calibration.windows": windows})
    said = [one.what for one in claims.qep_improves_rtn(load(tmp_path))]
    assert len(set(said)) == 2 and all(" calibration windows" in one for one in said)


def test_the_page_states_claim_rule_figures_and_verdict(tmp_path: Path) -> None:
    runs(tmp_path, "rtn", {0.0: 3.0, 0.5: 2.0})
    said = page(load(tmp_path), "mine")
    assert "| QEP improves RTN | QEP | holds (1 of 1) |" in said
    assert "| QEP improves AWQ | QEP | not testable here |" in said
    assert "| wiki: RTN, 3 bits, alpha 0.5 | 0.368 | 0.368 to 0.368 | 10 | for |" in said
    assert "Fails: at least one against it, none for it." in said and "<!-- set: mine -->" in said


def test_methods_as_published_and_composed_are_judged_apart(tmp_path: Path) -> None:
    own = {"own": ["format", "range", "transform", "overrides"]}
    runs(tmp_path, "gptq", {0.0: 3.0, 0.5: 2.0}, about=own)
    composed = {"transform": {"orthogonal": {"seed": 0}}}
    runs(tmp_path, "gptq", {0.0: 2.0, 0.5: 2.5}, about={"own": ["overrides"]}, changes=composed)
    said = page(load(tmp_path), "mine")
    assert "| claim | of | as published | composed |" in said
    assert "| QEP improves GPTQ | QEP | holds (1 of 1) | fails (0 of 1) |" in said
    assert "| as published | wiki: GPTQ, 3 bits, alpha 0.5 | 0.368 |" in said
    assert "| composed | wiki: GPTQ, 3 bits, alpha 0.5 (orthogonal) | 1.649 |" in said


def test_runs_of_several_models_are_told_apart(tmp_path: Path) -> None:
    runs(tmp_path, "rtn", {0.0: 3.0, 0.5: 2.0})
    runs(
        tmp_path,
        "rtn",
        {0.0: 3.0, 0.5: 2.0},
        about={"model": "gemma3_270m"},
        changes={"model.name": "x"},
    )
    said = {one.what for one in claims.qep_improves_rtn(load(tmp_path))}
    assert said == {
        "wiki: RTN, 3 bits, alpha 0.5 (m)",
        "wiki: RTN, 3 bits, alpha 0.5 (Gemma 3 270M)",
    }


def test_one_figure_of_one_seed_decides_nothing(tmp_path: Path) -> None:
    one = Evidence("a", 0.5, math.nan, math.nan, "unclear", 1)
    other = Evidence("b", 0.9, 0.8, 0.95, "better", 32)
    unclear = Evidence("c", 0.99, 0.9, 1.1, "unclear", 32)
    assert judged([one]) == "not testable here" and not one.counts
    assert judged([one, other]) == "holds"
    assert judged([one, other, unclear]) == "holds in part"
    assert judged([one, unclear]) == "undecided"
    assert Evidence("d", math.inf, math.nan, math.nan, "worse", 1).counts
