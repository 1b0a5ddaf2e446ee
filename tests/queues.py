"""CUDA's streams for the stand-in: what is copied on one of them is there for those who waited for it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

_beside = threading.local()  # the queue that a thread works on, if it is not that which computes


class Queue:
    """A stream; its events are functions that make happen what has been asked for before them."""

    def __init__(self, device: Any = None) -> None:
        self._copies: list[Callable[[], object]] = []

    def later(self, values: Tensor) -> Tensor:
        """A tensor that will have ``values``, and has something else till then."""
        into = torch.empty_like(values).fill_(torch.nan if values.is_floating_point() else -1)
        self._copies.append(lambda: into.copy_(values))
        return into

    def record_event(self) -> Callable[[], None]:
        """All that was asked for so far."""
        copies, self._copies = self._copies, []

        def happen() -> None:
            while copies:
                copies.pop()()

        return happen

    def wait_event(self, event: Callable[[], None]) -> None:
        """What is asked for next comes after ``event``."""
        event()


@contextmanager
def working_beside(queue: Queue) -> Iterator[None]:
    """What this thread copies to the device inside goes by ``queue``."""
    _beside.queue = queue
    try:
        yield
    finally:
        _beside.queue = None


def working_on() -> Queue | None:
    """The queue that this thread copies by, None for the one that computes."""
    return getattr(_beside, "queue", None)
