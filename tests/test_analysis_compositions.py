"""The table and the figure of compositions: rows, columns, means, marks, and what has collapsed."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from drawings import draw, marks, panels
from records import leave

from analysis import __main__ as command
from analysis import load
from analysis.compositions import compositions
from analysis.documents import placed
from analysis.figures import compositions as figure
from analysis.figures import roundings
from analysis.plotting.dumbbells import APART, BEYOND, POINT
from analysis.plotting.style import DIVERGED
from analysis.recipe_page import page
from analysis.tables import compositions as table
from analysis.tables import perplexity, storage
from harness.records.record import RECORD, read_record, write_record

PLAIN: dict[str, Any] = {
    "transform": {},
    "grid.range._target_": "harness.ranges.minmax.MinMax",
    "grid.format._target_": "harness.formats.int.Int",
}
TURNED = PLAIN | {
    "transform": {"orthogonal": {"_target_": "harness.transforms.orthogonal.Orthogonal"}},
    "grid.range._target_": "harness.ranges.mse.MSE",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Full precision 10 and 20; GPTQ plain, and in a turned basis with two seeds and two targets."""

    def run(alpha: float, wiki: float, web: float, changes: dict[str, Any], **more: Any) -> None:
        about = {
            "own": ["overrides"] if changes["transform"] else ["transform", "range", "format"]
        }
        leave(
            tmp_path, "gptq", 3, alpha, changes=changes, about=about, hashes={"web": "ff"},
            metrics={"perplexity/wiki": wiki, "perplexity/web": web}, bits_per_weight=3.02, **more,
        )  # fmt: skip

    metrics = {"perplexity/wiki": 10.0, "perplexity/web": 20.0}
    leave(tmp_path, "none", 16, metrics=metrics, hashes={"web": "ff"})
    run(0.0, 80.0, math.inf, PLAIN)
    run(0.5, 40.0, 700.0, PLAIN | {"qep.target": "input"})
    for seed, wiki in ((0, 16.0), (1, 25.0)):
        run(0.0, wiki, 40.0, TURNED, seed=seed)
        run(0.5, 0.75 * wiki, 30.0, TURNED | {"qep.target": "residual"}, seed=seed)
    return tmp_path


def test_a_row_is_a_composition_and_corpora_stand_side_by_side(folder: Path) -> None:
    found = table.build(load(folder))
    assert found is not None
    said = found.markdown().splitlines()
    assert said[0] == (
        "| bits | group | method | basis | range | target | web without QEP | web with QEP "
        "| wiki without QEP | wiki with QEP |"
    )
    assert said[2:5] == [
        "| 16 | – | full precision | – | – | – | 20 | – | 10 | – |",
        "| 3 | – | GPTQ | – | min–max | input | inf | 700 | 80 | 40 <sub>−50 %</sub> |",
        "| 3 | – | GPTQ | orthogonal | mse | residual | 40 ± 0 (n=2) | **30 ± 0 (n=2)** <sub>−25 %</sub> "
        "| 20 ± 6.3 (n=2) | **15 ± 4.7 (n=2)** <sub>−25 %</sub> |",
    ]


def test_a_checkpoint_of_codes_is_neither_full_precision_nor_a_composition(folder: Path) -> None:
    before = table.build(load(folder))
    metrics = {"perplexity/wiki": 17.0, "perplexity/web": 31.0}
    leave(
        folder, "none", 4.5, metrics=metrics, hashes={"web": "ff", "model": "bbbb"},
        about={"codes": "gguf"}, bits_per_weight=4.5,
    )  # fmt: skip
    frames = load(folder)
    assert compositions(frames).full == {("m", "perplexity/wiki"): 10, ("m", "perplexity/web"): 20}
    assert table.build(frames) == before
    figures = perplexity.build(frames)
    assert figures is not None
    said = figures.markdown()
    assert "| web | 4.5 | – | codes (gguf) |" in said and "**31**" not in said
    assert said.count("full precision") == 2


def test_a_place_in_a_document_may_ask_for_rows_by_several_columns(folder: Path) -> None:
    name = folder.name
    text = f"<!-- table: {name}/compositions where method=none,gptq and basis=orthogonal -->\n<!-- end -->"
    place = folder / "page.md"
    place.write_text(text)
    assert command.main([str(folder), "--into", str(place)]) == 0
    rows = [line for line in place.read_text().splitlines() if line.startswith("| ")]
    assert len(rows) == 2 and rows[1].startswith("| 3 | – | GPTQ | orthogonal |")


