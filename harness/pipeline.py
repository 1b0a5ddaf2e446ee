"""The data path of one run, top to bottom."""

from __future__ import annotations

import gc
import random
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from harness import assets, cost
from harness.architecture import Linear, Plan, plan
from harness.config import Config, ConfigError
from harness.console import Console
from harness.corpora import Corpus, Tokens, save_tokens
from harness.evaluate.base import Context
from harness.methods.base import Quantized
from harness.models import LoadedModel, Model
from harness.propagation import Corrected
from harness.record import TOKENS, Record, exclusive, finished
from harness.recorder import Recorder
from harness.statistics import IndefiniteError, Statistics
from harness.walk import Moments, Passed, StageInputs, Walk


def run(config: Config, console: Console) -> Record:
    """Leaves a complete record of the run on disk and returns it; a finished run is skipped."""
    if not config.force and (record := finished(config.directory)):
        console.skipped(record)
        return record
    with exclusive(config.directory) as waited:
        if waited and (record := finished(config.directory)):
            console.skipped(record)
            return record
        return execute(config, console, full_precision(config, console))


def full_precision(config: Config, console: Console) -> Record | None:
    """The record of the unquantised model under the same evaluators, measured where it is missing."""
    if not (config.baseline and config.quantizes and config.evaluators):
        return None
    baseline = config.full_precision()
    record = run(baseline, console)
    tokenizer = config.model.tokenizer()
    context = evaluation_context(config, record.hashes.get("model", ""), console)
    if any(one.missing(tokenizer, context) for one in config.evaluators.values()):
        console.say("the cache has lost the full-precision outputs: measuring them again")
        record = run(replace(baseline, force=True), console)
    return record


def evaluation_context(config: Config, model_hash: str, console: Console) -> Context:
    """What evaluators may use; their tokens do not depend on the run's seed."""
    return Context(
        model_hash=model_hash,
        full_precision=not config.quantizes,
        cache=assets.cache_directory() / "reference",
        track=console.track,
    )


def execute(config: Config, console: Console, baseline: Record | None) -> Record:
    """One run from the checkpoint to its record, whatever lies on disk already."""
    gc.collect()  # the last job's model sits in reference cycles
    set_determinism(config.seed, config.threads)
    console.header(config)
    with Recorder(config, baseline.run if baseline else None) as recorder:
        if config.quantizes:
            with recorder.phase("tokens"):
                tokens = calibration_tokens(config.model, config.calibration, config.seed)
        with recorder.phase("load"):
            loaded = config.model.load(config.device)
            recorder.record.hashes["model"] = loaded.content_hash
        if config.quantizes:
            quantize(config, console, loaded, tokens, recorder)
        else:
            recorder.record.bits_per_weight = 8.0 * loaded.model.dtype.itemsize
        used = {"calibration": tokens} if config.quantizes else {}
        context = evaluation_context(config, loaded.content_hash, console)
        for evaluator in config.evaluators.values():
            with recorder.phase("evaluate"):
                measured = evaluator.evaluate(loaded.model, loaded.tokenizer, context)
                recorder.evaluation(measured)
                used |= measured.tokens
        if config.save_tokens:
            save_tokens(config.directory / TOKENS, **used)
    console.finished(recorder.record)
    return recorder.record


@lru_cache(maxsize=4)
def calibration_tokens(model: Model, calibration: Corpus, seed: int) -> Tokens:
    """The token windows of a calibration set, kept for the next job of a sweep.

    Raises:
        ValueError: the corpus holds too few tokens.
    """
    return calibration.tokens(model.tokenizer(), seed)


def quantize(
    config: Config, console: Console, loaded: LoadedModel, tokens: Tokens, recorder: Recorder
) -> None:
    """Walks through all stages: correct, quantise, put in place, measure, record."""
    model, propagation = loaded.model, config.qep
    recorder.record.hashes["calibration"] = tokens.hash
    batches = split_windows(tokens.ids, config.batch_tokens)
    heldout = split_windows(tokens.heldout, config.batch_tokens)
    with recorder.phase("plan"):
        chosen = plan(
            model, config.quantize.include, config.quantize.exclude, config.quantize.blocks
        )
        check_groups(config, chosen.linears)
    moments = [
        needed(config, [linear.name for linear in stage.linears]) for stage in chosen.stages
    ]
    count_flops(config, loaded, chosen, moments, tokens, recorder.record)
    undecided: dict[str, dict[str, Any]] = {}
    with Walk(model, chosen, batches, heldout, lambda stage: moments[stage.index]) as walk:
        stages = iter(console.track(walk, "quantise", len(chosen.stages)))
        while stage := next_stage(stages, recorder):
            with recorder.phase("correct"), naming(stage):
                corrected = propagation.correct(stage.weights, stage.statistics, stage.heldout)
            with recorder.phase("quantise"), naming(stage):
                quantized = config.method.quantize(
                    {name: one.weight for name, one in corrected.items()},
                    method_statistics(config, stage.statistics),
                    config.grid,
                )
            with recorder.phase("errors"):
                undecided |= layer_rows(stage, corrected, quantized)
            with recorder.phase("walk"):
                passed = walk.advance({name: one.weight for name, one in quantized.items()})
            record_passed(passed, undecided, chosen, recorder)
    recorder.record.metrics |= accumulation(recorder)


@contextmanager
def naming(stage: StageInputs) -> Iterator[None]:
    """Says which linear an indefinite Hessian belongs to."""
    try:
        yield
    except IndefiniteError as error:
        raise IndefiniteError(f"{stage.stage.leader}: {error}") from error


