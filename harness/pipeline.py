"""The data path of one run, top to bottom."""

from __future__ import annotations

import gc
import random
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from harness.display import Display
from harness.evaluate.base import Context, ReferenceMissing
from harness.inputs import assets
from harness.inputs.contents import digest
from harness.inputs.corpora import Tokens
from harness.inputs.fit import check_fit, notes
from harness.inputs.models import LoadedModel
from harness.inputs.token_files import save_tokens
from harness.methods.base import Quantized
from harness.numerics.cholesky import IndefiniteError
from harness.numerics.device import doubting
from harness.numerics.finite import NonFiniteError
from harness.numerics.precision import Products, exact, set_products
from harness.planning import method_statistics, recipes, writers
from harness.preparation import prepared
from harness.recipe import quantize_stage
from harness.records.cache import Cache
from harness.records.checkpoints import Checkpoints
from harness.records.locks import BusyError, Lock, exclusive
from harness.records.noise import add_noise
from harness.records.record import TOKENS, Record
from harness.records.recorder import Recorder
from harness.records.rows import accumulation, agreement, layer_rows, record_passed, starved
from harness.records.saving import Saving
from harness.records.tidying import tidy
from harness.settings.config import Config
from harness.settings.reading import token_windows, tokenizer_of
from harness.settings.stale import notices
from harness.shared_outputs import reference_outputs
from harness.starving import fed
from harness.walk.outputs import KnownOutputs
from harness.walk.walk import StageInputs, Walk

COMPUTED = "computed"  # the part of the cache directory that runs fill


def run(config: Config, console: Display, cache: Cache | None = None, wait: bool = True) -> Record:
    """Leaves a complete record of the run on disk and returns it; a finished run is skipped.

    Args:
        config: the run.
        console: where it is shown.
        cache: what it shares with others; None opens it.
        wait: for another process that does this run, or the full-precision run that it needs.

    Raises:
        BusyError: another process does one of them, and nobody is to wait.
    """
    if not config.force and (record := done_before(config)):
        console.skipped(record)
        return record
    with (
        exclusive(config.directory, wait) as (lock, waited),
        nullcontext(cache) if cache else closing(computed(config)) as cache,
    ):
        # Another process may have done it since the first look, or while this one waited.
        if (waited or not config.force) and (record := config.settled()):
            console.skipped(record)
            return record
        for line in notices(config):
            console.say(line, style="yellow")
        try:
            baseline = full_precision(config, console, cache, wait)
        except BusyError:
            raise
        except Exception:
            with Recorder(config, lock=lock):  # leaves a failed record of this run too
                raise
        return execute(config, console, baseline, cache, lock)


def done_before(config: Config) -> Record | None:
    """The record of a run that is done, without what a killed process left of it."""
    if record := config.settled():
        tidy(config, record)
    return record


def full_precision(
    config: Config, console: Display, cache: Cache, wait: bool = True
) -> Record | None:
    """The record of the unquantised model under the same evaluators, measured where it is missing."""
    baseline = config.reference()
    if baseline is None:
        return None
    record = done_before(baseline) or run(baseline, console, cache, wait)
    tokenizer = tokenizer_of(config)
    context = evaluation_context(config, record.hashes.get("model", ""), console, cache)

    def lost() -> bool:  # what is found stays in the cache until this run has used it
        return any([one.missing(tokenizer, context) for one in config.evaluators.values()])

    if lost():
        console.say("the cache has lost the full-precision outputs: measuring them again")
        record = run(replace(baseline, force=True), console, cache, wait)
        lost()
    return record


def computed(config: Config) -> Cache:
    """What the runs of this machine share on disk."""
    return Cache(assets.cache_directory() / COMPUTED, config.cache.max_gb)


def evaluation_context(config: Config, model_hash: str, console: Display, cache: Cache) -> Context:
    """What evaluators may use; their tokens do not depend on the run's seed."""
    return Context(
        model_hash=model_hash,
        full_precision=not config.quantizes,
        cache=cache,
        track=console.track,
        say=console.say,
    )


def execute(
    config: Config, console: Display, baseline: Record | None, cache: Cache, lock: Lock
) -> Record:
    """One run from the checkpoint to its record, whatever lies on disk already."""
    gc.collect()  # the last job's model sits in reference cycles
    set_determinism(config.seed, config.threads, config.precision)
    with Recorder(config, baseline.run if baseline else None, lock) as recorder:
        console.header(config)
        with recorder.phase("tokens"):
            windows = token_windows(config)
        with recorder.phase("load"):
            loaded = config.model.load(config.device)
            if config.reduced:  # its outputs are others than those of the same weights
                known = digest(loaded.content_hash, config.precision)
                loaded = replace(loaded, content_hash=known)
            recorder.record.hashes["model"] = loaded.content_hash
            config.verify()  # before hours are spent
        saving = Saving(
            config.directory, config.kinds(), loaded.model, loaded.tokenizer, origin=origin(config)
        )
        check_fit(windows, loaded.model)
        console.windows(config, windows, notes(windows, loaded.model))
        recorder.record.summary["bos"] = {
            name: one.start.found for name, one in windows.items() if one.start
        }
        if config.quantizes:
            quantize(config, console, loaded, windows, recorder, cache, saving)
        else:
            saving.resume(0, ())
            recorder.as_loaded(loaded.model.dtype, loaded.codes)
        used = {name: windows[name] for name in config.calibrations}
        if not recorder.stopped():
            used |= evaluate(config, console, loaded, recorder, cache)
        config.verify()  # weights may be mapped from their files, texts are read late
        if not recorder.stopped():
            add_noise(recorder.record, config)
            if saving.kinds:
                with recorder.phase("save"):
                    recorder.record.saved = saving.finish(recorder.record)
        if config.save_tokens:
            save_tokens(config.directory / TOKENS, **used)
    console.finished(recorder.record)
    return recorder.record


