"""What a process has started goes with it when it is killed, from the first moment on; nothing else does."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from runs import ROOT

from harness.command.orphans import mark

pytestmark = pytest.mark.long

# Two workers that never get as far as any line of ours: one of them in a session of its own.
PARENT = """
import os, subprocess, sys, time
from harness.command.orphans import followed, mark
family = mark()
ends = len(sys.argv) > 1
with followed(family):
    where = {"env": {**os.environ, **family}, "stdout": subprocess.DEVNULL}
    workers = [
        subprocess.Popen(["sleep", "600"], **where, start_new_session=apart)
        for apart in (False, True)
    ]
    print(*(one.pid for one in workers), flush=True)
    if not ends:
        time.sleep(600)
"""


@pytest.fixture
def bystander() -> Iterator[psutil.Process]:
    """A process with the mark of one that lives: this one."""
    with subprocess.Popen(["sleep", "600"], env={**os.environ, **mark()}) as process:
        yield psutil.Process(process.pid)
        process.kill()


def begun(folder: Path, *more: str) -> tuple[subprocess.Popen[str], list[psutil.Process]]:
    """A parent, started in another folder than the program's, and its workers."""
    process = subprocess.Popen(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r}); {PARENT}", *more],
        cwd=folder, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    return process, [psutil.Process(int(pid)) for pid in process.stdout.readline().split()]


def test_workers_go_with_a_killed_parent_and_nobody_else(
    tmp_path: Path, bystander: psutil.Process
) -> None:
    parent, workers = begun(tmp_path)
    assert len(workers) == 2
    watchers = [one for one in psutil.Process(parent.pid).children() if one not in workers]
    parent.kill()  # at once: the process that watches is hardly there itself
    parent.wait()
    _, left = psutil.wait_procs([*workers, *watchers], timeout=20)
    assert len(watchers) == 1 and not left
    assert bystander.is_running()


def test_the_process_that_watches_ends_with_what_it_watches(tmp_path: Path) -> None:
    parent, workers = begun(tmp_path, "ends")
    assert parent.wait() == 0
    try:
        assert all(one.is_running() for one in workers), "only a death takes them along"
        names = [one.info["cmdline"] or [] for one in psutil.process_iter(["cmdline"])]
        assert not [line for line in names if any(f'"pid": {parent.pid},' in one for one in line)]
    finally:
        for one in workers:
            one.kill()
