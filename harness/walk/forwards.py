"""The forwards of a model's modules while a walk runs through it.

A linear stands still before its input is used while its weight is undecided, computes with W in the
reference stream and with V in the quantised one, and has its output measured; a mixture's experts compute
with the tokens that are their own in both streams; a block is measured, and waited before where blocks run
again. All is as it was once :meth:`Forwards.remove` has been called.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor, nn

from harness.walk.architecture import Linear, Mixture, Plan, Stage
from harness.walk.holding import Entry, Hold
from harness.walk.residual import streamed
from harness.walk.streams import Lanes
from harness.walk.watching import first_tensor

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class ReferenceOutputs(Protocol):
    """The outputs of the original linears from an earlier walk over the same batches."""

    def output(
        self, batch: int, linear: Linear, inputs: Tensor, compute: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """``compute(inputs)``, or what it was then; calls of a batch come in the model's order."""
        ...


class Forwards:
    """What is decided of a plan's linears, and the forwards that go by it.

    Args:
        model: the model.
        plan: what is quantised.
        lanes: the streams that run through it.
        outputs: the reference stream's outputs where they are known already.
        hold: where forwards wait.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        plan: Plan,
        lanes: Lanes,
        outputs: ReferenceOutputs | None,
        hold: Hold,
    ) -> None:
        self.model, self.plan, self.hold = model, plan, hold
        self.before: str | None = None  # the block before which forwards wait
        self._lanes, self._outputs = lanes, outputs
        self._undecided = {stage.leader for stage in plan.stages}
        self._unmeasured: set[str] = set()  # linears that are decided
        self._exchanged: set[str] = set()  # linears that hold V while their twin holds W
        self._linears = {linear.name: linear for linear in plan.linears}
        self._twins = {linear.name: _twin(linear.module) for linear in plan.linears}
        self._undo: list[Callable[[], None]] = []

    def install(self, read: Iterable[str]) -> None:
        """Gives all modules their forwards; the residual stream is kept that the modules ``read`` read."""
        for linear in self.plan.linears:
            self._patch(linear.module, self._linear_forward(linear))
        for index, block in enumerate(self.plan.blocks):
            self._patch(block, self._block_forward(index, block))
        for mixture in self.plan.mixtures:
            self._patch(mixture.router, self._router_forward(mixture))
            self._patch(mixture.module, self._experts_forward(mixture))
        for name in dict.fromkeys(read):
            tap = self.model.get_submodule(name).register_forward_pre_hook(
                self._tap(name), with_kwargs=True
            )
            self._undo.append(tap.remove)

    def remove(self) -> None:
        """Gives all modules their own forwards back."""
        for undo in self._undo:
            undo()

    def decide(self, stage: Stage, weights: Mapping[str, Tensor]) -> None:
        """From here on the quantised stream computes with ``weights [out, in]``."""
        for linear in stage.linears:
            stored = linear.stored(weights[linear.name])
            self._twins[linear.name].weight = nn.Parameter(stored, requires_grad=False)
            self._unmeasured.add(linear.name)
        self._undecided.discard(stage.leader)

    def exchange(self, stage: Stage) -> None:
        """The model's own linears hold the decided weights, their twins the original ones."""
        for linear in stage.linears:
            twin = self._twins[linear.name]
            original, decided = linear.parameter.data, twin.weight.data
            twin.weight = nn.Parameter(original, requires_grad=False)
            linear.parameter.data = decided  # type: ignore[assignment]
            self._exchanged.add(linear.name)

    def forget_originals(self) -> None:
        """The original weights that were exchanged are needed no more."""
        for name in self._exchanged:
            self._twins[name].weight = self._linears[name].parameter
        self._exchanged.clear()

    def all_passed(self) -> None:
        """All streams have passed what is decided."""
        self._unmeasured.clear()

    def _tap(self, name: str) -> Callable[..., None]:
        """Keeps the residual stream that the module ``name`` reads, for the linear that adds to it."""

        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            running, tensor = self._lanes.current.running, streamed(args, kwargs)
            assert running is not None and tensor is not None
            running.residuals[name] = tensor

        return hook

    def _patch(self, module: nn.Module, forward: Callable[..., Any]) -> None:
        module.forward = forward
        self._undo.append(lambda: module.__dict__.pop("forward", None) and None)

    def _linear_forward(self, linear: Linear) -> Callable[[Tensor], Tensor]:
        name, twin = linear.name, self._twins[linear.name]
        original = linear.module.forward
        bias = getattr(linear.module, "bias", None)
        changes = name in self.plan.overwritten

        def forward(inputs: Tensor) -> Tensor:
            lane = self._lanes.current
            assert lane.running is not None
            if name in self._undecided:
                lane.stand(name, inputs)
            again = self.hold != "forwards" and name not in self._unmeasured
            reference = lane.running.reference
            compute = twin.forward if reference == (name in self._exchanged) else original
            output: Tensor
            if reference and self._outputs is not None and not again:
                output = self._outputs.output(lane.running.batch, linear, inputs, compute)
            else:
                output = compute(inputs)
            if not again:
                lane.measure(name, name, output, bias, changes)
            return output

        return forward

    def _router_forward(self, mixture: Mixture) -> Callable[..., Any]:
        original = mixture.router.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            stream = self._lanes.current.running
            assert stream is not None
            stream.routing = mixture.name
            return original(*args, **kwargs)

        return forward

    def _experts_forward(self, mixture: Mixture) -> Callable[..., Tensor]:
        original = mixture.module.forward

        def forward(hidden: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
            lane = self._lanes.current
            stream = lane.running
            assert stream is not None
            routed = lane.routed(mixture.block, top_k_index, top_k_weights)
            stream.routing, stream.pool = None, hidden
            output: Tensor = original(hidden, *routed)
            stream.pool = None
            return output

        return forward

    def _block_forward(self, index: int, block: nn.Module) -> Callable[..., Any]:
        original, name = block.forward, self.plan.block_names[index]
        changes = name in self.plan.overwritten

        overwrites = any(one in self.plan.overwritten for one in self.plan.block_names)

        def forward(*args: Any, **kwargs: Any) -> Any:
            if self.hold != "forwards" and name == self.before:
                self._lanes.current.stand_before(name, Entry(original, args, kwargs, overwrites))
            output = original(*args, **kwargs)
            self._lanes.current.measure(index, name, first_tensor(output), None, changes)
            return output

        return forward


def _twin(module: nn.Module) -> nn.Module:
    """A second module of the same kind that shares all but its parameters' slots."""
    twin = copy.copy(module)
    twin._parameters = dict(module._parameters)
    return twin