def evaluate(
    config: Config, console: Display, loaded: LoadedModel, recorder: Recorder, cache: Cache
) -> dict[str, Tokens]:
    """Records what every evaluator measures; returns the tokens used, by corpus."""
    used: dict[str, Tokens] = {}
    context = evaluation_context(config, loaded.content_hash, console, cache)
    for evaluator in config.evaluators.values():
        with recorder.phase("evaluate"):
            try:
                measured = evaluator.evaluate(loaded.model, loaded.tokenizer, context)
            except ReferenceMissing as error:  # lost since the run began
                console.say(f"{error}: measuring it again", style="yellow")
                full_precision(config, console, cache)
                measured = evaluator.evaluate(loaded.model, loaded.tokenizer, context)
            recorder.evaluation(measured)
            used |= measured.tokens
    return used


def quantize(
    config: Config,
    console: Display,
    loaded: LoadedModel,
    windows: Mapping[str, Tokens],
    recorder: Recorder,
    cache: Cache,
    saving: Saving,
) -> None:
    """Walks through the stages: correct, quantise, put in place, measure, record.

    Stops early where a block's error says that the run is hopeless.
    """
    ready = prepared(config, loaded, windows, console, recorder)
    config, chosen = ready.config, ready.plan
    saving.linears = {one.name: one for one in chosen.linears}
    saving.recipes = {name: config.recipe(name) for name in saving.linears}
    every = config.checkpoint.every
    checkpoints = Checkpoints(config.directory, chosen, recorder, saving, console.say, every)
    with recorder.phase("load"):
        decided = checkpoints.resume()
    if decided:
        console.say(f"  goes on from block {len(recorder.blocks)}")
    if recorder.stopped():
        return
    left = [stage for stage in chosen.stages if stage.leader not in decided]
    reference = reference_outputs(config, loaded, chosen, ready.walked, cache)
    unpassed: dict[str, dict[str, Any]] = {}
    with (
        reference as outputs,
        Walk(
            loaded.model,
            chosen,
            ready.batches,
            ready.heldout,
            lambda one: ready.moments[one.index],
            decided,
            outputs,
            ready.own,
            ready.hold,
        ) as walk,
        closing(console.track(walk, "quantise", len(left))) as stages,
    ):
        while stage := next_stage(stages, recorder):
            corrected, quantized, rows = rounded(config, stage, recorder)
            unpassed |= rows
            with recorder.phase("walk"):
                passed = walk.advance({name: one.weight for name, one in quantized.items()})
            if isinstance(outputs, KnownOutputs):
                recorder.record.shared_flops = outputs.flops()
            record_passed(passed, unpassed, chosen, recorder)
            if recorder.stopped():
                return
            if saving.kinds:
                with recorder.phase("save"):
                    saving.passed(stage.stage, quantized, corrected)
            checkpoints.passed(stage.stage)
    recorder.record.metrics |= accumulation(recorder.blocks) | agreement(recorder.blocks)
    if chosen.mixtures:
        recorder.record.summary["starved"] = starved(recorder.layers)


def rounded(
    config: Config, stage: StageInputs, recorder: Recorder
) -> tuple[dict[str, Tensor], dict[str, Quantized], dict[str, dict[str, Any]]]:
    """Corrects a stage's linears and rounds them: W*, what becomes of it, and a row, by linear."""
    with naming(stage), doubting(), exact():
        with recorder.phase("correct"):
            given = fed(stage, config.experts.min_tokens)
            corrected = given.correct(config.qep, writers(config, stage.stage))
            targets = {name: one.weight for name, one in corrected.items()}
        with recorder.phase("quantise"):
            quantized = quantize_stage(
                recipes(config, stage.stage), targets, method_statistics(config, given.inputs)
            )
        with recorder.phase("errors"):
            rows = layer_rows(stage, corrected, quantized, given.fallback)
    return targets, quantized, rows


@contextmanager
def naming(stage: StageInputs) -> Iterator[None]:
    """Says which linear an indefinite Hessian, or a loss that is not finite, belongs to."""
    try:
        yield
    except (IndefiniteError, NonFiniteError) as error:
        raise type(error)(f"{stage.stage.leader}: {error}") from error


def next_stage(stages: Iterator[StageInputs], recorder: Recorder) -> StageInputs | None:
    """The next stage of the walk, its first stretch on the clock; None at the end."""
    with recorder.phase("walk"):
        return next(stages, None)


def origin(config: Config) -> dict[str, str]:
    """What a model knows of where it comes from, for the cards of its checkpoints."""
    found: dict[str, str] = getattr(config.model, "origin", dict)()
    return found


def set_determinism(seed: int, threads: int | None, precision: Products = "highest") -> None:
    """Seeds every generator that a run may use, sets torch's thread count and how CUDA multiplies."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    set_products(precision)
    if threads is not None:
        torch.set_num_threads(threads)
