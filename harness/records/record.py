"""What a run leaves on disk: its schema, written as it happens, complete or not there at all.

    results/<set>/<slug>-<hash>/
        config.yaml      the identity: everything that makes this run this run
        layers.jsonl     one row per linear, appended as it is passed
        blocks.jsonl     one row per decoder block
        tokens.npz       the token windows used, with save_tokens=true
        record.json      written last, atomically: its presence with status "done" is the result
        .checkpoint/     while the run is on its way, with checkpoint.every

JSON as Python writes it: NaN and Infinity stand for themselves, since a diverged run is a result.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout
from pydantic_core import from_json  # three times json's speed, reads NaN and Infinity as well

SCHEMA = 1
RECORD, LAYERS, BLOCKS, CONFIG = "record.json", "layers.jsonl", "blocks.jsonl", "config.yaml"
TOKENS, CHECKPOINT = "tokens.npz", ".checkpoint"

# Metric family (the part before the slash) -> unit and better direction.
METRICS: Mapping[str, tuple[str, Literal["lower", "higher"]]] = {
    "perplexity": ("", "lower"),
    "accuracy": ("", "higher"),
    "accuracy_norm": ("", "higher"),
    "accuracy_stderr": ("", "lower"),
    "accuracy_norm_stderr": ("", "lower"),
    "exact_match": ("", "higher"),
    "exact_match_stderr": ("", "lower"),
    "acc_bytes": ("", "higher"),
    "acc_bytes_stderr": ("", "lower"),
    "acc_mutual_info": ("", "higher"),
    "acc_mutual_info_stderr": ("", "lower"),
    "f1": ("", "higher"),
    "mcc": ("", "higher"),
    "bleu": ("", "higher"),
    "chrf": ("", "higher"),
    "ter": ("", "lower"),
    "brier_score": ("", "lower"),
    "answer_perplexity": ("", "lower"),
    "word_perplexity": ("", "lower"),
    "byte_perplexity": ("", "lower"),
    "bits_per_byte": ("bit/byte", "lower"),
    "prompts_cut": ("", "lower"),
    "kl": ("nat/token", "lower"),
    "top1_agreement": ("", "higher"),
    "error": ("", "lower"),
}


@dataclass
class Record:
    """A finished or failed run. Times are seconds, memory is bytes.

    Args:
        run: name of the run's directory.
        status: "done", or "failed" with ``error``; "stopped" for a run given up as hopeless.
        config: the identity, plain data.
        summary: model, method, bits, group_size, alpha, seed, tokens: what tables sort by; ``bos``:
            by corpus, where windows have a start token.
        metrics: ``metric/dataset`` -> number.
        samples: per window or per question values, for paired comparisons.
        seconds: per phase.
        flops: floating-point operations per phase that this run takes by itself, counted from
            shapes, not measured.
        shared_flops: those of "walk" that another run had done and recorded for this one.
        peak_memory: resident, during the run; ``peak_device_memory`` on CUDA.
        bits_per_weight: effective bits over the quantised linears, 16 or 32 for none.
        hashes: content hashes of model, calibration and evaluation tokens; task versions.
        environment: package versions, device, threads.
        baseline: the run that measured the same in full precision.
        stopped: of a stopped run: the block, its relative error, and the bounds it broke.
        resumed: how often the run went on from a checkpoint; ``seconds`` has all that counted.
    """

    run: str
    status: Literal["done", "failed", "stopped"] = "failed"
    schema: int = SCHEMA
    config: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    samples: dict[str, list[float]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    flops: dict[str, float] = field(default_factory=dict)
    shared_flops: float = 0.0
    peak_memory: int = 0
    peak_device_memory: int = 0
    bits_per_weight: float = float("nan")
    checkpoint_bytes: int = 0
    hashes: dict[str, str] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    command: str = ""
    git_commit: str = ""
    started: str = ""
    finished: str = ""
    baseline: str | None = None
    error: dict[str, str] | None = None
    stopped: dict[str, Any] | None = None
    resumed: int = 0


class RecordError(ValueError):
    """A record that can't be read; the message names the file."""


def read_record(directory: Path) -> Record:
    """The record in ``directory``.

    Raises:
        RecordError: it is damaged, foreign or of a newer schema.
        FileNotFoundError: there is none.
    """
    path = directory / RECORD
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RecordError(f"{path}: not JSON ({error})") from None
    if not isinstance(data, dict) or not isinstance(data.get("schema"), int) or "run" not in data:
        raise RecordError(f"{path}: not a record of this harness")
    if data["schema"] > SCHEMA:
        raise RecordError(f"{path}: schema {data['schema']}, this version reads up to {SCHEMA}")
    known = {one.name for one in fields(Record)}
    return Record(**{key: value for key, value in data.items() if key in known})


def finished(directory: Path) -> Record | None:
    """The record in ``directory`` if the run there is done (or given up); a damaged one is not."""
    try:
        record = read_record(directory)
    except (FileNotFoundError, RecordError):
        return None
    return record if record.status in ("done", "stopped") else None


def write_record(directory: Path, record: Record) -> None:
    """Puts ``record`` on disk, all or nothing."""
    write_atomic(
        directory / RECORD, json.dumps(asdict(record), indent=1, ensure_ascii=False) + "\n"
    )


def write_atomic(path: Path, text: str) -> None:
    """Replaces ``path`` by a file with ``text``; whoever reads it sees the old or the new one."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def clear(directory: Path) -> None:
    """Makes ``directory`` ready for a new run: what a half-written one left there is removed.

    Checkpoints stay, to go on from.
    """
    directory.mkdir(parents=True, exist_ok=True)
    for name in (RECORD, LAYERS, BLOCKS, CONFIG, TOKENS):
        (directory / name).unlink(missing_ok=True)
    for part in (*directory.glob(".*.part"), *directory.glob("*.partial")):
        part.unlink()


def drop_checkpoints(directory: Path) -> None:
    """Removes the checkpoints of a run."""
    shutil.rmtree(directory / CHECKPOINT, ignore_errors=True)


def append_row(path: Path, row: Mapping[str, Any]) -> None:
    """Adds one JSON line to ``path``."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row, ensure_ascii=False) + "\n")


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSON-lines file; none if it does not exist.

    Raises:
        RecordError: a line is damaged.
    """
    if not path.exists():
        return []
    try:
        return [from_json(line) for line in path.read_bytes().splitlines()]
    except ValueError as error:
        raise RecordError(f"{path}: damaged ({error})") from None


@contextmanager
def exclusive(directory: Path) -> Iterator[bool]:
    """Holds the lock of a run; yields whether another process had to be waited for.

    The lock is released by the kernel when a process dies, however it dies. The file is removed
    while the lock is held; whoever waited for it notices and takes a fresh one.
    """
    directory.parent.mkdir(parents=True, exist_ok=True)
    path = lock_path(directory)
    lock = FileLock(path)
    waited = False
    try:
        lock.acquire(timeout=0)
    except TimeoutError:
        waited = True
        lock.acquire()
    try:
        yield waited
    finally:
        path.unlink(missing_ok=True)
        lock.release()


def release(directory: Path) -> None:
    """Removes what a process left of a finished run when it was killed, unless another holds it."""
    path = lock_path(directory)
    if path.exists():
        lock = FileLock(path)
        with suppress(Timeout), lock.acquire(timeout=0):
            drop_checkpoints(directory)
            path.unlink(missing_ok=True)


def lock_path(directory: Path) -> Path:
    """The lock file of a run, beside its directory."""
    return directory.parent / f".{directory.name}.lock"
