"""Which of several grids has the least error of a row's weights: a compiled search, with its twin.

    argmin_k Σ_j |v_j(k) − w_j|^norm

Errors count in units of the row's first scale, or their powers would leave the range of floats where
weights are very large or small.

A power takes some thirty operations, and most grids are far from the best. So every grid's loss is first
bounded from below, with a polynomial in place of the power whose own error is known, and left as soon as
it cannot be the least; the few that are left are looked at exactly, the lowest bound first. Weights are
sorted, so that those beyond the ends of the grid, whose errors are the largest, come first, and those
between two edges of a table lie together. All that decides how long it takes, not what is found.
"""

from __future__ import annotations

import functools
from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor

from harness.numerics.gpu.choice import loops
from harness.numerics.grid import Codebook
from harness.numerics.kernels import codebook_arrays, map_rows
from harness.numerics.powers import polynomial

TILE = 256  # weights of a row at once
TINY = np.float32(1e-30)  # whose power is 0 for every purpose here
DEGREE = 6  # of a bound's polynomial
WIDE = 4  # how many times farther than within the grid it reaches for weights beyond
SLACK = np.float32(1 + 1e-5)  # between two ways of adding up a loss
FAST = {"contract", "nsz", "reassoc"}


# log₂ to 7e-6 and 2^x to 2e-7 in float32: a power in operations that the vector unit can do.
L0, L1, L2, L3, L4, L5, L6, L7 = polynomial(np.log2, 1, 2, 7)
E0, E1, E2, E3, E4, E5 = polynomial(np.exp2, 0, 1, 5)


@functools.cache
def _lower_bound(norm: float, reach: float) -> tuple[np.float32, ...]:
    """What bounds |e|^norm from below: a polynomial up to ``reach``, a line beyond it.

    The coefficients of |e| … |e|^6, how far off they are at most, ``reach`` and the slope of the line.
    """
    x = np.sin(np.linspace(0, np.pi / 2, 1001)) ** 2  # in units of reach; closer at both ends
    degrees = np.arange(1, DEGREE + 1)
    powers = x[:, None] ** degrees
    found = np.linalg.lstsq(powers, x**norm, rcond=None)[0]
    off = np.abs(powers @ found - x**norm).max() + 1e-6
    slope = norm * reach ** (norm - 1) if norm >= 1 else 0.0
    scaled = found * reach ** (norm - degrees)
    return tuple(map(np.float32, (*scaled, off * reach**norm, reach, slope)))


def least_error(
    weight: Tensor, scale: Tensor, zero: Tensor, codebook: Codebook, norm: float
) -> Tensor:
    """The index ``[rows]`` of the grid of least error; a tie keeps the first.

    Args:
        weight: one group a row, ``[rows, size]``.
        scale: of every grid, ``[grids, rows]``.
        zero: of every grid, ``[grids, rows]``.
        codebook: what the codes stand for.
        norm: the exponent.
    """
    if weight.dtype != torch.float32:
        return least_error_torch(weight, scale, zero, codebook, norm)
    if weight.device.type != "cpu":
        return loops(weight.device).least_error(weight, scale, zero, codebook, norm)
    book = codebook_arrays(codebook, weight)
    reach = 0.5 if codebook.table is None else codebook.table.diff().max().item() / 2
    near, wide = _lower_bound(norm, reach), _lower_bound(norm, WIDE * reach)

    def searched(rows: slice) -> Tensor:
        own = np.sort(weight[rows].numpy(), axis=1)
        grids = (one[:, rows].T.contiguous().numpy() for one in (scale, zero))
        found = torch.zeros(len(own), dtype=torch.int64)
        arguments: list[Any] = [own, *grids, book, np.float32(norm), near, wide, found.numpy()]
        _search_rows(*arguments)
        return found

    return torch.cat(map_rows(searched, weight))


def least_error_torch(
    weight: Tensor, scale: Tensor, zero: Tensor, codebook: Codebook, norm: float
) -> Tensor:
    """The plain twin of :func:`least_error`: its reference in the tests and its path in float64."""
    least = torch.full_like(scale[0], torch.inf)
    found = torch.zeros(len(weight), dtype=torch.int64, device=weight.device)
    for index in range(len(scale)):
        grid = scale[index, :, None], zero[index, :, None]
        value = codebook.decode(codebook.encode(weight, *grid), *grid)
        loss = ((value - weight) / scale[0, :, None]).abs_().pow_(norm).sum(dim=1)
        found = torch.where(loss < least, index, found)
        least = torch.minimum(loss, least)
    return found


