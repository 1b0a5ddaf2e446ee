"""Sweeps over two processes, whatever Hydra's launcher: the records of one process, told once."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from runs import CONF, ROOT, command, configured, do, words

from harness.command import cli
from harness.command.cli import plan_jobs
from harness.command.compose import compose_jobs
from harness.command.spread import check_launcher, threads_of_a_worker
from harness.records.record import read_record
from harness.settings.config import ConfigError

pytestmark = pytest.mark.long

PLUGINS = {
    "joblib": "hydra_joblib_launcher",
    "submitit_local": "hydra_submitit_launcher",
    "ray": "hydra_ray_launcher",
}
SWEEP = ("-m", "method=rtn", "qep.alpha=0,1")
CORES = len(os.sched_getaffinity(0))


def needs(launcher: str) -> None:
    package = PLUGINS[launcher]
    if importlib.util.find_spec(f"hydra_plugins.{package}") is None:
        pytest.skip(f"{package} is not installed")


def swept(launcher: str, notes: Path, *more: str) -> tuple[str, ...]:
    """A sweep of two runs whose workers write to ``notes``."""
    return (
        *SWEEP,
        f"hydra/launcher={launcher}",
        "tracker._target_=launched.Noting",
        f"+tracker.path={notes}",
        *more,
    )


def free_threads() -> dict[str, str]:
    """Variables of a machine where nobody has limited the threads."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    return {name: str(CORES) for name in names} | {"PYTHONPATH": str(ROOT / "tests")}


def noted(notes: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in notes.read_text().splitlines()]


