"""Reads back what an offline W&B run has logged: the slow literal twin of the mirror."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wandb.proto.wandb_internal_pb2 import Record

BLOCK = 32768  # of LevelDB's log format
HEADER = 7  # bytes of W&B's header, and of every LevelDB chunk's
WHOLE, LAST = 1, 4


@dataclass
class Log:
    """What one offline run has logged, merged in the order of its records."""

    folder: Path
    name: str = ""
    group: str = ""
    tags: list[str] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    axes: dict[str, str] = field(default_factory=dict)
    files: list[str] = field(default_factory=list)
    exit_code: int | None = None

    def curve(self, key: str, axis: str) -> list[tuple[float, float]]:
        """The points of a curve, with its axis."""
        return [(row[axis], row[key]) for row in self.history if key in row]

    def table(self, key: str) -> list[dict[str, Any]]:
        """The rows of a table."""
        path = self.folder / "files" / next(r[key]["path"] for r in self.history if key in r)
        table = json.loads(path.read_text())
        return [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]


def read_logs(folder: Path) -> dict[str, Log]:
    """The offline runs of ``folder`` by name, each once its writer, a process of W&B's, is done."""
    logs = [settled(path) for path in sorted(folder.glob("offline-run-*/*.wandb"))]
    return {log.name: log for log in logs}


def settled(path: Path) -> Log:
    for _ in range(200):
        log = merged(path)
        if log.exit_code is not None:
            break
        time.sleep(0.05)
    return log


def merged(path: Path) -> Log:
    log = Log(path.parent)
    for record in chunks(path.read_bytes()):
        kind = record.WhichOneof("record_type")
        if kind == "run":
            log.name, log.group = record.run.display_name, record.run.run_group
            log.tags = list(record.run.tags)
            log.config |= values(record.run.config.update)
        elif kind == "summary":
            log.summary |= values(record.summary.update)
        elif kind == "history":
            log.history.append(values(record.history.item))
        elif kind == "metric" and record.metric.step_metric:
            log.axes[record.metric.glob_name] = record.metric.step_metric
        elif kind == "files":
            log.files += [one.path for one in record.files.files]
        elif kind == "exit":
            log.exit_code = record.exit.exit_code
    return log


def values(items: Any) -> dict[str, Any]:
    """What the items set, nested as their keys are."""
    found: dict[str, Any] = {}
    for item in items:
        *outer, last = [*item.nested_key] or [item.key]
        inside = found
        for key in outer:
            inside = inside.setdefault(key, {})
        inside[last] = json.loads(item.value_json)
    return found


def chunks(data: bytes) -> list[Record]:
    """The records of a log: after the header LevelDB's framing, no chunk across a block's end."""
    at, parts, found = HEADER, b"", []
    while at + HEADER <= len(data):
        if BLOCK - at % BLOCK < HEADER:
            at += BLOCK - at % BLOCK
            continue
        size, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        if at + HEADER + size > len(data):  # still being written
            break
        parts += data[at + HEADER : at + HEADER + size]
        at += HEADER + size
        if kind in (WHOLE, LAST):
            found.append(Record.FromString(parts))
            parts = b""
    return found
