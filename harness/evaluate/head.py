"""What enters a model's output head: seen, added to, or cut down to the positions of interest.

The model's own forward goes on behind the head, so that whatever an architecture does to its logits
(soft caps, scales) happens to these as well.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import greenlet
import torch
from torch import Tensor, nn

from harness.numerics.device import there

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class OfForward:
    """An attribute of a tap that every forward has for itself, wherever it runs: on a thread, a coroutine."""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, tap: HeadTap, owner: type) -> Tensor | None:
        return tap.values.get(greenlet.getcurrent(), {}).get(self._name)

    def __set__(self, tap: HeadTap, value: Tensor | None) -> None:
        tap.values.setdefault(greenlet.getcurrent(), {})[self._name] = value


class HeadTap(threading.local):
    """The inputs of the output head, for the forwards of this thread, or of the running coroutine.

    ``seen [batch, length, hidden]`` is what entered last. ``rows``, if given, are positions in
    ``[batch · length]``: the head works on these alone, logits come out as ``[1, rows, vocabulary]``.
    ``extra [more, length, hidden]``, if given, follows along the batch.
    """

    seen = OfForward()
    rows = OfForward()
    extra = OfForward()

    def __init__(self) -> None:
        self.values: WeakKeyDictionary[Any, dict[str, Tensor | None]] = WeakKeyDictionary()


@contextmanager
def tapped(model: PreTrainedModel) -> Iterator[HeadTap]:
    """Taps the output head of ``model``.

    Raises:
        ValueError: the model has none.
    """
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    if not isinstance(head, nn.Module):
        raise ValueError(f"{type(model).__name__} has no output head")
    tap = HeadTap()

    def enter(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        tap.seen = states = inputs[0]
        if tap.rows is not None:
            return (states.flatten(0, 1)[there(tap.rows, states.device)][None],)
        if tap.extra is not None:
            return (torch.cat([states, there(tap.extra, states.device).to(states.dtype)]),)
        return None

    handle = head.register_forward_pre_hook(enter)
    try:
        yield tap
    finally:
        handle.remove()
