"""Figures: what is drawn equals the frames, is legible, and is the same every time."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text
from synthetic import FULL, QUALITY, ROLES, entry, made, many

from analysis import figures
from analysis.figures import alpha, bits, depth, gain, partial, qqa, quantease
from analysis.figures.base import Drawing
from analysis.frames import Frames
from analysis.plotting import measured
from analysis.plotting.recipes import RECIPE, labels, recipes
from analysis.plotting.style import COLOURS, DIVERGED, DOUBLE, SINGLE, styled
from analysis.plugins import plugins

INF, NAN = float("inf"), float("nan")
ALL = plugins(figures)
ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def paper() -> Frames:
    """Every method, three grids, alphas, seeds, a partial run: what a study leaves."""
    runs = [entry("none", 16)]
    for method in QUALITY:
        for bit, group in ((2, 64), (3, None), (4, None)):
            for value in (0.0, 0.5, 1.0, "auto"):
                runs += [entry(method, bit, value, seed, group_size=group) for seed in range(2)]
    runs += [entry("gptq", 3, value, part=part) for part in ("0:2", ":4") for value in (0.0, 0.5)]
    return made(*runs)


@pytest.fixture(scope="module")
def drawn(paper: Frames) -> dict[str, Drawing]:
    return {name: draw(module, paper) for name, module in ALL.items()}


def draw(module: object, frames: Frames) -> Drawing:
    drawing = module.draw(frames)  # type: ignore[attr-defined]
    assert drawing is not None
    return drawing


def panels(drawing: Drawing) -> list[Axes]:
    return [axes for axes in drawing.figure.axes if axes.get_label() != "<colorbar>"]


def has_line(axes: Axes, x: list[float], y: list[float]) -> bool:
    """Whether a line of ``axes`` shows just this, NaN being a gap."""
    return any(
        len(line.get_xdata()) == len(x)
        and np.allclose(np.asarray(line.get_xdata(), dtype=float), x)
        and np.allclose(np.asarray(line.get_ydata(), dtype=float), y, equal_nan=True)
        for line in axes.lines
    )


def marks(axes: Axes, gid: str) -> list[tuple[float, float]]:
    return [
        (float(line.get_xdata()[0]), float(line.get_ydata()[0]))
        for line in axes.lines
        if line.get_gid() == gid
    ]


def test_every_figure_of_the_issue_is_a_file() -> None:
    names = ["alpha", "bits", "depth", "gain", "partial", "qqa", "quantease", "roles"]
    assert list(ALL) == names


@styled
def settled(drawing: Drawing) -> list[Text]:
    """The texts of a figure that has been drawn."""
    FigureCanvasAgg(drawing.figure).draw()
    texts = drawing.figure.findobj(Text)
    return [one for one in texts if one.get_visible() and one.get_text().strip()]


@pytest.mark.parametrize("name", ALL)
def test_it_is_legible_in_print(name: str, drawn: dict[str, Drawing]) -> None:
    drawing = drawn[name]
    texts, canvas = settled(drawing), drawing.figure.bbox
    assert texts and drawing.figure.get_figwidth() in (SINGLE, DOUBLE)
    for text in texts:
        assert text.get_fontsize() >= 7, text
    for axes in drawing.figure.axes:
        box = axes.get_tightbbox()
        assert box is not None and box.x0 >= -1 and box.y0 >= -1
        assert box.x1 <= canvas.x1 + 1 and box.y1 <= canvas.y1 + 1
    (legend,) = drawing.figure.legends or [None]
    if legend is not None:
        box = legend.get_window_extent()
        assert box.x0 >= 0 and box.x1 <= canvas.x1 and box.y0 >= 0
        assert all(box.y1 <= axes.get_window_extent().y0 for axes in drawing.figure.axes)


@pytest.mark.parametrize("name", ALL)
def test_all_that_is_finite_lies_inside_the_axes(name: str, drawn: dict[str, Drawing]) -> None:
    for axes in panels(drawn[name]):
        low, high = sorted(axes.get_ylim())
        for line in axes.lines:
            if line.get_gid() not in (DIVERGED, None):
                continue
            values = np.asarray(line.get_ydata(), dtype=float)
            if line.get_transform() == axes.transData:
                values = values[np.isfinite(values)]
                assert np.all((low <= values) & (values <= high))


@pytest.mark.parametrize("name", ALL)
def test_the_caption_names_model_runs_seeds_and_tokens(
    name: str, drawn: dict[str, Drawing]
) -> None:
    caption = drawn[name].caption
    assert "Model tiny; n = " in caption and "seed" in caption
    assert "4,096 calibration tokens" in caption and "1,024 held-out tokens" in caption


def test_n_is_the_number_of_runs_shown(drawn: dict[str, Drawing]) -> None:
    for name, count in (
        ("alpha", 5 * 3 * 4 * 2),
        ("bits", 5 * 3 * 2 * 2),
        ("depth", 5 * 3 * 2 * 2),
    ):
        assert f"n = {count} runs, seeds 0, 1," in drawn[name].caption
    assert f"n = {5 * 3 * 4 * 2} runs" in drawn["gain"].caption  # with and without
    assert "n = 6 runs, seed 0" in drawn["partial"].caption
    assert "8 evaluation windows of wiki" in drawn["bits"].caption


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("runs", [[], [entry("none", 16)], [entry(status="failed", corpora=())]])
def test_nothing_to_show_is_none(name: str, runs: list) -> None:
    frames = made(*[type(one)(one.record) for one in runs])  # no layers, no blocks
    assert ALL[name].draw(frames) is None


def test_runs_are_averaged_over_seeds_and_over_nothing_else() -> None:
    base = {"method": "quantease", "alpha": 0.5, "perplexity": 20.0}
    different = [
        {},
        {"alpha": 0.0},
        {"alpha": "auto"},
        {"bits": 4},
        {"group_size": 64},
        {"model": "other"},
        {"part": "0:2"},
        {"method": "gptq"},
        {"options": {"iterations": 30}},
        {"options": {"iterations": 30, "act_order": True}},
        {"qep": {"damping": 0.1}},
        {"qep": {"statistics": "reference"}},
        {"calibration": {"windows": 32}},
        {"calibration": {"name": "c4"}},
    ]
    frames = made(*[entry(**base | one, seed=seed) for one in different for seed in (0, 1)])
    groups = recipes(frames.runs, "wiki").groupby(RECIPE)
    assert len(groups) == len(different)
    for _, rows in groups:
        assert rows["recipe"].nunique() == 1 and sorted(rows["seed"]) == [0, 1]


def test_other_evaluation_tokens_or_another_checkpoint_are_kept_apart() -> None:
    one, two, three = (entry(seed=seed) for seed in range(3))
    two.record.hashes["wiki"] = "other"
    three.record.hashes["model"] = "other"
    runs = made(one, two, three).runs
    assert len(recipes(runs, "wiki").groupby(RECIPE)) == 3
    assert len(recipes(runs).groupby(RECIPE)) == 2  # the evaluation has no part in the errors


def test_of_two_runs_with_one_seed_the_later_counts() -> None:
    one, two, other = entry(), entry(), entry(seed=1)
    two.record.run, two.record.finished = "later", "2026"
    two.record.config["eval"] = {}
    assert sorted(recipes(made(one, two, other).runs)["run"]) == sorted(
        ["later", other.record.run]
    )


def test_auto_stands_beside_the_others_though_it_sets_windows_aside() -> None:
    other = {"calibration": {"holdout": 0}}
    runs = [entry(alpha=0.0, **other), entry(alpha=0.5, **other), entry(alpha="auto")]
    assert recipes(made(*runs).runs)["setting"].unique().tolist() == [""]
    runs.append(entry(alpha="auto", calibration={"holdout": 8}))
    assert recipes(made(*runs).runs)["setting"].nunique() == 3  # two ways of auto: not mixed


def test_labels_use_as_few_options_as_tell_rows_apart() -> None:
    rows = [{"c.path": "x", "c.name": "a"}, {"c.path": "y", "c.name": "b"}]
    assert labels(rows) == ["a", "b"]
    assert labels([{"a.size": "1", "b.size": "1"}, {"a.size": "2", "b.size": "1"},
                   {"a.size": "1", "b.size": "2"}]) == [
        "a size=1, b size=1", "a size=2, b size=1", "a size=1, b size=2"]  # fmt: skip
    assert labels([{"a.x": "1"}, {"a.x": "1"}]) == ["", ""]
    assert len(set(labels([{"a.size": "1"}, {"b.size": "1"}, {}]))) == 3


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
        for method in QUALITY:
            for value in ("0", "0.5"):
                found = blocks_of(paper, key, method=method, bits=3, alpha=value)
                assert has_line(six[3 * row + 1], list(range(6)), found)
    assert six[0].get_yscale() == "log" and six[3].get_ylabel().startswith("held-out")


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
    assert sorted(marks(axes, "best")) == [(0.5, 40.0), (alpha.AUTO, 30.0)]
    edge = axes.transAxes.transform((0, 0.97))[1]
    assert axes.transData.transform((0, 40.0))[1] < edge - 10


def test_what_was_not_measured_is_no_divergence() -> None:
    runs = [entry(alpha=0.0, perplexity=20.0), entry(alpha=0.5, perplexity=20.0, corpora=("c4",))]
    data = measured.perplexities(made(*runs))
    assert data["corpus"].tolist() == ["wiki", "c4"] and np.isfinite(data["value"]).all()


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
        runs = paper.runs.query("method == 'rtn' and bits == 4 and alpha == '0.5'")["run"]
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


def test_more_than_is_legible_is_left_out_and_said() -> None:
    runs = [entry(method, bit, value, model=model) for model in "abcde" for bit in (2, 3, 4, 5, 6)
            for value in (0.0, 0.5) for method in ("rtn", "gptq")]  # fmt: skip
    runs += [entry("gptq", 3, value, model="a", options={"damping": x}) for x in range(9)
             for value in (0.0, 0.5)]  # fmt: skip
    drawing = draw(depth, made(*runs))
    assert len(panels(drawing)) == 9
    assert "Not shown (7 of 10, fewest runs): " in drawing.caption
    assert "Not shown (2 of 5, fewest runs): 5 bits; 6 bits." in drawing.caption
    assert len({line.get_color() for line in panels(drawing)[1].lines}) <= len(COLOURS)
    assert "Not shown (4 of 11, fewest runs): gptq (damping=" in drawing.caption


def test_a_panel_without_runs_says_so() -> None:
    runs = [entry("gptq", 3, model="a"), entry("gptq", 4, model="b")]
    drawing = draw(depth, made(*runs))
    texts = [[one.get_text() for one in axes.texts] for axes in panels(drawing)]
    no, yes = ["not measured"], list[str]()
    assert texts == [yes, no, no, yes, yes, no]  # a, b, and a held-out


def settings() -> dict[str, object]:
    """Matplotlib's global ones; reading the backend would load pyplot."""
    return {key: mpl.rcParams[key] for key in mpl.rcParams if key != "backend"}


