"""The range search in Triton: a program a row, which reads its weights once for every few grids."""

from __future__ import annotations

import triton
import triton.language as tl

from harness.numerics.gpu.rounding import divide, nearest
from harness.numerics.twins import EXP2, LOG2

L0, L1, L2, L3, L4, L5, L6, L7, L8 = (tl.constexpr(float(one)) for one in LOG2)
E0, E1, E2, E3, E4, E5, E6 = (tl.constexpr(float(one)) for one in EXP2)


@triton.jit
def power(value, norm):
    """harness.numerics.twins.power."""
    bits = value.to(tl.int32, bitcast=True)
    m = ((bits & 0x7FFFFF) | 0x3F800000).to(tl.float32, bitcast=True) - 1.0
    log = L0 + m * (L1 + m * (L2 + m * (L3 + m * (L4 + m * (L5 + m * (L6 + m * (L7 + m * L8)))))))
    exponent = (((bits >> 23) - 127).to(tl.float32) + log) * norm
    exponent = tl.where(exponent > -126.0, tl.where(exponent < 127.0, exponent, 127.0), -126.0)
    whole = tl.floor(exponent)
    exact = ((whole.to(tl.int32) + 127) << 23).to(tl.float32, bitcast=True)
    f = exponent - whole
    found = (E0 + f * (E1 + f * (E2 + f * (E3 + f * (E4 + f * (E5 + f * E6)))))) * exact
    found = tl.where(value < 1.1754943508222875e-38, 0.0, found)
    return tl.where(value < float("inf"), found, value)


@triton.jit
def ordered_sum(total, DEPTH: tl.constexpr):
    """Sums of ``total [grids, 2^DEPTH]``, neighbours in pairs."""
    for _ in tl.static_range(DEPTH):
        left, right = tl.split(tl.reshape(total, (total.shape[0], total.shape[1] // 2, 2)))
        total = left + right
    return tl.reshape(total, (total.shape[0],))


@triton.jit
def least_error(
    weight, scale, zero, table, edges, found, rows, size, grids, top, norm,
    COLUMNS: tl.constexpr, DEPTH: tl.constexpr, GRIDS: tl.constexpr, STEPS: tl.constexpr,
):  # fmt: skip
    """Fills ``found``, GRIDS grids and COLUMNS = 2^DEPTH columns of the row at once."""
    r = tl.program_id(0).to(tl.int64)
    unit = tl.load(scale + r)
    least, best = float("inf"), 0
    for first in tl.range(0, grids, GRIDS):
        g = first + tl.arange(0, GRIDS)
        known = g < grids
        at = g.to(tl.int64) * rows + r
        s = tl.load(scale + at, mask=known, other=1.0)[:, None]
        z = tl.load(zero + at, mask=known, other=0.0)[:, None]
        total = tl.full((GRIDS, COLUMNS), 0.0, tl.float32)
        for start in tl.range(0, size, COLUMNS):
            c = start + tl.arange(0, COLUMNS)
            inside = c < size
            w = tl.load(weight + r * size + c, mask=inside, other=0.0)[None, :]
            w = tl.broadcast_to(w, (GRIDS, COLUMNS))
            _, value = nearest(w, s, z, top, table, edges, STEPS)
            apart = tl.abs(divide(value - w, unit))
            total += tl.where(inside[None, :], power(apart, norm), 0.0)
        loss = ordered_sum(total, DEPTH)
        loss = tl.where(known & (loss == loss), loss, float("inf"))
        low = tl.min(loss, axis=0)
        index = tl.min(tl.where(loss == low, g, grids), axis=0)
        best = tl.where(low < least, index, best)
        least = tl.where(low < least, low, least)
    tl.store(found + r, best.to(tl.int64))
