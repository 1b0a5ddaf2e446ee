"""For tests of launchers: a tracker that notes what every worker sees and may kill one, and a task."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numba
import torch
from standin import Standin
from threadpoolctl import threadpool_info

from harness.command.cli import run_job
from harness.records.record import Record


@dataclass
class Noting:
    """Appends a line to ``path`` when a run starts; ``path.kill`` is the death of one worker.

    Runs with ``fails`` in their names fail; quantised ones take ``seconds`` longer.
    """

    path: str
    fails: str = "nothing"
    seconds: float = 0.0
    run: str = ""

    def start(self, record: Record, directory: Path) -> None:
        pools = {one["internal_api"]: one["num_threads"] for one in threadpool_info()}
        seen = {
            "run": record.run,
            "process": os.getpid(),
            "torch": torch.get_num_threads(),
            "numba": numba.get_num_threads(),
            "pools": pools,
            "time": time.time(),
            "card": os.environ.get("CUDA_VISIBLE_DEVICES"),
        }
        self.run = record.run
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(seen) + "\n")
        if record.summary["method"] != "none":
            time.sleep(self.seconds)

    def layer(self, row: Mapping[str, Any]) -> None:
        if f"-{self.fails}-" in self.run:
            raise RuntimeError("so it was asked")
        try:
            os.unlink(f"{self.path}.kill")
        except FileNotFoundError:
            return
        os.kill(os.getpid(), signal.SIGKILL)

    def block(self, row: Mapping[str, Any]) -> None: ...

    def finish(self, record: Record) -> None: ...


def on_standin(plain: Mapping[str, Any]) -> str:
    """A job of a worker that finds the stand-in for a device."""
    with Standin():
        return run_job(plain)
