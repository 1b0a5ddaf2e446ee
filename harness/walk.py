"""Two streams in lockstep: every linear's inputs from one forward per stream and batch.

The model's *own* forward runs on every calibration batch twice: in the *reference* stream with the
original weights and in the *quantised* stream with the weights decided so far. Each of these
forwards is a coroutine (greenlet) that stands still when it is about to enter a linear whose weight
is not decided yet. When all of them stand before the same stage, its statistics are complete:

    with Walk(model, plan, batches, heldout, moments) as walk:
        for stage in walk:                               # all streams stand before this stage
            ...decide the weights of stage.weights from stage.statistics...
            passed = walk.advance(quantized_weights)      # run to the next stage

No decoder block runs twice in a stream, so masks, rotary embeddings, sliding windows and parallel
attention stay the model's own business. On the way the walk measures the total error of each
linear, ‖W X − V X̂‖²/T, from the outputs that both streams compute anyway, and the relative error
of the residual stream that leaves each block, ‖Y − Ŷ‖²/‖Y‖².
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import greenlet
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from harness.architecture import Plan, Stage, evaluating, first_tensor
from harness.statistics import Accumulator, Statistics


class NonFiniteError(ArithmeticError):
    """Activations that are not finite; the message names the linear or block."""


@dataclass(frozen=True)
class Moments:
    """Which statistics a stage needs beyond H."""

    cross: bool = False
    gap: bool = False
    magnitude: bool = False


@dataclass(frozen=True)
class StageInputs:
    """What is known when all streams stand before a stage.

    ``weights`` are the original W by linear name, float32 ``[out, in]``; ``heldout`` are statistics
    of the held-out batches, None without any.
    """

    stage: Stage
    weights: dict[str, Tensor]
    statistics: Statistics
    heldout: Statistics | None


@dataclass
class OutputError:
    """Sums over tokens: ‖y − ŷ‖² and ‖y‖² of a linear (without bias) or of a block."""

    error: float = 0.0
    signal: float = 0.0
    tokens: int = 0

    def add(
        self, reference: Tensor, quantized: Tensor, bias: Tensor | None, scratch: Tensor
    ) -> None:
        """Adds a batch of outputs ``[..., out]``; ``scratch`` has the same shape."""
        self.error += squared_norm(torch.sub(reference, quantized, out=scratch))
        if bias is not None:
            reference = torch.sub(reference, bias, out=scratch)
        self.signal += squared_norm(reference)
        self.tokens += reference.numel() // reference.shape[-1]

    @property
    def relative(self) -> float:
        """‖y − ŷ‖² / ‖y‖²."""
        return self.error / self.signal if self.signal else float("nan")


@dataclass
class Measured:
    """An output error on calibration tokens and on held-out tokens."""

    calibration: OutputError = field(default_factory=OutputError)
    heldout: OutputError = field(default_factory=OutputError)


@dataclass(frozen=True)
class Passed:
    """What the streams passed on their way to the next stage: linears by name, blocks by index."""

    linears: dict[str, Measured]
    blocks: dict[int, Measured]


@dataclass
class _Stream:
    """One forward of one batch in one of the two streams."""

    run: Callable[[], object]
    reference: bool
    heldout: bool
    coroutine: Any = None
    inputs: Tensor | None = None
    before: str | None = None


def squared_norm(values: Tensor) -> float:
    """‖values‖² with float32 products; the sums over batches are float64."""
    flat = values.float().reshape(-1)
    return torch.dot(flat, flat).item()


class Walk:
    """Walks all batches through the stages of a plan; see the module's docstring.

    Args:
        model: the model with its original weights; afterwards it has the quantised ones.
        plan: what to quantise.
        batches: token ids ``[windows, length]`` that feed the statistics.
        heldout: token ids that only walk along and are measured.
        moments: which statistics a stage needs, by stage.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        plan: Plan,
        batches: Sequence[Tensor],
        heldout: Sequence[Tensor] = (),
        moments: Callable[[Stage], Moments] = lambda stage: Moments(),
    ) -> None:
        self.model, self.plan, self.moments = model, plan, moments
        self._linears = {linear.name: linear for linear in plan.linears}
        self._leaders = {stage.leader: stage for stage in plan.stages}
        self._sources = {stage.source for stage in plan.stages}
        self._kept: dict[int, tuple[Statistics, Statistics | None]] = {}
        self._original: dict[str, Tensor] = {}
        self._quantized: dict[str, Tensor] = {}
        self._pending: dict[str | int, Tensor] = {}
        self._passed = Passed({}, {})
        self._buffer = torch.empty(0)
        self._position = 0
        self._undo: list[Callable[[], None]] = []
        self._hub: Any = None
        self._running: _Stream | None = None
        self._pairs = [
            (self._stream(tokens, True, held), self._stream(tokens, False, held))
            for held, group in ((False, batches), (True, heldout))
            for tokens in group
        ]

    def _stream(self, tokens: Tensor, reference: bool, heldout: bool) -> _Stream:
        def run() -> object:
            return self.model.base_model(input_ids=tokens.to(self.model.device), use_cache=False)

        return _Stream(run, reference, heldout)

    def __enter__(self) -> Self:
        for name, linear in self._linears.items():
            self._original[name] = linear.parameter.data
            self._patch(linear.module, self._linear_forward(name, linear.module))
        for index, block in enumerate(self.plan.blocks):
            self._patch(block, self._block_forward(index, block))
        return self

    def _patch(self, module: nn.Module, forward: Callable[..., Any]) -> None:
        module.forward = forward
        self._undo.append(lambda: module.__dict__.pop("forward", None) and None)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for undo in self._undo:
            undo()
        for pair in self._pairs:
            for stream in pair:
                if stream.coroutine is not None and not stream.coroutine.dead:
                    stream.coroutine.throw(greenlet.GreenletExit)
        for name, weight in (self._original | self._quantized).items():
            self._linears[name].module.weight.data = weight

    def __iter__(self) -> Iterator[StageInputs]:
        for position, stage in enumerate(self.plan.stages):
            if position == 0:
                statistics, heldout = self._run_to(stage)
            else:
                if self._position != position:
                    raise RuntimeError("advance() must be called before the next stage")
                statistics, heldout = self._arrived
            weights = {linear.name: self._weight(linear.name) for linear in stage.linears}
            yield StageInputs(stage, weights, statistics, heldout)

    def _weight(self, name: str) -> Tensor:
        linear, stored = self._linears[name], self._original[name]
        return (stored.T if linear.transposed else stored).float()

    def advance(self, weights: Mapping[str, Tensor]) -> Passed:
        """Puts the decided ``weights [out, in]`` in place and runs all streams to the next stage."""
        stage = self.plan.stages[self._position]
        for linear in stage.linears:
            self._quantized[linear.name] = linear.stored(weights[linear.name])
        self._position += 1
        following = (
            self.plan.stages[self._position] if self._position < len(self.plan.stages) else None
        )
        if following is None:
            self._resume_all(None, None)
        else:
            self._arrived = self._run_to(following)
        for linear in stage.linears:
            linear.module.weight.data = self._quantized[linear.name]
            del self._original[linear.name]
        passed, self._passed = self._passed, Passed({}, {})
        return passed

    def _run_to(self, stage: Stage) -> tuple[Statistics, Statistics | None]:
        if stage.source is not None:
            self._resume_all(stage, None)
            return self._kept[stage.source]
        wanted = self.moments(stage)
        columns = stage.linears[0].shape[1]
        sums = [
            Accumulator(
                columns,
                cross=wanted.cross,
                gap=wanted.gap,
                magnitude=wanted.magnitude,
                device=self.model.device,
            )
            for _ in range(2)
        ]
        self._resume_all(stage, sums)
        if not torch.isfinite(sums[0].hessian.diagonal().sum()):
            raise NonFiniteError(f"activations that enter {stage.leader} are not finite")
        arrived = (sums[0].mean(), sums[1].mean() if sums[1].tokens else None)
        if stage.index in self._sources:
            self._kept[stage.index] = arrived
        return arrived

    def _resume_all(self, stage: Stage | None, sums: list[Accumulator] | None) -> None:
        """Runs every stream to ``stage`` (to its end if None), batch by batch, and sums statistics."""
        with torch.inference_mode(), evaluating(self.model):
            for reference, quantized in self._pairs:
                for stream in (reference, quantized):
                    self._resume(stream, stage)
                if sums is not None:
                    assert quantized.inputs is not None
                    sums[quantized.heldout].add(quantized.inputs, reference.inputs)

    def _resume(self, stream: _Stream, stage: Stage | None) -> None:
        if stream.coroutine is None:
            stream.coroutine = greenlet.greenlet(stream.run)
        self._hub, self._running = greenlet.getcurrent(), stream
        stream.inputs = stream.before = None
        stream.coroutine.switch()
        expected = None if stage is None else stage.leader
        if stream.before != expected:
            where = stream.before or "the end of the model"
            raise RuntimeError(
                f"a forward stands before {where}, not before {expected}: its path depends on data"
            )

    def _linear_forward(self, name: str, module: nn.Module) -> Callable[[Tensor], Tensor]:
        original = module.forward
        bias = getattr(module, "bias", None)

        def forward(inputs: Tensor) -> Tensor:
            stream = self._running
            assert stream is not None
            if name in self._leaders:
                stream.inputs, stream.before = inputs, name
                self._hub.switch()
            module.weight.data = (
                self._original[name] if stream.reference else self._quantized[name]
            )
            output: Tensor = original(inputs)
            self._measure(self._passed.linears, name, stream, output, bias)
            return output

        return forward

    def _block_forward(self, index: int, block: nn.Module) -> Callable[..., Any]:
        original = block.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            output = original(*args, **kwargs)
            stream = self._running
            assert stream is not None
            self._measure(self._passed.blocks, index, stream, first_tensor(output), None)
            return output

        return forward

    def _measure(
        self,
        into: dict[Any, Measured],
        key: str | int,
        stream: _Stream,
        output: Tensor,
        bias: Tensor | None,
    ) -> None:
        """Keeps the reference output until the quantised stream of the same batch brings its own."""
        if stream.reference:
            changes = self._label(key) in self.plan.overwritten
            self._pending[key] = output.clone() if changes else output
            return
        measured = into.setdefault(key, Measured())
        side = measured.heldout if stream.heldout else measured.calibration
        side.add(self._pending.pop(key), output, bias, self._scratch(output))
        if not side.error < float("inf"):
            raise NonFiniteError(f"activations that leave {self._label(key)} are not finite")

    def _scratch(self, like: Tensor) -> Tensor:
        """A buffer in the shape of ``like``, kept between calls: fresh pages cost more than the sum."""
        if self._buffer.numel() < like.numel() or self._buffer.dtype != like.dtype:
            self._buffer = torch.empty(like.numel(), dtype=like.dtype, device=like.device)
        return self._buffer[: like.numel()].view(like.shape)

    def _label(self, key: str | int) -> str:
        return key if isinstance(key, str) else self.plan.block_names[key]
