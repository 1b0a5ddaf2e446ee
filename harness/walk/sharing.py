"""Parameters that have memory in common: to round one would round the other."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn


def shared(model: nn.Module, names: set[str]) -> Iterator[tuple[str, str]]:
    """The parameters among ``names`` that have memory in common with another one or a buffer, and it."""
    every = [
        *model.named_parameters(remove_duplicate=False),
        *model.named_buffers(remove_duplicate=False),
    ]
    spans = sorted((*_span(one), name) for name, one in every if one.numel())
    reaching: list[tuple[str, int, int, str]] = []
    for span in spans:
        device, start, _, name = span
        reaching = [one for one in reaching if one[0] == device and one[2] > start]
        for *_, other in reaching:
            if other in names:
                yield other, name
            if name in names:
                yield name, other
        reaching.append(span)


def _span(tensor: Tensor) -> tuple[str, int, int]:
    """The device and the first and last address of a tensor; without memory, its own identity."""
    if tensor.is_meta:
        return "meta", id(tensor), id(tensor) + 1
    steps = zip(tensor.shape, tensor.stride(), strict=True)
    elements = 1 + sum((size - 1) * stride for size, stride in steps)
    start = tensor.data_ptr()
    return str(tensor.device), start, start + elements * tensor.itemsize
