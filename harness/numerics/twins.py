"""Column loops and range search in plain torch: the reference of every kernel, and its stand-in on a device.

The order of operations is fixed to the last bit: a kernel that does the same ones, each rounded by itself,
gives the same bits. None of them reads a value back, so that a device is never waited for.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from harness.numerics.grid import Codebook
from harness.numerics.powers import polynomial

WIDTH = 128  # errors of a row that are added up side by side
# log₂(1 + x) and 2^x for 0 ≤ x < 1, each to 2e-7 in float32.
LOG2 = polynomial(lambda x: np.log2(1 + x), 0, 1, 8)
EXP2 = polynomial(np.exp2, 0, 1, 6)


def gptq_block(
    weight: Tensor,
    factor: Tensor,
    scale: Tensor,
    zero: Tensor,
    group: Tensor,
    codebook: Codebook,
    carry: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The twin of :func:`harness.numerics.kernels.gptq_block`."""
    work = weight.clone()
    codes, error = torch.empty_like(weight, dtype=torch.uint8), torch.empty_like(weight)
    scale, zero = scale[group], zero[group]
    for j in range(len(weight)):
        codes[j] = codebook.encode(work[j], scale[j], zero[j])
        value = codebook.decode(codes[j], scale[j], zero[j])
        error[j] = (work[j] - value) / factor[j, j]
        work[j + 1 :] -= factor[j, j + 1 :, None] * error[j]
        if carry is not None:
            work[j + 1 :] += carry[j, j + 1 :, None] * work[j]
    if carry is not None:
        weight.copy_(work)
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
    """The twin of :func:`harness.numerics.kernels.quantease_block`."""
    slope = gradient.clone()
    codes, step = torch.empty_like(current, dtype=torch.uint8), torch.empty_like(current)
    scale, zero = scale[group], zero[group]
    for j in range(len(current)):
        new = current[j] + slope[j] / hessian[j, j]
        codes[j] = codebook.encode(new, scale[j], zero[j])
        rounded = codebook.decode(codes[j], scale[j], zero[j])
        step[j] = (new if relax else rounded) - current[j]
        current[j] += step[j]
        slope[j + 1 :] -= hessian[j, j + 1 :, None] * step[j]
    return codes, step


def least_error(
    weight: Tensor, scale: Tensor, zero: Tensor, codebook: Codebook, norm: float
) -> Tensor:
    """:func:`harness.numerics.shrink.least_error` of float32 tensors on a device.

    In place of pow and sum, which every library and every card does in its own way, there are polynomials
    and a sum in a set order.
    """
    least = torch.full_like(scale[0], torch.inf)
    found = torch.zeros(len(weight), dtype=torch.int64, device=weight.device)
    for index in range(len(scale)):
        grid = scale[index, :, None], zero[index, :, None]
        value = codebook.decode(codebook.encode(weight, *grid), *grid)
        loss = ordered_sum(power((value - weight).div_(scale[0, :, None]).abs_(), norm))
        found = torch.where(loss < least, index, found)
        least = torch.fmin(loss, least)
    return found


def width(size: int) -> int:
    """How many of ``size`` errors are added up side by side."""
    return min(WIDTH, 1 << (size - 1).bit_length())


def ordered_sum(terms: Tensor) -> Tensor:
    """Σ_j of ``terms [rows, size]``: every :func:`width`-th one after the other, then neighbours in pairs."""
    rows, size = terms.shape
    wide = width(size)
    padded = torch.nn.functional.pad(terms, (0, -size % wide)).view(rows, -1, wide)
    total = padded[:, 0].clone()
    for chunk in range(1, padded.shape[1]):
        total += padded[:, chunk]
    while total.shape[1] > 1:
        total = total[:, ::2] + total[:, 1::2]
    return total[:, 0]


def power(value: Tensor, norm: float) -> Tensor:
    """``value`` ** ``norm`` = 2^(norm · log₂ value) of float32 values from 0 up.

    It is 0 of 0 and of what is below the normal numbers; infinity and NaN stay what they are.
    """
    bits = value.view(torch.int32)
    mantissa = ((bits & 0x7FFFFF) | 0x3F800000).view(torch.float32)
    log = _horner(mantissa - 1, LOG2)
    exponent = ((((bits >> 23) - 127).float() + log) * norm).clamp_(-126, 127)
    whole = exponent.floor()
    exact = ((whole.int() + 127) << 23).view(torch.float32)
    found = _horner(exponent - whole, EXP2) * exact
    found = torch.where(value < torch.finfo(torch.float32).tiny, 0.0, found)
    return torch.where(value < torch.inf, found, value)


def _horner(x: Tensor, coefficients: tuple[np.float32, ...]) -> Tensor:
    """By Horner's rule; ``coefficients`` are those of rising powers."""
    *lower, last = map(float, coefficients)
    found = torch.full_like(x, last)
    for coefficient in reversed(lower):
        found = found * x + coefficient
    return found
