"""What Triton's kernels have in common: rounding to a grid, and a column out of a tile. No fused operations.

Every function is the same to the bit as what :mod:`harness.numerics.twins` does, signed zeros, infinities
and NaN included.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def divide(left, right):
    """The quotient, correctly rounded; Triton's own / is not in float32."""
    if left.dtype == tl.float64:
        return left / right
    else:
        return tl.math.div_rn(left, right)


@triton.jit
def round_half_even(value):
    """The nearest integer: adding 1.5 · 2^mantissa leaves no digit behind the point."""
    if value.dtype == tl.float64:
        return tl.where(
            tl.abs(value) < 2251799813685248.0,
            (value + 6755399441055744.0) - 6755399441055744.0,
            value,
        )
    else:
        return tl.where(tl.abs(value) < 4194304.0, (value + 12582912.0) - 12582912.0, value)


@triton.jit
def nearest(value, scale, zero, top, table, edges, STEPS: tl.constexpr):
    """Codes nearest to ``value``, and what they stand for: Codebook.encode and Codebook.decode.

    Without ``STEPS`` codes are the integers 0 … ``top``; with it they count the ``top`` edges that are
    below, by halving 2^STEPS, and ``table`` has the values.
    """
    ratio = divide(value, scale)
    if STEPS == 0:
        code = round_half_even(ratio) + zero
        code = tl.where(code > 0.0, tl.where(code < top, code, top), 0.0).to(tl.int32)
        units = code.to(ratio.dtype) - zero
    else:
        code = tl.full(ratio.shape, 0, tl.int32)
        for step in tl.static_range(STEPS):
            probe = code + (1 << (STEPS - 1 - step))
            known = probe <= top
            edge = tl.load(edges + probe - 1, mask=known, other=0.0)
            code = tl.where(known & ((edge >= ratio) == 0), probe, code)  # NaN is above all
        units = tl.load(table + code)
    return code, units * scale


@triton.jit
def column(tile, chosen):
    """The one row of ``tile`` where ``chosen [rows of tile]`` holds, bits and all: zeros are added to it."""
    bits = tile.to(tl.int64 if tile.dtype == tl.float64 else tl.int32, bitcast=True)
    return tl.sum(tl.where(chosen[:, None], bits, 0), axis=0).to(tile.dtype, bitcast=True)
