"""Calls Triton's kernels with the arguments of their twins, and knows how large a tile is."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import triton
from torch import Tensor

from harness.numerics import twins
from harness.numerics.gpu import blocks, search
from harness.numerics.grid import Codebook

ROWS = 16  # of a tile: with four warps all 128 columns of a block stay in registers, see the tests
OPTIONS = {
    "num_warps": 4,
    "maxnreg": 128,  # four tiles a multiprocessor; told so, the assembler does not spill to fit more
    # A product and a sum are two roundings, as in the twins, and no small number becomes 0.
    "enable_fp_fusion": False,
    "enable_reflect_ftz": False,
}
GRIDS = 8  # of the range search at once


def gptq_block(
    weight: Tensor,
    factor: Tensor,
    scale: Tensor,
    zero: Tensor,
    group: Tensor,
    codebook: Codebook,
    carry: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """See :func:`harness.numerics.kernels.gptq_block`."""
    codes, error = torch.empty_like(weight, dtype=torch.uint8), torch.empty_like(weight)
    given = (factor, factor if carry is None else carry, scale, zero, group)
    arrays = (weight, *contiguous(*given), *levels(codebook, weight), codes, error)
    launch(blocks.gptq, arrays, codebook, CARRY=carry is not None)
    return codes, error


def quantease_block(
    current: Tensor,
    gradient: Tensor,
    hessian: Tensor,
    scale: Tensor,
    zero: Tensor,
    group: Tensor,
    codebook: Codebook,
    relax: bool,
) -> tuple[Tensor, Tensor]:
    """See :func:`harness.numerics.kernels.quantease_block`."""
    codes, step = torch.empty_like(current, dtype=torch.uint8), torch.empty_like(current)
    given = contiguous(gradient, hessian, scale, zero, group)
    arrays = (current, *given, *levels(codebook, current), codes, step)
    launch(blocks.quantease, arrays, codebook, RELAX=relax)
    return codes, step


def launch(kernel: Any, arrays: tuple[Tensor, ...], codebook: Codebook, **switch: bool) -> None:
    """One of the column loops on a block ``[columns, rows]``, the first of ``arrays``."""
    block = arrays[0]
    columns, rows = block.shape
    if block.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"a block of {block.dtype}: allowed are float32 and float64")
    if not block.is_contiguous():
        raise ValueError(f"a block with strides {block.stride()}: it has to be contiguous")
    with on(block.device):
        kernel[(triton.cdiv(rows, ROWS),)](
            *arrays, rows, columns, float(codebook.top),
            COLUMNS=triton.next_power_of_2(columns), ROWS=ROWS, STEPS=steps(codebook), **switch,
            **OPTIONS,
        )  # fmt: skip


def least_error(
    weight: Tensor, scale: Tensor, zero: Tensor, codebook: Codebook, norm: float
) -> Tensor:
    """See :func:`harness.numerics.shrink.least_error`; float32."""
    rows, size = weight.shape
    found = torch.empty(rows, dtype=torch.int64, device=weight.device)
    arrays = (*contiguous(weight, scale, zero), *levels(codebook, weight), found)
    wide = twins.width(size)
    with on(weight.device):
        search.least_error[(rows,)](
            *arrays, rows, size, len(scale), float(codebook.top), norm,
            COLUMNS=wide, DEPTH=wide.bit_length() - 1, GRIDS=GRIDS, STEPS=steps(codebook),
            **OPTIONS,
        )  # fmt: skip
    return found


def contiguous(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Each as an array without gaps."""
    return tuple(tensor.contiguous() for tensor in tensors)


def on(device: torch.device) -> AbstractContextManager[Any]:
    """Where Triton launches; it takes the current card and not that of its arguments."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def steps(codebook: Codebook) -> int:
    """How often a table's edges are halved to find a code; 0 where codes are integers."""
    return 0 if codebook.table is None else codebook.top.bit_length()


def levels(codebook: Codebook, like: Tensor) -> tuple[Tensor, Tensor]:
    """Table and edges where ``like`` is, in its precision; integers have none and nothing looks at them."""
    if codebook.table is None:
        return like, like
    return codebook.values(like), codebook.edges(like)
