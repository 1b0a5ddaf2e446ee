"""Independent forwards side by side: one thread each instead of all threads for every operation.

Operations of a small model last less than a millisecond. When all threads share each of them and
the machine has other work as well, they mostly wait for one another: on two busy cores a forward
took four times as long with two threads as with one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TYPE_CHECKING, TypeVar

import torch

from harness.numerics.precision import forwards
from harness.walk.streaming import in_step, streamed_blocks

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Forwards of a streamed model that share a block: what they hold meanwhile is their states.
TOGETHER = 32
T = TypeVar("T")
R = TypeVar("R")


def workers(device: torch.device) -> int:
    """How many forwards run side by side: torch's threads on a CPU, one elsewhere."""
    return torch.get_num_threads() if device.type == "cpu" else 1


def spread(function: Callable[[T], R], items: Iterable[T], model: PreTrainedModel) -> Iterator[R]:
    """``map(function, items)`` on :func:`workers` threads, forwards of ``model``; results in order."""

    def call(item: T) -> R:
        with forwards(model):
            return function(item)

    count = workers(model.device)
    if model.device.type != "cpu" and (blocks := streamed_blocks(model)):
        left = iter(items)
        while some := list(islice(left, TOGETHER)):
            with forwards(model):
                found = in_step(function, some, blocks)
            yield from found
        return
    if count == 1:
        yield from map(call, items)
        return
    torch.set_num_threads(1)  # also for threads that start from here on
    pool = ThreadPoolExecutor(count)
    try:
        yield from pool.map(call, items)
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(count)
