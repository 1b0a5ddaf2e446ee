"""Figures of two protocols never share a cell, a column, a line or a mean, and captions name them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from drawings import draw, panels
from records import leave
from synthetic import entry, made
from test_dashboard import block_of

from analysis import claims, load
from analysis.__main__ import built
from analysis.claims_page import page
from analysis.dashboard import build
from analysis.figures import alpha, bits, depth, gain
from analysis.frames import Entry, Frames
from analysis.groups import groups
from analysis.plotting import undrawn
from analysis.tables.base import Table
from harness.records.evaluations import Evaluations, described

QEP, QUANTEASE = "qep_paper", "quantease_paper"
FIRST = {"wiki": "first", "calibration": "first"}


def measured(
    folder: Path, protocol: str | None, perplexities: dict[float, float], **more: Any
) -> None:
    """RTN at these alphas with a corpus and a task, under a protocol, all with the same content."""
    about = {} if protocol is None else {"protocol": protocol, "bos": FIRST}
    for strength, value in perplexities.items():
        metrics = {"accuracy/quiz": value / 100, "accuracy_stderr/quiz": 0.01}
        more |= {"metrics": metrics, "samples": {"accuracy/quiz": [1.0, 0.0] * 5}, "about": about}
        more |= {
            "changes": {"eval.name": protocol},
            "seconds": {"evaluate": value, "total": value},
        }
        leave(folder, "rtn", 3, strength, perplexity=value, **more)


@pytest.fixture
def both(tmp_path: Path) -> Frames:
    measured(tmp_path, QEP, {0.0: 20.0, 0.5: 10.0})
    measured(tmp_path, QUANTEASE, {0.0: 40.0, 0.5: 30.0}, seed=1)
    return load(tmp_path)


def cells(table: Table) -> list[list[str]]:
    return [[cell.text for cell in row] for row in table.rows]


def test_a_corpus_under_two_protocols_is_two_rows_and_a_task_two_columns(both: Frames) -> None:
    tables = built(both)
    table = tables["perplexity"]
    assert table.header[0] == "corpus"
    assert [(row[0], *row[4:6]) for row in cells(table)] == [
        ("wiki (qep_paper)", "20", "10"), ("wiki (quantease_paper)", "40", "30")]  # fmt: skip
    table = tables["accuracy"]
    assert list(table.header[-2:]) == ["quiz (qep_paper) %", "quiz (quantease_paper) %"]
    assert [row[-2:] for row in cells(table)] == [
        ["20.0 ± 1.0", "40.0 ± 1.0"],
        ["10.0 ± 1.0", "30.0 ± 1.0"],
    ]
    assert {row[0] for row in cells(tables["real"])} == {
        f"{name} ({one})" for name in ("wiki", "accuracy/quiz") for one in (QEP, QUANTEASE)}  # fmt: skip
    spent = tables["cost"]
    assert [row[-1] for row in cells(spent)] == [
        "20",
        "40",
        "10",
        "30",
    ]  # seconds, each its own row
    assert {row[4] for row in cells(spent)} == {f"protocol {one}" for one in (QEP, QUANTEASE)}
    assert not any("n=2" in table.markdown() for table in tables.values())


def test_the_same_run_under_two_protocols_counts_twice(tmp_path: Path) -> None:
    measured(tmp_path, QEP, {0.0: 20.0}, finished="2026-01-01")
    measured(tmp_path, QUANTEASE, {0.0: 40.0}, finished="2026-01-02")
    frames = load(tmp_path)
    for protocol, value in ((QEP, 20.0), (QUANTEASE, 40.0)):
        (group,) = groups(frames.runs, f"perplexity/wiki ({protocol})")
        assert group.values == {0: value}
    assert (
        groups(frames.runs, "perplexity/wiki") == [] if "perplexity/wiki" in frames.runs else True
    )
    assert list(frames.samples["key"].unique()) == [
        "accuracy/quiz (qep_paper)", "loss/wiki (qep_paper)",
        "accuracy/quiz (quantease_paper)", "loss/wiki (quantease_paper)"]  # fmt: skip


def test_every_caption_names_the_protocols(both: Frames) -> None:
    said = f"Protocols: {QEP} (start token: first); {QUANTEASE} (start token: first)."
    for name, table in built(both).items():
        assert said in table.markdown().splitlines()[-1 - len(table.notes)], name
        assert table.latex().count("Protocols") == 1 and r"qep\_paper (start" in table.latex()
    assert said in page(both, "x")
    data = json.loads(block_of(build(both), "runs-data"))
    assert data["protocols"] == said
    for figure in (alpha, bits, gain):
        runs = [entry("gptq", b, a) for b in (3, 4) for a in (0.0, 0.5, 1.0)]
        for one in runs:
            one.record.summary |= {
                "protocol": QEP if one.record.summary["bits"] == 3 else QUANTEASE
            }
        assert f"Protocols: {QEP}; {QUANTEASE}." in draw(figure, made(*runs)).caption
        assert f"Protocol: {QEP}." in draw(depth, made(*runs[:2])).caption


def test_older_records_name_none_and_nothing_is_said(tmp_path: Path) -> None:
    measured(tmp_path, None, {0.0: 20.0, 0.5: 10.0})
    frames = load(tmp_path)
    assert not any(
        "rotocol" in table.markdown() + table.latex() for table in built(frames).values()
    )
    assert "rotocol" not in page(frames, "x")
    measured(tmp_path, QEP, {0.0: 40.0, 0.5: 30.0})  # beside newer ones they stand apart
    frames = load(tmp_path)
    table = built(frames)["perplexity"]
    assert [row[0] for row in cells(table)] == ["wiki", "wiki (qep_paper)"]
    assert "; unnamed in older records." in table.protocols


def test_claims_compare_inside_a_protocol(both: Frames, tmp_path: Path) -> None:
    found = {one.what.split(":")[0]: one.ratio for one in claims.qep_improves_rtn(both)}
    assert found == {
        "wiki (qep_paper)": pytest.approx(0.5), "wiki (quantease_paper)": pytest.approx(0.75)}  # fmt: skip
    measured(tmp_path / "apart", QEP, {0.0: 20.0})
    measured(tmp_path / "apart", QUANTEASE, {0.5: 10.0})
    assert claims.qep_improves_rtn(load(tmp_path / "apart")) == []


def test_figures_have_a_panel_a_protocol_and_pair_inside_it() -> None:
    def study(highest: float) -> list[Entry]:
        """Perplexity falls by a half and by three quarters, the same at both bit widths."""
        cells = [(b, a) for b in (3, 4) for a in (0.0, 0.5, 1.0)]
        return [
            entry("none", 16),
            *(entry("gptq", b, a, perplexity=highest / 4**a) for b, a in cells),
        ]

    runs, others = study(20.0), study(40.0)
    for some, name in ((runs, QEP), (others, QUANTEASE)):
        for one in some:
            one.record.summary |= {"protocol": name}
            one.record.run += name
            one.record.baseline = f"tiny-none{name}"
    for module, columns in ((alpha, 2), (bits, 1)):
        drawing = draw(module, made(*runs, *others))
        first, second = panels(drawing)[0], panels(drawing)[-1]
        titles = [
            panels(drawing)[i].get_title() + panels(drawing)[i * columns].get_ylabel()
            for i in (0, 1)
        ]
        assert ["qep_paper" in titles[0], "quantease_paper" in titles[1]] == [True, True]
        assert [undrawn.heights(axes).max() for axes in (first, second)] == [20.0, 40.0]
        assert f"8 evaluation windows of wiki ({QEP})" in drawing.caption
    texts = [
        text.get_text() for axes in panels(draw(gain, made(*runs, *others))) for text in axes.texts
    ]
    assert texts == ["−50.0"] * 2 + ["−75.0"] * 2 + ["−50.0"] * 2 + ["−75.0"] * 2


def test_the_dashboard_has_a_column_a_protocol(both: Frames) -> None:
    data = json.loads(block_of(build(both), "runs-data"))
    columns = {column["key"]: column["values"] for column in data["columns"]}
    protocols = columns["protocol"]
    assert (
        sorted(protocols) == [QEP, QEP, QUANTEASE, QUANTEASE] and "perplexity/wiki" not in columns
    )
    for name in (QEP, QUANTEASE):
        found = columns[f"perplexity/wiki ({name})"]
        assert [value is not None for value in found] == [one == name for one in protocols]


def test_what_windows_begin_with_tells_runs_of_one_protocol_apart() -> None:
    def about(model: str, wiki: str) -> dict[str, Any]:
        return {
            "model": model,
            "protocol": "default",
            "bos": {"wiki": wiki, "calibration": "every"},
        }

    runs = [about("a", "every"), about("a", "none"), about("b", "first")]
    told = Evaluations(runs)
    assert [told.label(one, "wiki") for one in runs] == [
        "start token: every",
        "start token: none",
        "",
    ]
    assert told.named(runs[0], "perplexity/wiki") == "perplexity/wiki (start token: every)"
    assert told.named(runs[0], "perplexity/web") == "perplexity/web"
    assert described(runs[:1]) == "Protocol: default (start token: every)."
    said = "Protocol: default (start token: first, in calibration: every)."
    assert described(runs[2:]) == said
    assert described([{"protocol": math.nan, "bos": math.nan}, {}]) == ""
