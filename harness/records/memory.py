"""The process's memory: what is freed stays for the next tensor, and a run's peak is its own.

A walk makes and drops tensors of a few megabytes by the thousand. Left alone, glibc gives such blocks
back to the system and gets them again page by page, each a fault and a cleared page: 800,000 faults
for the default model, a quarter of that when it keeps them.
"""

from __future__ import annotations

import ctypes
import resource
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

# mallopt(3): what the parameters are called there; the values are bytes.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
LARGEST_KEPT, MOST_KEPT = 2**28, 2**31 - 1


def keep_freed_memory() -> None:
    """Freed blocks of up to 256 MiB are used again from now on; only with glibc anything changes."""
    mallopt = _glibc("mallopt")
    mallopt(M_MMAP_THRESHOLD, LARGEST_KEPT)
    mallopt(M_TRIM_THRESHOLD, MOST_KEPT)


def forget_peak() -> None:
    """From now on :func:`peak_memory` is that of what follows, where the system can forget (Linux).

    What was kept of freed memory is given back, so that it does not count for what follows either.
    """
    _glibc("malloc_trim")(0)
    with suppress(OSError):  # proc(5): 5 resets the peak of the resident set
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory() -> int:
    """The largest resident set since :func:`forget_peak`, in bytes; pages of mapped files count."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _glibc(name: str) -> Callable[..., int]:
    """A function of the C library; one that does nothing where it is another library."""
    found = getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None
    return found or (lambda *arguments: 0)
