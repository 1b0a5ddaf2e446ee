"""``python -m harness.command.runs``: what it lists, and that it removes nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from harness.command.runs import main
from harness.records.locks import exclusive
from harness.records.record import BLOCKS, Record, append_row, read_record, write_record
from harness.records.whole import finished


def made(folder: Path, method: str, bits: int, alpha: float, status: str = "done") -> Path:
    """A run's directory with a record."""
    directory = folder / f"tiny-{method}-w{bits}-a{alpha:g}"
    directory.mkdir(parents=True)
    record = Record(
        directory.name,
        status,  # type: ignore[arg-type]
        summary={"model": "tiny", "method": method, "bits": bits, "alpha": alpha},
        metrics={"error/last_block": 0.5, "perplexity/x": 12.3456},
        seconds={"total": 61.5},
        command=f"python run.py method={method}",
    )
    append_row(directory / BLOCKS, {"block": 0, "relative_error": 0.5})
    write_record(directory, record)
    return directory


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six runs: three done, one failed, one half-written, one with a damaged record."""
    results = tmp_path / "results" / "local"
    for method, bits, alpha in (("rtn", 2, 0.0), ("gptq", 3, 0.5), ("gptq", 4, 1.0)):
        made(results, method, bits, alpha)
    made(results, "awq", 3, 0.5, "failed")
    (results / "tiny-half").mkdir()
    append_row(results / "tiny-half" / "layers.jsonl", {"name": "x"})
    (results / "tiny-damaged").mkdir()
    (results / "tiny-damaged" / "record.json").write_text('{"run": ')
    (results / ".hydra").mkdir()
    (results / "wandb").mkdir()
    return results


def listed(capsys: pytest.CaptureFixture[str]) -> dict[str, list[str]]:
    """The rows of the table just printed, by run."""
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    return {row[0]: row[1:] for row in rows if row and row[0].startswith("tiny-")}


def test_it_lists_every_run_with_what_matters(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = time.time() - 3 * 3600
    os.utime(folder / "tiny-gptq-w3-a0.5" / "record.json", (old, old))
    assert main([str(folder)]) == 0
    rows = listed(capsys)
    assert {name: row[0] for name, row in rows.items()} == {
        "tiny-awq-w3-a0.5": "failed",
        "tiny-damaged": "damaged",
        "tiny-gptq-w3-a0.5": "done",
        "tiny-gptq-w4-a1": "done",
        "tiny-half": "half",
        "tiny-rtn-w2-a0": "done",
    }
    assert rows["tiny-gptq-w3-a0.5"] == [
        "done", "gptq", "3", "0.5", "perplexity/x", "12.35", "3", "h", "61.5"
    ]  # fmt: skip


def test_a_record_that_lacks_rows_is_damaged(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "tiny-rtn-w2-a0" / BLOCKS).unlink()
    assert main([str(folder), "--method", "rtn"]) == 0
    assert listed(capsys)["tiny-rtn-w2-a0"][:3] == ["damaged", "rtn", "2"]


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        (["*-gptq-*"], {"gptq-w3-a0.5", "gptq-w4-a1"}),
        (["--bits", "2,4"], {"rtn-w2-a0", "gptq-w4-a1"}),
        (["--alpha", "0.50"], {"gptq-w3-a0.5", "awq-w3-a0.5"}),
        (["--alpha", "1.0"], {"gptq-w4-a1"}),
        (["--alpha", "0"], {"rtn-w2-a0"}),
        (["--status", "failed,half"], {"awq-w3-a0.5", "half"}),
        (["--method", "gptq,awq", "--bits", "3"], {"gptq-w3-a0.5", "awq-w3-a0.5"}),
        (["--model", "tiny", "--status", "done", "*a1"], {"gptq-w4-a1"}),
    ],
)
def test_filters_are_and_between_options_and_or_within_one(
    folder: Path, capsys: pytest.CaptureFixture[str], filters: list[str], expected: set[str]
) -> None:
    assert main([str(folder), *filters]) == 0
    assert set(listed(capsys)) == {f"tiny-{name}" for name in expected}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--method", "gtpq"], "--method=gtpq: the runs here have awq, gptq, rtn; did you mean"),
        (["--bits", "5"], "--bits=5: the runs here have 2, 3, 4"),
        (["--status", "finished"], "--status=finished"),
        (["--remove"], "add --yes to remove them"),
    ],
)
def test_what_can_not_be_done_is_one_line(
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    said: str,
) -> None:
    monkeypatch.setattr("sys.stdin.isatty", lambda: False, raising=False)
    before = sorted(folder.rglob("*"))
    assert main([str(folder), *arguments]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
    assert sorted(folder.rglob("*")) == before


def test_a_missing_folder_names_the_nearest(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(folder.parent / "locl")]) == 2
    assert f"did you mean {folder}?" in capsys.readouterr().err


def test_a_folder_of_sets_names_one(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(folder.parent)]) == 2
    assert capsys.readouterr().err == f"error: {folder.parent}: no runs here; try {folder}\n"


def test_removing_takes_the_chosen_runs_and_nothing_else(folder: Path) -> None:
    before = {path.name for path in folder.iterdir()}
    assert main([str(folder), "--bits", "3", "--remove", "--yes"]) == 0
    after = {path.name for path in folder.iterdir()}
    assert before - after == {"tiny-gptq-w3-a0.5", "tiny-awq-w3-a0.5"} and after < before


@pytest.mark.parametrize(("answer", "stays"), [("y", False), ("n", True), ("", True)])
def test_on_a_terminal_it_asks(
    folder: Path, monkeypatch: pytest.MonkeyPatch, answer: str, stays: bool
) -> None:
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda prompt: answer)
    main([str(folder), "--method", "rtn", "--remove"])
    assert (folder / "tiny-rtn-w2-a0").exists() == stays


def test_links_out_of_the_folder_are_not_followed(folder: Path, tmp_path: Path) -> None:
    outside = made(tmp_path / "elsewhere", "rtn", 8, 0.0)
    (folder / "tiny-link").symlink_to(outside)
    inside = folder / "tiny-rtn-w2-a0"
    (inside / "link").symlink_to(outside)
    assert main([str(folder), "--remove", "--yes"]) == 0
    assert (outside / "record.json").exists() and (folder / "tiny-link").is_symlink()
    assert not inside.exists()


def test_a_run_under_way_is_left_alone(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory = folder / "tiny-gptq-w3-a0.5"
    with exclusive(directory):
        assert main([str(folder), "--method", "gptq", "--remove", "--yes"]) == 1
        rows = listed(capsys)
    assert rows["tiny-gptq-w3-a0.5"][0] == "running"
    assert finished(directory) and not (folder / "tiny-gptq-w4-a1").exists()
    assert not list(folder.glob(".*.lock"))


def test_redo_forgets_the_record_so_that_the_next_sweep_does_it_again(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = folder / "tiny-gptq-w4-a1"
    assert finished(directory)
    assert main([str(folder), directory.name, "--redo", "--yes"]) == 0
    assert finished(directory) is None and directory.is_dir()
    assert "python run.py method=gptq" in capsys.readouterr().out


@pytest.mark.parametrize("action", ["--redo", "--remove"])
def test_a_record_that_is_a_folder_is_damaged_and_goes_like_any_other(
    folder: Path, capsys: pytest.CaptureFixture[str], action: str
) -> None:
    directory = folder / "tiny-gptq-w4-a1"
    (directory / "record.json").unlink()
    (directory / "record.json" / "inside").mkdir(parents=True)
    assert main([str(folder), "--status", "damaged"]) == 0
    assert set(listed(capsys)) == {"tiny-damaged", directory.name}
    assert main([str(folder), directory.name, action, "--yes"]) == 0
    assert directory.is_dir() == (action == "--redo")
    assert not (directory / "record.json").exists()


def test_a_record_that_says_no_date_has_the_age_of_its_files(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = folder / "tiny-gptq-w4-a1"
    record = read_record(directory)
    write_record(directory, replace(record, finished="yesterday"))
    assert main([str(folder), directory.name]) == 0
    assert listed(capsys)[directory.name][-2:] == ["s", "61.5"]


def test_it_is_quick_and_never_loads_torch(folder: Path) -> None:
    code = (
        "import sys; from harness.command.runs import main; main(sys.argv[1:]); "
        "sys.exit('torch' in sys.modules or 'hydra' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "tiny-gptq-w3-a0.5" in done.stdout
