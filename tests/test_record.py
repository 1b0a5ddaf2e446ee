"""Records: all or nothing on disk, whatever happens."""

from __future__ import annotations

import hashlib
import json
import math
import os
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.records.disk import write_atomic
from harness.records.record import (
    BLOCKS,
    LAYERS,
    RECORD,
    Record,
    RecordError,
    append_row,
    clear,
    read_record,
    read_rows,
    write_record,
)
from harness.records.whole import finished, intact

RESULTS = Path(__file__).parent.parent / "results"


def test_a_record_comes_back_as_it_was_written(tmp_path: Path) -> None:
    record = Record("run", "done", metrics={"perplexity/x": math.inf, "kl/x": math.nan})
    write_record(tmp_path, record)
    back = read_record(tmp_path)
    assert back.metrics["perplexity/x"] == math.inf
    assert math.isnan(back.metrics["kl/x"])
    back.metrics = record.metrics
    assert math.isnan(back.bits_per_weight)
    back.bits_per_weight = record.bits_per_weight
    assert math.isnan(back.bits_per_parameter)
    back.bits_per_parameter = record.bits_per_parameter
    assert back == record


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("run", 3),
        ("status", "over"),
        ("metrics", "many"),
        ("metrics", {"perplexity/x": "20.0"}),
        ("samples", {"loss/x": [1.0, "2.0"]}),
        ("seconds", {"total": None}),
        ("finished", 3),
        ("error", "it failed"),
        ("files", {LAYERS: 3}),
    ],
)
def test_a_record_of_schema_2_with_a_value_of_another_kind_is_damaged(
    tmp_path: Path, field: str, value: object
) -> None:
    """It has no hash of itself, so that whoever edits it by hand is not found out by that."""
    write_record(tmp_path, Record("run", "done", schema=2))
    data = json.loads((tmp_path / RECORD).read_text())
    del data["sha256"]
    (tmp_path / RECORD).write_text(json.dumps(data))
    assert read_record(tmp_path).run == "run"
    (tmp_path / RECORD).write_text(json.dumps({**data, field: value}))
    with pytest.raises(RecordError, match=f"{RECORD}: {field}[^\n]*: Input should be [^\n]*$"):
        read_record(tmp_path)
    assert finished(tmp_path) is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"run": "x", "schema": 1', "not JSON"),
        ('{"hello": 1}', "not a record"),
        ('{"run": "x", "schema": 99}', "schema 99"),
    ],
)
def test_damaged_and_foreign_records_are_named_and_not_finished(
    tmp_path: Path, text: str, said: str
) -> None:
    (tmp_path / RECORD).write_text(text)
    with pytest.raises(RecordError, match=said) as caught:
        read_record(tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert finished(tmp_path) is None


@settings(max_examples=150, deadline=None)
@given(place=st.integers(0, 10**6), bit=st.integers(0, 7))
def test_no_flipped_bit_of_a_record_is_believed(place: int, bit: int) -> None:
    """One that changes nothing of what is said, a blank for instance, may pass."""
    with tempfile.TemporaryDirectory() as folder:
        record = Record("run", "done", metrics={"perplexity/x": 74.52}, bits_per_weight=3.5)
        write_record(Path(folder), record)
        path = Path(folder) / RECORD
        content = bytearray(path.read_bytes())
        content[place % len(content)] ^= 1 << bit
        path.write_bytes(content)
        try:
            assert read_record(Path(folder)) == record
        except RecordError as error:
            assert str(path) in str(error)


def test_a_record_without_its_hash_is_damaged_unless_it_is_older(tmp_path: Path) -> None:
    for schema, reads in ((1, True), (2, True), (3, False)):
        write_record(tmp_path, Record("run", "done", schema=schema))
        data = json.loads((tmp_path / RECORD).read_text())
        assert read_record(tmp_path).schema == schema
        (tmp_path / RECORD).write_text(json.dumps(data, indent=3))  # the layout says nothing
        assert read_record(tmp_path).schema == schema
        del data["sha256"]
        (tmp_path / RECORD).write_text(json.dumps(data))
        assert (finished(tmp_path) is not None) == reads


def test_clearing_removes_what_lies_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "run" / RECORD).mkdir(parents=True)
    (tmp_path / "run" / LAYERS).mkdir()
    with pytest.raises(RecordError, match="can't be read"):
        read_record(tmp_path / "run")
    clear(tmp_path / "run")
    assert os.listdir(tmp_path / "run") == []
    (tmp_path / "file").write_text("no folder")
    clear(tmp_path / "file")
    assert os.listdir(tmp_path / "file") == []


def test_only_done_and_stopped_runs_are_finished(tmp_path: Path) -> None:
    for status, expected in (("failed", False), ("done", True), ("stopped", True)):
        write_record(tmp_path, Record("run", status))  # type: ignore[arg-type]
        assert (finished(tmp_path) is not None) == expected


def test_a_full_disk_keeps_the_old_file_and_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    write_atomic(path, "old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_atomic(path, "new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]


