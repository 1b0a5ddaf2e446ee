"""Figures: legible in print, honest about what they leave out, and the same every time."""

from __future__ import annotations

import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from drawings import ALL, draw, drawn_study, panels
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text
from synthetic import entry, made, many

from analysis.figures import alpha, depth, gain
from analysis.figures.base import Drawing
from analysis.plotting.style import COLOURS, DIVERGED, DOUBLE, SINGLE, styled

INF = float("inf")
ROOT = Path(__file__).parent.parent


@pytest.fixture
def drawn() -> dict[str, Drawing]:
    return drawn_study()


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
        ("depth", 4 * 3 * 2 * 2),  # as many methods as can be followed
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
    assert "Not shown (7 of 11, fewest runs): GPTQ (damping " in drawing.caption


def test_long_lists_mappings_and_nulls_are_whole_in_legends_and_titles() -> None:
    lists = [
        ["*q_proj", "*k_proj", "*query*", "*key*", "*dense_4h_to_h", "*w2"],
        ["x" * 90],
        None,
        ["$a$"],
    ]
    outliers = [{"fraction": 0.01}, {"fraction": 0.02}, {}]
    changes = [{"skip_clip": one} for one in lists] + [{"outliers": one} for one in outliers]
    windows = [{}, {"exclude": ["*.o_proj", "*.down_proj", "*.up_proj"]}]
    runs = [entry("awq", 3, a, options=one, calibration=two, blocks=2)
            for one in changes for two in windows for a in (0.0, 0.5, 1.0)]  # fmt: skip
    frames = made(*runs)
    for module in (alpha, gain):
        drawing = draw(module, frames)
        texts, canvas = settled(drawing), drawing.figure.bbox
        said = "".join(one.get_text() for one in texts).replace("\n", "").replace(" ", "")
        wanted = [
            f"skipclip[{','.join(lists[0])}]",
            "x" * 90,
            "skipclipnull",
            "skipclip[$a$]",
        ]
        wanted += [
            "1%outliers",
            "2%outliers",
            f"calibrationexclude[{','.join(windows[1]['exclude'])}]",
        ]
        for words in wanted:
            assert words in said, (module, words)
        for text in texts:
            box = text.get_window_extent()
            assert box.x0 >= -1 and box.x1 <= canvas.x1 + 2, (
                text
            )  # the layout is found in one pass
        for axes in panels(drawing):
            assert axes.get_window_extent().width > 80  # of 690 pixels; the rest is words
            boxes = [one.get_window_extent() for one in axes.get_yticklabels() if one.get_text()]
            boxes.sort(key=lambda box: box.y0)
            assert all(low.y1 <= high.y0 + 1 for low, high in pairwise(boxes))


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
        "from test_figures_print import *; before = settings()\n"
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
