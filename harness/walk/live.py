"""What tensors a walk holds on its device when all forwards wait at a stage: one formula, in bytes.

Of a decoder as Llama's code runs it, of width d, with q, k and v of d + 2 kv columns and an MLP of ff, every
token of a stream holds so many numbers, in the model's precision:

    waiting        q/k/v         o              gate/up       down
    forwards       3 d           5 d + 2 kv     4 d           4 d + ff
    blocks         2 d           2 d            2 d           2 d
    cpu            0             0              0             0

The embeddings, which the model's own code keeps, are one d of each, what has entered the block another (in
the first block they are the same). Beside that there are

- 8 bytes a token for its id, and for each batch the tables of its positions: 2 · head_dim numbers and 8
  bytes a position, where they do not wait on the host;
- with eager attention a mask of each window, a number for each pair of positions; and where forwards stand
  inside of a block behind q/k/v, the attention's weights of each window, as many for every head;
- the weights, of a streamed model two blocks and what is no block; with ``blocks`` and ``cpu`` the original
  weights of the stages of the block that are decided already;
- the moments of the stage in float32: H, C and D where they are asked for, H of the method's own tokens,
  each of held-out tokens too; the same of an earlier stage of the block that read what a later one reads
  again (parallel attention); and the stage's weights in float32 if the model has less.

That is exact for Llama, Qwen and their kin, and within 5 % for Mistral, Falcon and GPT-NeoX (a fused q, k, v
is held as a whole); other families hold somewhat more or less of the first table.

What correcting and rounding a stage of r rows and c columns takes for a while is no more than
4 c² + 6 r c numbers in float32, and 6 for each weight of the 128 columns that are rounded together, for RTN,
GPTQ and QuantEase with QEP; the search of range=mse takes up to 15 r c where its kernel does not run, and QQA
36 r c. What a batch takes while it runs through a block is bounded by 8 (d + ff) numbers a token, half of
them in float32.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, get_args

import torch

from harness.walk.architecture import Plan, Stage
from harness.walk.holding import Hold
from harness.walk.limits import hidden_size
from harness.walk.probe import decoder_blocks
from harness.walk.walk import Moments

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ROOM = 0.9  # of free memory: a forward takes some inside of a block, and the allocator loses some
TOGETHER = 128  # columns that methods round before they touch those on the right
ID = 8  # bytes of a token's id, or of a position


@dataclass(frozen=True)
class Load:
    """What walks through a model.

    Args:
        calibration: windows.
        heldout: windows.
        own: windows of the method's own, which walk through one stream.
        length: tokens of a window.
        batch: windows in one forward.
    """

    calibration: int
    heldout: int = 0
    own: int = 0
    length: int = 2048
    batch: int = 1

    @property
    def windows(self) -> int:
        """Windows in all streams."""
        return 2 * (self.calibration + self.heldout) + self.own

    @property
    def batches(self) -> int:
        """Of all kinds of tokens."""
        return (
            self._batches(self.calibration) + self._batches(self.heldout) + self._batches(self.own)
        )

    @property
    def forwards(self) -> int:
        """Batches in all streams."""
        return 2 * self.batches - self._batches(self.own)

    def _batches(self, windows: int) -> int:
        return -(-windows // self.batch)


@dataclass(frozen=True)
class Live:
    """Bytes on the device at a stage, by what they are of.

    Args:
        weights: the model's.
        waiting: what forwards hold.
        attention: what eager attention adds to that.
        originals: weights of decided stages that are kept for running their block again.
        stage: moments and weights of the stage.
    """

    weights: int
    waiting: int
    attention: int
    originals: int
    stage: int

    @property
    def total(self) -> int:
        """All of them."""
        return self.weights + self.waiting + self.attention + self.originals + self.stage


@dataclass(frozen=True)
class Memory:
    """The formula for one model and what walks through it; see the module's docstring.

    Args:
        model: it may be without weights, on the meta device.
        plan: what is quantised.
        moments: what each stage sums, in their order.
        load: what walks.
        dtype: the model's precision.
        streaming: whether blocks come and go.
    """

    model: PreTrainedModel
    plan: Plan
    moments: Sequence[Moments]
    load: Load
    dtype: torch.dtype
    streaming: bool = False

    def at(self, stage: Stage, hold: Hold) -> Live:
        """What is held when all forwards wait at ``stage``."""
        return Live(
            self.weights,
            self._waiting(stage, hold),
            self._attention(stage, hold),
            0 if hold == "forwards" else self._originals(stage),
            self._stage(stage),
        )

    def most(self, hold: Hold) -> int:
        """The most bytes that are held at once: at a stage, and while it is worked on."""
        return max(self.at(one, hold).total + self.working(one) for one in self.plan.stages)

    def fitting(self, free: int | None) -> Hold:
        """How forwards should wait where ``free`` bytes are left beside what rests; None is no bound.

        The first that takes no more than nine tenths of them; ``cpu`` where none does.
        """
        if free is None:
            return "forwards"
        holds: tuple[Hold, ...] = get_args(Hold)
        fits = [one for one in holds if self.most(one) - self.resting <= ROOM * free]
        return fits[0] if fits else holds[-1]

    def working(self, stage: Stage) -> int:
        """What correcting and rounding a stage takes for a while, or a batch inside of a block, at most."""
        columns = stage.linears[0].shape[1]
        rows = sum(one.shape[0] for one in stage.linears)
        size = torch.promote_types(self.dtype, torch.float32).itemsize
        return max(passing(rows, columns, size), self._inside)

    @cached_property
    def _inside(self) -> int:
        """Of one batch in both streams, which run through a block, and of what is measured of it."""
        widest = max(max(one.shape) for one in self.plan.linears)
        tokens = 2 * self.load.batch * self.load.length
        found = tokens * (self.dtype.itemsize + 4) * 4 * (hidden_size(self.model) + widest)
        if eager(self.model):
            found += tokens * self.load.length * heads_of(self.model) * (self.dtype.itemsize + 8)
        return found

    @cached_property
    def weights(self) -> int:
        """Of the model; of a streamed one two blocks and what is no block."""
        return self._present(2 if self.streaming else None)

    @property
    def resting(self) -> int:
        """Of the weights those that are there before anything walks; of a streamed model's no block is."""
        return self._present(0 if self.streaming else None)

    def _present(self, blocks: int | None) -> int:
        buffers = sum(one.numel() * one.itemsize for one in self.model.buffers())
        return present(self.model, blocks) * self.dtype.itemsize + buffers

    def numbers(self, stage: Stage, hold: Hold) -> int:
        """Of every token in a stream, see the table."""
        width = hidden_size(self.model)
        if hold == "cpu":
            return 0
        entered = width * (1 if stage.block == 0 else 2)
        if hold == "blocks":
            return entered
        before = self._before(stage)
        attended = any(map(self._writes, before))  # its sum with the stream is held
        columns = stage.linears[0].shape[1]
        between = 0
        if before and self._writes(stage):
            between = before[-1].linears[0].shape[1]
            if not attended:
                between += self._heads(before[-1], width)
        return entered + attended * width + columns + between

    def _heads(self, stage: Stage, width: int) -> int:
        """Numbers of q, k and v; v of a fused projection is a part of its output, which is held whole."""
        rows = [one.shape[0] for one in stage.linears]
        return sum(rows) if len(rows) > 1 else rows[0] + width + (rows[0] - width) // 2

    def _writes(self, stage: Stage) -> bool:
        """Whether a stage ends the attention or the MLP: one linear into the stream, not a block's first."""
        alone = len(stage.linears) == 1 and bool(self._before(stage))
        return alone and stage.linears[0].shape[0] == hidden_size(self.model)

    def _before(self, stage: Stage) -> list[Stage]:
        """The earlier stages of its block."""
        return [one for one in self._blocks[stage.block] if one.index < stage.index]

    @cached_property
    def _blocks(self) -> dict[int, list[Stage]]:
        found: dict[int, list[Stage]] = {}
        for one in self.plan.stages:
            found.setdefault(one.block, []).append(one)
        return found

    def _waiting(self, stage: Stage, hold: Hold) -> int:
        tokens = self.load.windows * self.load.length
        found = tokens * (ID + self.dtype.itemsize * self.numbers(stage, hold))
        if hold == "cpu":
            return found
        config = self.model.config.get_text_config(decoder=True)
        heads = getattr(config, "num_attention_heads", 0)
        size = getattr(config, "head_dim", None) or (
            hidden_size(self.model) // heads if heads else 0
        )
        tables = self.load.length * (2 * size * self.dtype.itemsize + ID)
        return found + self.load.forwards * tables

    def _attention(self, stage: Stage, hold: Hold) -> int:
        """Masks of all windows, and in front of all but a block's first stage the weights as well."""
        if not eager(self.model) or hold == "cpu":
            return 0
        pairs = self.load.windows * self.load.length**2 * self.dtype.itemsize
        inside = hold == "forwards" and bool(self._before(stage))
        return pairs * (1 + heads_of(self.model) * inside)

    def _originals(self, stage: Stage) -> int:
        numbers = sum(
            linear.shape[0] * linear.shape[1]
            for one in self._before(stage)
            for linear in one.linears
        )
        return numbers * self.dtype.itemsize

    def _kept(self, stage: Stage) -> int:
        """Numbers of the moments of earlier stages that a later one reads again."""
        later = {one.source for one in self._blocks[stage.block] if one.index > stage.index}
        sources = [self.plan.stages[one] for one in later if one is not None and one < stage.index]
        return sum(
            (1 + self.moments[one.index].cross + self.moments[one.index].gap)
            * one.linears[0].shape[1] ** 2
            for one in sources
            if one.index != stage.source
        )

    @property
    def _kinds(self) -> int:
        """Of tokens that walk in both streams."""
        return 1 + bool(self.load.heldout)

    def sums(self, stage: Stage) -> int:
        """Numbers of the moments of a stage, of all kinds of tokens."""
        wanted, (rows, columns) = self.moments[stage.index], stage.linears[0].shape
        squares = self._kinds * (1 + wanted.cross + wanted.gap) + bool(self.load.own)
        return squares * columns**2 + self._kinds * wanted.residual * rows * columns

    def _stage(self, stage: Stage) -> int:
        columns = stage.linears[0].shape[1]
        size = torch.promote_types(self.dtype, torch.float32).itemsize
        numbers = self.sums(stage) + self._kinds * self._kept(stage)
        if size != self.dtype.itemsize:
            numbers += columns * sum(one.shape[0] for one in stage.linears)
        return numbers * size


