"""Writes the record of a run while it happens, and mirrors it to the tracker."""

from __future__ import annotations

import hashlib
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Self

import torch
import yaml

from harness.evaluate.base import Evaluation
from harness.inputs.stored import Codes
from harness.numerics import device
from harness.records.disk import write_atomic
from harness.records.environment import environment, git_commit
from harness.records.locks import Lock, LostError
from harness.records.memory import forget_peak, peak_memory
from harness.records.places import without_folders
from harness.records.record import (
    BETTER,
    BLOCKS,
    CODES,
    CONFIG,
    LAYERS,
    METRICS,
    Record,
    append_row,
    clear,
    drop_checkpoints,
    write_record,
)
from harness.settings.config import Config
from harness.settings.plugins import plugin_name


class Recorder:
    """The record of one run in the making; a context that ends "done", "stopped" or "failed"."""

    def __init__(
        self, config: Config, baseline: str | None = None, lock: Lock | None = None
    ) -> None:
        self.directory, self.tracker, self.stop = config.directory, config.tracker, config.stop
        self.anew, self.lock, self.device = config.force, lock, config.device
        self.record = Record(
            run=config.run_id,
            config=config.identity(),
            contents={".".join(key): content for key, content in config.contents.items()},
            summary=summary(config),
            baseline=baseline,
            command=config.command,
            environment=environment(config),
            git_commit=git_commit(),
        )
        self.layers: list[Mapping[str, Any]] = []
        self.blocks: list[Mapping[str, Any]] = []
        self._digests = {name: hashlib.sha256() for name in (LAYERS, BLOCKS)}
        self.record.files = {name: {"rows": 0} for name in self._digests}
        self._weighted_bits = self._weights = 0.0
        self._parameters = self._float_bits = 0
        self._start = 0.0
        self._before: dict[str, float] = {}  # seconds of a killed start that goes on here

    def __enter__(self) -> Self:
        clear(self.directory)
        if self.anew:
            drop_checkpoints(self.directory)
        write_atomic(self.directory / CONFIG, yaml.safe_dump(self.record.config, sort_keys=False))
        self.record.started = _now()
        forget_peak()
        device.forget_peak(self.device)
        self._start = time.perf_counter()
        self.tracker.start(self.record, self.directory)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        record = self.record
        record.finished = _now()
        lost = self._lost()
        error = lost or error
        for name, digest in self._digests.items():
            record.files[name]["sha256"] = digest.hexdigest()
        record.seconds = self.seconds()
        record.peak_memory = peak_memory()
        record.peak_device_memory = device.peak_memory(self.device)
        record.status = "done" if record.stopped is None else "stopped"
        if error is not None:
            record.status = "failed"
            record.error = {
                "type": type(error).__name__,
                "message": str(error),
                "traceback": without_folders("".join(traceback.format_exception(error))),
            }
        try:
            # An interrupted run leaves no record, nor one that is another process's by now.
            if lost is None and (error is None or isinstance(error, Exception)):
                write_record(self.directory, record)
            if error is None:
                drop_checkpoints(self.directory)
        finally:
            self.tracker.finish(record)
        if lost is not None:
            raise lost

    def resumed(self, seconds: Mapping[str, float], started: str, times: int) -> None:
        """The run goes on from a checkpoint: its times count, its rows are added as usual."""
        self._before = dict(seconds)
        self.record.started, self.record.resumed = started, times + 1

    def seconds(self) -> dict[str, float]:
        """Seconds per phase and in total, those before a checkpoint included."""
        now = {**self.record.seconds, "total": time.perf_counter() - self._start}
        before = self._before
        return {key: now.get(key, 0.0) + before.get(key, 0.0) for key in (before | now)}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Adds the time spent inside to ``seconds[name]``."""
        start = time.perf_counter()
        try:
            yield
        finally:
            spent = time.perf_counter() - start
            self.record.seconds[name] = self.record.seconds.get(name, 0.0) + spent

    def stopped(self) -> bool:
        """Whether the run was given up as hopeless."""
        return self.record.stopped is not None

    def leaves(
        self, kept: Mapping[str, Mapping[str, Any]], parameters: int, dtype: torch.dtype
    ) -> None:
        """What stays in full precision, of how many ``parameters`` of which type."""
        self.record.full_precision = {name: dict(row) for name, row in kept.items()}
        self._parameters, self._float_bits = parameters, 8 * dtype.itemsize

    def as_loaded(self, dtype: torch.dtype, codes: Codes | None) -> None:
        """Nothing is quantised: what weights take as they are, or as the codes that they were made of."""
        record = self.record
        if codes is None:
            record.bits_per_weight = record.bits_per_parameter = 8.0 * dtype.itemsize
            return
        record.bits_per_weight = codes.bits_per_weight
        record.bits_per_parameter = codes.bits_per_parameter
        record.summary |= {CODES: codes.by, "bits": round(codes.bits_per_weight, 2)}

    def layer(self, row: Mapping[str, Any]) -> None:
        """Adds the row of a linear."""
        self._append(LAYERS, row)
        self.layers.append(row)
        weights = row["rows"] * row["columns"]
        self._weighted_bits += weights * row["bits_per_weight"]
        self._weights += weights
        self.record.bits_per_weight = self._weighted_bits / self._weights
        self.record.checkpoint_bytes = int(self._weighted_bits / 8)
        rest = self._float_bits * (self._parameters - self._weights)
        if self._parameters:
            self.record.bits_per_parameter = (self._weighted_bits + rest) / self._parameters
        self.tracker.layer(row)

    def block(self, row: Mapping[str, Any]) -> None:
        """Adds the row of a decoder block, which may end the run."""
        self._append(BLOCKS, row)
        self.blocks.append(row)
        self.tracker.block(row)
        self.record.stopped = self.record.stopped or self.stop.verdict(row)

    def _lost(self) -> LostError | None:
        """Why this run is another process's by now, if it is."""
        try:
            if self.lock is not None:
                self.lock.check()
        except LostError as error:
            return error
        return None

    def _append(self, name: str, row: Mapping[str, Any]) -> None:
        """Adds a row to a file, and to what the record will say of it."""
        if lost := self._lost():
            raise lost
        self._digests[name].update(append_row(self.directory / name, row))
        self.record.files[name]["rows"] += 1

    def evaluation(self, evaluation: Evaluation) -> None:
        """Adds what an evaluator measured.

        Raises:
            ValueError: another one has measured something of the same name.
        """
        record = self.record
        for kind in ("metrics", "samples", "hashes"):
            if both := getattr(record, kind).keys() & getattr(evaluation, kind).keys():
                raise ValueError(f"two evaluators measure {', '.join(sorted(both))}")
        for metric in evaluation.metrics:
            family = metric.partition("/")[0]
            if family not in METRICS and family not in evaluation.better:
                raise ValueError(
                    f"{metric}: Evaluation.better has to say if lower or higher is better"
                )
        if evaluation.better:
            record.summary[BETTER] = {**record.summary.get(BETTER, {}), **evaluation.better}
        self.record.metrics |= evaluation.metrics
        self.record.samples |= evaluation.samples
        self.record.hashes |= evaluation.hashes
        flops = self.record.flops.get("evaluate", 0.0) + evaluation.flops
        self.record.flops["evaluate"] = flops


def summary(config: Config) -> dict[str, Any]:
    """What tables are sorted and filtered by."""
    result: dict[str, Any] = {"model": config.model.name, "method": config.method_name}
    result["protocol"] = config.protocol
    if not config.quantizes:
        return result | {"bits": 16, "group_size": None, "alpha": 0.0, "seed": 0}
    bits = config.axes.of("").bits
    # That of most linears.
    recipe = config.recipe("", bits[0] if isinstance(bits, tuple) else None)
    return result | {
        "bits": config.axes.budget or config.axes.said.bits,
        "group_size": config.axes.said.group_size,
        "symmetric": config.axes.said.symmetric,
        "format": plugin_name(recipe.spec.form),
        "range": plugin_name(recipe.spec.range),
        "transform": "+".join(recipe.transforms) or "none",
        "own": config.axes.own(config.method),
        "target": config.qep.target,
        "alpha": config.qep.alpha,
        "damping": config.qep.damping,
        "seed": config.seed,
        "noise_seed": config.noise.seed,
        "blocks": config.quantize.blocks,
    }


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
