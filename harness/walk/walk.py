"""Two streams in lockstep: every linear's inputs from one forward per stream and batch.

The model's *own* forward runs on every calibration batch twice: in the *reference* stream with the
original weights and in the *quantised* stream with the weights decided so far. Each of these
forwards is a coroutine that stands still when it is about to enter a linear whose weight is not
decided yet. When all of them stand before the same stage, its statistics are complete:

    with Walk(model, plan, batches, heldout, moments) as walk:
        for stage in walk:                               # all streams stand before this stage
            ...decide the weights of stage.weights from stage.statistics...
            passed = walk.advance(quantized_weights)      # run to the next stage

Every block runs in the model's own forward, so masks, rotary embeddings, sliding windows and parallel
attention stay the model's own business. With hold=forwards no block runs twice in a stream; with the
others it runs again from its entry for each of its stages. A method may have batches of its own (AWQ's
search): they walk through the original model only. On the way the walk measures the total error of each
linear, ‖W X − V X̂‖²/T, from the outputs that both streams compute anyway, and the relative error of the
residual stream that leaves each block, ‖Y − Ŷ‖²/‖Y‖².

An expert of a mixture sees its own tokens alone, T of them, and both streams send it the same ones
(:mod:`harness.walk.routing`); an expert without any has sums of nothing, which are zeros.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor

from harness.numerics.device import doubt, doubting, there
from harness.numerics.finite import NonFiniteError, check_finite
from harness.numerics.precision import forwards
from harness.numerics.statistics import Accumulator, Statistics
from harness.walk.architecture import Linear, Plan, Stage
from harness.walk.forwards import Forwards, ReferenceOutputs
from harness.walk.holding import Hold, Parking
from harness.walk.measured import Kind, Measured
from harness.walk.routing import Agreement, Replaying
from harness.walk.streaming import resident
from harness.walk.streams import Lane, Lanes, Stream
from harness.walk.watching import evaluating

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Moments:
    """Which statistics a stage needs beyond H."""

    cross: bool = False
    gap: bool = False
    magnitude: bool = False
    residual: bool = False


@dataclass(frozen=True)
class StageInputs:
    """What is known when all streams stand before a stage.

    ``weights`` are the original W by linear name, ``[out, in]``; ``heldout`` are statistics
    of the held-out batches, None without any; ``own`` those of the method's own batches in the
    full-precision model, None without any. ``pool`` gives, of the first projection of an expert, all
    three of the tokens of the whole layer, by kind; it must be called while the streams stand there.
    """

    stage: Stage
    weights: dict[str, Tensor]
    statistics: Statistics
    heldout: Statistics | None
    own: Statistics | None
    pool: Callable[[], dict[Kind, Statistics]] | None = None


@dataclass(frozen=True)
class Passed:
    """What the streams passed on their way to the next stage: linears by name, blocks by index.

    ``routing`` has by block how the streams agreed on experts, by kind of tokens, where there are any.
    """

    linears: dict[str, Measured]
    blocks: dict[int, Measured]
    routing: dict[int, dict[Kind, Agreement]]


class Walk:
    """Walks all batches through the stages of a plan; see the module's docstring.

    On a CPU the batches are shared out to as many threads as torch may use.

    Args:
        model: the model with its original weights; afterwards it has the quantised ones.
        plan: what to quantise.
        batches: token ids ``[windows, length]`` that feed the statistics.
        heldout: token ids that only walk along and are measured.
        moments: which statistics a stage needs, by stage.
        decided: weights ``[out, in]`` of the first stages by linear name, from an earlier walk.
        outputs: the reference stream's outputs where they are known already.
        own: token ids for the method alone. They walk through the original model only, and give H
            and what ``magnitude`` asks for; the other batches then have no magnitude.
        hold: where forwards wait, see :mod:`harness.walk.holding`.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        plan: Plan,
        batches: Sequence[Tensor],
        heldout: Sequence[Tensor] = (),
        moments: Callable[[Stage], Moments] = lambda stage: Moments(),
        decided: Mapping[str, Tensor] | None = None,
        outputs: ReferenceOutputs | None = None,
        own: Sequence[Tensor] = (),
        hold: Hold = "forwards",
    ) -> None:
        self.hold = hold
        self._owned = frozenset(map(id, (*model.parameters(), *model.buffers())))
        self.model, self.plan, self.moments = model, plan, moments
        self._decided = decided or {}
        self._readers = Counter(stage.source for stage in plan.stages)  # of a stage's statistics
        self._kept: dict[int, dict[Kind, Statistics]] = {}
        given: dict[Kind, Sequence[Tensor]] = {
            "calibration": batches,
            "heldout": heldout,
            "own": own,
        }
        self._kinds = [kind for kind, some in given.items() if some]
        all_batches = [(kind, tokens) for kind, some in given.items() for tokens in some]
        streams = [
            self._streams(index, tokens, kind) for index, (kind, tokens) in enumerate(all_batches)
        ]
        threads = torch.get_num_threads() if model.device.type == "cpu" else 1
        self._lanes = Lanes(streams, threads, self._inside)
        self._forwards = Forwards(model, plan, self._lanes, outputs, hold)
        self._pooled: tuple[str, dict[Kind, Statistics]] | None = None  # of the last mixture
        self._waiting: StageInputs | None = None

    def _streams(self, batch: int, tokens: Tensor, kind: Kind) -> tuple[Stream, ...]:
        def run() -> object:
            ids = there(tokens, self.model.device)
            return self.model.base_model(input_ids=ids, use_cache=False)

        reference, quantized = (
            Stream(run, one, kind, batch, Parking(self._owned) if self.hold == "cpu" else None)
            for one in (True, False)
        )
        return (reference,) if kind == "own" else (reference, quantized)

    @contextmanager
    def _inside(self) -> Iterator[None]:
        """What every lane works in."""
        replaying: Any = nullcontext()
        if self.plan.mixtures:
            replaying = Replaying(lambda: self._lanes.current.choices())
        with forwards(self.model), replaying:
            yield

    def __enter__(self) -> Self:
        read = (one.stream for one in self.plan.stages if self.moments(one).residual)
        self._forwards.install(filter(None, read))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._lanes.close()
        self._forwards.remove()

    def __iter__(self) -> Iterator[StageInputs]:
        with doubting():
            self._arrive(0)
        for stage in self.plan.stages:
            if stage.leader in self._decided:
                with doubting():
                    self._pass(stage, {one.name: self._decided[one.name] for one in stage.linears})
                continue
            if self._waiting is None or self._waiting.stage is not stage:
                raise RuntimeError("advance() must be called before the next stage")
            yield self._waiting

    def advance(self, weights: Mapping[str, Tensor]) -> Passed:
        """Puts the decided ``weights [out, in]`` in place and runs all streams to the next stage."""
        assert self._waiting is not None
        with doubting():
            self._pass(self._waiting.stage, weights)
            measured, agreed = self._lanes.collect()
        linears = {key: one for key, one in measured.items() if isinstance(key, str)}
        blocks = {key: one for key, one in measured.items() if isinstance(key, int)}
        return Passed(linears, blocks, agreed)

    def _pass(self, stage: Stage, weights: Mapping[str, Tensor]) -> None:
        """Gives the quantised stream the weights and runs all streams to the next stage.

        Once both have passed, the original weights are not needed any more: those of the stage, or where
        blocks run again, those of the block.
        """
        self._forwards.decide(stage, weights)
        with resident(self.plan.blocks[stage.block]):
            self._arrive(stage.index + 1)
            self._forwards.exchange(stage)
        if self.hold == "forwards" or self._block_of(stage.index + 1) != stage.block:
            self._forwards.forget_originals()

    def _block_of(self, position: int) -> int | None:
        """The block of a stage, None at the end."""
        stages = self.plan.stages
        return stages[position].block if position < len(stages) else None

    def _arrive(self, position: int) -> None:
        """Runs all streams to a stage, or to their end, and makes its statistics."""
        block = self._block_of(position)
        if self.hold != "forwards" and (not position or self._block_of(position - 1) != block):
            self._run_to_block(block)
        if block is None:
            if self.hold == "forwards":
                self._run_lanes(None)
            self._waiting = None
            return
        stage = self.plan.stages[position]
        if stage.leader in self._decided:
            if self.hold == "forwards":
                self._run_lanes(stage)
            return
        if stage.source is not None:
            self._run_lanes(stage)
            found = self._kept[stage.source]
            self._readers[stage.source] -= 1
            if not self._readers[stage.source]:
                del self._kept[stage.source]
        else:
            found = self._gathered(stage)
        if self._readers[stage.index]:
            self._kept[stage.index] = found
        weights = {linear.name: linear.weight() for linear in stage.linears}
        for name, weight in weights.items():
            check_finite(f"the weight of {name}", weight)
        leading = stage.linears[0]
        pool = (lambda: self._pool(leading)) if leading.first else None
        self._waiting = StageInputs(
            stage, weights, found["calibration"], found.get("heldout"), found.get("own"), pool
        )

    def _pool(self, linear: Linear) -> dict[Kind, Statistics]:
        """Statistics of all tokens of the mixture among whose experts all streams stand."""
        assert linear.mixture is not None
        name = linear.mixture.name
        if self._pooled is None or self._pooled[0] != name:
            stage = next(one for one in self.plan.stages if linear in one.linears)
            self._pooled = name, self._summed(stage, lambda sums: self._gather(stage, sums))
        return self._pooled[1]

    def _gather(self, stage: Stage, sums: Sequence[Mapping[Kind, Accumulator]]) -> None:
        """Adds all tokens of the mixture among whose experts the streams stand, or stand again."""
        if self.hold == "forwards":
            self._lanes.each(lambda i, lane: lane.gather(sums[i]))
            return
        leader, kept = stage.leader, self._kept_streams(stage)

        def again(i: int, lane: Lane) -> None:
            lane.replay(leader, lambda streams: lane.add_pool(streams, sums[i]), kept)

        with evaluating(self.model):
            self._lanes.each(again)

    def _gathered(self, stage: Stage) -> dict[Kind, Statistics]:
        """Runs all streams to ``stage`` and sums what enters it, by kind of tokens."""
        return self._summed(stage, lambda sums: self._run_lanes(stage, sums))

    def _summed(
        self, stage: Stage, add: Callable[[Sequence[Mapping[Kind, Accumulator]]], None]
    ) -> dict[Kind, Statistics]:
        """The statistics that ``stage`` needs of what ``add`` adds to the sums of every lane."""
        sums = [
            {kind: self._accumulator(stage, kind) for kind in self._kinds}
            for _ in self._lanes.lanes
        ]
        add(sums)
        whole, *others = sums
        for other in others:
            for kind, mine in whole.items():
                mine.merge(other[kind])
        for kind in whole.keys() - {"heldout"}:
            doubt(
                ~whole[kind].hessian.diagonal().sum().isfinite(),
                lambda: NonFiniteError(f"activations that enter {stage.leader} are not finite"),
            )
        return {kind: one.mean() for kind, one in whole.items()}

    def _accumulator(self, stage: Stage, kind: Kind) -> Accumulator:
        wanted = self.moments(stage)
        if kind == "own":
            wanted = Moments(magnitude=wanted.magnitude)
        elif "own" in self._kinds:
            wanted = replace(wanted, magnitude=False)
        writers = [one.shape[0] for one in stage.linears if one.name in stage.writers]
        return Accumulator(
            stage.linears[0].shape[1],
            cross=wanted.cross,
            gap=wanted.gap,
            magnitude=wanted.magnitude,
            residual=writers[0] if wanted.residual else 0,
            device=self.model.device,
            dtype=stage.linears[0].precision,
        )

    def _run_lanes(
        self,
        stage: Stage | None,
        sums: Sequence[Mapping[Kind, Accumulator]] | None = None,
    ) -> None:
        """Runs all streams to ``stage``, to their end if None, and adds what enters it to ``sums``."""
        leader = stage.leader if stage else None
        kept = self._kept_streams(stage)
        reader = stage.stream if stage and self.moments(stage).residual else None

        def run(i: int, lane: Lane) -> None:
            mine = sums[i] if sums else {}
            if self.hold == "forwards":
                lane.run_until(leader, mine, reader, kept)
            elif leader is not None:
                add = lane.add_inputs(mine, reader) if mine else lambda streams: None
                lane.replay(leader, add, kept)

        with evaluating(self.model):
            self._lanes.each(run)
        self._forwards.all_passed()

    def _kept_streams(self, stage: Stage | None) -> frozenset[str]:
        """The modules whose residual stream later stages want; a block that runs again reads it again."""
        later = self.plan.stages[stage.index + 1 :] if stage else ()
        kept = frozenset(one.stream for one in later if one.stream)
        return kept if self.hold == "forwards" else kept & frozenset(self.plan.block_names)

    def _run_to_block(self, index: int | None) -> None:
        """Runs all streams until they stand before a block, to their end if None."""
        name = self._forwards.before = None if index is None else self.plan.block_names[index]
        with evaluating(self.model):
            self._lanes.each(lambda i, lane: lane.run_to_block(name))
        self._forwards.all_passed()