def present(model: PreTrainedModel, blocks: int | None = None) -> int:
    """How many weights there are, with ``blocks`` only of so many decoder blocks, the largest."""
    total = sum(one.numel() for one in model.parameters())
    if blocks is None:
        return total
    sizes = [
        sum(one.numel() for one in block.parameters()) for block in decoder_blocks(model).values()
    ]
    return total - sum(sizes) + blocks * max(sizes)


def passing(rows: int, columns: int, size: int) -> int:
    """Bytes that correcting and rounding takes for a while at most, of numbers of ``size`` bytes."""
    return size * (4 * columns**2 + 6 * rows * (columns + min(columns, TOGETHER)))


def waiting(memory: Memory, hold: Hold, device: torch.device) -> Iterator[str]:
    """What a person has to know of how forwards wait, one line each; nothing of the ordinary on a CPU."""
    if device.type == "cpu" and hold == "forwards":
        return
    others = {one: memory.most(one) for one in get_args(Hold)}
    size = ", ".join(f"{one} {bytes_ / 1e9:.3g} GB" for one, bytes_ in others.items())
    yield f"calibration.hold={hold} (the walk takes, with the weights: {size})"
    if eager(memory.model):
        load = memory.load
        pairs = load.windows * load.length**2 * memory.dtype.itemsize
        cost = pairs * (1 + heads_of(memory.model))
        yield (
            f"attention is eager: it makes a number for each head and pair of positions, "
            f"{cost / 1e9:.3g} GB of all windows with hold=forwards; sdpa makes none"
        )


def heads_of(model: PreTrainedModel) -> int:
    """How many heads the attention has."""
    return int(getattr(model.config.get_text_config(decoder=True), "num_attention_heads", 1))


def eager(model: PreTrainedModel) -> bool:
    """Whether the model's attention keeps a weight for each pair of positions."""
    return getattr(model.config, "_attn_implementation", None) == "eager"
