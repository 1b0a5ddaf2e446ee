"""Both streams send a token to the same experts: the reference stream's choice is replayed.

A router chooses experts by its own values, which differ between the two streams. Let each choose by
itself, and an expert would see other tokens in the quantised stream than in the reference stream, row by
row no pairs: C = (X − X̂)ᵀX̂ and the total error would mean nothing. So in calibration the quantised
stream takes the reference stream's choice, with its own values for it: wherever the code of a mixture
asks for the largest values (``topk``, ``max``), it gets its own values at the places that were the
largest in the reference stream. What it would have chosen by itself is compared with that, which is
:class:`Agreement`. At evaluation nothing of this is there: the model routes freely.

A choice that comes about in another way is replayed when the experts are entered, with the values of the
reference stream; how many of all choices that were is counted as well.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

CHOOSING = {
    torch.topk: torch.return_types.topk,
    Tensor.topk: torch.return_types.topk,
    torch.max: torch.return_types.max,
    Tensor.max: torch.return_types.max,
}


@dataclass(frozen=True)
class Agreement:
    """Choices of the quantised stream that it would have made by itself, of how many.

    Where a router chooses groups of experts first, its own choice is that among the reference stream's
    groups. ``choices`` are those of ``total`` where that can be seen; of ``borrowed`` ones the values are
    the reference stream's.
    """

    same: int = 0
    choices: int = 0
    borrowed: int = 0
    total: int = 0

    @property
    def share(self) -> float:
        """Of choices that it would have made by itself; NaN where that can't be seen."""
        return self.same / self.choices if self.choices else math.nan


@dataclass
class Counts:
    """The numbers of an :class:`Agreement` in the making.

    Args:
        counts: those that are the same and those that are borrowed, float64 ``[2]``, where the tokens are.
        choices: as there.
        total: as there.
    """

    counts: Tensor
    choices: int
    total: int

    def merge(self, other: Counts) -> None:
        """Adds those of ``other``."""
        self.counts = self.counts + other.counts
        self.choices += other.choices
        self.total += other.total


@dataclass
class Choices:
    """What is chosen in one mixture for the tokens of one batch.

    Args:
        steps: the places of the largest values ``[tokens, n]`` in the reference stream, in the order in
            which its code has asked for them; groups of experts may come before experts.
        own: those in the quantised stream.
        final: experts and their values ``[tokens, k]`` in the reference stream.
    """

    steps: list[Tensor] = field(default_factory=list)
    own: list[Tensor] = field(default_factory=list)
    final: tuple[Tensor, Tensor] | None = None

    def taken(self, values: Tensor, result: Any, dim: int, keepdim: bool) -> Any:
        """What the quantised stream gets where it asks for the largest of ``values`` along ``dim``."""
        step = self.steps[len(self.own)]
        self.own.append(result[1])
        if step.shape != result[1].shape:
            raise RuntimeError("a router asks for other choices in one stream than in the other")
        places = step if keepdim else step.unsqueeze(dim)
        found = values.gather(dim, places)
        return type(result)((found if keepdim else found.squeeze(dim), step))

    def routed(self, index: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Counts]:
        """Experts and values ``[tokens, k]`` for the quantised stream that has found ``index, weights``."""
        assert self.final is not None
        chosen, values = self.final
        choices = 0
        own: Tensor | None = index
        theirs: Tensor | None = chosen  # of a router that asks for no largest values
        if self.steps:
            own, theirs = (_last(some, index.shape[-1]) for some in (self.own, self.steps))
        same = index.new_zeros(())
        if own is not None and theirs is not None:
            same = (own.unsqueeze(-1) == theirs.unsqueeze(-2)).any(-1).sum()
            choices = index.numel()
        alike = (index == chosen).all()
        counts = torch.stack([same, ~alike * index.numel()]).double()
        found = Counts(counts, choices, index.numel())
        return chosen, torch.where(alike, weights, values), found


def _last(steps: Sequence[Tensor], width: int) -> Tensor | None:
    """The last choices that together are ``width`` experts a token, if any are: ``[tokens, width]``."""
    found: list[Tensor] = []
    for step in reversed(steps):
        found.insert(0, step.reshape(step.shape[0], -1) if step.ndim == 1 else step.flatten(0, -2))
        total = sum(one.shape[-1] for one in found)
        if total >= width:
            return torch.cat(found, -1) if total == width else None
    return None


class Replaying(TorchFunctionMode):
    """Hands the choices that are made inside of a mixture to ``current``.

    It is entered around whole forwards, outside of the coroutines, since a coroutine must not switch
    inside of a mode that it has entered itself.

    Args:
        current: the choices of the mixture and batch that the running stream is in, and whether it is
            the reference stream; None outside of any.
    """

    def __init__(self, current: Callable[[], tuple[Choices, bool] | None]) -> None:
        super().__init__()
        self._current = current

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Runs ``func``; where it chooses, and another stream has chosen before, that is the result."""
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if func not in CHOOSING or not isinstance(result, CHOOSING[func]):
            return result
        inside = self._current()
        if inside is None:
            return result
        choices, reference = inside
        if reference:
            choices.steps.append(result[1])
            return result
        largest = func in (torch.max, Tensor.max)
        place = 1 if largest else 2
        dim = kwargs.get("dim", args[place] if len(args) > place else -1)
        keepdim = not largest or kwargs.get("keepdim", args[2] if len(args) > 2 else False)
        values = args[0] if args else kwargs["input"]
        return choices.taken(values, result, dim, keepdim)
