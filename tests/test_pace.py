"""How far a sweep is: runs counted, time foretold from the work that was measured."""

from __future__ import annotations

from pathlib import Path

import pytest
from runs import CONF, words

from harness.command.cli import plan_jobs
from harness.command.pace import Pace
from harness.records.record import Record
from harness.settings.config import Config


class Clock:
    """A clock that goes on when it is told to."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def configs(folder: Path, tmp_path: Path, *more: str) -> list[Config]:
    return plan_jobs(CONF, words(folder, tmp_path, "-m", *more))


def took(seconds: float) -> Record:
    return Record("any", "done", seconds={"total": seconds})


def test_equal_runs_take_as_long_as_those_before(tiny_folder: Path, tmp_path: Path) -> None:
    left = configs(tiny_folder, tmp_path, "method=rtn", "bits=2,3,4", "seed=0,1")
    clock = Clock()
    pace = Pace(18, left, clock)
    assert pace.remaining() is None
    clock.now = 600
    assert pace.ended(left[0].run_id, took(600)) == "13/18 · about 50 min left"
    assert pace.ended(left[0].run_id, took(600)) == ""  # told once
    assert pace.ended("a baseline", took(600)) == ""
    assert pace.ended(left[1].run_id) == "14/18 · about 40 min left"  # failed, or done elsewhere
    for one in left[2:-1]:
        pace.ended(one.run_id, took(600))
    assert pace.ended(left[-1].run_id, took(600)) == "18/18"


def test_more_work_takes_longer_and_methods_have_their_own_speed(
    tiny_folder: Path, tmp_path: Path
) -> None:
    grid = ("method=rtn,gptq", "calibration.windows=4,40")
    short, long, other_short, other_long = configs(tiny_folder, tmp_path, *grid)
    clock = Clock()
    pace = Pace(4, [short, long, other_short, other_long], clock)
    clock.now = 10
    pace.ended(short.run_id, took(10))
    first = pace.remaining()
    assert first is not None and first > 3 * 10  # one is like it, two have more to calibrate on
    clock.now = 10 + 100
    pace.ended(other_short.run_id, took(100))
    second = pace.remaining()
    assert second is not None
    ratio = pace._work[long.run_id] / pace._work[short.run_id]
    assert second == pytest.approx(ratio * 10 + ratio * 100, rel=0.2)


def test_runs_at_once_share_the_time(tiny_folder: Path, tmp_path: Path) -> None:
    left = configs(tiny_folder, tmp_path, "method=rtn", "bits=2,3,4", "seed=0,1")
    clock = Clock()
    pace = Pace(6, left, clock)
    clock.now = 10
    pace.ended(left[0].run_id, took(10))
    pace.ended(left[1].run_id, took(10))
    assert pace.remaining() == pytest.approx(4 * 10 / 2)