@numba.njit(nogil=True, cache=True, fastmath=FAST, error_model="numpy")
def _powers(value, norm, mantissa, power):  # type: ignore[no-untyped-def]
    """|v|^norm = 2^(norm · log₂ |v|) in place of every ``value``; the other arrays are room to work."""
    bits, mantissa_bits, power_bits = (
        value.view(np.int32), mantissa.view(np.int32), power.view(np.int32),
    )  # fmt: skip
    for j in range(value.size):
        value[j] = abs(value[j]) + TINY
        mantissa_bits[j] = (bits[j] & 0x7FFFFF) | 0x3F800000
    for j in range(value.size):
        m = mantissa[j]
        log = L0 + m * (L1 + m * (L2 + m * (L3 + m * (L4 + m * (L5 + m * (L6 + m * L7))))))
        exponent = norm * (np.float32((bits[j] >> 23) - 127) + log)
        exponent = min(max(exponent, np.float32(-126)), np.float32(127))
        whole = np.floor(exponent)
        f = exponent - whole
        power_bits[j] = (np.int32(whole) + 127) << 23
        value[j] = E0 + f * (E1 + f * (E2 + f * (E3 + f * (E4 + f * E5))))
    for j in range(value.size):
        value[j] *= power[j]


@numba.njit(nogil=True, cache=True, fastmath=FAST, error_model="numpy")
def _exact(row, inverse, low, high, book, norm, room):  # type: ignore[no-untyped-def]
    """Σ |v − w|^norm of ``row`` in units of the scale 1 / ``inverse``."""
    _, table, edges = book
    error, mantissa, power = room
    loss = np.float32(0)
    for start in range(0, row.size, TILE):
        tile = row[start : min(start + TILE, row.size)]
        if table.size == 0:
            for j in range(tile.size):
                ratio = tile[j] * inverse
                error[j] = min(max(np.rint(ratio), low), high) - ratio
        else:
            for j in range(tile.size):
                ratio = tile[j] * inverse
                count = 0
                for i in range(edges.size):
                    count += ratio > edges[i]
                error[j] = table[count] - ratio
        _powers(error[: tile.size], norm, mantissa, power)
        for j in range(tile.size):
            loss += error[j]
    return loss


@numba.njit(nogil=True, cache=True, fastmath=FAST, error_model="numpy")
def _at_value(row, inverse, value, bound):  # type: ignore[no-untyped-def]
    """No more than Σ |v − w|^norm of weights that all go to one ``value``."""
    c1, c2, c3, c4, c5, c6, off, reach, slope = bound
    loss = np.float32(0)
    for j in range(row.size):
        far = abs(row[j] * inverse - value)
        x = min(far, reach)
        loss += (far - x) * slope + x * (c1 + x * (c2 + x * (c3 + x * (c4 + x * (c5 + x * c6)))))
    return loss - off * np.float32(row.size)


@numba.njit(nogil=True, cache=True, fastmath=FAST, error_model="numpy")
def _at_integers(row, inverse, bound):  # type: ignore[no-untyped-def]
    """No more than Σ |v − w|^norm of weights that go to the nearest integer."""
    c1, c2, c3, c4, c5, c6, off, _, _ = bound
    loss = np.float32(0)
    for j in range(row.size):
        ratio = row[j] * inverse
        x = abs(ratio - np.rint(ratio))
        loss += x * (c1 + x * (c2 + x * (c3 + x * (c4 + x * (c5 + x * c6)))))
    return loss - off * np.float32(row.size)


@numba.njit(nogil=True, cache=True, fastmath=FAST, error_model="numpy")
def _within(row, inverse, book, bound, limit):  # type: ignore[no-untyped-def]
    """No more than Σ |v − w|^norm of weights between the ends of the grid; above ``limit`` any will do."""
    _, table, edges = book
    loss = np.float32(0)
    if table.size == 0:
        for start in range(0, row.size, TILE):
            loss += _at_integers(row[start : min(start + TILE, row.size)], inverse, bound)
            if loss > limit:
                break
        return loss
    start = 0
    for cell in range(table.size):
        stop = row.size
        if cell < edges.size:
            stop = start + np.searchsorted(row[start:], edges[cell] / inverse, side="right")
        loss += _at_value(row[start:stop], inverse, table[cell], bound)
        start = stop
        if loss > limit:
            break
    return loss


