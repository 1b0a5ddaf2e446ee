"""What a decoder is made of, found by looking and by one tiny probing forward; no family names.

A *linear* is an ``nn.Linear`` or ``Conv1D`` (GPT-2; weight stored ``[in, out]``) inside a decoder
block. Linears that read the very same tensor one after the other (q/k/v, gate/up) form a *stage*.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from harness.numerics.precision import working

PROBE_TOKENS = 8


class UnsupportedModelError(ValueError):
    """A model that the walk can't treat faithfully; the message names the module."""


@dataclass(frozen=True)
class Linear:
    """One linear of a decoder block; its weight is read and written as ``[out, in]``."""

    name: str
    block: int
    module: nn.Module

    @property
    def transposed(self) -> bool:
        """Whether the module stores its weight ``[in, out]``."""
        return isinstance(self.module, Conv1D)

    @property
    def parameter(self) -> Tensor:
        """The weight as the module stores it."""
        return cast(Tensor, self.module.weight)

    @property
    def shape(self) -> tuple[int, int]:
        """``(out, in)``."""
        rows, columns = self.parameter.shape
        return (columns, rows) if self.transposed else (rows, columns)

    @property
    def precision(self) -> torch.dtype:
        """Of its statistics and of the numerics on its weight: float32, or float64 of a float64 model."""
        return working(self.parameter.dtype)

    def weight(self) -> Tensor:
        """The weight ``[out, in]`` in :attr:`precision`."""
        stored = self.parameter.detach()
        return (stored.T if self.transposed else stored).to(self.precision)

    def stored(self, weight: Tensor) -> Tensor:
        """``weight [out, in]`` in the layout and dtype that the module stores."""
        like = self.parameter
        return (weight.T if self.transposed else weight).to(like.device, like.dtype).contiguous()


@dataclass(frozen=True)
class Stage:
    """Linears that read one tensor.

    Args:
        index: in the order of calls.
        block: that they belong to.
        linears: in the order of calls.
        source: the earlier stage that read the tensor already.
        stream: the module that reads the residual stream to which ``writers`` add their output.
        writers: names of those linears.
    """

    index: int
    block: int
    linears: tuple[Linear, ...]
    source: int | None = None
    stream: str | None = None
    writers: tuple[str, ...] = ()

    @property
    def leader(self) -> str:
        """The linear that is called first."""
        return self.linears[0].name


@dataclass(frozen=True)
class Plan:
    """The decoder blocks in order and the stages to be quantised in the order of their calls.

    ``overwritten`` names the modules whose output the model changes in place afterwards (Falcon
    adds the attention's output to the MLP's).
    """

    block_names: tuple[str, ...]
    blocks: tuple[nn.Module, ...]
    stages: tuple[Stage, ...]
    overwritten: frozenset[str] = frozenset()

    @property
    def linears(self) -> list[Linear]:
        """All linears to be quantised, in the order of their calls."""
        return [linear for stage in self.stages for linear in stage.linears]


def plan(
    model: PreTrainedModel,
    include: Sequence[str] = ("*",),
    exclude: Sequence[str] = (),
    blocks: str | None = None,
) -> Plan:
    """The plan of ``model`` for the linears that match ``include`` and not ``exclude``.

    Args:
        model: any decoder that transformers builds.
        include: glob patterns on module names.
        exclude: glob patterns on module names.
        blocks: the blocks to quantise, ``first:last`` as in a Python slice; None is all.

    Raises:
        UnsupportedModelError: no decoder blocks, a mixture of experts, or a linear that is not
            called exactly once in a forward.
        ValueError: nothing is selected.
    """
    prefix, block_list = find_blocks(model)
    names = tuple(f"{prefix}.{i}" for i in range(len(block_list)))
    _refuse_experts(names, list(block_list), exclude)
    linears = select(model, include, exclude, blocks)
    modules = {name: linear.module for name, linear in linears.items()}
    modules |= dict(zip(names, block_list, strict=True))
    calls, overwritten = _probe(model, modules)
    reads = [call for call in calls if call[0] in linears]
    _refuse_other_counts(linears, [name for name, _, _ in reads])
    return Plan(names, tuple(block_list), tuple(_stages(reads, linears)), overwritten)


def select(
    model: PreTrainedModel,
    include: Sequence[str] = ("*",),
    exclude: Sequence[str] = (),
    blocks: str | None = None,
) -> dict[str, Linear]:
    """The linears by name that ``include``, ``exclude`` and ``blocks`` leave; see :func:`plan`."""
    prefix, block_list = find_blocks(model)
    chosen = range(len(block_list))[parse_blocks(blocks)]
    linears = {
        linear.name: linear
        for index in chosen
        for linear in _block_linears(f"{prefix}.{index}", index, block_list[index])
        if _matches(linear.name, include) and not _matches(linear.name, exclude)
    }
    if not linears:
        raise ValueError(
            f"no linear is selected by include={include}, exclude={exclude}, blocks={blocks}"
        )
    return linears


