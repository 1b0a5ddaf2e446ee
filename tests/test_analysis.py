"""Frames and tables from records on disk."""

from __future__ import annotations

import math
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from records import leave

from analysis import __main__ as command
from analysis import claims, load
from analysis.bench import size, synthetic
from analysis.documents import placed
from analysis.groups import groups, twins
from analysis.tables import accuracy, cost, growth, perplexity, real
from analysis.tables.base import Cell, Table, escape, label
from harness.records.record import Record, read_record, write_record

ROOT = Path(__file__).parent.parent


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Everything that a table has to cope with, in known figures."""
    leave(tmp_path, "none", 16, perplexity=10.0)
    for seed, value in enumerate((30.0, 32.0, 34.0)):
        leave(tmp_path, "rtn", 3, 0.0, seed, perplexity=value)
    for seed, value in enumerate((20.0, 24.0)):
        leave(tmp_path, "rtn", 3, 0.5, seed, perplexity=value)
    leave(tmp_path, "rtn", 3, "auto", perplexity=18.0)
    leave(tmp_path, "gptq", 3, 0.0, perplexity=25.0)
    leave(tmp_path, "gptq", 3, 0.5, perplexity=19.0)
    leave(tmp_path, "gptq", 3, 0.5, perplexity=17.0, changes={"qep.damping": 0.1})
    leave(tmp_path, "rtn", 2, 0.0, group_size=64, perplexity=math.inf)
    error = {"type": "IndefiniteError", "message": "x & y", "traceback": ""}
    leave(tmp_path, "rtn", 2, 0.5, group_size=64, status="failed", error=error)
    leave(tmp_path, "quan_tease", 4, 0.0, status="stopped")
    return tmp_path


def test_frames_hold_runs_linears_blocks_and_samples(tmp_path: Path) -> None:
    curve = {"loss": [3.0, 2.0, math.inf]}
    rows = [{"name": "q", "role": "q", "block": 0, "rows": 2, "alpha": None, "traces": curve}]
    a = leave(tmp_path, perplexity=math.inf, layers=rows, errors=[0.1, math.nan], name="a")
    leave(tmp_path, alpha="auto", samples={"loss/wiki": [1.0, 2.0]}, name="b")
    frames = load(tmp_path)
    runs = frames.runs.set_index("run")
    assert runs.loc[a, "perplexity/wiki"] == math.inf and runs.loc["b", "alpha"] == "auto"
    assert runs.loc[a, "config"]["calibration"]["windows"] == 16
    layer = frames.layers.iloc[0]
    assert layer["run"] == a and math.isnan(layer["alpha"]) and math.isnan(layer["total_error"])
    assert layer["traces"]["loss"].tolist() == [3.0, 2.0, math.inf]
    assert frames.blocks["relative_error"].isna().tolist() == [False, True]
    samples = frames.samples[frames.samples["run"] == "b"]
    assert samples[["key", "index", "value"]].to_numpy().tolist() == [
        ["loss/wiki", 0, 1.0],
        ["loss/wiki", 1, 2.0],
    ]
    assert all(frames.layers[key].dtype == "category" for key in ("run", "name", "role"))


def test_an_empty_folder_gives_frames_with_columns(tmp_path: Path) -> None:
    frames = load(tmp_path)
    assert len(frames.runs) == len(frames.layers) == len(frames.samples) == 0
    assert {"run", "status", "method", "config"} <= set(frames.runs)
    assert perplexity.build(frames) is real.build(frames) is growth.build(frames) is None


def test_damaged_and_foreign_records_are_named_and_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in "abcefgh":
        leave(tmp_path, perplexity=10.0, name=name, layers=[{"name": "q", "total_error": 1.0}])
    (tmp_path / "a" / "record.json").write_text("{")
    (tmp_path / "b" / "layers.jsonl").write_text('{"name": ')
    (tmp_path / "c" / "layers.jsonl").write_text("[1, 2]\n")
    leave(tmp_path, name="d", layers=[{"name": "q", "total_error": "much"}])
    foreign: dict[str, dict[str, Any]] = {
        "e": {"metrics": [1.0]},
        "f": {"summary": {"model": "m"}},
        "h": {"summary": {"model": "m", "method": "x", "bits": 3, "alpha": None}},
    }
    for name, fields in foreign.items():
        files = read_record(tmp_path / name).files
        write_record(tmp_path / name, Record(name, "done", files=files, **fields))
    assert list(load(tmp_path).runs["run"]) == ["g"]
    for name in (
        "a/record",
        "b/record",
        "c/record",
        "d/record",
        "e/record",
        "f/record",
        "h/record",
    ):
        assert str(tmp_path / name) in caplog.text
    assert "method: Field required" in caplog.text and "metrics: " in caplog.text


def test_a_record_that_is_a_folder_is_named_and_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    for name in "ab":
        leave(tmp_path, perplexity=10.0, name=name)
    (tmp_path / "a" / "record.json").unlink()
    (tmp_path / "a" / "record.json" / "inside").mkdir(parents=True)
    assert command.main(["claims", str(tmp_path), "--out", str(tmp_path / "claims.md")]) == 0
    (said,) = caplog.messages
    assert said.startswith(f"left out: {tmp_path / 'a' / 'record.json'}: can't be read")
    shutil.rmtree(tmp_path / "b")
    assert command.main([str(tmp_path)]) == 2
    assert capsys.readouterr().err == f"error: {tmp_path}: no record there\n"


@pytest.mark.parametrize("file", ["layers.jsonl", "blocks.jsonl"])
@pytest.mark.parametrize("schema", [1, 2])
def test_a_run_with_fewer_rows_than_it_had_is_named_and_left_out_everywhere(
    tmp_path: Path, file: str, schema: int, caplog: pytest.LogCaptureFixture
) -> None:
    linears = [
        {
            "name": f"{i}.q",
            "block": i,
            "role": "q",
            "rows": 4,
            "columns": 8,
            "bits_per_weight": 3.5,
        }
        for i in range(3)
    ]
    older = {"schema": 1, "checkpoint_bytes": 42}
    for alpha, name in ((0.0, "plain"), (0.5, "half")):
        leave(tmp_path, alpha=alpha, perplexity=20.0, layers=linears, errors=[0.1, 0.2, 0.4],
              name=name, **older)  # fmt: skip
        record = read_record(tmp_path / name)
        if schema == 1:
            record.files = {}
            write_record(tmp_path / name, record)
    assert list(load(tmp_path).runs["run"]) == ["half", "plain"] and not caplog.text
    rows = (tmp_path / "half" / file).read_text().splitlines(keepends=True)
    (tmp_path / "half" / file).write_text("".join(rows[:-1]))
    frames = load(tmp_path)
    for one in (frames.runs, frames.layers, frames.blocks, frames.samples):
        assert set(one["run"]) == {"plain"}
    (line,) = caplog.text.splitlines()
    assert "half" in line and f"{file} has 2 " in line
    assert all("alpha 0.5" not in table.markdown() for table in command.built(frames).values())
    assert claims.qep_improves_rtn(frames) == claims.qep_lowers_last_error(frames) == []
    (tmp_path / "half" / file).unlink()
    assert list(load(tmp_path).runs["run"]) == ["plain"]


def test_a_run_that_lies_there_twice_counts_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    leave(tmp_path / "old", perplexity=1.0, name="a", finished="2026-01-01")
    leave(tmp_path / "new", perplexity=2.0, name="a", finished="2026-01-02")
    leave(tmp_path / "newest", name="a", finished="2026-01-03", status="failed")
    assert load(tmp_path).runs["perplexity/wiki"].tolist() == [2.0]
    assert caplog.text.count("the same run as") == 2 and "new/a/record.json" in caplog.text


def test_twins_differ_by_propagation_alone(folder: Path) -> None:
    found = groups(load(folder).runs, "perplexity/wiki")
    pairs = {
        (one.method, one.bits, one.alpha, one.settings["qep.damping"]): (one.runs, twin.runs)
        for one, twin in twins(found)
    }
    assert {key: len(mine) for key, (mine, _) in pairs.items()} == {
        ("rtn", 3, "0.5", "1"): 2,
        ("rtn", 3, "auto", "1"): 1,
        ("gptq", 3, "0.5", "1"): 1,
        ("gptq", 3, "0.5", "0.1"): 1,
    }  # what failed has no twin
    for (method, bits, *_), (_, others) in pairs.items():
        assert all(
            run.startswith(f"m-{method}-w{bits}-") and "-a0.0-" in run for run in others.values()
        )


def test_the_main_table_is_exact(folder: Path) -> None:
    table = perplexity.build(load(folder))
    assert table is not None
    assert table.markdown() == (ROOT / "tests/golden/perplexity.md").read_text()
    assert table.latex() == (ROOT / "tests/golden/perplexity.tex").read_text()
    assert table.csv() == (ROOT / "tests/golden/perplexity.csv").read_text()


def test_latex_is_escaped() -> None:
    assert escape("a_b & 5 % #1 {x} ~^\\ $ ± −") == (
        r"a\_b \& 5 \% \#1 \{x\} \textasciitilde{}\textasciicircum{}\textbackslash{} \$ $\pm$ $-$"
    )
    table = Table("50 %", ["a_b"], [[Cell("x|y", best=True, small="<")]], notes=["#"])
    assert r"\caption{50 \%}" in table.latex() and r"\textbf{x\textbar{}y}" in table.latex()
    assert r"{\scriptsize \textless{}}" in table.latex() and r"\footnotesize \#" in table.latex()
    assert "**x\\|y**" in table.markdown() and label(3).values[""] == 3


def test_accuracies_have_standard_errors(tmp_path: Path) -> None:
    keys = ("accuracy/quiz", "accuracy_stderr/quiz")
    leave(tmp_path, "none", 16, metrics=dict(zip(keys, (0.7, 0.05), strict=True)))
    leave(tmp_path, metrics=dict(zip(keys, (0.4, 0.04), strict=True)))
    leave(tmp_path, seed=1, metrics=dict(zip(keys, (0.5, 0.06), strict=True)))
    leave(tmp_path, alpha=0.5, metrics=dict(zip(keys, (0.45, 0.05), strict=True)))
    table = accuracy.build(load(tmp_path))
    assert table is not None
    shown = [row[-1] for row in table.rows]
    assert [cell.text for cell in shown] == [
        "70.0 ± 5.0",
        "45.0 ± 5.0 (n=2, sd 7.1)",
        "45.0 ± 5.0",
    ]
    assert shown[2].small == "+5.0"  # against the seed that both have
    assert shown[1].values["stderr"] == pytest.approx(5.0)


def test_cost_and_growth(tmp_path: Path) -> None:
    extra = {"flops": {"walk": 2e12, "errors": 1e12, "evaluate": 9e12}, "peak_memory": 3 * 10**9}
    leave(tmp_path, errors=[0.1, 0.4], bits_per_weight=3.03, checkpoint_bytes=4 * 10**7, **extra)
    leave(tmp_path, alpha=0.5, errors=[0.1, 0.2], **extra)
    frames = load(tmp_path)
    spent, grown = cost.build(frames), growth.build(frames)
    assert spent is not None and grown is not None
    first = dict(zip(spent.header, (cell.text for cell in spent.rows[0]), strict=True))
    assert first["TFLOP"] == "3" and first["peak GB"] == "3" and first["checkpoint MB"] == "40"
    assert first["bits/weight"] == "3.030" and first["quantise s"] == "1"
    assert "peak device GB" not in first and "walk s" not in first
    assert grown.rows[1][-1].small == "−50 %" and grown.rows[1][-1].best


def test_failed_and_diverged_seeds_are_shown(tmp_path: Path) -> None:
    leave(tmp_path, seed=0, perplexity=10.0)
    leave(tmp_path, seed=1, perplexity=math.inf)
    leave(tmp_path, seed=2, status="failed", error={"type": "E", "message": "", "traceback": ""})
    table = perplexity.build(load(tmp_path))
    assert table is not None
    cell = table.rows[0][-2]
    assert cell.text == "10, 1 diverged, 1 failed" and not cell.best
    assert cell.values == {"": 10.0, "n": 1, "trouble": "1 diverged, 1 failed"}


def test_nan_is_a_result(tmp_path: Path) -> None:
    leave(tmp_path, perplexity=1.0, metrics={"perplexity/web": math.nan})
    leave(tmp_path, "gptq", perplexity=1.0)
    table = perplexity.build(load(tmp_path))
    assert table is not None
    assert [row[-2].text for row in table.rows] == ["nan", "1", "1"]


def test_a_thousandth_of_the_benchmark(tmp_path: Path) -> None:
    synthetic(tmp_path, 40, blocks=2)
    frames = load(tmp_path)
    assert len(frames.runs) == 40 and len(frames.layers) == 39 * 14
    assert len(frames.samples) == 40 * (2 * 32 + 4 * 200)
    assert size(frames) < 40 * 10**6 / 4  # a gigabyte allows a megabyte a run, of 30 blocks
    assert set(command.built(frames)) >= {"accuracy", "cost", "growth", "perplexity", "real"}


def test_the_command_writes_every_table(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pages = []
    monkeypatch.setattr(command, "dashboard", lambda *words: pages.append(words))
    monkeypatch.setattr(command, "write_figures", lambda *words: 0)
    out = tmp_path / "out"
    assert command.main([str(folder), "--out", str(out)]) == 0
    frames = load(folder)
    for name, table in command.built(frames).items():
        assert (out / "tables" / f"{name}.md").read_text() == table.markdown()
        assert (out / "tables" / f"{name}.tex").read_text() == table.latex()
        assert (out / "tables" / f"{name}.csv").read_text() == table.csv()
    assert pages[0][1] == out / "dashboard.html" and "13 runs" in capsys.readouterr().out


def test_tables_go_into_documents_without_torch(folder: Path) -> None:
    document = folder / "page.md"
    name = folder.resolve().name
    document.write_text(
        f"a\n<!-- table: {name} -->\nold\n<!-- end -->\nb\n<!-- table: other -->\nc\n<!-- end -->\n"
        f"<!-- table: {name}/cost -->\n<!-- end -->\n"
    )
    code = (
        f"import sys; from analysis.__main__ import main\n"
        f"assert main([{str(folder)!r}, '--into', {str(document)!r}]) == 0\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    tables = command.built(load(folder))
    assert document.read_text() == (
        f"a\n<!-- table: {name} -->\n\n{tables['perplexity'].markdown()}\n<!-- end -->\nb\n"
        "<!-- table: other -->\nc\n<!-- end -->\n"
        f"<!-- table: {name}/cost -->\n\n{tables['cost'].markdown()}\n<!-- end -->\n"
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["/nowhere"], "no such folder"),
        ([], "required: RESULTS"),
        (["docs"], "no record there"),
        (["results/default", "--bogus"], "--bogus"),
        (["results/default", "--into", "docs/metrics.md"], "<!-- table: default -->"),
    ],
)
def test_errors_are_one_line(
    words: list[str],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(ROOT)
    try:
        code: object = command.main(words)
    except SystemExit as end:
        code = end.code
    printed = capsys.readouterr()
    assert code == 2 and printed.out == ""
    assert said in printed.err and printed.err.count("\n") == 1


def test_a_place_for_an_unknown_table_is_an_error() -> None:
    with pytest.raises(ValueError, match="table nope: the set x has none; it has perplexity"):
        placed("<!-- table: x/nope -->\n<!-- end -->", "x", {"perplexity": Table("", [], [])})


@pytest.mark.parametrize("folder", sorted(ROOT.glob("results/*/tables")), ids=str)
def test_committed_tables_equal_the_regenerated_ones(folder: Path, tmp_path: Path) -> None:
    command.write_tables(command.built(load(folder.parent)), tmp_path)
    fresh = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == fresh


def test_a_linked_run_is_named_and_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    name = leave(tmp_path / "elsewhere", "gptq", 3, perplexity=20.0)
    own = leave(tmp_path / "set", "rtn", 3, perplexity=30.0)
    (tmp_path / "set" / "linked").symlink_to(tmp_path / "elsewhere" / name)
    assert list(load(tmp_path / "set").runs["run"]) == [own]
    assert "set/linked: a link" in caplog.text
