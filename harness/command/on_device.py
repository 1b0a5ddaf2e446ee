"""What a run takes of a card: memory there and on the host, and time, from shapes and the card's data.

Memory on the card is the formula of :mod:`harness.walk.live`, or where that is more, the weights and an
evaluation's logits. Time is a bound from below: every operation at the speed that the card has for products
in its precision, or as long as its memory takes to be read where that is longer. A streamed model's blocks
are copied meanwhile, and count where they take longer; all else stands in a row:

    forwards     2 streams through all blocks, in the model's precision, and every block once more for each of
                 its stages, as far as that stage, where forwards wait before blocks
    statistics   H, C, D, in float32; each batch reads and writes them
    rounding     corrections, methods and errors, in float32
    copies       with hold=cpu, of what enters a block, which leaves the card once for a block, and comes back
                 for each of its stages and to run on; a streamed model's blocks, on their way back
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import get_args

import torch
from torch import Tensor
from transformers import PreTrainedModel

from harness.numerics.precision import working
from harness.planning import forward_flops, quantising_flops, stage_moments, walk_memory
from harness.settings.card import Card
from harness.settings.config import Config
from harness.walk.architecture import Plan
from harness.walk.holding import Hold
from harness.walk.limits import hidden_size, vocabulary
from harness.walk.live import ROOM, Memory
from harness.walk.probe import decoder_blocks

PROCESS = 0.6e9  # bytes of the interpreter with its libraries, before any model


COLUMNS = (*(f"GB {one}" for one in get_args(Hold)), "GB host", "time", "fits")


@dataclass(frozen=True)
class Taken:
    """What one way of running takes: bytes on the card and on the host, seconds, and whether it fits.

    ``hold`` is None where nothing walks, in a run that quantises nothing.
    """

    hold: Hold | None
    streaming: bool
    device: float
    host: float
    seconds: float
    fits: bool


def best(ways: Sequence[Taken]) -> Taken:
    """The first that fits, they are in the order of what they cost; the last where none does."""
    return next((one for one in ways if one.fits), ways[-1])


def cells(ways: Sequence[Taken], streamed: bool) -> list[str]:
    """What the best of some ways takes, by :data:`COLUMNS`; of the card by every way to hold.

    ``streamed`` if that is asked for already.
    """
    one = best(ways)
    held = {other.hold: other.device for other in ways if other.streaming == one.streaming}
    sizes = [f"{held[key] / 1e9:.1f}" if (key := None if None in held else hold) in held else "–"
             for hold in get_args(Hold)]  # fmt: skip
    words = ["model.streaming=true"] if one.streaming and not streamed else []
    words += [f"calibration.hold={one.hold}"] if one.hold else []
    fits = " ".join(words) or "yes"
    return [*sizes, f"{one.host / 1e9:.1f}", duration(one.seconds), fits if one.fits else "no"]


def duration(seconds: float) -> str:
    """Seconds as a person says them."""
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes, hours = seconds / 60, seconds / 3600
    return f"{minutes:.0f} min" if minutes < 100 else f"{hours:.1f} h"


@dataclass(frozen=True)
class Job:
    """A run, as far as shapes tell of it.

    Args:
        config: of the run.
        model: it may be without weights.
        chosen: what is quantised, if anything is.
        windows: token ids ``[windows, length]`` that calibrate, that are held out, and the method's own;
            their values are no matter.
        dtype: the model's precision.
    """

    config: Config
    model: PreTrainedModel
    chosen: Plan
    windows: tuple[Tensor, Tensor, Tensor]
    dtype: torch.dtype

    def ways(self, card: Card, more: float = 0.0) -> Iterator[Taken]:
        """As the run is configured, with every way to wait that it leaves open; then streamed too.

        Args:
            card: the device.
            more: operations in the model's precision beside quantising, those of an evaluation.
        """
        holds: Sequence[Hold | None] = [self.config.hold] if self.config.hold else get_args(Hold)
        holds = holds if self.config.quantizes else [None]
        for streaming in dict.fromkeys((self._memory.streaming, True)):
            memory = replace(self._memory, streaming=streaming)
            for hold in holds:
                yield self._way(memory, hold, card, more)

    def _way(self, memory: Memory, hold: Hold | None, card: Card, more: float) -> Taken:
        device: float = memory.weights + logits(self.config, self.model, self.dtype)
        seconds = more / card.speed(self.dtype, self.config.reduced)
        host = PROCESS + memory.weights  # while it loads; of a streamed one blocks on their way
        if hold is not None:
            device = max(device, memory.most(hold))
            computing = sum(self.seconds(memory, hold, card).values())
            coming = self._streamed / (card.link * 1e9) if memory.streaming else 0.0
            seconds += max(computing, coming)
            host += self._waiting(memory) if hold == "cpu" else 0
        fits = device - memory.resting <= ROOM * (card.bytes - memory.resting)
        return Taken(hold, memory.streaming, device, host, seconds, fits)

    def seconds(self, memory: Memory, hold: Hold, card: Card) -> dict[str, float]:
        """The time of every line of the module's table."""
        flops, batches = self._flops, memory.load.forwards
        again = 1 + (self._again if hold != "forwards" else 0.0)
        blocks = self._streamed
        copies = float(blocks) if memory.streaming else 0.0
        if hold == "cpu":
            tokens = memory.load.windows * memory.load.length
            entering = tokens * hidden_size(self.model) * self.dtype.itemsize
            copies += entering * (len(self.chosen.stages) + 2 * len(self.chosen.blocks))
        float32, bandwidth = card.speed(working(self.dtype)), card.bandwidth * 1e9
        return {
            "forwards": again
            * max(
                flops["forwards"] / card.speed(self.dtype, self.config.reduced),
                batches * blocks / bandwidth,
            ),
            "statistics": max(flops["statistics"] / float32, self._sums * batches / bandwidth),
            "rounding": flops["rounding"] / float32,
            "copies": copies / (card.link * 1e9),
        }

    def _waiting(self, memory: Memory) -> int:
        """Bytes of what enters a block, of all forwards."""
        return max(
            memory.at(one, "blocks").waiting - memory.at(one, "cpu").waiting
            for one in self.chosen.stages
        )

    @cached_property
    def _memory(self) -> Memory:
        moments = stage_moments(self.config, self.chosen)
        return walk_memory(self.config, self.model, self.chosen, moments, self.windows, self.dtype)

    @cached_property
    def _flops(self) -> Mapping[str, float]:
        """Operations of forwards, statistics and rounding."""
        tokens, heldout, own = self.windows
        shapes = (tokens.shape, heldout.numel(), own.shape)
        every = quantising_flops(self.config, self.model, self.chosen, *shapes)
        forwards = forward_flops(self.config, self.model, *shapes)
        walked = every["walk"] + every.get("allocate", 0.0)
        rounding = sum(every.values()) - walked
        return {"forwards": forwards, "statistics": walked - forwards, "rounding": rounding}

    @cached_property
    def _again(self) -> float:
        """How much of all blocks runs again as far as their stages, in the share of their linears."""
        numbers = [sum(one.shape[0] * one.shape[1] for one in stage.linears)
                   for stage in self.chosen.stages]  # fmt: skip
        before = sum(
            number
            for stage, number in zip(self.chosen.stages, numbers, strict=True)
            for other in self.chosen.stages
            if other.block == stage.block and other.index > stage.index
        )
        return before / sum(numbers)

    @cached_property
    def _sums(self) -> float:
        """Bytes that a batch reads and writes of all stages' moments."""
        size = working(self.dtype).itemsize
        return sum(
            2.0 * size * (1 + wanted.cross + wanted.gap) * stage.linears[0].shape[1] ** 2
            for stage, wanted in zip(
                self.chosen.stages, stage_moments(self.config, self.chosen), strict=True
            )
            if stage.source is None
        )

    @cached_property
    def _streamed(self) -> int:
        """Bytes of all blocks' parameters."""
        return self.dtype.itemsize * sum(
            one.numel()
            for block in decoder_blocks(self.model).values()
            for one in block.parameters()
        )


def logits(config: Config, model: PreTrainedModel, dtype: torch.dtype) -> float:
    """Bytes of an evaluation: logits, their logarithms, and both once more for the model compared with."""
    batches = [getattr(one, "batch_tokens", 0) for one in config.evaluators.values()]
    return 4.0 * working(dtype).itemsize * max(batches, default=0) * vocabulary(model)
