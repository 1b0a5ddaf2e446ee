"""What modules read and return while a forward runs, seen by hooks and never by their names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers.pytorch_utils import Conv1D

from harness.walk.experts import Transposed, is_unfused

NEAR = 1e-3  # of a product: by how much a linear's output may differ from it by rounding alone


@dataclass(frozen=True)
class Call:
    """A call of a module with the tensor that it read first, as of that moment, if it read any."""

    name: str
    tensor: Tensor | None
    version: int


@dataclass
class Seen:
    """All calls of the watched modules in their order, and what they returned.

    The tensors are held, so that none of them gets another's place in memory.
    """

    calls: list[Call] = field(default_factory=list)
    returns: list[Call] = field(default_factory=list)
    odd: set[str] = field(default_factory=set)
    _numbers: dict[tuple[int, int], int] = field(default_factory=dict)

    def number(self, call: Call) -> int:
        """A number for the content that the call read."""
        return self._numbers.setdefault((id(call.tensor), call.version), len(self._numbers))

    def overwritten(self) -> frozenset[str]:
        """The modules whose output was changed in place after they returned it."""
        return frozenset(
            one.name
            for one in self.returns
            if one.tensor is not None and one.tensor._version != one.version
        )


@contextmanager
def watching(modules: dict[str, nn.Module]) -> Iterator[Seen]:
    """Writes down what ``modules`` read and return inside."""
    seen = Seen()

    def enter(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            seen.calls.append(_call(name, [*args, *kwargs.values()]))

        return hook

    def leave(name: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            seen.returns.append(_call(name, [first_tensor(output)]))
            if isinstance(module, nn.Linear | Conv1D) and not _is_product(module, args, output):
                seen.odd.add(name)

        return hook

    hooks = [
        one.register_forward_pre_hook(enter(name), with_kwargs=True)
        for name, one in modules.items()
    ]
    hooks += [one.register_forward_hook(leave(name)) for name, one in modules.items()]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


class Operands(TorchFunctionMode):
    """Sees which parameters any operation reads, by their ``id``."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[int] = set()

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Runs ``func``."""
        self.seen |= {id(one) for one in args if isinstance(one, nn.Parameter)}
        self.seen |= {id(one) for one in (kwargs or {}).values() if isinstance(one, nn.Parameter)}
        return func(*args, **(kwargs or {}))


@contextmanager
def choosing(model: nn.Module) -> Iterator[dict[str, int]]:
    """By the name of a mixture's experts that run inside, how many of them a token chooses."""
    found: dict[str, int] = {}

    def enter(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            index = args[1] if len(args) > 1 else kwargs["top_k_index"]
            found[name] = index.shape[-1]

        return hook

    hooks = [
        module.register_forward_pre_hook(enter(name), with_kwargs=True)
        for name, module in model.named_modules()
        if is_unfused(module)
    ]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def first_tensor(output: Any) -> Any:
    """The hidden states in what a module returned: itself, or the first of several."""
    return output[0] if isinstance(output, tuple | list) and output else output


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Dropout off inside, the former mode afterwards."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def _call(name: str, values: Sequence[Any]) -> Call:
    tensor = next((one for one in values if isinstance(one, Tensor)), None)
    return Call(name, tensor, 0 if tensor is None else tensor._version)


def _is_product(module: nn.Linear | Conv1D, args: tuple[Any, ...], output: Any) -> bool:
    """Whether ``output`` is what a linear makes of its only argument: by its shape, else by values."""
    plain = type(module).forward in (nn.Linear.forward, Conv1D.forward, Transposed.forward)
    if plain or len(args) != 1 or not isinstance(output, Tensor):
        return plain
    weight = module.weight.T if isinstance(module, Conv1D) else module.weight
    if output.shape != (*args[0].shape[:-1], weight.shape[0]):
        return False
    product = nn.functional.linear(args[0], weight, module.bias)
    return product.is_meta or torch.allclose(product, output, rtol=NEAR, atol=NEAR)
