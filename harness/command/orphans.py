"""Workers go when the process that has started them is gone, however it went.

They can't see to that themselves: one that has just been started waits for work, or for libraries. A
process beside them does, which looks for what carries the mark of the process that it watches.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict

import psutil

from harness.records.locks import Process

MARK = "QEP_BENCH_PARENT"  # in the environment of workers: the process that waits for them
LOOK = 0.2  # seconds between two looks
LOOKS = 10  # after its death: what was being started meanwhile has its mark by then


def mark() -> dict[str, str]:
    """What this process puts into the environment of its workers."""
    return {MARK: json.dumps(asdict(Process.own()))}


@contextmanager
def followed(environment: dict[str, str]) -> Iterator[None]:
    """Inside, all processes with the mark in ``environment`` die within seconds of this one."""
    if MARK not in environment:
        yield
        return
    command = [sys.executable, "-P", "-m", "harness.command.orphans", environment[MARK]]
    own = {name: value for name, value in os.environ.items() if name != MARK}
    own["PYTHONPATH"] = os.pathsep.join(sys.path)  # it finds what this process has found
    quiet, apart = subprocess.DEVNULL, True  # neither a closed terminal nor ^C reaches it
    watcher = subprocess.Popen(
        command, env=own, stdin=quiet, stdout=quiet, start_new_session=apart
    )
    try:
        yield
    finally:
        watcher.kill()
        watcher.wait()


def watch(told: str) -> None:
    """Waits until the process that ``told`` describes is dead, then kills all that have this mark."""
    parent = Process(**json.loads(told))
    while parent.alive() is not False:  # None: unknown, so nobody is killed
        time.sleep(LOOK)
    for _ in range(LOOKS):
        for process in psutil.process_iter():
            with suppress(psutil.Error, OSError):
                if process.environ().get(MARK) == told:
                    process.kill()  # as its parent went: a half-written run is done again
        time.sleep(LOOK)


if __name__ == "__main__":
    watch(sys.argv[1])
