"""Weights & Biases online: servers out of reach, servers that hang, processes that die."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import wandb
from runs import configured, do
from test_wandb import KEY, SUMMARY, row
from wandb_log import read_logs
from wandb_server import serving

from harness.records.record import Record, read_record, write_record
from harness.trackers.wandb import Mirror, WandbTracker

pytestmark = pytest.mark.long  # whole runs


@contextmanager
def server_at(url: str) -> Iterator[None]:
    """W&B set up for another server, which it otherwise is once in a process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_BASE_URL", url)
        patch.setenv("WANDB_API_KEY", KEY)
        wandb.teardown()
        try:
            yield
        finally:
            wandb.teardown()


def test_an_unreachable_server_costs_no_run(
    tiny_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    more = ("tracker=wandb", "tracker.mode=online", "tracker.timeout=1", "method=rtn")
    config = configured(tiny_folder, tmp_path, *more, "baseline=false", "eval.divergence=false")
    with server_at("http://127.0.0.1:9"):
        record = do(config)
    assert record.status == "done" and read_record(config.directory) == record
    (line,) = [one for one in caplog.messages if "W&B" in one]
    assert "out of reach" in line and "connection refused" in line and "\n" not in line
    (log,) = read_logs(tmp_path / "local" / "wandb").values()
    assert log.summary["status"] == "done"
    assert list((tmp_path / "local" / "wandb").glob("run-*")) == []


def mirror_one(tracker: WandbTracker, directory: Path) -> None:
    """A run of one block through the tracker."""
    directory.mkdir()
    record = Record("run", "done", summary=dict(SUMMARY))
    tracker.start(record, directory)
    tracker.layer(row())
    tracker.block({"block": 0, "name": "b.0", "relative_error": 0.5})
    write_record(directory, record)
    tracker.finish(record)


def test_online_the_files_arrive_at_once(tmp_path: Path) -> None:
    with serving() as server, server_at(server.url):
        mirror_one(WandbTracker(mode="online", timeout=20), tmp_path / "run")
    assert server.files["record/record.json"] == (tmp_path / "run" / "record.json").read_bytes()


def test_a_server_that_hangs_does_not_hold_the_run_back(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    start = time.perf_counter()
    with serving(stuck=True) as server, server_at(server.url):
        mirror_one(WandbTracker(mode="online", timeout=3), tmp_path / "run")
        assert time.perf_counter() - start < 30
        server.released.set()
    (line,) = [one for one in caplog.messages if "W&B" in one]
    assert "incomplete" in line and "wandb sync" in line
    assert read_record(tmp_path / "run").status == "done"


def test_a_mirror_whose_process_dies_is_given_up(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Dead:
        settings = SimpleNamespace(sync_dir="wandb/offline-run-1")

        def log(self, point: object) -> None:
            raise ConnectionResetError("Connection lost")

    tracker = WandbTracker()
    tracker._open.append(Mirror(Dead(), tmp_path))  # type: ignore[arg-type]
    for block in range(2):
        tracker.block({"block": block, "name": f"b.{block}", "relative_error": 0.5})
    tracker.finish(Record("run"))
    (line,) = [one for one in caplog.messages if "W&B" in one]
    assert "Connection lost" in line and "offline-run-1" in line
