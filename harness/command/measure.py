"""How fast this machine is at this moment: matrix products, of a card also its memory and the way there."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

from harness.numerics.device import free_memory, there
from harness.numerics.precision import multiplying
from harness.settings.card import SPEEDS, Card

MEASURED = 0.2  # seconds spent on each figure
COPIED = 2**26  # bytes


@lru_cache(maxsize=8)
def product_speed(device: str, threads: int | None, width: int, dtype: torch.dtype) -> float:
    """Floating-point operations per second of ``[1024, width] @ [width, width]`` now and here."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        inputs = torch.randn(1024, width).to(device, dtype)
        weight = torch.randn(width, width).to(device, dtype)
        return 2.0 * 1024 * width**2 / _best(lambda: inputs @ weight)
    finally:
        torch.set_num_threads(before)


@lru_cache(maxsize=4)
def card_here(device: str, width: int) -> Card:
    """The card ``device`` of this machine: what is free of its memory, and its speeds, measured.

    Args:
        device: ``cuda``, ``cuda:0``.
        width: of the products.
    """
    place = torch.device(device)
    free = free_memory(place)
    assert free is not None
    speeds = {}
    for name in SPEEDS:
        dtype = torch.float32 if name == "tf32" else getattr(torch, name)
        with multiplying("high" if name == "tf32" else "highest"):
            speeds[name] = product_speed.__wrapped__(device, None, width, dtype) / 1e12
    host = torch.zeros(COPIED, dtype=torch.uint8)
    values = host.to(place)
    pinned = host.pin_memory()
    bandwidth = 2 * COPIED / _best(values.clone)  # read and written
    link = COPIED / _best(lambda: there(pinned, place))
    return Card(torch.cuda.get_device_name(place), free / 1e9, bandwidth / 1e9, link / 1e9, speeds)


def _best(work: Callable[[], Tensor]) -> float:
    """Seconds of the fastest of some times, the result there."""
    work()
    best, end = float("inf"), time.perf_counter() + MEASURED
    while time.perf_counter() < end or best == float("inf"):
        start = time.perf_counter()
        work().reshape(-1)[0].item()  # a value that is read is one that is there
        best = min(best, time.perf_counter() - start)
    return best