@numba.njit(nogil=True, cache=True, fastmath=FAST, error_model="numpy")
def _ends(row, a, b, lowest, highest):  # type: ignore[no-untyped-def]
    """Where the weights from ``lowest`` to ``highest`` start and stop; a and b are near."""
    while a < row.size and row[a] < lowest:
        a += 1
    while a > 0 and row[a - 1] >= lowest:
        a -= 1
    while b > 0 and row[b - 1] > highest:
        b -= 1
    while b < row.size and row[b] <= highest:
        b += 1
    return a, b


@numba.njit(nogil=True, cache=True, fastmath=FAST, error_model="numpy")
def _bound_row(row, scale, zero, unit, book, near, wide, guess, limit, bounds):  # type: ignore[no-untyped-def]
    """A lower bound of every grid's loss in ``bounds``, infinite where that is above ``limit``.

    From ``guess`` outwards, since neighbours have about the same ends. Where the weights beyond the ends
    are too far away already, so they are on every grid that lies inside of that one. A grid that is the
    one before it again, as where scales have few digits, can only tie.
    """
    top, table, _ = book
    a, b, bottom, ceiling = 0, row.size, np.float32(np.inf), np.float32(-np.inf)
    for step in range(2 * scale.size):
        k = guess + (step + 1) // 2 if step % 2 else guess - step // 2
        if k < 0 or k >= scale.size:
            continue
        bounds[k] = np.float32(np.inf)
        if k > 0 and scale[k] == scale[k - 1] and zero[k] == zero[k - 1]:
            continue
        low, high = -zero[k], np.float32(top) - zero[k]
        if table.size > 0:
            low, high = table[0], table[-1]
        lowest, highest = low * scale[k], high * scale[k]
        if step == 0 or (lowest >= bottom and highest <= ceiling):
            continue
        inverse, margin = np.float32(1) / scale[k], near[7] * scale[k]
        a, b = _ends(row, a, b, lowest - margin, highest + margin)
        most = limit / unit[k]
        loss = _at_value(row[:a], inverse, low, wide) if a > 0 else np.float32(0)
        loss += _at_value(row[b:], inverse, high, wide) if b < row.size else np.float32(0)
        if loss > most:
            bottom, ceiling = lowest, highest
            continue
        loss += _within(row[a:b], inverse, book, near, most - loss)
        if loss <= most:
            bounds[k] = loss * unit[k]


@numba.njit(nogil=True, cache=True, fastmath=FAST, error_model="numpy")
def _search_rows(weight, scale, zero, book, norm, near, wide, found):  # type: ignore[no-untyped-def]
    """Fills ``found``; rows of ``weight`` are sorted. What the row before has chosen is tried first."""
    room = np.empty(TILE, np.float32), np.empty(TILE, np.float32), np.empty(TILE, np.float32)
    rows, grids = scale.shape
    unit, bounds = np.empty(grids, np.float32), np.empty(grids, np.float32)
    top, table, _ = book
    guess = 0
    for r in range(rows):
        row = weight[r]
        for k in range(grids):
            unit[k] = scale[r, k] / scale[r, 0]
        for start in range(0, grids, TILE):
            _powers(unit[start : min(start + TILE, grids)], norm, room[1], room[2])
        least, best, k = np.float32(np.inf), 0, guess
        for tried in range(grids):
            if tried > 0:
                k = int(np.argmin(bounds))
                if bounds[k] > least * SLACK:
                    break
            low, high = -zero[r, k], np.float32(top) - zero[r, k]
            inverse = np.float32(1) / scale[r, k]
            loss = unit[k] * _exact(row, inverse, low, high, book, norm, room)
            if loss < least or (loss == least and k < best):
                least, best = loss, k
            if tried == 0:
                _bound_row(
                    row, scale[r], zero[r], unit, book, near, wide, guess, least * SLACK, bounds
                )
            bounds[k] = np.float32(np.inf)
        found[r] = guess = best
