"""Workers go when the process that has started them is gone, however it went."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import cache
from importlib.util import find_spec

from harness.records.locks import Process

PARENT = "QEP_BENCH_PARENT"  # in the environment of workers: the process that waits for them
LOOK = 1.0  # seconds between two looks


def announced() -> dict[str, str]:
    """What this process puts into the environment of its workers."""
    return {PARENT: json.dumps(asdict(Process.own()))}


@contextmanager
def following() -> Iterator[None]:
    """Inside, joblib's workers follow from their first moment on: they may be waiting for work."""
    if find_spec("joblib") is None:
        yield
        return
    from joblib import parallel_config

    with parallel_config(backend="loky", initializer=follow_parent):
        yield


@cache
def follow_parent() -> None:
    """From now on this process dies within seconds of the one that has started it.

    Workers on other machines, or of a scheduler that owns them, know of none.
    """
    told = os.environ.get(PARENT)
    parent = None if told is None else Process(**json.loads(told))
    if parent is not None and parent.alive() is not None:
        threading.Thread(target=_follow, args=(parent,), name="parent", daemon=True).start()


def _follow(parent: Process) -> None:
    while parent.alive():
        time.sleep(LOOK)
    os.kill(os.getpid(), signal.SIGKILL)  # as it went: a half-written run is done again
