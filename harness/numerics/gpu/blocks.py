"""The column loops of one block in Triton: a program a tile of rows, whose columns stay on the chip.

"Right-looking": once column j is decided, those right of it in the tile are updated, in the order and with
the operations of :mod:`harness.numerics.twins`. So are the others, which nobody looks at again. Arrays are
transposed, rows next to each other in memory.
"""

from __future__ import annotations

import triton
import triton.language as tl

from harness.numerics.gpu.rounding import column, divide, nearest


@triton.jit
def gptq(
    weight, factor, carry, scale, zero, group, table, edges, codes, error, rows, columns, top,
    COLUMNS: tl.constexpr, ROWS: tl.constexpr, STEPS: tl.constexpr, CARRY: tl.constexpr,
):  # fmt: skip
    """GPTQ's loop, with ``CARRY`` GPTAQ's; COLUMNS is ``columns`` rounded up to a power of two."""
    rows = tl.cast(rows, tl.int64)
    r = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    k = tl.arange(0, COLUMNS)
    live, inside = r < rows, k < columns
    at = k[:, None] * rows + r[None, :]
    work = tl.load(weight + at, mask=inside[:, None] & live[None, :], other=0.0)
    for j in tl.range(0, columns):
        value = column(work, k == j)
        own = tl.load(group + j) * rows + r
        s, z = (
            tl.load(scale + own, mask=live, other=1.0),
            tl.load(zero + own, mask=live, other=0.0),
        )
        code, rounded = nearest(value, s, z, top, table, edges, STEPS)
        pivot = tl.load(factor + j * columns + j)
        lost = divide(value - rounded, pivot)
        here = j * rows + r
        tl.store(codes + here, code.to(tl.uint8), mask=live)
        tl.store(error + here, lost, mask=live)
        u = tl.load(factor + j * columns + k, mask=inside, other=0.0)
        work -= u[:, None] * lost[None, :]
        if CARRY:
            p = tl.load(carry + j * columns + k, mask=inside, other=0.0)
            work += p[:, None] * value[None, :]
            tl.store(weight + here, value, mask=live)


@triton.jit
def quantease(
    current, gradient, hessian, scale, zero, group, table, edges, codes, step, rows, columns, top,
    COLUMNS: tl.constexpr, ROWS: tl.constexpr, STEPS: tl.constexpr, RELAX: tl.constexpr,
):  # fmt: skip
    """QuantEase's loop; COLUMNS is ``columns`` rounded up to a power of two."""
    rows = tl.cast(rows, tl.int64)
    r = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    k = tl.arange(0, COLUMNS)
    live, inside = r < rows, k < columns
    at = k[:, None] * rows + r[None, :]
    slope = tl.load(gradient + at, mask=inside[:, None] & live[None, :], other=0.0)
    for j in tl.range(0, columns):
        here = j * rows + r
        old = tl.load(current + here, mask=live, other=0.0)
        downhill = column(slope, k == j)
        curvature = tl.load(hessian + j * columns + j)
        new = old + divide(downhill, curvature)
        own = tl.load(group + j) * rows + r
        s, z = (
            tl.load(scale + own, mask=live, other=1.0),
            tl.load(zero + own, mask=live, other=0.0),
        )
        code, rounded = nearest(new, s, z, top, table, edges, STEPS)
        if not RELAX:
            new = rounded
        moved = new - old
        tl.store(codes + here, code.to(tl.uint8), mask=live)
        tl.store(step + here, moved, mask=live)
        tl.store(current + here, old + moved, mask=live)
        h = tl.load(hessian + j * columns + k, mask=inside, other=0.0)
        slope -= h[:, None] * moved[None, :]
