"""Sweeps that are killed over and over: every record once, every mirror whole, nothing beside them."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import tiny
from processes import run, start
from runs import ROOT, words
from test_launchers import free_threads, needs
from test_resume import MISSION, VARYING, contents, leftovers
from wandb_log import Log, read_logs

from harness.records.record import MIRROR

pytestmark = pytest.mark.long

ONE = ("tracker=wandb", "method=rtn", "baseline=false", "eval.divergence=false")
KILLS = 40
CLOCK = ("seconds/", "flops/", "_", "peak_memory")


def said(log: Log) -> tuple[Any, ...]:
    """What a mirror says, without what depends on the clock, the process or how the run came about."""

    def steady(row: dict[str, Any]) -> dict[str, Any]:
        return {
            key: value
            for key, value in row.items()
            if not key.startswith(CLOCK) and key not in VARYING and not isinstance(value, dict)
        }

    tables = {
        key: log.table(key) for row in log.history for key in ("layers", "blocks") if key in row
    }
    history = [steady(row) for row in log.history]
    return history, tables, sorted(log.tags), log.group, log.axes, log.exit_code


def mirrors(results: Path) -> dict[str, tuple[Any, ...]]:
    """What the mirrors say by run, of which each has one."""
    folder = results / "local" / "wandb"
    logs = read_logs(folder)
    assert len(list(folder.glob("*run-*-*"))) == len(logs)
    return {name: said(log) for name, log in logs.items()}


@pytest.mark.parametrize(
    "moment", [pytest.param("layers.jsonl", marks=pytest.mark.slow), "record.json"]
)
def test_a_mirror_that_is_cut_off_is_there_once_and_whole(
    moment: str, tiny_folder: Path, tmp_path: Path
) -> None:
    """Killed in the middle of the run, and when its record is there and the mirror is not."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert run(words(tiny_folder, whole, *ONE), tmp_path).returncode == 0
    started = start(words(tiny_folder, killed, *ONE), tmp_path)
    while not list(killed.glob(f"local/*/{moment}")):
        time.sleep(0.001)
    started.process.kill()
    started.process.join()
    (left,) = killed.glob(f"local/*/{MIRROR}")
    for code in (0, 0):  # the second time there is nothing to do
        assert run(words(tiny_folder, killed, *ONE), tmp_path).returncode == code
        assert mirrors(killed) == mirrors(whole) and len(mirrors(whole)) == 1
        assert contents(killed) == contents(whole)
    assert not left.exists() and leftovers(left.parent) == []


def working(results: Path, process: subprocess.Popen[bytes], began: float) -> bool:
    """Whether a run gets under way, after the moment ``began``, before ``process`` ends."""
    while process.poll() is None:
        for path in results.glob("local/*/layers.jsonl"):
            with suppress(FileNotFoundError):
                if path.stat().st_mtime > began:
                    return True
        time.sleep(0.02)
    return False


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_forty_kills_of_a_sweep_with_workers_and_mirrors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the process that a person has started is killed: its workers go by themselves.

    Sixty blocks take seconds, so that a kill may come at any stage of a run, and one that comes at once
    lets none end: forty of them are over before the sweep is, of which about thirteen runs have ended.
    """
    needs("joblib")
    monkeypatch.setenv("QEP_BENCH_CACHE", str(tmp_path / "cache"))
    undisturbed, results = tmp_path / "undisturbed", tmp_path / "results"
    tiny.save(tmp_path, num_hidden_layers=60)
    sweep = (*MISSION, "tracker=wandb", "threads=1")
    ended = run(words(tmp_path, undisturbed, *sweep), tmp_path)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    command = [sys.executable, "run.py", *words(tmp_path, results, *sweep)]
    command.append("hydra/launcher=joblib")
    how: dict[str, Any] = {"cwd": ROOT, "env": {**os.environ, **free_threads()}}
    draw = random.Random(0)
    for kill in range(KILLS):
        began = time.time()
        process = subprocess.Popen(command, **how, stdout=subprocess.DEVNULL)
        assert working(results, process, began), f"the sweep was over after {kill} kills"
        over = len(list(results.glob("local/*/record.json")))
        time.sleep(draw.uniform(0, 4) if over < 13 * kill / KILLS else 0)
        workers = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGKILL)
        process.wait()
        _, left = psutil.wait_procs(workers, timeout=20)
        assert not left, "workers outlive their parent by seconds only"
    last = subprocess.run(command, **how, capture_output=True, text=True, check=False)
    assert last.returncode == 0, last.stdout + last.stderr
    assert contents(results) == contents(undisturbed)
    assert len(contents(results)) == 19  # eighteen and the baseline
    assert mirrors(results) == mirrors(undisturbed)
    assert leftovers(results / "local") == [str(results / "local" / ".hydra")]
