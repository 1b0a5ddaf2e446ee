"""Triton's kernels compiled for cards that need not be there: registers, spills and the instructions.

They are compiled as they are launched, by the calls that launch them: only the launch itself is left out.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from harness.formats.gauss import Gauss
from harness.formats.int import Int
from harness.numerics.gpu import launch
from harness.numerics.grid import Codebook

INTEGERS, TABLE = Int(8).codebook, Gauss(8).codebook  # the longest table: 256 levels
_devices = itertools.count()


@dataclass(frozen=True)
class Compiled:
    """What the assembler says of a kernel, and what it was given."""

    registers: int
    spilled: int  # bytes, stored and loaded
    ptx: str

    @property
    def figures(self) -> str:
        """As in docs/gpu.md."""
        return f"{self.registers} / {self.spilled}"


class Card:
    """Triton's view of a card of compute capability 80, 90 or 100; none was compiled for before."""

    def __init__(self, capability: int) -> None:
        self.capability, self.device = capability, next(_devices)

    def get_current_device(self) -> int:
        return self.device

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.capability, 32)


@contextlib.contextmanager
def no_launch(capability: int) -> Iterator[list[Any]]:
    """Kernels are compiled and not launched; they are in the list."""
    made: list[Any] = []

    def compile_only(kernel: JITFunction[Any], grid: Any) -> Callable[..., None]:
        return lambda *given, **options: made.append(
            kernel.run(*given, grid=grid, warmup=True, **options)
        )

    with (
        patch.object(driver, "_active", Card(capability)),
        patch.object(JITFunction, "__getitem__", compile_only),
    ):
        yield made


def compiled(
    name: str,
    capability: int,
    real: torch.dtype = torch.float32,
    rows: int = 32,
    columns: int = 128,
) -> Compiled:
    """The kernel of one of CALLS for compute capability 80, 90 or 100."""
    log = io.StringIO()
    with no_launch(capability) as made, contextlib.redirect_stdout(log):
        CALLS[name](real, rows, columns)
    (kernel,), said = made, log.getvalue()
    (registers,) = re.findall(r"Used (\d+) registers", said)
    spilled = re.findall(r"(\d+) bytes spill (?:stores|loads)", said)
    assert len(spilled) == 2, said
    return Compiled(int(registers), sum(map(int, spilled)), kernel.asm["ptx"])


def numbers(real: torch.dtype, rows: int, columns: int) -> tuple[Tensor, ...]:
    """What a block consists of, scales, zeros and groups last: only types and shapes count."""
    block, square = (
        torch.zeros(columns, rows, dtype=real),
        torch.zeros(columns, columns, dtype=real),
    )
    scale = torch.zeros(1, rows, dtype=real)
    return block, square, scale, scale, torch.zeros(columns, dtype=torch.int64)


def gptq(book: Codebook, carried: bool) -> Callable[..., object]:
    def call(*shape: Any) -> object:
        block, square, *grid = numbers(*shape)
        return launch.gptq_block(block, square, *grid, book, square if carried else None)

    return call


def quantease(book: Codebook, relax: bool) -> Callable[..., object]:
    def call(*shape: Any) -> object:
        block, square, *grid = numbers(*shape)
        return launch.quantease_block(block, block, square, *grid, book, relax)

    return call


def searched(book: Codebook) -> Callable[..., object]:
    def call(*shape: Any) -> object:
        block, _, scale, zero, _ = numbers(*shape)
        return launch.least_error(block.T, scale, zero, book, 2.4)

    return call


CALLS = {
    "GPTQ": gptq(INTEGERS, False),
    "GPTQ, table": gptq(TABLE, False),
    "GPTAQ": gptq(INTEGERS, True),
    "GPTAQ, table": gptq(TABLE, True),
    "QuantEase": quantease(INTEGERS, False),
    "QuantEase, table": quantease(TABLE, False),
    "QuantEase, relaxed": quantease(INTEGERS, True),
    "range search": searched(INTEGERS),
    "range search, table": searched(TABLE),
}
