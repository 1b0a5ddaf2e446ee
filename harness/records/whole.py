"""Whether all of a run is there: its record, the rows beside it, the checkpoints that it has saved."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.records.record import BLOCKS, LAYERS, Record, RecordError, read_record, read_rows


def finished(directory: Path) -> Record | None:
    """The record in ``directory`` if the run there is done (or given up) and all of it is there."""
    try:
        record = read_record(directory)
    except (FileNotFoundError, RecordError):
        return None
    over = record.status in ("done", "stopped")
    return record if over and intact(directory, record) is None else None


def lacking(directory: Path, record: Record, kinds: Iterable[str]) -> list[str]:
    """The kinds of checkpoints among ``kinds`` that a done run has not left, or not as they were."""
    if record.status != "done":
        return []

    def whole(kind: str) -> bool:
        files = record.saved.get(kind, {}).get("files", {})
        paths = {directory / kind / name: size for name, size in files.items()}
        return bool(paths) and all(
            path.is_file() and path.stat().st_size == size for path, size in paths.items()
        )

    return [kind for kind in kinds if not whole(kind)]


def intact(directory: Path, record: Record) -> str | None:
    """None if the rows beside a record are those that its run wrote, else what is wrong, in a few words.

    Records of schema 1 do not say which rows belong to them. Theirs have to give the figures that the
    record has of all of them: the bytes of the quantised weights, the error behind the last block.
    """
    try:
        if record.files:
            problems = (_other(directory / name, known) for name, known in record.files.items())
            return next(filter(None, problems), None)
        if record.status == "failed":
            return None
        layers, blocks = read_rows(directory / LAYERS), read_rows(directory / BLOCKS)
        return _short_layers(record, layers) or _short_blocks(record, blocks)
    except RecordError as error:
        return str(error).removeprefix(f"{directory}{os.sep}")
    except (AttributeError, KeyError, TypeError) as error:
        return f"its rows, or what it says of them, are foreign ({error!r})"


def _other(path: Path, known: Mapping[str, Any]) -> str | None:
    """How a file of rows differs from the one that ``known`` describes; without rows there is none."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        content = b""
    except OSError as error:
        return f"{path.name} can't be read ({error.strerror})"
    rows = content.count(b"\n")
    if rows != known["rows"]:
        return f"{path.name} has {rows} of {known['rows']} rows"
    if hashlib.sha256(content).hexdigest() != known["sha256"]:
        return f"{path.name} is not as the run wrote it (another sha256)"
    return None


def _short_layers(record: Record, layers: Sequence[Mapping[str, Any]]) -> str | None:
    """Whether rows lack whose weights ``checkpoint_bytes`` has counted."""
    found = sum(row["rows"] * row["columns"] * row["bits_per_weight"] for row in layers) / 8
    if not record.checkpoint_bytes or abs(found - record.checkpoint_bytes) <= 1:
        return None
    share = f"{found / record.checkpoint_bytes:.0%} of the quantised bytes"
    return f"{LAYERS} has {len(layers)} rows with {share}"


def _short_blocks(record: Record, blocks: Sequence[Mapping[str, Any]]) -> str | None:
    """Whether the rows end before the block that the record speaks of, or skip one."""
    said = f"{BLOCKS} has {len(blocks)} rows"
    if [row["block"] for row in blocks] != list(range(len(blocks))):
        return f"{said}, not one of every block"
    if record.stopped is not None:
        ends = len(blocks) == record.stopped["block"] + 1
    elif (error := record.metrics.get("error/last_block")) is not None:
        ends = error == next((e for row in blocks[::-1] if (e := row["relative_error"]) > 0), None)
    else:
        ends = True
    return None if ends else f"{said} and ends before the last block"