def parse_blocks(text: str | None) -> slice:
    """The slice that ``first:last`` stands for."""
    parts = (text or ":").split(":")
    if len(parts) != 2 or not all(part == "" or part.lstrip("-").isdigit() for part in parts):
        raise ValueError(f"quantize.blocks={text!r}: want first:last, for instance 0:10")
    first, last = (int(part) if part else None for part in parts)
    return slice(first, last)


def find_blocks(model: PreTrainedModel) -> tuple[str, nn.ModuleList]:
    """Name and list of the decoder blocks: the ModuleList as long as the model is deep."""
    depth = model.config.get_text_config(decoder=True).num_hidden_layers
    found = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == depth
    ]
    if not found:
        raise UnsupportedModelError(
            f"{type(model).__name__} has no list of {depth} decoder blocks"
        )
    return max(found, key=lambda item: sum(p.numel() for p in item[1].parameters()))


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch(name, pattern) for pattern in patterns)


def _block_linears(prefix: str, index: int, block: nn.Module) -> Iterator[Linear]:
    for name, module in block.named_modules():
        if isinstance(module, nn.Linear | Conv1D):
            yield Linear(f"{prefix}.{name}", index, module)


def _refuse_experts(
    names: Sequence[str], blocks: Sequence[nn.Module], exclude: Sequence[str]
) -> None:
    """Refuses weight matrices that no linear owns: routers and fused experts."""
    for prefix, block in zip(names, blocks, strict=True):
        for name, module in block.named_modules():
            full = f"{prefix}.{name}"
            if isinstance(module, nn.Linear | Conv1D | nn.Embedding) or _matches(full, exclude):
                continue
            for key, parameter in module.named_parameters(recurse=False):
                if parameter.ndim >= 2:
                    raise UnsupportedModelError(
                        f"{full}.{key} {tuple(parameter.shape)} is no linear's weight (a router or fused "
                        f"experts of a {type(module).__name__}): not supported; quantize.exclude='{full}' "
                        "leaves it in full precision"
                    )


def _probe(
    model: PreTrainedModel, modules: dict[str, nn.Module]
) -> tuple[list[tuple[str, Tensor, int]], frozenset[str]]:
    """The calls in their order, with the tensor each reads and its version; overwritten outputs."""
    calls: list[tuple[str, Tensor, int]] = []
    outputs: list[tuple[str, Tensor, int]] = []

    def before(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            if args:
                calls.append((name, args[0], args[0]._version))

        return hook

    def after(name: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            tensor = first_tensor(output)
            outputs.append((name, tensor, tensor._version))

        return hook

    hooks = [module.register_forward_pre_hook(before(name)) for name, module in modules.items()]
    hooks += [module.register_forward_hook(after(name)) for name, module in modules.items()]
    try:
        # Token 3 and up: the first ones may be padding, which some models mask out.
        tokens = torch.arange(3, 3 + PROBE_TOKENS, device=model.device)[None]
        # Not inference mode: its tensors count no versions.
        with torch.no_grad(), evaluating(model):
            model.base_model(input_ids=tokens, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    overwritten = frozenset(
        name for name, output, version in outputs if output._version != version
    )
    return calls, overwritten


def first_tensor(output: Any) -> Tensor:
    """The hidden states in what a module returned: itself, or the first of a tuple."""
    found: Tensor = output[0] if isinstance(output, tuple) else output
    return found


def _refuse_other_counts(linears: dict[str, Linear], calls: Sequence[str]) -> None:
    for name in linears:
        count = calls.count(name)
        if count != 1:
            raise UnsupportedModelError(
                f"{name} is called {count} times in a forward; the walk needs exactly one "
                f"(quantize.exclude='{name}' leaves it in full precision)"
            )


def _stages(calls: list[tuple[str, Tensor, int]], linears: dict[str, Linear]) -> Iterator[Stage]:
    first_reader: dict[tuple[int, int], int] = {}
    group: list[Linear] = []
    current: tuple[int, int] | None = None
    index = 0
    for name, tensor, version in [*calls, (None, None, 0)]:
        key = (id(tensor), version)
        if group and (name is None or key != current or linears[name].block != group[0].block):
            assert current is not None
            yield Stage(index, group[0].block, tuple(group), first_reader.get(current))
            first_reader.setdefault(current, index)
            index, group = index + 1, []
        if name is not None:
            group.append(linears[name])
            current = key


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Dropout off inside, the former mode afterwards."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
