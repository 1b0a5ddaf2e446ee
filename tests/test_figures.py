"""Figures: what is drawn equals the frames."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
import pytest
from drawings import ALL, draw, drawn_study, has_line, marks, panels, study
from matplotlib.axes import Axes
from synthetic import FULL, QUALITY, ROLES, entry, made

from analysis.figures import alpha, bits, depth_token, gain, partial, qqa, quantease
from analysis.figures.base import Drawing
from analysis.frames import Frames
from analysis.plotting import measured
from analysis.plotting.style import DIVERGED, DIVERGING

INF, NAN = float("inf"), float("nan")


@pytest.fixture
def paper() -> Frames:
    return study()


@pytest.fixture
def drawn() -> dict[str, Drawing]:
    return drawn_study()


def test_every_figure_of_the_issue_is_a_file() -> None:
    names = ["alpha", "bits", "depth", "gain", "partial", "qqa", "quantease", "roles"]
    assert [
        name for name in ALL if name not in ("depth_token", "compositions", "roundings")
    ] == names


def blocks_of(frames: Frames, key: str = "relative_error", **where: object) -> list[float]:
    """The mean over seeds of ``key`` by block, slowly."""
    runs = frames.runs
    for name, value in where.items():
        runs = runs[runs[name] == value]
    runs = runs[[not config["quantize"]["blocks"] for config in runs["config"]]]
    rows = [frames.blocks[frames.blocks["run"] == run] for run in runs["run"]]
    assert len(rows) == 2
    return [float((a + b) / 2) for a, b in zip(rows[0][key], rows[1][key], strict=True)]


def test_depth_shows_both_sides_with_and_without_qep(
    paper: Frames, drawn: dict[str, Drawing]
) -> None:
    six = panels(drawn["depth"])
    assert [axes.get_title() for axes in six[:3]] == ["2 bits, groups of 64", "3 bits", "4 bits"]
    for row, key in ((0, "relative_error"), (1, "relative_error_heldout")):
        for method in ("awq", "gptq", "qqa", "quantease"):  # as many as can be followed
            for value in ("0", "0.5"):
                found = blocks_of(paper, key, method=method, bits=3, alpha=value)
                assert has_line(six[3 * row + 1], list(range(6)), found)
    assert six[0].get_yscale() == "log" and six[3].get_ylabel().startswith("held-out")


def test_depth_of_tokens_leaves_out_runs_that_did_not_measure_it(
    drawn: dict[str, Drawing],
) -> None:
    runs = [entry("gptq", 3, a, perplexity=20.0) for a in (0.0, 0.5)]
    older = entry("rtn", 3, 0.0, perplexity=20.0)
    for row in older.blocks:
        del row["relative_error_token"], row["relative_error_token_heldout"]  # type: ignore[attr-defined]
    axes, _ = panels(draw(depth_token, made(*runs, older)))  # calibration above held-out
    assert len([line for line in axes.lines if len(line.get_xdata()) > 1]) == len(runs)
    for run in runs:
        values = [row["relative_error_token"] for row in run.blocks]
        assert has_line(axes, list(range(len(values))), values)
    six = panels(drawn["depth_token"])
    assert len(six) == 6


def test_alpha_marks_the_best_and_sets_auto_apart(
    paper: Frames, drawn: dict[str, Drawing]
) -> None:
    axes = panels(drawn["alpha"])[1]
    runs = paper.runs[paper.runs["bits"] == 3]
    best = []
    for method in QUALITY:
        own = runs[runs["method"] == method]
        own = own[[not config["quantize"]["blocks"] for config in own["config"]]]
        means = own.groupby("alpha")["perplexity/wiki"].mean()
        numbers = ["0", "0.5", "1"]
        assert has_line(axes, [0, 0.5, 1], [means[one] for one in numbers])
        assert has_line(axes, [alpha.AUTO], [means["auto"]])
        x = alpha.AUTO if means.idxmin() == "auto" else float(means.idxmin())
        best.append((x, means.min()))
    assert np.allclose(sorted(marks(axes, "best")), sorted(best))
    assert "auto" in [one.get_text() for one in axes.get_xticklabels()]
    assert marks(axes, "full precision") == [(0.0, pytest.approx(FULL))]


def test_diverged_values_are_marked_at_the_edge_and_counted() -> None:
    runs = [entry(alpha=0.0, perplexity=INF), entry(alpha=0.5, perplexity=NAN)]
    runs += [entry(alpha=1.0, seed=seed, perplexity=x) for seed, x in ((0, 20.0), (1, INF))]
    runs += [entry(alpha="auto", perplexity=30.0), entry("rtn", alpha=0.5, perplexity=40.0)]
    drawing = draw(alpha, made(*runs))
    (axes,) = panels(drawing)
    assert sorted(marks(axes, DIVERGED)) == [(0.0, 0.97), (0.5, 0.97), (1.0, 0.97)]
    assert "3 diverged values" in drawing.caption
    assert marks(axes, "best") == [(alpha.AUTO, 30.0)]  # rtn has no curve
    edge = axes.transAxes.transform((0, 0.97))[1]
    assert axes.transData.transform((0, 30.0))[1] < edge - 10


def test_what_was_not_measured_is_no_divergence() -> None:
    runs = [entry(alpha=0.0, perplexity=20.0), entry(alpha=0.5, perplexity=20.0, corpora=("c4",))]
    data = measured.perplexities(made(*runs))
    assert data["corpus"].tolist() == ["wiki", "C4"] and np.isfinite(data["value"]).all()


def test_the_front_is_what_no_other_point_beats(paper: Frames, drawn: dict[str, Drawing]) -> None:
    data, _ = measured.ways(measured.perplexities(paper))
    points = bits.means(data)
    every = list(zip(points["bits_per_weight"], points["mean"], strict=True))
    slow = [one for one in every if not any(x <= one[0] and y < one[1] for x, y in every)]
    found = bits.front(points)
    assert len(slow) == 3
    assert sorted(zip(found["bits_per_weight"], found["mean"], strict=True)) == sorted(slow)
    (axes,) = panels(drawn["bits"])
    (line,) = [one for one in axes.lines if one.get_gid() == "front"]
    assert list(line.get_ydata())[:-1] == [value for _, value in sorted(slow)]
    assert marks(axes, "full precision") == [(0.0, pytest.approx(FULL))]


def cell_texts(axes: Axes) -> dict[tuple[int, int], str]:
    return {(round(t.get_position()[0]), round(t.get_position()[1])): t.get_text()
            for t in axes.texts}  # fmt: skip


def test_gain_pairs_runs_by_seed() -> None:
    runs = [entry(alpha=0.0, seed=s, perplexity=p) for s, p in ((0, 20.0), (1, 40.0), (2, 1e4))]
    runs += [entry(alpha=0.5, seed=s, perplexity=p) for s, p in ((0, 10.0), (1, 30.0))]
    runs += [entry(bits=4, alpha=a, perplexity=p) for a, p in ((0.0, 10.0), (0.5, 25.0))]
    drawing = draw(gain, made(*runs))
    (axes,) = panels(drawing)
    change = 100 * (np.sqrt(10 / 20 * 30 / 40) - 1)
    assert cell_texts(axes) == {(0, 0): f"{change:+.1f}".replace("-", "−"), (1, 0): "+150"}
    assert "n = 6 runs" in drawing.caption  # seed 2 has no partner


def test_gain_keeps_its_colours_for_what_did_not_collapse() -> None:
    cases = {2: (1e6, 10.0), 3: (40.0, 20.0), 4: (20.0, 20.0)}
    runs = [entry(bits=b, alpha=a, perplexity=p)
            for b, pair in cases.items() for a, p in zip((0.0, 0.5), pair, strict=True)]  # fmt: skip
    drawing = draw(gain, made(*runs))
    (axes,), bar = panels(drawing), drawing.figure.axes[-1]
    scale = mpl.colormaps[DIVERGING]
    for patch, share in zip(axes.patches, (0, 0.25, 0.5), strict=True):  # halved: a quarter along
        assert patch.get_facecolor() == pytest.approx(scale(share), abs=0.01)
    assert bar.get_yticklabels()[0].get_text() == "−75.0"


def test_gain_shows_what_diverged_and_what_is_missing() -> None:
    runs = []
    cases = {2: (INF, 30.0), 3: (30.0, NAN), 4: (INF, INF)}
    for bit, values in cases.items():
        runs += [
            entry("gptq", bit, a, perplexity=p) for a, p in zip((0.0, 0.5), values, strict=True)
        ]
    runs += [entry("rtn", 4, a, perplexity=p) for a, p in ((0.0, 20.0), (0.5, 10.0))]
    drawing = draw(gain, made(*runs))
    (axes,) = panels(drawing)
    assert cell_texts(axes) == {(0, 0): "∞ →", (1, 0): "→ ∞", (2, 0): "∞ → ∞", (2, 1): "−50.0"}
    assert [patch.get_hatch() for patch in axes.patches] == [None] * 3 + ["////"] * 2 + [None]
    assert "3 diverged values" in drawing.caption


def test_roles_are_medians_over_blocks(paper: Frames, drawn: dict[str, Drawing]) -> None:
    nine = panels(drawn["roles"])
    for column, kind in enumerate(("rounding_error", "local_error", "total_error")):
        runs = paper.runs.query("method == 'awq' and bits == 4 and alpha == '0.5'")["run"]
        rows = paper.layers[paper.layers["run"].isin(runs)]
        expected = []
        for role in ROLES:
            own = rows[rows["role"] == role]
            ratio = (own[kind] / own["signal"]).to_numpy().reshape(2, 6).mean(axis=0)
            expected.append(float(np.median(ratio)))
        lines = [np.asarray(line.get_ydata(), dtype=float) for line in nine[6 + column].lines]
        assert any(len(y) == 7 and np.allclose(y, expected) for y in lines)
    assert [one.get_text() for one in nine[8].get_xticklabels()] == list(ROLES)


def test_partial_marks_the_quantised_stretch(paper: Frames, drawn: dict[str, Drawing]) -> None:
    (axes,) = panels(drawn["partial"])
    run = [
        row["run"] for row in paper.runs.to_dict("records")
        if row["config"].get("quantize", {}).get("blocks") == ":4" and row["alpha"] == "0"
    ]  # fmt: skip
    values = paper.blocks[paper.blocks["run"] == run[0]]["relative_error"].tolist()
    (line,) = [one for one in axes.lines if np.allclose(one.get_ydata(), values)]
    assert line.get_markevery() == [0, 3]
    assert [partial.quantised(one, 6) for one in ("1:3", ":2", "4:", "-2:", "all")] == [
        [1, 2], [0, 1], [4, 5], [4, 5], [0, 1, 2, 3, 4, 5]]  # fmt: skip


@pytest.mark.parametrize("module", [quantease, qqa])
def test_traces_are_medians_over_linears(
    module: object, paper: Frames, drawn: dict[str, Drawing]
) -> None:
    name = module.METHOD  # type: ignore[attr-defined]
    drawing = drawn[name]
    axes = panels(drawing)[0]
    runs = paper.runs.query(f"method == {name!r} and bits == 2 and alpha == '0'")["run"]
    rows = paper.layers[paper.layers["run"].isin(runs) & (paper.layers["role"] == "v_proj")]
    assert len(rows) == 12
    curves = [row["traces"]["loss"] / row["signal"] for row in rows.to_dict("records")]
    expected = np.median(curves, axis=0)
    assert has_line(axes, list(range(1, len(expected) + 1)), expected.tolist())
    assert "Alpha 0 (0.5, 1, auto: not shown)" in drawing.caption
