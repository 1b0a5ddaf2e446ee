"""Killed, restarted, overlapping sweeps end with the records of one that ran through."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from processes import Ended, run, start
from runs import words

pytestmark = pytest.mark.long

SMALL = ("-m", "method=gptq,rtn", "bits=2,3", "qep.alpha=0,1")
MISSION = ("-m", "method=gptq,rtn", "bits=2,3,4", "qep.alpha=0,0.5,1")
VARYING = {
    "git_commit",
    "seconds",
    "started",
    "finished",
    "peak_memory",
    "command",
    "resumed",
    "shared_flops",
    "sha256",
}


def contents(results: Path) -> dict[str, tuple[dict[str, object], list[str], list[str]]]:
    """Every run's record without what depends on the clock, and its rows."""
    found = {}
    for path in sorted((results / "local").glob("*/record.json")):
        record = json.loads(path.read_text())
        kept = {key: value for key, value in record.items() if key not in VARYING}
        rows = [
            file.read_text().splitlines() if file.exists() else []
            for file in (path.parent / "layers.jsonl", path.parent / "blocks.jsonl")
        ]
        found[path.parent.name] = (kept, *rows)
    return found


def leftovers(folder: Path) -> list[str]:
    """Temporary files: hidden, partial or lock files, anywhere below."""
    return [
        str(path)
        for path in folder.rglob("*")
        if path.name.startswith(".") or path.suffix in (".partial", ".part", ".lock")
    ]


@pytest.fixture(scope="session")
def whole(
    tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[tuple[str, ...]], dict[str, tuple[dict[str, object], list[str], list[str]]]]:
    """The records of a sweep that nobody disturbed, by its words."""
    known: dict[tuple[str, ...], dict] = {}

    def undisturbed(sweep: tuple[str, ...]) -> dict:
        if sweep not in known:
            folder = tmp_path_factory.mktemp("whole")
            ended = run(words(tiny_folder, folder / "results", *sweep), folder)
            assert ended.returncode == 0, ended.stdout + ended.stderr
            known[sweep] = contents(folder / "results")
        return known[sweep]

    return undisturbed


def killed_often(
    folder: Path, tmp_path: Path, sweep: tuple[str, ...], kills: int, seconds: float
) -> Ended:
    """Starts ``sweep`` again and again, killed after a random time below ``seconds``; then lets it end."""
    draw = random.Random(0)
    arguments = words(folder, tmp_path / "results", *sweep)
    for _ in range(kills):
        started = start(arguments, tmp_path)
        started.process.join(draw.uniform(0, seconds))
        started.process.kill()
        started.process.join()
    return run(arguments, tmp_path)


@pytest.mark.slow
def test_twenty_kills_of_the_mission_s_sweep(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: Callable
) -> None:
    monkeypatch.setenv("QEP_BENCH_CACHE", str(tmp_path / "cache"))
    start_time = time.perf_counter()
    expected = whole(MISSION)
    typical = time.perf_counter() - start_time
    ended = killed_often(tiny_folder, tmp_path, MISSION, 20, typical / 5)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert len(expected) == 19  # eighteen and the baseline
    assert contents(tmp_path / "results") == expected
    assert leftovers(tmp_path / "results") == []


@pytest.mark.slow
def test_a_sweep_killed_a_few_times_ends_equal(
    tiny_folder: Path, tmp_path: Path, whole: Callable
) -> None:
    ended = killed_often(tiny_folder, tmp_path, SMALL, 4, 1.0)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert contents(tmp_path / "results") == whole(SMALL)
    assert leftovers(tmp_path / "results") == []


FEW = (0, 5, 23, 50)


@pytest.mark.parametrize(
    "counts", [FEW, pytest.param(range(400), marks=[pytest.mark.slow, pytest.mark.timeout(3000)])]
)
def test_killed_before_a_change_of_a_file_a_run_ends_equal(
    counts: Iterable[int], tiny_folder: Path, tmp_path: Path, whole: Callable
) -> None:
    """A few of the operations on files; slowly, every one."""
    one = ("method=rtn",)
    expected, killed = whole(one), 0
    for count in counts:
        folder = tmp_path / str(count)
        arguments = words(tiny_folder, folder / "results", *one)
        if run(arguments, folder, kill_at=count).returncode == 0:
            break
        killed += 1
        ended = run(arguments, folder)
        assert ended.returncode == 0, ended.stdout + ended.stderr
        assert contents(folder / "results") == expected
        assert leftovers(folder / "results") == []
    assert killed >= len(FEW)
    assert counts is FEW or killed < len(list(counts))


def test_two_sweeps_at_once_do_every_run_once(
    tiny_folder: Path, tmp_path: Path, whole: Callable
) -> None:
    arguments = words(tiny_folder, tmp_path / "results", *SMALL)
    both = [start(arguments, tmp_path, name) for name in ("one", "two")]
    ended = [one.wait() for one in both]
    assert [one.returncode for one in ended] == [0, 0], ended
    begun = sum(one.stdout.count("■") for one in ended)
    assert begun == len(whole(SMALL)) == 9
    assert contents(tmp_path / "results") == whole(SMALL)
    assert leftovers(tmp_path / "results") == []
