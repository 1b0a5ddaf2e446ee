"""Four tidy frames out of the records of many runs, wherever these were read."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
from pydantic import TypeAdapter, ValidationError

from analysis.earlier import modern, own_parts
from analysis.groups import evaluated, recipe, settings
from harness.records.evaluations import Evaluations, labelled
from harness.records.record import BETTER, Record, RecordError, way_of
from harness.settings.flat import short

logger = logging.getLogger(__name__)

Rows = Sequence[Mapping[str, Any]]
CELL = ("model", "method", "bits", "alpha", "group_size")  # what a table is sorted by
CURVES = "traces"
CHECKPOINT = "model.path"  # the setting whose content is the model's
TEXT = ("name", "role", "key", "target")
INTEGERS = ("block", "rows", "columns", "index")
ERRORS = ("rounding_error", "local_error", "total_error", "signal")
# Columns that are there even where no run has them.
LAYER = ("name", "block", "role", "rows", "columns", "alpha", "bits_per_weight", *ERRORS, CURVES)
BLOCK_ERRORS = ("relative_error", "relative_error_token")
BLOCK = ("block", "name", *(f"{key}{side}" for key in BLOCK_ERRORS for side in ("", "_heldout")))
SAMPLE = ("key", "index", "value")


@dataclass(frozen=True)
class Summary:
    """What a record's summary has to hold; it holds more."""

    model: str
    method: str
    bits: int | float
    alpha: float | Literal["auto"]
    group_size: int | None = None
    seed: int = 0


_SUMMARY = TypeAdapter(Summary)


@dataclass(frozen=True)
class Entry:
    """One run as it was read: its record, a row a linear, a row a decoder block.

    Args:
        record: the record.
        layers: as in ``layers.jsonl``.
        blocks: as in ``blocks.jsonl``.
        source: where it was read, for messages.
    """

    record: Record
    layers: Rows = ()
    blocks: Rows = ()
    source: str = ""


@dataclass(frozen=True)
class Frames:
    """What tables, figures and the dashboard are made of; ``run`` names a run in all four.

    Args:
        runs: a row a run: run, status, error, the record's summary (model, method, bits,
            group_size, alpha as text, seed, ...), evaluation (its protocol where runs differ in
            that, or ""), every metric under its own key,
            ``seconds/<phase>``, ``flops/<phase>``, shared_flops, bits_per_weight, peak_memory,
            peak_device_memory, checkpoint_bytes (bytes), baseline, command, git_commit, started,
            finished, the dictionaries metrics, config, settings, hashes, contents and environment,
            and recipe, which is equal for runs that differ in seed and evaluation only.
        layers: a row a linear, as in ``layers.jsonl``; run, name and role are categories, traces
            are dictionaries of arrays (or None).
        blocks: a row a decoder block: run, block, name, relative_error, relative_error_token and
            the same with ``_heldout``.
        samples: run, key, index, value: the loss of every window and the score of every question.
    """

    runs: pd.DataFrame
    layers: pd.DataFrame
    blocks: pd.DataFrame
    samples: pd.DataFrame

    def only(self, kept: np.ndarray) -> Frames:
        """The frames of the runs for which ``kept`` is true."""
        runs = self.runs[kept]
        parts = [
            part[part["run"].isin(runs["run"])]
            for part in (self.layers, self.blocks, self.samples)
        ]
        return Frames(runs, *parts)


def frames(entries: Iterable[Entry]) -> Frames:
    """The frames of all entries; a foreign one is named in the log and left out.

    A run that was read twice counts once, the one that finished last, a finished one before a
    failed one; the log names the other. NaN and infinity are kept as they are.

    A corpus or task that was measured under several protocols is several: ``c4 (qep_paper)``.
    """
    kept: dict[str, _Columns] = {}
    for entry in entries:
        try:
            found = _Columns(entry)
        except RecordError as error:
            logger.warning("left out: %s", error)
            continue
        other = kept.get(found.run)
        if other is not None:
            found, other = sorted((found, other), key=_standing, reverse=True)
            logger.warning("left out: %s: the same run as %s", other.source, found.source)
        kept[found.run] = found
    every = [kept[run] for run in sorted(kept)]
    told = Evaluations(one.summary for one in every)
    for one in every:
        one.name(told)
    names = [one.run for one in every]
    tell_models_apart([one.row for one in every])
    return Frames(
        _runs([one.row for one in every]),
        _joined(names, [one.layers for one in every], LAYER),
        _joined(names, [one.blocks for one in every], BLOCK),
        _joined(names, [one.samples for one in every], SAMPLE),
    )


def tell_models_apart(rows: Sequence[dict[str, Any]]) -> None:
    """Adds to the names of models what their files held, ``llama@1a2b3c4d``, where one name has several.

    So that nothing puts two checkpoints into one row, line or panel.
    """
    held: dict[str, set[str]] = {}
    for row in rows:
        if known := row["contents"].get(CHECKPOINT):
            held.setdefault(row["model"], set()).add(known)
    for row in rows:
        if len(held.get(row["model"], ())) > 1 and CHECKPOINT in row["contents"]:
            row["model"] = f"{row['model']}@{short(row['contents'][CHECKPOINT])}"


