"""A run whose error is hopeless after a few blocks is given up, marked so, and not tried again."""

from __future__ import annotations

from pathlib import Path

import pytest
from processes import run
from runs import configured, do, words

from harness import pipeline
from harness.records.record import CHECKPOINT, read_record, read_rows
from harness.settings.stopping import Stop

pytestmark = pytest.mark.long  # whole runs


@pytest.mark.parametrize(
    ("stop", "block", "error", "expected"),
    [
        (Stop(), 0, 1e9, False),
        (Stop(error=1.0), 0, 1.1, True),
        (Stop(error=1.0), 0, 1.0, False),
        (Stop(error=1.0, after=2), 0, 5.0, False),
        (Stop(error=1.0, after=2), 1, 5.0, True),
        (Stop(error=1.0), 0, float("inf"), True),
        (Stop(error=1.0), 0, float("nan"), True),
        (Stop(), 0, float("nan"), False),
    ],
)
def test_the_bound(stop: Stop, block: int, error: float, expected: bool) -> None:
    found = stop.verdict({"block": block, "relative_error": error})
    assert (found is not None) == expected
    if found is not None:
        assert (found["block"], found["relative_error"]) == (block, error)


def test_a_stopped_run_keeps_its_rows_and_is_done_by_a_start_that_would_not_stop_it(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = configured(tiny_folder, tmp_path / "whole", "method=rtn", "bits=2")
    expected = do(whole)
    errors = [row["relative_error"] for row in read_rows(whole.directory / "blocks.jsonl")]
    more = ("method=rtn", "bits=2", "checkpoint.every=1", "stop.after=2")
    bound = f"stop.error={errors[1] / 2}"
    config = configured(tiny_folder, tmp_path, *more, bound)
    record = do(config)
    assert record == read_record(config.directory)
    assert (record.status, record.metrics, record.samples) == ("stopped", {}, {})
    assert record.error is None and record.stopped is not None
    assert record.stopped["block"] == 1
    assert record.stopped["relative_error"] == errors[1]
    assert len(read_rows(config.directory / "blocks.jsonl")) == 2
    rows = read_rows(config.directory / "layers.jsonl")
    assert rows == read_rows(whole.directory / "layers.jsonl")[: len(rows)]
    assert not (config.directory / CHECKPOINT).exists()
    execute = pipeline.execute
    monkeypatch.setattr(pipeline, "execute", None)
    assert do(config) == record
    lower = configured(tiny_folder, tmp_path, *more, f"stop.error={errors[1] / 3}")
    assert do(lower) == record
    monkeypatch.setattr(pipeline, "execute", execute)
    for bounds in ((f"stop.error={2 * max(errors)}",), ()):
        assert do(configured(tiny_folder, tmp_path, *more, *bounds)).metrics == expected.metrics
    assert do(config).status == "done"  # what is done stays done under any bound


def test_a_sweep_shows_and_counts_stopped_runs(tiny_folder: Path, tmp_path: Path) -> None:
    arguments = words(
        tiny_folder, tmp_path / "results", "-m", "method=rtn,gptq", "stop.error=1e-9"
    )
    first = run(arguments, tmp_path)
    assert first.returncode == 0, first.stderr
    assert "2 jobs: 0 done, 0 skipped, 0 failed, 2 stopped" in first.stdout
    assert first.stdout.count("stopped at block 0: error") == 4  # as it happens, and in the table
    again = run(arguments, tmp_path)
    assert "2 jobs: 0 done, 2 skipped, 0 failed, 0 stopped" in again.stdout
    assert again.stdout.count("stopped already, skipped") == 2


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("stop.error=0", "stop.error=0.0: must be positive"),
        ("stop.after=0", "stop.after=0: must be at least 1"),
        ("checkpoint.every=0", "checkpoint.every=0: must be at least 1"),
        ("stop.eror=1", "stop.eror: no such option; did you mean 'stop.error'"),
    ],
)
def test_bad_bounds_are_named(word: str, said: str, tiny_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=said):
        configured(tiny_folder, tmp_path, word)
