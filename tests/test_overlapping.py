"""Sweeps that overlap share the work: each takes what is free."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from processes import start
from runs import CONF, words
from test_launchers import noted
from test_resume import MISSION

from harness.command import cli
from harness.command.cli import plan_jobs
from harness.command.spread import Watch
from harness.records.locks import Lock
from harness.records.record import RECORD
from harness.settings.config import Config

pytestmark = pytest.mark.long

ALONE = ("baseline=false", "eval.divergence=false")


@pytest.fixture
def hold(monkeypatch: pytest.MonkeyPatch) -> Callable[[Config], list[str]]:
    """Holds the lock of a run until the sweep has nothing else to do; the records that are there then."""

    def held(config: Config) -> list[str]:
        lock, done = Lock(config.directory), list[str]()
        assert lock.take()

        def wait(seconds: float) -> None:
            done.extend(path.parent.name for path in config.folder.glob(f"*/{RECORD}"))
            lock.release()
            monkeypatch.undo()

        monkeypatch.setattr(cli, "time", SimpleNamespace(sleep=wait))
        return done

    return held


@pytest.mark.parametrize("force", [False, True])
def test_what_another_process_does_comes_last(
    force: bool,
    hold: Callable[[Config], list[str]],
    tiny_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = words(tiny_folder, tmp_path, "-m", "method=rtn", "bits=3,4", *ALONE)
    first, second = plan_jobs(CONF, arguments)
    done = hold(first)
    assert cli.main(print, CONF, [*arguments, f"force={force}"]) == 0
    assert done == [second.run_id]
    said = capsys.readouterr().out
    assert said.count("other processes do what is left (1): waiting for them") == 1
    assert "2 jobs: 2 done" in said


def test_a_full_precision_run_that_another_process_does_is_waited_for_last(
    hold: Callable[[Config], list[str]], tiny_folder: Path, tmp_path: Path
) -> None:
    """Runs that need another one go on; that which needs it is left free meanwhile."""
    arguments = words(tiny_folder, tmp_path, "-m", "method=rtn", "eval.windows=4,5")
    one, other = plan_jobs(CONF, arguments)
    done = hold(one.full_precision())
    assert cli.main(print, CONF, arguments) == 0
    assert sorted(done) == sorted([other.run_id, other.full_precision().run_id])
    assert (one.directory / RECORD).exists()


def test_a_launcher_gets_back_what_another_process_gave_up(
    tiny_folder: Path, tmp_path: Path
) -> None:
    arguments = words(tiny_folder, tmp_path, "-m", "method=rtn", "bits=2,3", *ALONE)
    first, second = plan_jobs(CONF, arguments)
    watch, lock = Watch([first, second]), Lock(first.directory)
    assert cli.main(print, CONF, words(tiny_folder, tmp_path, "method=rtn", "bits=3", *ALONE)) == 0
    assert lock.take()
    thread = threading.Timer(0.5, lock.release)
    thread.start()
    assert watch.given_back([first.run_id, second.run_id]) == ([first.run_id], [])
    assert watch.given_back([second.run_id]) == ([], [])
    thread.join()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_four_sweeps_of_equal_cells_take_a_quarter_of_the_time(
    tiny_folder: Path, tmp_path: Path
) -> None:
    """Cells that sleep: as many run at once as there are processes, on however few cores."""
    spans = []
    for name, processes in (("one", 1), ("four", 4)):
        notes = tmp_path / f"{name}.notes"
        tracker = (
            "tracker._target_=launched.Noting",
            f"+tracker.path={notes}",
            "+tracker.seconds=4",
        )
        arguments = words(tiny_folder, tmp_path / name, *MISSION, *tracker, "threads=1")
        started = [start(arguments, tmp_path, f"{name}-{i}") for i in range(processes)]
        assert [one.wait().returncode for one in started] == [0] * processes
        seen = [one for one in noted(notes) if "-none-" not in one["run"]]
        assert len({one["run"] for one in seen}) == len(seen) == 18, "each run is done once"
        assert len({one["process"] for one in seen}) == processes
        times = [one["time"] for one in seen]
        spans.append(max(times) - min(times) + 4)
    assert spans[1] <= 1.3 * spans[0] / 4, spans