def run_row(record: Record) -> dict[str, Any]:
    """A record as one flat row."""
    error, config = record.error, modern(record.config)
    flat = settings(config, record.contents)
    flat["own"] = ",".join(record.summary.get("own", own_parts(record.config)))
    return {
        "run": record.run,
        "status": record.status,
        "error": f"{error.get('type')}: {error.get('message')}" if error else None,
        **{key: _label(key, value) for key, value in record.summary.items()},
        "method": way_of(record.summary),
        **record.metrics,
        **{f"seconds/{key}": value for key, value in record.seconds.items()},
        **{f"flops/{key}": value for key, value in record.flops.items()},
        "shared_flops": record.shared_flops,
        "bits_per_weight": record.bits_per_weight,
        "peak_memory": record.peak_memory,
        "peak_device_memory": record.peak_device_memory,
        "checkpoint_bytes": record.checkpoint_bytes,
        "baseline": record.baseline,
        "command": record.command,
        "git_commit": record.git_commit,
        "started": record.started,
        "finished": record.finished,
        "evaluation": "",
        "metrics": record.metrics,
        "config": config,
        "settings": flat,
        "recipe": recipe(flat | {key: str(record.summary.get(key)) for key in CELL}),
        "hashes": record.hashes,
        "contents": record.contents,
        "environment": record.environment,
    }


def _label(key: str, value: Any) -> Any:
    """Alphas are text, since "auto" is one of them."""
    return f"{value:g}" if key == "alpha" and not isinstance(value, str) else value


class _Columns:
    """One run as a row and three groups of columns, which take a tenth of the rows' memory.

    Raises:
        RecordError: the record is not one of this harness.
    """

    def __init__(self, entry: Entry) -> None:
        record = entry.record
        self.source = entry.source or str(record.run)
        try:
            _SUMMARY.validate_python(record.summary)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise RecordError(f"{self.source}: {where}: {first['msg']}") from None
        self.run, self.summary = record.run, record.summary
        self.row = run_row(record)
        self.layers = self._columns(entry.layers, "layers")
        self.blocks = self._columns(entry.blocks, "blocks")
        self.samples = self._samples(record.samples)

    def name(self, told: Evaluations) -> None:
        """Names all that was evaluated so that only figures of one protocol share a name."""
        row, names = self.row, dict[str, str]()
        row["evaluation"] = told.label(self.summary)
        for metric in row["metrics"]:
            kind, dataset = evaluated(metric, self.summary.get(BETTER, ()))
            label = told.label(self.summary, dataset) if dataset else ""
            if label:
                names[dataset] = labelled(dataset, label)
                names[metric] = kind + names[dataset]
        if not names:
            return
        self.row = {names.get(key, key) if "/" in key else key: row[key] for key in row}
        for part in ("metrics", "hashes"):
            self.row[part] = {names.get(key, key): value for key, value in row[part].items()}
        if self.samples:
            keys = [key.partition("/") for key in self.samples["key"]]
            named = [f"{kind}/{names.get(dataset, dataset)}" for kind, _, dataset in keys]
            self.samples["key"] = np.array(named, dtype=object)

    def _columns(self, rows: Rows, what: str) -> dict[str, np.ndarray]:
        try:
            keys = dict.fromkeys(key for row in rows for key in row)
            return {key: _column(key, [row.get(key) for row in rows]) for key in keys}
        except (TypeError, ValueError, AttributeError) as error:
            raise RecordError(f"{self.source}: a row of its {what} is foreign ({error})") from None

    def _samples(self, samples: Mapping[str, Sequence[float]]) -> dict[str, np.ndarray]:
        if not samples:
            return {}
        lengths = [len(values) for values in samples.values()]
        return {
            "key": np.repeat(np.array(list(samples), dtype=object), lengths),
            "index": np.concatenate([np.arange(n, dtype=np.int32) for n in lengths]),
            "value": np.concatenate([np.asarray(v, dtype=float) for v in samples.values()]),
        }


def _column(key: str, values: list[Any]) -> np.ndarray:
    """Values of one key: text and curves as objects, all else as float64, None as NaN."""
    if key == CURVES:
        column = np.empty(len(values), dtype=object)
        column[:] = [
            value and {name: np.asarray(curve, dtype=float) for name, curve in value.items()}
            for value in values
        ]
        return column
    if key in TEXT:
        return np.array(values, dtype=object)
    return np.array(values, dtype=float)


def _standing(one: _Columns) -> tuple[bool, str]:
    return one.row["status"] == "done", one.row["finished"]


def _runs(rows: list[dict[str, Any]]) -> pd.DataFrame:
    always = [*dict.fromkeys((*run_row(Record("")), *CELL, "seed"))]
    table = pd.DataFrame(rows)
    table = table.reindex(columns=[*table, *[key for key in always if key not in table]])
    return table.astype({"group_size": float})


def _joined(
    names: list[str], parts: list[dict[str, np.ndarray]], always: Sequence[str]
) -> pd.DataFrame:
    """The columns of all runs under each other, with the name of the run as a category."""
    lengths = [len(next(iter(part.values()), ())) for part in parts]
    codes = np.repeat(np.arange(len(names), dtype=np.int32), lengths)
    data: dict[str, Any] = {
        "run": pd.Categorical.from_codes(codes, categories=pd.Index(names, dtype=str))
    }
    found = dict.fromkeys(key for part in parts for key in part)
    for key in dict.fromkeys([*always, *found]):
        empty = None if key in (*TEXT, CURVES) else np.nan
        whole = np.concatenate(
            [part.get(key, np.full(n, empty)) for part, n in zip(parts, lengths, strict=True)]
            or [np.empty(0, dtype=object if empty is None else float)]
        )
        if key in TEXT:
            data[key] = pd.Categorical(whole)
        elif key in INTEGERS and np.isfinite(whole).all():
            data[key] = whole.astype(np.int32)
        else:
            data[key] = whole
    return pd.DataFrame(data)
