"""Frames and tables from records on disk."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import pytest

from analysis import load
from analysis.tables.methods import methods_table
from harness.record import Record, append_row, write_record


def leave(
    folder: Path, run: str, perplexity: float, seconds: float = 1.0, **summary: object
) -> None:
    (folder / run).mkdir(parents=True)
    record = Record(run, "done", metrics={"perplexity/x": perplexity})
    record.summary = {"model": "m", "method": "rtn", "bits": 3, "group_size": None} | summary
    record.seconds = {"correct": seconds, "quantise": seconds}
    write_record(folder / run, record)
    append_row(folder / run / "layers.jsonl", {"name": "q", "total_error": perplexity / 2})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    leave(tmp_path, "full", 10.0, method="none", bits=16, alpha=0.0)
    leave(tmp_path, "a", 30.0, alpha=0.0)
    leave(tmp_path, "b", 20.0, alpha=0.5, seconds=3.0)
    leave(tmp_path, "c", math.inf, alpha=0.0, bits=2, group_size=64)
    leave(tmp_path, "d", 25.0, alpha="auto", method="gptq")
    return tmp_path


def test_frames_hold_every_run_and_every_linear(folder: Path) -> None:
    frames = load(folder)
    assert len(frames.runs) == 5 and len(frames.layers) == 5
    by_run = frames.runs.set_index("run")
    assert by_run.loc["c", "perplexity/x"] == math.inf
    assert by_run.loc["d", "alpha"] == "auto" and by_run.loc["b", "alpha"] == "0.5"
    assert frames.layers.set_index("run").loc["b", "total_error"] == 10.0


def test_damaged_records_are_named_and_left_out(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (folder / "a" / "record.json").write_text("{")
    (folder / "b" / "layers.jsonl").write_text('{"name": ')
    assert set(load(folder).runs["run"]) == {"full", "c", "d"}
    assert "a/record.json" in caplog.text and "b/layers.jsonl" in caplog.text


def test_the_table_is_exact(folder: Path) -> None:
    assert methods_table(load(folder).runs, "perplexity/x") == (
        "| bits | group | method | alpha 0 | alpha 0.5 | alpha auto | seconds |\n"
        "|---|---|---|---:|---:|---:|---:|\n"
        "| 16 | – | full precision | 10 | – | – | – |\n"
        "| 3 | – | rtn | 30 | **20** | – | 4 |\n"
        "| 2 | 64 | rtn | **inf** | – | – | 2 |\n"
        "| 3 | – | gptq | – | – | 25 | 2 |\n"
    )


def test_the_command_prints_the_table_without_torch(folder: Path) -> None:
    code = (
        f"import sys; sys.argv = ['analysis', {str(folder)!r}]\n"
        "from analysis.__main__ import main\n"
        "assert main() == 0 and 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == methods_table(load(folder).runs, "perplexity/x")


@pytest.mark.parametrize(
    ("words", "said"), [(["/nowhere"], "no such folder"), ([], "no run has it")]
)
def test_nothing_to_show_is_one_line(folder: Path, words: list[str], said: str) -> None:
    arguments = words or [str(folder), "--metric", "perplexity/y"]
    done = subprocess.run(
        [sys.executable, "-m", "analysis", *arguments], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert said in done.stderr and done.stderr.count("\n") == 1