def test_where_rows_are_too_many_those_of_one_method_stay(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave(
        folder, "rtn", 3, 0.5, changes=TURNED | {"qep.target": "residual"}, hashes={"web": "ff"},
        metrics={"perplexity/wiki": 90.0, "perplexity/web": 99.0}, bits_per_weight=3.02,
    )  # fmt: skip
    web, _ = panels(draw(figure, load(folder)))
    assert len(web.get_yticklabels()) == 3
    monkeypatch.setattr(figure, "MOST", 2)
    drawing = draw(figure, load(folder))
    web, _ = panels(drawing)
    assert [one.get_text() for one in web.get_yticklabels()] == [
        "min–max, input",
        "orthogonal, mse, residual",
    ]
    assert "Method: GPTQ." in drawing.caption and "1 more compositions" in drawing.caption


def test_roundings_stand_beside_each_other_where_all_else_is_alike(folder: Path) -> None:
    assert roundings.draw(load(folder)) is None  # one method
    for method, wiki in (("rtn", 90.0), ("gptaq", 11.0)):
        leave(
            folder, method, 3, 0.5, changes=TURNED | {"qep.target": "residual"},
            about={"own": ["overrides"]}, hashes={"web": "ff"}, bits_per_weight=3.02,
            metrics={"perplexity/wiki": wiki, "perplexity/web": 30.0},
        )  # fmt: skip
    web, wiki_panel = panels(draw(roundings, load(folder)))
    assert web.get_title(loc="left") == "3 bits, orthogonal, mse, uniform"
    assert [one.get_text() for one in web.get_yticklabels()] == ["RTN", "GPTQ", "GPTAQ"]
    found = sorted((round(y), x) for x, y in marks(wiki_panel, POINT))
    assert found == [(y, pytest.approx(x)) for y, x in ((0, 9.0), (1, 1.5), (1, 2.0), (2, 1.1))]


def test_points_are_ratios_and_what_collapsed_stands_at_the_edge(folder: Path) -> None:
    drawing = draw(figure, load(folder))
    web, wiki = panels(drawing)
    assert [one.get_text() for one in web.get_yticklabels()] == [
        "min–max, input",
        "orthogonal, mse, residual",
    ]
    up, down = -APART, APART  # without QEP above, with it below
    assert sorted(marks(wiki, POINT)) == [
        (pytest.approx(x), y)
        for x, y in ((1.5, 1 + down), (2.0, 1 + up), (4.0, 0 + down), (8.0, 0 + up))
    ]
    assert sorted(marks(web, POINT)) == [
        (pytest.approx(x), y) for x, y in ((1.5, 1 + down), (2.0, 1 + up))
    ]
    assert [y for _, y in marks(web, DIVERGED)] == [up]  # infinite
    assert [y for _, y in marks(web, BEYOND)] == [down]  # 35 times full precision
    spread = [line for line in wiki.lines if list(line.get_ydata()) == [1 + up, 1 + up]]
    assert any(line.get_xdata() == pytest.approx([1.6, 2.5]) for line in spread)
    assert wiki.get_xscale() == "log" and "1 diverged value (of one seed" in drawing.caption
    assert "Beyond 12 times full precision: 1 value (arrow heads" in drawing.caption


def test_a_panel_without_a_point_says_why_and_leaves_the_others_their_scale(folder: Path) -> None:
    for alpha in (0.0, 0.5):
        leave(
            folder, "gptq", 2, alpha, changes=PLAIN, hashes={"web": "ff"}, bits_per_weight=2.02,
            metrics={"perplexity/wiki": 800.0, "perplexity/web": 900.0},
        )  # fmt: skip
    drawing = draw(figure, load(folder))
    drawing.figure.draw_without_rendering()
    *others, web, wiki = panels(drawing)
    for axes in (web, wiki):
        assert [one.get_text() for one in axes.texts] == ["all beyond 12 times full precision"]
        assert [one.get_text() for one in axes.get_xticklabels() if one.get_text()]
    assert all(not axes.texts for axes in others)


def test_without_quantised_models_there_is_neither(tmp_path: Path) -> None:
    leave(tmp_path, "none", 16, perplexity=10.0)
    assert table.build(load(tmp_path)) is None and figure.draw(load(tmp_path)) is None


def test_the_recipe_names_the_best_with_its_command_and_what_comes_next(folder: Path) -> None:
    best = next(
        path for path in folder.glob("*gptq*a0.5-s0*") if "residual" in (path / RECORD).read_text()
    )
    record = read_record(best)
    record.command = (
        "python run.py -m experiment=decide threads=1 seed=1 model=mine method=gptq bits=3 "
        "transform=orthogonal '+qep.overrides={a: 1}' qep.alpha=0.5 eval.windows=4"
    )
    write_record(best, record)
    for path in folder.glob("*"):
        record = read_record(path)
        record.samples = {f"loss/{key}": [math.log(record.metrics[f"perplexity/{key}"])] * 5
                          for key in ("wiki", "web")}  # fmt: skip
        write_record(path, record)
    said = page(load(folder), "mine")
    assert (
        "| 3 bits | GPTQ, orthogonal, mse, residual, with QEP | 3.02 | 30 | 15 | 1.50 | 2 |"
        in said
    )
    asked = (
        "model=mine method=gptq bits=3 transform=orthogonal '+qep.overrides={a: 1}' qep.alpha=0.5 "
        "calibration.windows=16"
    )
    assert f"\n    python run.py {asked}\n" in said
    (row,) = [
        line for line in said.splitlines() if line.startswith("| GPTQ, orthogonal, mse, without")
    ]
    assert row == (
        "| GPTQ, orthogonal, mse, without QEP | 2 | 1.333 (1.333 to 1.333) | worse "
        "| 1.333 (1.333 to 1.333) | worse | 2 |"
    )
    assert "min–max, input, with QEP" in said and "min–max, without" not in said  # collapsed


def test_without_full_precision_there_is_nothing_to_advise(tmp_path: Path) -> None:
    leave(tmp_path, perplexity=10.0)
    assert "| 3 bits" not in page(load(tmp_path), "mine")


def test_the_best_is_so_on_the_seeds_that_a_rival_has_too(folder: Path) -> None:
    """One run that beats the mean of two seeds, and not the one of them that it shares, is not the best."""
    leave(
        folder, "gptaq", 3, 0.5, changes=TURNED | {"qep.target": "residual"}, hashes={"web": "ff"},
        metrics={"perplexity/wiki": 12.1, "perplexity/web": 29.0}, bits_per_weight=3.02,
    )  # fmt: skip
    found = table.build(load(folder))
    assert found is not None
    said = {row[2].text: row for row in found.rows if row[3].text == "orthogonal"}
    wiki = list(found.header).index("wiki with QEP")
    assert said["GPTQ"][wiki].text.startswith("15 ±") and said["GPTQ"][wiki].best
    assert said["GPTAQ"][wiki].text == "12.1" and not said["GPTAQ"][wiki].best  # 12 on seed 0
    web = list(found.header).index("web with QEP")
    assert said["GPTAQ"][web].best and not said["GPTQ"][web].best


def test_equal_effective_bits_stand_together(folder: Path) -> None:
    for size, bits, wiki in ((64, 3.25, 14.0), (32, 3.27, 13.0), (16, 3.5, 12.5)):
        changes = TURNED | {"qep.target": "residual", "grid.group_size": size}
        leave(
            folder, "gptq", 3, 0.5, changes=changes, group_size=size, hashes={"web": "ff"},
            metrics={"perplexity/wiki": wiki, "perplexity/web": 2 * wiki}, bits_per_weight=bits,
        )  # fmt: skip
    found = storage.build(load(folder))
    assert found is not None
    rows = [[row[0].text, row[2].text, row[-1].text, row[-1].best] for row in found.rows]
    assert rows == [
        ["3.50", "16", "12.5", False],  # nothing takes the same
        ["3.25", "64", "14", False],
        ["3.27", "32", "13", True],
        ["3.02", "–", "40", False],
        ["3.02", "–", "15 ± 4.7 (n=2)", True],
    ]
    assert found.breaks == {1, 3}
    assert found.header[-2:] == ["web", "wiki"]


def test_options_of_a_range_are_compared_among_its_own(folder: Path) -> None:
    """Another range has another number of steps by default: that tells no row of mse from another."""
    for steps, method, kind in ((100, "gptaq", "mse.MSE"), (20, "awq", "loss.Loss")):
        changes = TURNED | {
            "grid.range._target_": f"harness.ranges.{kind}",
            "grid.range.steps": steps,
        }
        leave(
            folder, method, 3, 0.5, changes=changes, hashes={"web": "ff"}, bits_per_weight=3.02,
            metrics={"perplexity/wiki": 12.0, "perplexity/web": 24.0},
        )  # fmt: skip
    found = table.build(load(folder))
    assert found is not None and "steps" not in found.markdown()


def test_options_of_a_method_s_own_axes_tell_no_other_row_apart(folder: Path) -> None:
    for method, sides, own in (
        ("quip", "both", ["transform", "range", "format"]),
        ("gptaq", "input", ["overrides"]),
    ):
        changes = {
            **TURNED,
            "transform": {
                "orthogonal": {"_target_": "harness.transforms.X.O", "sides": sides, "seed": 0}
            },
        }
        leave(
            folder, method, 3, 0.5, changes=changes, about={"own": own}, hashes={"web": "ff"},
            metrics={"perplexity/wiki": 12.0, "perplexity/web": 24.0}, bits_per_weight=3.02,
        )  # fmt: skip
    found = table.build(load(folder))
    assert found is not None and "sides" not in found.markdown()


def test_a_place_explains_only_the_letters_that_it_shows(folder: Path) -> None:
    long = "a method of which a very long list of options has to be told"
    for method in ("gptaq", "qronos"):
        for damping in (0.1, 0.2):
            changes = PLAIN | {
                "method.damping": damping,
                f"method.{long.replace(' ', '_')}": damping,
            }
            leave(
                folder, method, 3, 0.5, changes=changes, hashes={"web": "ff"}, bits_per_weight=3.02,
                metrics={"perplexity/wiki": 12.0, "perplexity/web": 24.0},
            )  # fmt: skip
    tables = {"compositions": table.build(load(folder))}
    text = "<!-- table: s/compositions where method=gptaq -->\n<!-- end -->"
    said = placed(text, "s", tables)
    assert said.count(long) == 2 and "\n(a) " in said and "\n(c) " not in said