@pytest.mark.parametrize(
    "launcher",
    [
        "joblib",
        pytest.param("submitit_local", marks=pytest.mark.slow),
        pytest.param("ray", marks=pytest.mark.slow),
    ],
)
def test_two_workers_leave_the_records_of_one_process(
    tiny_folder: Path, tmp_path: Path, launcher: str
) -> None:
    needs(launcher)
    notes = tmp_path / "notes"
    done = command(tiny_folder, tmp_path / "there", *swept(launcher, notes), **free_threads())
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == "", "workers and launchers are quiet"
    assert "2 jobs: 2 done, 0 skipped, 0 failed" in done.stdout
    runs = plan_jobs(CONF, words(tiny_folder, tmp_path / "there", *SWEEP))
    assert [done.stdout.count(f"✓ {config.run_id}:") for config in runs] == [1, 1]
    assert "■" not in done.stdout
    for config in plan_jobs(CONF, words(tiny_folder, tmp_path / "here", *SWEEP)):
        there = read_record(tmp_path / "there" / "local" / config.run_id)
        assert there.metrics == do(config).metrics
        assert there.command.startswith("python run.py ") and " -m " not in there.command
    seen = noted(notes)
    assert len(seen) == 3, "two runs, and the full-precision baseline once for both workers"
    assert len({one["process"] for one in seen}) == 2
    assert list((tmp_path / "there").rglob("%*")) == [], (
        "no folder bears the name of a placeholder"
    )
    share = max(1, CORES // 2)
    for one in seen:
        assert {one["torch"], one["numba"], *one["pools"].values()} == {share}


@pytest.mark.slow
def test_a_dead_worker_is_replaced_and_a_failing_run_is_told(
    tiny_folder: Path, tmp_path: Path
) -> None:
    """One worker is killed once; one run fails for good; threads that are given are had."""
    needs("joblib")
    notes = tmp_path / "notes"
    notes.with_name("notes.kill").touch()
    more = swept("joblib", notes, "bits=3,2", "+tracker.fails=w2", f"threads={CORES + 1}")
    done = command(tiny_folder, tmp_path, *more, **free_threads())
    assert done.returncode == 1, done.stdout + done.stderr
    assert "a worker died" in done.stdout
    assert done.stdout.count("✗ ") == done.stdout.count("so it was asked (RuntimeError;") == 2
    assert "4 jobs: 2 done, 0 skipped, 2 failed" in done.stdout
    assert not notes.with_name("notes.kill").exists()
    assert {one["torch"] for one in noted(notes)} == {CORES + 1}


@pytest.mark.slow
def test_what_a_killed_sweep_left_is_redone_by_the_same_command(
    tiny_folder: Path, tmp_path: Path
) -> None:
    needs("joblib")
    environment = {**os.environ, **free_threads()}
    arguments = words(tiny_folder, tmp_path, *swept("joblib", tmp_path / "notes"))
    process = subprocess.Popen(
        [sys.executable, "run.py", *arguments],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    while process.poll() is None and not list((tmp_path / "local").glob("*rtn*/layers.jsonl")):
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    done = command(tiny_folder, tmp_path, *arguments[len(words(tiny_folder, tmp_path)) :],
                   **free_threads())  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    for config in plan_jobs(CONF, words(tiny_folder, tmp_path / "whole", *SWEEP)):
        assert read_record(tmp_path / "local" / config.run_id).metrics == do(config).metrics


def test_a_missing_plugin_is_one_line_before_anything_starts() -> None:
    with pytest.raises(ConfigError) as caught:
        check_launcher("x", "hydra_plugins.hydra_x_launcher.x_launcher.X", "results/local")
    assert str(caught.value) == (
        "hydra/launcher=x: its plugin is not installed: "
        "pip install -c constraints.txt hydra-x-launcher"
    )


@pytest.mark.filterwarnings("ignore:[\\s\\S]*is validated against ConfigStore:UserWarning")
@pytest.mark.parametrize("option", ["submitit_local", "submitit_slurm"])
@pytest.mark.parametrize("tag", ["%j", "%a"])
def test_a_folder_that_submitit_would_rename_is_one_line_before_anything_starts(
    tiny_folder: Path, tmp_path: Path, option: str, tag: str
) -> None:
    """It puts the numbers of a job for them, in the name of any folder above its own files."""
    needs("submitit_local")
    results = tmp_path / f"of {tag}"
    with pytest.raises(ConfigError) as caught:
        plan_jobs(CONF, words(tiny_folder, results, *SWEEP, f"hydra/launcher={option}"))
    said = str(caught.value)
    assert said.startswith(f"results={results}") and f"job for {tag}; " in said
    assert "\n" not in said and not results.exists()


def test_elsewhere_such_a_folder_is_one_like_any_other(tiny_folder: Path, tmp_path: Path) -> None:
    more = ("-m", "method=rtn", "baseline=false", "eval.divergence=false")
    assert cli.main(print, CONF, words(tiny_folder, tmp_path / "%j", *more)) == 0
    assert len(list((tmp_path / "%j").glob("local/*-rtn-*/record.json"))) == 1
    assert {path.name for path in tmp_path.iterdir()} - {"cache"} == {"%j"}


@pytest.mark.filterwarnings("ignore:[\\s\\S]*is validated against ConfigStore:UserWarning")
@pytest.mark.parametrize(
    "option", sorted(path.stem for path in (CONF / "hydra/launcher").iterdir())
)
def test_every_launcher_file_builds_its_launcher(
    tiny_folder: Path, tmp_path: Path, option: str
) -> None:
    from harness.command.compose import hydra_on
    from harness.command.spread import instantiated

    needs("submitit_local" if option.startswith("submitit") else option)
    with hydra_on(CONF):
        launcher, cfg = instantiated([f"hydra/launcher={option}", "workers=3", "threads=5"], print)
    values = json.dumps(str(vars(launcher)))
    assert option not in ("joblib", "submitit_slurm") or "3" in values
    assert cfg.workers == 3


def test_the_cores_are_divided(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(8))
    assert [threads_of_a_worker(workers) for workers in (1, 2, 3, 8, 9)] == [8, 4, 2, 1, 1]


def test_values_of_the_command_line_replace_those_of_an_experiment() -> None:
    sweep = compose_jobs(CONF, ["-m", "experiment=sweep_example", "bits=4", "qep.alpha=0,1"])
    jobs = [(one.method_name, one.axes.said.bits, one.qep.alpha) for one in sweep.configs]
    assert jobs == [("gptq", 4, 0.0), ("gptq", 4, 1.0), ("rtn", 4, 0.0), ("rtn", 4, 1.0)]


def test_workers_are_at_least_one(tiny_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="workers=0: must be at least 1"):
        configured(tiny_folder, tmp_path, "workers=0")