def next_stage(stages: Any, recorder: Recorder) -> StageInputs | None:
    """The next stage of the walk, its first stretch on the clock; None at the end."""
    with recorder.phase("walk"):
        found: StageInputs | None = next(stages, None)
        return found


def needed(config: Config, names: Sequence[str]) -> Moments:
    """The statistics beyond H that correcting and quantising these linears takes."""
    from_reference = config.qep.statistics == "reference"
    corrects = any(config.qep.corrects(name) for name in names)
    return Moments(
        cross=corrects or from_reference or "cross" in config.method.needs,
        gap=from_reference,
        magnitude="magnitude" in config.method.needs,
    )


def method_statistics(config: Config, statistics: Statistics) -> Statistics:
    """What the base method sees: the quantised stream's moments or the reference stream's."""
    return statistics if config.qep.statistics == "quantized" else statistics.of_reference()


def layer_rows(
    stage: StageInputs, corrected: dict[str, Corrected], quantized: dict[str, Quantized]
) -> dict[str, dict[str, Any]]:
    """What is known of each linear before the streams have passed it; errors are per token."""
    rows = {}
    for linear in stage.stage.linears:
        name = linear.name
        weight, target, result = stage.weights[name], corrected[name], quantized[name]
        row: dict[str, Any] = {
            "name": name,
            "block": linear.block,
            "role": name.rsplit(".", 1)[-1],
            "rows": linear.shape[0],
            "columns": linear.shape[1],
            "alpha": target.alpha,
            "damping": target.damping,
            "ridge": target.ridge,
            "bits_per_weight": result.bits_per_weight,
        }
        for suffix, statistics in (("", stage.statistics), ("_heldout", stage.heldout)):
            if statistics is None:
                continue
            local = statistics.local_error(weight, result.weight)
            same = target.weight is weight
            row[f"rounding_error{suffix}"] = (
                local if same else statistics.local_error(target.weight, result.weight)
            )
            row[f"local_error{suffix}"] = local
        if result.traces:
            row["traces"] = {
                key: curve.sum(dim=1).tolist() for key, curve in result.traces.items()
            }
        rows[name] = row
    return rows


def record_passed(
    passed: Passed, undecided: dict[str, dict[str, Any]], chosen: Plan, recorder: Recorder
) -> None:
    """Completes and records the rows of the linears and blocks that all batches have passed."""
    for name, measured in passed.linears.items():
        row = undecided.pop(name)
        for suffix, side in (("", measured.calibration), ("_heldout", measured.heldout)):
            if side.tokens:
                row[f"total_error{suffix}"] = side.error / side.tokens
                row[f"signal{suffix}"] = side.signal / side.tokens
        recorder.layer(row)
    for index, measured in passed.blocks.items():
        row = {"block": index, "name": chosen.block_names[index]}
        row["relative_error"] = measured.calibration.relative
        if measured.heldout.tokens:
            row["relative_error_heldout"] = measured.heldout.relative
        recorder.block(row)


def accumulation(recorder: Recorder) -> dict[str, float]:
    """The error of the residual stream at the last block, and how fast it grows over depth.

    Growth is the least-squares slope of log(relative error) over the block index: e^growth is the
    factor per block.
    """
    result: dict[str, float] = {}
    for suffix in ("", "_heldout"):
        points = [
            (row["block"], row[f"relative_error{suffix}"])
            for row in recorder.blocks
            if row.get(f"relative_error{suffix}", 0) > 0
        ]
        if points:
            result[f"error/last_block{suffix}"] = points[-1][1]
        if len(points) > 1:
            depth, error = np.array(points, dtype=float).T
            result[f"error/growth{suffix}"] = float(np.polyfit(depth, np.log(error), 1)[0])
    return result


def split_windows(ids: Tensor, batch_tokens: int) -> list[Tensor]:
    """``ids [windows, length]`` as batches of about ``batch_tokens`` tokens, at least a window each."""
    return list(torch.split(ids, max(1, batch_tokens // ids.shape[1]))) if ids.numel() else []


def check_groups(config: Config, linears: Iterable[Linear]) -> None:
    """Refuses a group size that does not divide every linear's input columns."""
    size = config.grid.group_size
    for linear in linears:
        if size and linear.shape[1] % size:
            raise ConfigError(
                f"group_size={size}: does not divide the {linear.shape[1]} input columns of "
                f"{linear.name} (quantize.exclude leaves a linear in full precision)"
            )


def count_flops(
    config: Config,
    loaded: LoadedModel,
    chosen: Plan,
    moments: list[Moments],
    tokens: Tokens,
    record: Record,
) -> None:
    """Counts the floating-point operations of the phases that are about to run."""
    heldout, length = tokens.heldout.numel(), tokens.ids.shape[1]
    record.summary["calibration_tokens"] = tokens.ids.numel()
    record.summary["heldout_tokens"] = heldout
    record.flops |= {
        "walk": cost.calibration_flops(
            loaded.model, chosen, moments, tokens.ids.numel(), heldout, length
        ),
        "correct": cost.propagation_flops(chosen, config.qep),
        "quantise": sum(
            config.method.flops(
                sum(one.shape[0] for one in stage.linears), stage.linears[0].shape[1]
            )
            for stage in chosen.stages
        ),
        "errors": sum(
            cost.error_flops(*linear.shape)
            * (1 + config.qep.corrects(linear.name))
            * (1 + bool(heldout))
            for linear in chosen.linears
        ),
    }


def set_determinism(seed: int, threads: int | None) -> None:
    """Seeds every generator that a run may use and sets torch's thread count."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    if threads is not None:
        torch.set_num_threads(threads)
