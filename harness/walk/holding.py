"""Where the forwards of a walk wait until the weights of a stage are decided.

- ``forwards``: each stands still inside of its block, with all that its code still holds. Nothing runs twice.
- ``blocks``: each stands still before a block, with what enters it alone. For every stage of the block it
  runs the block again as far as that stage, and leaves it there; once all are decided it runs on. The
  original weights of one block stay beside the quantised ones for that long.
- ``cpu``: as ``blocks``, and what enters a block waits in the host's pinned memory.

The numbers are the same: the same operations on the same values. What a walk holds at a stage is counted in
:mod:`harness.walk.live`.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from harness.numerics.device import pinned_like, there

Hold = Literal["forwards", "blocks", "cpu"]


@dataclass(frozen=True)
class Entry:
    """A block that a forward is about to enter, and what with.

    Args:
        forward: the block's own.
        args: by place.
        kwargs: by name.
        overwrites: blocks change what they are given in place, so that each run needs a copy.
    """

    forward: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    overwrites: bool

    def run(self) -> Any:
        """What the block returns; what enters it is as before afterwards."""
        if not self.overwrites:
            return self.forward(*self.args, **self.kwargs)
        copies: dict[int, Tensor] = {}

        def copied(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            return copies.setdefault(id(value), value.clone())

        return self.forward(*tree_map(copied, self.args), **tree_map(copied, dict(self.kwargs)))

    def tensors(self) -> list[Tensor]:
        """All that enters the block."""
        return [one for one in tree_leaves((self.args, self.kwargs)) if isinstance(one, Tensor)]


@dataclass
class Parking:
    """What one forward holds, on the host while it waits.

    Args:
        owned: ids of the model's own tensors, which stay where they are.
    """

    owned: frozenset[int]
    _entered: list[weakref.ref[Tensor]] = field(default_factory=list)  # blocks so far
    # What has been parked, and its values on the host.
    _parked: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def park(self, tensors: Iterable[Tensor]) -> None:
        """Moves ``tensors``, and what has entered earlier blocks and is still held, to the host."""
        known = {id(one): one for one in (ref() for ref in self._entered) if one is not None}
        found = known | {id(one): one for one in tensors}
        self._entered = [weakref.ref(one) for one in found.values()]
        for key, one in found.items():
            if key not in self.owned and one.device.type == "cuda":
                host = pinned_like(one)
                host.copy_(one, non_blocking=True)
                device = one.device
                one.data = host
                self._parked.append((one, host))
                self._device = device

    def fetch(self, tensors: Iterable[Tensor]) -> None:
        """Brings ``tensors`` back for a while."""
        wanted = {id(one) for one in tensors}
        for one, host in self._parked:
            if id(one) in wanted:
                one.data = there(host, self._device)

    def give_back(self) -> None:
        """Ends a :meth:`fetch`: the values are on the host still."""
        for one, host in self._parked:
            one.data = host

    def unpark(self) -> None:
        """Brings all back for good."""
        for one, host in self._parked:
            one.data = there(host, self._device)
        self._parked.clear()
