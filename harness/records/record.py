"""What a run leaves on disk: its schema, written as it happens, complete or not there at all.

    results/<set>/<slug>-<hashes>/
        config.yaml      the identity: everything that makes this run this run
        layers.jsonl     one row per linear, appended as it is passed
        blocks.jsonl     one row per decoder block
        tokens.npz       the token windows used, with save_tokens=true
        record.json      written last, atomically: its presence with status "done" is the result
        .checkpoint/     while the run is on its way, with checkpoint.every or save
        <kind>/          a checkpoint of the quantised model, with save=<kind>
        .mirror          while a tracker is at work; what it has to know if it is killed

JSON as Python writes it: NaN and Infinity stand for themselves, since a diverged run is a result.
A record says what it hashes to itself, how many rows belong to it, and what these hash to.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError
from pydantic_core import from_json  # three times json's speed, reads NaN and Infinity as well

from harness.records.disk import remove, write_atomic

SCHEMA = 3
RECORD, LAYERS, BLOCKS, CONFIG = "record.json", "layers.jsonl", "blocks.jsonl", "config.yaml"
UPLOADED = "record"  # the folder of these among the files of a W&B run, which has a config.yaml of its own
TOKENS, CHECKPOINT, MIRROR = "tokens.npz", ".checkpoint", ".mirror"
SEAL = "sha256"  # the key of a record's own hash, in this and any later schema

PERPLEXITY = "perplexity/"  # what the names of that family's metrics begin with
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
    "routing": ("", "higher"),
    "noise": ("", "lower"),  # a metric's standard deviation over repeats
}
CODES = "codes"  # of the summary: the format of the checkpoint whose codes a model was made of
BETTER = "better"  # of the summary: direction by family, of those that an evaluator adds


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
        bits_per_weight: effective bits over the quantised linears, 16 or 32 for none, of a checkpoint of
            codes (``codes`` in the summary) those on disk; ``bits_per_parameter`` those over all
            parameters, embeddings and all.
        full_precision: pattern of parameters that stay as they are -> ``weights``, ``share`` of all
            parameters, and ``why``, where they might have been quantised.
        contents: setting -> a hash of what the files that it names held, or a commit on the hub; the
            settings are those of ``config``, with dots.
        hashes: content hashes of model, calibration and evaluation tokens; task versions.
        environment: package versions, device, threads, tokens of a batch.
        baseline: the run that measured the same in full precision.
        stopped: of a stopped run: the block, its relative error, and the bounds it broke.
        resumed: how often the run went on from a checkpoint; ``seconds`` has all that counted.
        files: LAYERS and BLOCKS -> ``rows``, how many belong to the run, and the ``sha256`` of the
            file with them; nothing in records of schema 1.
        saved: kind of checkpoint -> its ``files`` with their ``bytes``, the ``checkpoint_bytes`` that the
            quantised linears take in them, per weight ``bits_per_weight``, and which are ``dense``.
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
    bits_per_parameter: float = float("nan")
    full_precision: dict[str, dict[str, Any]] = field(default_factory=dict)
    checkpoint_bytes: int = 0
    contents: dict[str, str] = field(default_factory=dict)
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
    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    saved: dict[str, dict[str, Any]] = field(default_factory=dict)


def way_of(summary: Mapping[str, Any]) -> str:
    """How a model came to its weights: its method, ``none``, or ``codes (gguf)``, made of a checkpoint's."""
    codes = summary.get(CODES)
    return f"{CODES} ({codes})" if codes else str(summary.get("method", ""))


class RecordError(ValueError):
    """A record that can't be read; the message names the file."""


class NewerError(RecordError):
    """A record of a later version, which is not this one's to judge or to replace."""


def read_record(directory: Path) -> Record:
    """The record in ``directory``.

    Raises:
        RecordError: it is damaged, foreign or of a newer schema.
        FileNotFoundError: there is none.
    """
    path = directory / RECORD
    try:
        text = path.read_text(encoding="utf-8")
        data = json.loads(text)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise RecordError(f"{path}: can't be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise RecordError(f"{path}: not JSON ({error})") from None
    if not isinstance(data, dict) or not isinstance(data.get("schema"), int) or "run" not in data:
        raise RecordError(f"{path}: not a record of this harness")
    seal, schema = data.pop(SEAL, None), data["schema"]
    if seal is None and schema == SCHEMA or seal is not None and seal != _hash(data):
        raise RecordError(f"{path}: damaged: it is not what the run wrote (another sha256)")
    if schema > SCHEMA:
        raise NewerError(f"{path}: schema {schema}, this version reads up to {SCHEMA}")
    try:
        return _reader().validate_json(text, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise RecordError(f"{path}: {where}: {first['msg']}") from None


@cache
def _reader() -> TypeAdapter[Record]:
    """What makes a record of JSON: each field as its annotation says, others left out."""
    return TypeAdapter(Record)


def _hash(data: Mapping[str, Any]) -> str:
    """The sha256 of a record's content, however the file is laid out."""
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()


def write_record(directory: Path, record: Record) -> None:
    """Puts ``record`` on disk, all or nothing, with the hash of its content."""
    data = json.loads(json.dumps(asdict(record)))  # as a reader will have it
    sealed = {**data, SEAL: _hash(data)}
    write_atomic(directory / RECORD, json.dumps(sealed, indent=1, ensure_ascii=False) + "\n")


def clear(directory: Path) -> None:
    """Makes ``directory`` ready for a new run: what a half-written one left there is removed.

    Checkpoints stay, to go on from, and what a tracker noted.

    Raises:
        NewerError: a later version has left a record there.
    """
    if directory.is_symlink() or not directory.is_dir():
        remove(directory)
    directory.mkdir(parents=True, exist_ok=True)
    refuse_newer(directory)
    for name in (RECORD, LAYERS, BLOCKS, CONFIG, TOKENS):
        remove(directory / name)
    for part in (*directory.glob(".*.part"), *directory.glob("*.partial")):
        remove(part)


def refuse_newer(directory: Path) -> None:
    """Raises NewerError where a later version has left a record: it is not to be replaced."""
    try:
        read_record(directory)
    except NewerError:
        raise
    except (FileNotFoundError, RecordError):
        return


def drop_checkpoints(directory: Path) -> None:
    """Removes the checkpoints of a run."""
    remove(directory / CHECKPOINT)


def append_row(path: Path, row: Mapping[str, Any]) -> bytes:
    """Adds one JSON line to ``path`` and returns it."""
    line = (json.dumps(row, ensure_ascii=False) + "\n").encode()
    with path.open("ab") as file:
        file.write(line)
    return line


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSON-lines file; none if it does not exist.

    Raises:
        RecordError: it can't be read, or a line is damaged.
    """
    try:
        return [from_json(line) for line in path.read_bytes().splitlines()]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise RecordError(f"{path}: can't be read ({error.strerror})") from None
    except ValueError as error:
        raise RecordError(f"{path}: damaged ({error})") from None