def one_figure(folder: Path) -> list[Path]:
    """The files of a small figure with every kind of mark."""
    runs = [
        entry(method, alpha=value) for method in ("rtn", "gptq") for value in (0.0, 0.5, "auto")
    ]
    return draw(alpha, made(*runs, entry(alpha=1.0, perplexity=INF))).write(folder / "alpha")


def test_the_same_frames_give_the_same_bytes_in_any_process_and_style(tmp_path: Path) -> None:
    with mpl.rc_context({"lines.linewidth": 9, "font.size": 20, "savefig.dpi": 30}):
        before = settings()
        files = one_figure(tmp_path / "here")
        assert settings() == before
    assert [file.name for file in files] == ["alpha.pdf", "alpha.png", "alpha.txt"]
    assert b"CreationDate" not in files[0].read_bytes()
    assert files[2].read_text(encoding="utf-8").startswith("Perplexity (lower is better)")
    code = (
        "import sys; sys.path.insert(0, 'tests')\n"
        "from test_figures import *; before = settings()\n"
        f"one_figure(Path({str(tmp_path / 'there')!r})); assert settings() == before\n"
        "assert not {'matplotlib.pyplot', 'torch'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    for file in files:
        assert file.read_bytes() == (tmp_path / "there" / file.name).read_bytes(), file.name


@pytest.mark.slow
def test_a_thousand_runs_are_drawn_quickly(tmp_path: Path) -> None:
    frames = many(1000)
    start = time.process_time()
    for name, module in ALL.items():
        drawing = module.draw(frames)
        if drawing is not None:
            drawing.write(tmp_path / name)
    assert time.process_time() - start < 30