def test_clearing_removes_what_a_killed_run_left(tmp_path: Path) -> None:
    directory = tmp_path / "run"
    clear(directory)
    append_row(directory / "layers.jsonl", {"name": "x"})
    (directory / ".record.json.abc.part").write_text("half")
    clear(directory)
    assert os.listdir(directory) == []


def test_rows_that_are_a_folder_can_not_be_read(tmp_path: Path) -> None:
    (tmp_path / LAYERS).mkdir()
    with pytest.raises(RecordError, match="can't be read"):
        read_rows(tmp_path / LAYERS)
    found = intact(tmp_path, Record("run", "done", schema=1))
    assert found is not None and found.startswith(f"{LAYERS}: can't be read")


def test_rows_are_appended_and_a_cut_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "layers.jsonl"
    append_row(path, {"error": math.nan, "name": "q"})
    append_row(path, {"error": 1.5})
    assert [row["error"] for row in read_rows(path)][1] == 1.5
    path.write_text(path.read_text() + '{"error": 2')
    with pytest.raises(RecordError, match=r"layers\.jsonl"):
        read_rows(path)


def test_records_are_plain_json(tmp_path: Path) -> None:
    write_record(tmp_path, Record("run", "done", samples={"loss/x": [1.0, 2.0]}))
    assert json.loads((tmp_path / RECORD).read_text())["samples"] == {"loss/x": [1.0, 2.0]}


def rows_of(directory: Path) -> Record:
    """The record of two linears and three blocks, and their rows, in ``directory``."""
    directory.mkdir()
    written = {name: b"" for name in (LAYERS, BLOCKS)}
    for name in "qk":
        row = {"name": name, "rows": 4, "columns": 8, "bits_per_weight": 3.5}
        written[LAYERS] += append_row(directory / LAYERS, row)
    for block, error in enumerate((0.25, 0.5, 0.75)):
        row = {"block": block, "relative_error": error}
        written[BLOCKS] += append_row(directory / BLOCKS, row)
    files = {
        name: {"rows": content.count(b"\n"), "sha256": hashlib.sha256(content).hexdigest()}
        for name, content in written.items()
    }
    metrics = {"error/last_block": 0.75}
    record = Record("run", "done", metrics=metrics, checkpoint_bytes=28, files=files)
    write_record(directory, record)
    return record


def older(directory: Path) -> None:
    """The record becomes one that does not say which rows belong to it."""
    write_record(directory, replace(read_record(directory), schema=1, files={}))


DAMAGES = {
    "the last row gone": lambda lines: lines[:-1],
    "a row in the middle gone": lambda lines: [lines[0], *lines[2:]],
    "none left": lambda lines: None,
    "the last row cut": lambda lines: [*lines[:-1], lines[-1][:9]],
    "one too many": lambda lines: [*lines, lines[-1]],
    "another figure": lambda lines: [lines[0].replace(b"5", b"6"), *lines[1:]],
}
CASES = [
    (schema, name, damage)
    for schema in (1, 2)
    for name in (LAYERS, BLOCKS)
    for damage in DAMAGES
    if schema == 2 or damage != "another figure"  # no older record says what its rows hash to
]


@pytest.mark.parametrize(("schema", "name", "damage"), CASES)
def test_a_record_whose_rows_are_not_those_of_its_run_is_not_finished(
    schema: int, name: str, damage: str, tmp_path: Path
) -> None:
    directory = tmp_path / "run"
    rows_of(directory)
    if schema == 1:
        older(directory)
    record = finished(directory)
    assert record is not None and intact(directory, record) is None
    lines = DAMAGES[damage]((directory / name).read_bytes().splitlines(keepends=True))
    if lines is None:
        (directory / name).unlink()
    else:
        (directory / name).write_bytes(b"".join(lines))
    reason = intact(directory, record)
    assert reason is not None and "\n" not in reason and name in reason
    assert finished(directory) is None


def test_a_stopped_run_of_schema_1_ends_at_its_block(tmp_path: Path) -> None:
    directory = tmp_path / "run"
    stopped = {"block": 2, "relative_error": 0.75, "error": 0.6, "after": 1}
    record = replace(rows_of(directory), status="stopped", stopped=stopped, metrics={}, files={})
    assert intact(directory, record) is None
    assert intact(directory, replace(record, stopped=stopped | {"block": 3})) is not None


def test_all_committed_records_are_whole() -> None:
    for path in sorted(RESULTS.glob("*/*/record.json")):
        assert intact(path.parent, read_record(path.parent)) is None, path


def test_half_of_the_rows_is_noticed_of_a_record_that_does_not_count_them(tmp_path: Path) -> None:
    """As a committed record once was: 14 of 30 blocks and 101 of 210 linears."""
    whole = next(RESULTS.glob("paper/*-awq-w3-a0.5-*"))
    record = read_record(whole)
    assert record.schema == 1
    for name, rows in ((LAYERS, 101), (BLOCKS, 14)):
        lines = (whole / name).read_text().splitlines(keepends=True)
        (tmp_path / name).write_text("".join(lines[:rows]))
    assert intact(tmp_path, record) is not None
