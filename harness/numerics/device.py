"""The device that a run computes on: how not to wait for it, and what it says of itself.

A GPU works through what the host asks of it, and the host need not wait, but for two things: a value that
it wants to see, and a copy from memory that the system may move. So numbers stay where they are made until
:func:`read` brings all of a stage's at once, what only has to be looked at in case it is wrong is a
:func:`doubt`, and copies go by :func:`there`, large ones by a :class:`Courier`. On a CPU all of that is no
more than what it says.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

Arrival = Callable[[], list[Tensor]]  # waits for what has been sent for, and has it
Doubt = tuple[Tensor, Callable[[], Exception]]  # whether it is wrong, and the error then
_open: ContextVar[list[Doubt] | None] = ContextVar("doubts", default=None)


def there(values: Tensor, device: torch.device) -> Tensor:
    """``values`` of the host on ``device``, where its work goes on while they are copied."""
    if device.type != "cuda" or values.device.type != "cpu":
        return values.to(device)
    return values.pin_memory().to(device, non_blocking=True)


class Courier:
    """Brings tensors of the host to a device while the device computes.

    A thread fills pinned memory, which for mapped files means to read them, and a CUDA stream beside the one
    that computes copies from there. Where the device is the host's own, nothing has to be brought.

    Args:
        device: where to.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._beside = device.type == "cuda"
        if self._beside:
            self._thread = ThreadPoolExecutor(1, "courier")
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def send(self, tensors: Sequence[Tensor]) -> Arrival:
        """Sends for ``tensors``; the result, called, has them for all that the device is asked for next."""
        if not self._beside:
            return lambda: [one.to(self._device) for one in tensors]
        sent = self._thread.submit(self._copy, tensors)

        def arrived() -> list[Tensor]:
            copies, event = sent.result()
            computing = torch.cuda.current_stream(self._device)
            computing.wait_event(event)
            for one in copies:
                one.record_stream(computing)  # its memory is free once that has come to its end
            return copies

        return arrived

    def _copy(self, tensors: Sequence[Tensor]) -> tuple[list[Tensor], torch.cuda.Event]:
        with torch.no_grad(), torch.cuda.stream(self._stream):
            copies = [there(one, self._device) for one in tensors]
            return copies, self._stream.record_event()


def pinned_like(values: Tensor) -> Tensor:
    """Memory of the host for what ``values`` of a device hold, for copies that need no wait."""
    return torch.empty(values.shape, dtype=values.dtype, pin_memory=values.device.type == "cuda")


def read(values: Sequence[Tensor]) -> list[list[float]]:
    """The numbers of every tensor, flat, float64; waits for their device once.

    Raises:
        Exception: the first doubt that proves right.
    """
    doubts = _open.get() or []
    flat = [one.detach().reshape(-1).double() for one in values]
    flags = [flag.reshape(1).double() for flag, _ in doubts]
    if not flat and not flags:
        return []
    numbers: list[float] = torch.cat([*flags, *flat]).tolist()
    raised = [error for wrong, (_, error) in zip(numbers, doubts, strict=False) if wrong]
    doubts.clear()
    if raised:
        raise raised[0]()
    found, at = [], len(flags)
    for one in flat:
        found.append(numbers[at : at + one.numel()])
        at += one.numel()
    return found


def doubt(wrong: Tensor, error: Callable[[], Exception]) -> None:
    """Raises ``error()`` if ``wrong`` is true: at once, or inside of :func:`doubting` with the next read."""
    doubts = _open.get()
    if doubts is not None and wrong.device.type != "cpu":
        doubts.append((wrong, error))
    elif wrong:
        raise error()


@contextmanager
def doubting() -> Iterator[None]:
    """What is doubted inside, of values on a device, comes to light with the next read, or at the end."""
    token = _open.set([])
    try:
        yield
        read([])
    finally:
        _open.reset(token)


def forget_peak(device: str) -> None:
    """From now on :func:`peak_memory` is that of what follows."""
    if torch.device(device).type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory(device: str) -> int:
    """The most bytes that tensors have held on a device since :func:`forget_peak`; 0 on a CPU."""
    return torch.cuda.max_memory_allocated(device) if torch.device(device).type == "cuda" else 0


def free_memory(device: torch.device) -> int | None:
    """Bytes that are free on a device; None where it has the host's memory."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else None


def described(device: str) -> str:
    """The device and what it is: ``cuda:0 (NVIDIA ...)``."""
    if torch.device(device).type != "cuda":
        return device
    return f"{device} ({torch.cuda.get_device_name(device)})"


def model_of(device: torch.device) -> str:
    """What a device is, whichever of several: ``cuda (NVIDIA ...)``."""
    if device.type != "cuda":
        return device.type
    return f"{device.type} ({torch.cuda.get_device_name(device)})"
