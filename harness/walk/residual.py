"""Which linears write to the residual stream, and where the stream that they are added to can be seen.

Found by one probing forward and no family names. The stream enters a block as its input; a sum of it and
anything else is the stream again, and so is what a module without matrices, as a norm, makes of it. A
linear writes to it where its output is added to a tensor of the stream that some module of the block has
read before (the block itself, or a norm). Where something stands in between, as a norm on the
projection's output or a second branch that is added first, there is no such sum, and the linear is no
writer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from harness.walk.architecture import Plan
from harness.walk.probe import probing
from harness.walk.watching import first_tensor

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SUMS = {
    torch.add,
    Tensor.add,
    Tensor.add_,
    Tensor.__add__,
    Tensor.__radd__,
    Tensor.__iadd__,
}
# The memory of a tensor's numbers (which has a name without weights, too), where in it they start, how
# many they are, and which version of them.
Key = tuple[int, int, int, int]


class Sums(TorchFunctionMode):
    """Sees every sum of two tensors of one shape."""

    def __init__(self, seen: Callable[[Key, Key, Tensor], None]) -> None:
        super().__init__()
        self._seen = seen

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Runs ``func``; hands on the operands of a sum, as they were before it, and the sum."""
        plain = func in SUMS and not kwargs and len(args) == 2
        if not plain or not all(isinstance(one, Tensor) for one in args):
            return func(*args, **(kwargs or {}))
        operands = [_key(one) for one in args]
        alike = args[0].shape == args[1].shape
        result = func(*args)
        if alike:
            self._seen(operands[0], operands[1], result)
        return result


class Trace:
    """What a forward does with the residual stream."""

    def __init__(self) -> None:
        self.writers: dict[str, str] = {}
        self._readers: dict[Key, str] = {}  # of any tensor, the first module to read it
        self._outputs: dict[Key, str] = {}  # of linears
        self._stream: set[Key] = set()
        self._alive: list[Tensor] = []  # or a place could be taken twice

    def reads(self, name: str, tensor: Tensor | None, entry: bool) -> None:
        """The module ``name`` reads ``tensor``; a block's is the stream."""
        if tensor is not None:
            key = self._kept(tensor)
            self._readers.setdefault(key, name)
            if entry:
                self._stream.add(key)

    def makes(self, tensor: Tensor | None, output: Any) -> None:
        """A module without matrices makes ``output`` of ``tensor``."""
        if tensor is not None and _key(tensor) in self._stream:
            self._stream.add(self._kept(first_tensor(output)))

    def gives(self, name: str, output: Tensor) -> None:
        """The linear ``name`` gives ``output``."""
        self._outputs[self._kept(output)] = name

    def sums(self, first: Key, second: Key, result: Tensor) -> None:
        """Two tensors are added."""
        for stream, other in ((first, second), (second, first)):
            if stream in self._stream:
                self._stream.add(self._kept(result))
                name, reader = self._outputs.get(other), self._readers.get(stream)
                if name is not None and reader is not None:
                    self.writers.setdefault(name, reader)

    def _kept(self, tensor: Tensor) -> Key:
        self._alive.append(tensor)
        return _key(tensor)


def with_writers(model: PreTrainedModel, chosen: Plan) -> Plan:
    """The plan, every stage with those of its linears that write to the residual stream.

    A stage knows one stream, that of its first writer. One that reads an earlier stage's tensor again,
    and so shares its statistics, has no writers.
    """
    blocks = dict(zip(chosen.block_names, chosen.blocks, strict=True))
    linears = {linear.name: linear.module for linear in chosen.linears}
    found = writers(blocks, linears, lambda: probing(model, model.base_model))
    stages = []
    for stage in chosen.stages:
        streams = [found[one.name] for one in stage.linears if one.name in found]
        if streams and stage.source is None:
            names = tuple(one.name for one in stage.linears if found.get(one.name) == streams[0])
            stage = replace(stage, stream=streams[0], writers=names)
        stages.append(stage)
    return replace(chosen, stages=tuple(stages))


def writers(
    blocks: Mapping[str, nn.Module], linears: Mapping[str, nn.Module], forward: Callable[[], Any]
) -> dict[str, str]:
    """By linear the module that reads, before it, the stream that its output is added to.

    Args:
        blocks: the decoder blocks by name.
        linears: inside of them, by name.
        forward: runs the model on a few tokens, outside of inference mode (which counts no versions).
    """
    trace = Trace()

    def before(name: str, entry: bool) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            trace.reads(name, streamed(args, kwargs), entry)

        return hook

    def after(name: str) -> Callable[..., None]:
        return lambda module, args, output: trace.gives(name, output)

    def through(
        module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> None:
        trace.makes(streamed(args, kwargs), output)

    with ExitStack() as hooks:
        for prefix, block in blocks.items():
            for name, module in block.named_modules(prefix=prefix):
                handle = module.register_forward_pre_hook(
                    before(name, module is block), with_kwargs=True
                )
                hooks.callback(handle.remove)
                if all(parameter.ndim < 2 for parameter in module.parameters()):
                    handle = module.register_forward_hook(through, with_kwargs=True)
                    hooks.callback(handle.remove)
        for name, module in linears.items():
            hooks.callback(module.register_forward_hook(after(name)).remove)
        with Sums(trace.sums):
            forward()
    return trace.writers


def streamed(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor | None:
    """The tensor that a module reads: its first argument, by place or by name."""
    first = args[0] if args else kwargs.get("hidden_states")
    return first if isinstance(first, Tensor) else None


def _key(tensor: Tensor) -> Key:
    memory = tensor.untyped_storage()._cdata
    return memory, int(tensor.storage_offset()), tensor.numel(), tensor._version
