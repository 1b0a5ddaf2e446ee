"""Locks of runs: one holder at a time, whoever dies, and on whichever machine."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from harness.records import locks
from harness.records.locks import BusyError, Lock, LostError, Process, exclusive


def _hold(directory: str, ready: str) -> None:
    with exclusive(Path(directory)):
        Path(ready).touch()
        time.sleep(60)


@pytest.fixture
def held(tmp_path: Path) -> multiprocessing.process.BaseProcess:
    """A process that holds the lock of ``tmp_path / "run"``."""
    ready = tmp_path / "ready"
    process = multiprocessing.get_context("spawn").Process(
        target=_hold, args=(str(tmp_path / "run"), str(ready))
    )
    process.start()
    while not ready.exists():
        time.sleep(0.01)
    yield process
    process.kill()
    process.join()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Moves the clock by which this process waits."""
    ahead = [0.0]
    real = time.monotonic
    monkeypatch.setattr(locks.time, "monotonic", lambda: real() + ahead[0])

    def forward(seconds: float) -> None:
        ahead[0] += seconds

    return forward


def test_a_killed_process_does_not_keep_its_lock(tmp_path: Path, held) -> None:
    lock = Lock(tmp_path / "run")
    assert not lock.take() and lock.held() and not lock.unsure()
    os.kill(held.pid, signal.SIGSTOP)  # it stands still and is not dead
    assert not lock.take()
    held.kill()
    with pytest.raises(ProcessLookupError):
        while True:  # a zombie, which nobody has waited for, is as dead
            os.kill(held.pid, 0)
            if lock.take():
                raise ProcessLookupError
    lock.release()
    assert os.listdir(tmp_path) == ["ready"]


def test_nobody_waits_who_is_not_to(tmp_path: Path, held) -> None:
    with pytest.raises(BusyError) as caught, exclusive(tmp_path / "run", wait=False):
        raise AssertionError("it is held")
    assert caught.value.directory == tmp_path / "run"


def written(lock: Lock, number: int, process: Process, content: str | None = None) -> Path:
    """A holder of a lock that is some other process."""
    lock.folder.mkdir(exist_ok=True)
    path = lock.folder / str(number)
    path.write_text(json.dumps({**asdict(process), "token": "x"}) if content is None else content)
    return path


@pytest.mark.parametrize("content", [None, "", '{"machine": 3}', "[]"])
def test_a_holder_elsewhere_is_dead_without_a_sign_of_life(
    tmp_path: Path, clock: Callable[[float], None], content: str | None
) -> None:
    """So is one whose creation was cut off."""
    lock = Lock(tmp_path / "run")
    path = written(lock, 0, replace(Process.own(), machine="elsewhere"), content)
    assert not lock.take() and lock.unsure()
    clock(locks.PATIENCE - 1)
    assert not lock.take()
    os.utime(path, ns=(1, 1))  # whatever its clock says: it has changed
    clock(locks.PATIENCE - 1)
    assert not lock.take() and not lock.unsure()
    clock(locks.PATIENCE + 1)
    assert lock.take()
    assert [one.name for one in lock.folder.iterdir()] == ["1"]
    lock.release()
    assert os.listdir(tmp_path) == []


def test_another_process_of_the_same_number_is_not_the_holder(tmp_path: Path) -> None:
    lock = Lock(tmp_path / "run")
    written(lock, 0, replace(Process.own(), born="long ago"))
    assert lock.take()


@pytest.mark.parametrize("meanwhile", ["released", "taken anew", "taken over"])
def test_who_decides_on_what_is_no_longer_so_gives_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, meanwhile: str
) -> None:
    lock, quicker = Lock(tmp_path / "run"), Lock(tmp_path / "run")
    written(lock, 0, replace(Process.own(), born="long ago"))
    create = lock._create

    def late(path: Path) -> bool:
        assert quicker.take()
        if meanwhile != "taken over":
            quicker.release()
        if meanwhile == "taken anew":
            assert quicker.take()
        return create(path)

    monkeypatch.setattr(lock, "_create", late)
    assert not lock.take()
    monkeypatch.undo()
    assert lock.take() == (meanwhile == "released")
    lock.release()
    assert quicker.held() == (meanwhile != "released")
    quicker.release()
    assert os.listdir(tmp_path) == []


def test_who_stood_still_for_too_long_gives_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = Lock(tmp_path / "run")
    assert lock.take()
    lock._beaten -= 4 * locks.BEAT
    lock.check()  # it was slow, and nobody has minded
    lock._beaten -= 4 * locks.BEAT
    written(lock, 1, replace(Process.own(), machine="elsewhere"))
    (lock.folder / "0").unlink()
    with pytest.raises(LostError, match="run: given up: after 60 s without a sign of life"):
        lock.check()
    lock.release()
    assert os.listdir(lock.folder) == ["1"], "the lock of whoever has it now stays"


def test_a_holder_gives_signs_of_life(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "BEAT", 0.01)
    lock = Lock(tmp_path / "run")
    assert lock.take()
    path = lock.folder / "0"
    os.utime(path, ns=(1, 1))
    deadline = time.monotonic() + 20
    while path.stat().st_mtime_ns == 1 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert path.stat().st_mtime_ns > 1
    lock.release()


def _count(directory: str, counter: str) -> None:
    for _ in range(20):
        with exclusive(Path(directory)):
            value = int(Path(counter).read_text())
            time.sleep(0.001)
            Path(counter).write_text(str(value + 1))


def test_processes_never_hold_the_lock_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twenty times each, from a lock that a dead process has left."""
    monkeypatch.setattr(locks, "POLL", 0.002)
    written(Lock(tmp_path / "run"), 0, replace(Process.own(), born="long ago"))
    counter = tmp_path / "counter"
    counter.write_text("0")
    context = multiprocessing.get_context("fork")
    arguments = (str(tmp_path / "run"), str(counter))
    processes = [context.Process(target=_count, args=arguments) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert counter.read_text() == "60"
    assert os.listdir(tmp_path) == ["counter"]
