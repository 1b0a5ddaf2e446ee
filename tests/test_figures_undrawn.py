"""Figures of runs that collapsed: what has no place on an axis is said, and nothing fails."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from drawings import ALL, draw, panels
from synthetic import entry, made

from analysis.figures import alpha, bits, depth, gain, roles
from analysis.figures.base import Drawing
from analysis.frames import Entry, Frames
from analysis.plotting.style import DIVERGED, FULL_PRECISION

INF, NAN = math.inf, math.nan
METHODS = ("gptq", "quantease", "qqa")
NOTHING = "Nothing finite to draw."


def spoilt(value: float, *runs: Entry) -> list[Entry]:
    """These runs with every figure of theirs, of every linear and block, replaced by ``value``."""

    def row(one: Any) -> dict[str, Any]:
        changed = {
            key: value if key.startswith("relative_") or key.endswith("_error") else known
            for key, known in one.items()
        }
        if "traces" in changed:
            curves = changed["traces"]
            changed["traces"] = {name: [value] * len(curve) for name, curve in curves.items()}
        return changed

    found = []
    for one in runs:
        one.record.metrics = dict.fromkeys(one.record.metrics, value)
        layers, blocks = map(row, one.layers), map(row, one.blocks)
        found.append(Entry(one.record, list(layers), list(blocks)))
    return found


def study(value: float) -> Frames:
    """A run of every method with and without QEP, one of a few blocks, the model itself: all ``value``."""
    runs = [entry(method, alpha=strength) for method in METHODS for strength in (0.0, 0.5, 1.0)]
    runs += [entry("gptq", 4, strength) for strength in (0.0, 0.5, 1.0)]
    runs += [entry("gptq", alpha=strength, part="0:2") for strength in (0.0, 0.5)]
    return made(*spoilt(value, entry("none", 16), *runs))


def laid_out(drawing: Drawing) -> Drawing:
    """The figure after all that writing it does but for the pixels."""
    drawing.figure.draw_without_rendering()
    return drawing


DRAWN = [name for name in ALL if name != "roundings"]  # drawn by the dumbbells of compositions


def texts(drawing: Drawing) -> list[str]:
    return [one.get_text() for axes in panels(drawing) for one in axes.texts]


@pytest.mark.parametrize(
    ("name", "value"),
    [*[(name, NAN) for name in DRAWN], ("alpha", INF), ("bits", INF), ("depth", -INF)],
)
def test_nothing_finite_is_said_in_the_panels_and_in_the_caption(name: str, value: float) -> None:
    drawing = laid_out(draw(ALL[name], study(value)))
    assert NOTHING in drawing.caption and "diverged value" in drawing.caption
    shown = [axes for axes in panels(drawing) if axes.lines or axes.patches]
    said = texts(drawing)
    if name == "gain":
        assert set(said) == {"∞ → ∞"}
    else:
        assert said.count("nothing finite to draw") == len(shown) > 0
        assert not any(axes.get_yscale() == "log" for axes in shown)


@pytest.mark.parametrize(("name", "value"), [*[(name, 0.0) for name in DRAWN], ("depth", -1.0)])
def test_zero_and_less_have_no_place_on_a_logarithmic_axis(name: str, value: float) -> None:
    with np.errstate(all="ignore"):
        drawing = laid_out(draw(ALL[name], study(value)))
    if name == "gain":  # log(0/0) and log(−1/−1)
        assert NOTHING in drawing.caption
    else:
        assert "Nothing above zero to draw" in drawing.caption
        assert "at or below zero (no place on a logarithmic axis)" in drawing.caption


def test_a_panel_in_which_all_diverged_stands_beside_one_that_is_drawn() -> None:
    runs = [entry("gptq", 4, a, perplexity=20.0 - a) for a in (0.0, 0.5, 1.0)]
    lost = [entry("gptq", 3, a) for a in (0.0, 0.5, 1.0)]
    for module in (alpha, depth, roles):
        drawing = laid_out(draw(module, made(*runs, *spoilt(NAN, *lost))))
        said = [[one.get_text() for one in axes.texts] for axes in panels(drawing)]
        assert ["nothing finite to draw"] in said and [] in said
        assert "Nothing finite to draw in " in drawing.caption
        shared = module is not roles  # its panels side by side show kinds of error
        assert all(
            (axes.get_yscale() == "log") == (shared or not axes.texts) for axes in panels(drawing)
        )


def test_a_model_that_is_infinite_itself_has_no_line() -> None:
    runs = [entry("gptq", b, a, perplexity=20.0) for b in (3, 4) for a in (0.0, 0.5, 1.0)]
    for module in (alpha, bits):
        drawing = draw(module, made(*spoilt(INF, entry("none", 16)), *runs))
        lines = [line for axes in panels(drawing) for line in axes.lines]
        assert not [line for line in lines if line.get_gid() == FULL_PRECISION]
        assert "full precision" not in [t.get_text() for t in drawing.figure.legends[0].texts]


def test_runs_without_effective_bits_are_named() -> None:
    known, lost = [entry("gptq", b, 0.0) for b in (3, 4)], entry("gptq", 3, 0.5)
    lost.record.bits_per_weight = NAN
    drawing = draw(bits, made(*known, lost))
    assert f"Effective bits unknown: {lost.record.run}." in drawing.caption
    known[0].record.bits_per_weight = NAN
    assert bits.draw(made(*known, lost)) is None  # points above each other are no curve


def test_a_gain_that_is_finite_is_shown_beside_one_that_is_not() -> None:
    runs = [entry("gptq", b, a, perplexity=p) for b, pair in {3: (INF, INF), 4: (20.0, 10.0)}.items()
            for a, p in zip((0.0, 0.5), pair, strict=True)]  # fmt: skip
    drawing = draw(gain, made(*runs))
    assert texts(drawing) == ["∞ → ∞", "−50.0"] and NOTHING not in drawing.caption


def test_a_linear_without_signal_and_error_has_not_diverged() -> None:
    runs = [entry("gptq", 3, a) for a in (0.0, 0.5)]
    for one in runs:
        for row in one.layers:
            if row["role"] == "v_proj":
                row.update(signal=0.0, rounding_error=0.0, local_error=0.0, total_error=0.0)  # type: ignore[attr-defined]
    drawing = draw(roles, made(*runs))
    assert "diverged" not in drawing.caption
    assert "6 values at or below zero" in drawing.caption  # two runs, three kinds
    assert not any(line.get_gid() == DIVERGED for axes in panels(drawing) for line in axes.lines)
