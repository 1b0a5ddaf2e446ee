"""Records: all or nothing on disk, whatever happens."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import time
from pathlib import Path

import pytest

from harness.records.record import (
    RECORD,
    Record,
    RecordError,
    append_row,
    clear,
    exclusive,
    finished,
    read_record,
    read_rows,
    write_atomic,
    write_record,
)


def test_a_record_comes_back_as_it_was_written(tmp_path: Path) -> None:
    record = Record("run", "done", metrics={"perplexity/x": math.inf, "kl/x": math.nan})
    write_record(tmp_path, record)
    back = read_record(tmp_path)
    assert back.metrics["perplexity/x"] == math.inf
    assert math.isnan(back.metrics["kl/x"])
    back.metrics = record.metrics
    assert math.isnan(back.bits_per_weight)
    back.bits_per_weight = record.bits_per_weight
    assert back == record


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


def test_rows_are_appended_and_a_cut_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "layers.jsonl"
    append_row(path, {"error": math.nan, "name": "q"})
    append_row(path, {"error": 1.5})
    assert [row["error"] for row in read_rows(path)][1] == 1.5
    path.write_text(path.read_text() + '{"error": 2')
    with pytest.raises(RecordError, match=r"layers\.jsonl"):
        read_rows(path)


def _hold(directory: str, ready: str) -> None:
    with exclusive(Path(directory)):
        Path(ready).touch()
        time.sleep(60)


def test_a_killed_process_does_not_keep_its_lock(tmp_path: Path) -> None:
    directory, ready = tmp_path / "run", tmp_path / "ready"
    process = multiprocessing.get_context("spawn").Process(
        target=_hold, args=(str(directory), str(ready))
    )
    process.start()
    while not ready.exists():
        time.sleep(0.01)
    process.kill()
    process.join()
    with exclusive(directory):
        pass
    assert [name for name in os.listdir(tmp_path) if name.endswith(".lock")] == []


def _count(directory: str, counter: str) -> None:
    for _ in range(20):
        with exclusive(Path(directory)):
            value = int(Path(counter).read_text())
            time.sleep(0.001)
            Path(counter).write_text(str(value + 1))


def test_two_processes_never_hold_the_lock_at_once(tmp_path: Path) -> None:
    counter = tmp_path / "counter"
    counter.write_text("0")
    context = multiprocessing.get_context("spawn")
    arguments = (str(tmp_path / "run"), str(counter))
    processes = [context.Process(target=_count, args=arguments) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert counter.read_text() == "40"


def test_records_are_plain_json(tmp_path: Path) -> None:
    write_record(tmp_path, Record("run", "done", samples={"loss/x": [1.0, 2.0]}))
    assert json.loads((tmp_path / RECORD).read_text())["samples"] == {"loss/x": [1.0, 2.0]}
