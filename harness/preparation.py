"""What a run settles before it quantises: the tokens as batches, the plan, where forwards wait, the bits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor
from transformers import PreTrainedModel

from harness.budget import chosen_bits
from harness.display import Display
from harness.inputs.batches import split_windows
from harness.inputs.corpora import Tokens
from harness.inputs.models import LoadedModel
from harness.numerics.device import free_memory
from harness.planning import (
    check_axes,
    check_codes,
    check_save,
    planned,
    quantising_flops,
    stage_moments,
    walk_memory,
)
from harness.records.recorder import Recorder
from harness.records.unquantized import parameters, unquantized, words
from harness.settings.config import Config
from harness.walk.architecture import Plan
from harness.walk.holding import Hold
from harness.walk.live import waiting
from harness.walk.walk import Moments


@dataclass(frozen=True)
class Prepared:
    """What the walk of a run needs.

    Args:
        config: the run, with the bits that were chosen where there is a budget.
        plan: its stages.
        batches: calibration tokens ``[windows, length]`` each.
        heldout: those that feed no statistic.
        own: those of a corpus that only the method sees.
        moments: what each stage accumulates.
        hold: where forwards wait.
    """

    config: Config
    plan: Plan
    batches: Sequence[Tensor]
    heldout: Sequence[Tensor]
    own: Sequence[Tensor]
    moments: Sequence[Moments]
    hold: Hold

    @property
    def walked(self) -> list[Tensor]:
        """All batches, in the order in which the original model sees them."""
        return [*self.batches, *self.heldout, *self.own]


def prepared(
    config: Config,
    loaded: LoadedModel,
    windows: Mapping[str, Tokens],
    console: Display,
    recorder: Recorder,
) -> Prepared:
    """Checks that the run fits the model, records what is known of it, and chooses what is left open.

    Raises:
        ConfigError: the axes, what is to be saved, or the checkpoint do not allow it; one line.
    """
    model, record = loaded.model, recorder.record
    tokens, *others = (windows[name] for name in config.calibrations)
    own = others[0].ids if others else tokens.ids[:0]
    record.hashes |= {name: windows[name].hash for name in config.calibrations}
    with recorder.phase("plan"):
        chosen = planned(config, model)
        check_codes(config)
        check_axes(config, model, chosen)
        check_save(config, model, loaded.tokenizer, chosen)
    recorder.leaves(unquantized(model, chosen), parameters(model), model.dtype)
    for line in words(chosen):
        console.say(f"  ! {line}", style="yellow")
    record.flops |= quantising_flops(
        config, model, chosen, tokens.ids.shape, tokens.heldout.numel(), own.shape
    )
    hold = _hold(config, model, chosen, (tokens.ids, tokens.heldout, own), console)
    record.summary["hold"] = hold
    if config.budgeted:
        with recorder.phase("allocate"):
            bits = chosen_bits(config, model, chosen, tokens.ids, console, hold)
        config = replace(config, axes=replace(config.axes, chosen=bits))
    record.summary["calibration_tokens"] = tokens.ids.numel()
    record.summary["heldout_tokens"] = tokens.heldout.numel()
    if others:
        record.summary["own_tokens"] = own.numel()
    batches, heldout, own_batches = (
        split_windows(ids, config.batch_tokens, config.noise.seed)
        for ids in (tokens.ids, tokens.heldout, own)
    )
    moments = stage_moments(config, chosen)  # of the bits that were chosen
    return Prepared(config, chosen, batches, heldout, own_batches, moments, hold)


def _hold(
    config: Config,
    model: PreTrainedModel,
    chosen: Plan,
    ids: tuple[Tensor, Tensor, Tensor],
    console: Display,
) -> Hold:
    """Where forwards wait: as is said, or as the device's free memory allows; says so where they do."""
    memory = walk_memory(config, model, chosen, stage_moments(config, chosen), ids, model.dtype)
    hold = config.hold or memory.fitting(free_memory(model.device))
    for line in waiting(memory, hold, model.device):
        console.say(f"  {line}")
    return hold
