"""Every snippet of docs/extending.md, pasted into the file that its first line names, works."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from runs import CONF, ROOT, quiet_console

from analysis import figures, load
from analysis.dashboard.payload import runs_payload
from analysis.plugins import plugins
from analysis.tables import added
from harness import pipeline
from harness.command import cli
from harness.command.cli import plan_jobs
from harness.records.record import read_rows

DOCUMENT = ROOT / "docs" / "extending.md"
SNIPPET = re.compile(r"```(?:python|yaml)\n# (\S+)\n(.*?)```", re.DOTALL)


@pytest.fixture
def pasted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with all snippets in it, whose modules Python finds."""
    found = SNIPPET.findall(DOCUMENT.read_text(encoding="utf-8"))
    assert len(found) == DOCUMENT.read_text(encoding="utf-8").count("```") / 2 == 11
    for name, text in found:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    for name, _ in found:
        sys.modules.pop(Path(name).stem, None)


def test_the_snippets_make_a_run_whose_metric_is_everywhere(
    pasted: Path, tiny_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = re.search(r"qep-bench (--config-dir own .*?)\n\n", DOCUMENT.read_text(), re.DOTALL)
    assert command is not None
    words = command[1].replace("\\\n", "").replace("TEXT", str(tiny_folder / "text.txt")).split()
    words += ["model=hf", f"model.path={tiny_folder / 'tiny'}", "eval.windows=4", "eval.length=16"]
    words += ["calibration.windows=4", "calibration.length=16"]
    (config,) = plan_jobs(CONF, words)
    console, told = quiet_console()
    record = pipeline.run(config, console)
    assert record.status == "done" and record.summary["method"] == "shrunk"
    assert 0 < record.metrics["sure/text"] < 1
    assert record.config["transform"]["level"]["_target_"] == "level.Level"
    assert len(read_rows(config.directory / "layers.jsonl")) == 21
    lines = (pasted / "runs.txt").read_text().splitlines()
    assert f"{record.run} done" in lines
    runs = load(config.folder)
    table = added.build(runs)
    assert table is not None and "sure/text" in table.markdown()
    assert table.caption.startswith("Sure: higher is better.")
    payload = runs_payload(runs)
    assert payload["families"]["sure"] == {"unit": "", "better": "higher"}
    assert "sure/text" in {one["key"] for one in payload["columns"]}
    console.summary([record], {}, "here")
    assert re.search(r"method .*\bsure\b|sure\n", told.getvalue().replace("/", "\n"))
    with pytest.raises(cli.ConfigError, match="method.share=2.0: allowed are numbers above 0"):
        plan_jobs(CONF, [*words, "method.share=2"])


def test_a_metric_without_a_direction_is_refused(pasted: Path, tiny_folder: Path) -> None:
    text = (pasted / "sure.py").read_text()
    (pasted / "sure.py").write_text(text.replace(', better={"sure": "higher"}', ""))
    config = plan_jobs(
        CONF,
        [
            *("--config-dir", "own", "eval=sure", f"eval.path={tiny_folder / 'text.txt'}"),
            *("model=hf", f"model.path={tiny_folder / 'tiny'}", "method=none", "tracker=none"),
            *("eval.windows=2", "eval.length=16"),
        ],
    )[0]
    with pytest.raises(ValueError, match="sure/text: Evaluation.better has to say"):
        pipeline.run(config, quiet_console()[0])


def test_a_figure_is_found_by_its_file(
    pasted: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    here = str(pasted / "analysis" / "figures")
    monkeypatch.setattr(figures, "__path__", [*figures.__path__, here])
    drawing = plugins(figures)["size"].draw(load(ROOT / "results" / "axes"))
    written = drawing.write(tmp_path / "out" / "size")
    assert [path.name for path in written] == ["size.pdf", "size.png", "size.txt"]
    assert written[-1].read_text().startswith("perplexity/")
    sys.modules.pop("analysis.figures.size")
