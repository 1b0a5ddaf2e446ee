"""Column loops of GPTQ, GPTAQ and QuantEase: compiled for the CPU, parallel over rows.

Every row of a weight matrix is quantised independently of the others, column after column. The
kernels therefore work on transposed tiles ``[columns, LANES]``, whose rows are the lanes of the
vector unit, and look back ("left-looking"): column j gathers what columns k < j of its block
changed, from a tile that stays in the first-level cache. Between blocks the callers use matrix
products. Threads share out rows, not operations: :func:`map_rows` gives each its own rows for the
whole loop over columns, on plain threads that never have to meet on the way.

All arrays are transposed: ``[columns, rows]`` for weights, ``[groups, rows]`` for grids. They are all
float32 or all float64, and so is the arithmetic.

The plain torch twins are in :mod:`harness.numerics.twins`, what runs on other devices is decided in
:mod:`harness.numerics.gpu.choice`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numba
import numpy as np
import torch
from torch import Tensor

from harness.numerics.gpu.choice import loops
from harness.numerics.grid import Codebook
from harness.numerics.precision import precise

Item = TypeVar("Item")
Result = TypeVar("Result")
LANES = 64
BLOCK = 128


@numba.njit(nogil=True, cache=True, fastmath={"contract", "nsz"}, error_model="numpy")
def _gather(acc, coefficients, j, tile):  # type: ignore[no-untyped-def]
    """acc[r] -= Σ_{k<j} coefficients[j, k] · tile[k, r], four columns at a time."""
    k = 0
    while k + 4 <= j:
        c0, c1, c2, c3 = (
            coefficients[j, k],
            coefficients[j, k + 1],
            coefficients[j, k + 2],
            coefficients[j, k + 3],
        )
        for r in range(LANES):
            acc[r] -= (c0 * tile[k, r] + c1 * tile[k + 1, r]) + (
                c2 * tile[k + 2, r] + c3 * tile[k + 3, r]
            )
        k += 4
    while k < j:
        c0 = coefficients[j, k]
        for r in range(LANES):
            acc[r] -= c0 * tile[k, r]
        k += 1


@numba.njit(
    nogil=True, cache=True, fastmath={"contract", "nsz"}, error_model="numpy", inline="always"
)
def _round_lanes(acc, lanes, scale, zero, top, table, edges, codes, units):  # type: ignore[no-untyped-def]
    """Codes nearest to ``acc``, of the integers 0 … top, or of ``table`` if it has any, and t_c − zero."""
    real = acc.dtype.type
    bottom, last = real(0), real(top)
    if table.size == 0:
        for r in range(lanes):
            code = min(max(np.rint(acc[r] / scale[r]) + zero[r], bottom), last)
            codes[r] = np.uint8(code)
            units[r] = code - zero[r]
    else:
        for r in range(lanes):
            ratio = acc[r] / scale[r]
            count = 0
            for i in range(edges.size):
                count += ratio > edges[i]
            codes[r] = np.uint8(count)
            units[r] = table[count]


@numba.njit(nogil=True, cache=True, fastmath={"contract", "nsz"}, error_model="numpy")
def _gptq_rows(weight, factor, carry, scale, zero, group, top, table, edges, codes, error):  # type: ignore[no-untyped-def]
    """GPTQ on one block; ``factor[j, k]`` = U[k, j], ``carry[j, k]`` = −P[k, j]."""
    columns, rows = weight.shape
    real = weight.dtype.type
    acc = np.zeros(LANES, weight.dtype)
    errors = np.zeros((columns, LANES), weight.dtype)
    updated = np.zeros((columns if carry.size else 1, LANES), weight.dtype)
    units = np.zeros(LANES, weight.dtype)
    for start in range(0, rows, LANES):
        lanes = min(LANES, rows - start)
        for j in range(columns):
            for r in range(lanes):
                acc[r] = weight[j, start + r]
            _gather(acc, factor, j, errors)
            if carry.size:
                _gather(acc, carry, j, updated)
                for r in range(LANES):
                    updated[j, r] = acc[r]
            g = group[j]
            inverse = real(1) / factor[j, j]
            own = slice(start, start + lanes)
            _round_lanes(
                acc, lanes, scale[g, own], zero[g, own], top, table, edges, codes[j, own], units
            )
            for r in range(lanes):
                errors[j, r] = (acc[r] - scale[g, start + r] * units[r]) * inverse
                error[j, start + r] = errors[j, r]
            if carry.size:
                for r in range(lanes):
                    weight[j, start + r] = acc[r]


@numba.njit(nogil=True, cache=True, fastmath={"contract", "nsz"}, error_model="numpy")
def _quantease_rows(  # type: ignore[no-untyped-def]
    current, gradient, hessian, scale, zero, group, top, table, edges, relax, codes, step
):
    """One coordinate-descent pass over one block; ``current`` is updated."""
    columns, rows = current.shape
    real = current.dtype.type
    acc = np.zeros(LANES, current.dtype)
    steps = np.zeros((columns, LANES), current.dtype)
    units = np.zeros(LANES, current.dtype)
    for start in range(0, rows, LANES):
        lanes = min(LANES, rows - start)
        for j in range(columns):
            for r in range(lanes):
                acc[r] = gradient[j, start + r]
            _gather(acc, hessian, j, steps)
            g = group[j]
            inverse = real(1) / hessian[j, j]
            own = slice(start, start + lanes)
            for r in range(lanes):
                acc[r] = current[j, start + r] + acc[r] * inverse
            _round_lanes(
                acc, lanes, scale[g, own], zero[g, own], top, table, edges, codes[j, own], units
            )
            for r in range(lanes):
                old = current[j, start + r]
                new = acc[r] if relax else scale[g, start + r] * units[r]
                steps[j, r] = new - old
                step[j, start + r] = new - old
                current[j, start + r] = new


@numba.njit(nogil=True, cache=True, fastmath={"contract", "nsz", "reassoc"}, error_model="numpy")
def _squared_norms(reference, quantized, bias):  # type: ignore[no-untyped-def]
    """Σ (y − ŷ)², Σ (y − b)² and the rows' quotients; sums over rows are float64."""
    rows, columns = reference.shape
    error, signal, quotients = 0.0, 0.0, 0.0
    for i in range(rows):
        apart = size = reference.dtype.type(0)
        for j in range(columns):
            difference = reference[i, j] - quantized[i, j]
            apart += difference * difference
        if bias.size:
            for j in range(columns):
                value = reference[i, j] - bias[j]
                size += value * value
        else:
            for j in range(columns):
                size += reference[i, j] * reference[i, j]
        error += float(apart)
        signal += float(size)
        if size != 0 or apart != 0:
            quotients += float(apart) / float(size)
    return error, signal, quotients


def map_chunks(
    work: Callable[[Item], Result], chunks: Sequence[Item], device: torch.device
) -> list[Result]:
    """``work`` of every chunk, as many at a time as torch may use threads, each on one of them.

    A long chain of small tensor operations makes torch's threads meet after every one of them; on
    busy cores each meeting costs a time slice. Chunks never have to meet. A device has its own threads:
    there they come one after the other.
    """
    threads = torch.get_num_threads() if device.type == "cpu" else 1
    if threads == 1 or len(chunks) == 1:
        return [work(chunk) for chunk in chunks]

    def alone(chunk: Item) -> Result:
        with torch.no_grad():  # a thread does not inherit its maker's mode
            return work(chunk)

    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            return list(pool.map(alone, chunks))
    finally:
        torch.set_num_threads(threads)


def map_rows(work: Callable[[slice], Result], weight: Tensor) -> list[Result]:
    """``work`` of the rows of ``weight [out, in]``, shared out evenly in whole tiles."""
    rows = weight.shape[0]
    tiles = -(-rows // LANES)
    count = min(torch.get_num_threads(), tiles) if weight.device.type == "cpu" else 1
    edges = [min(rows, LANES * (tiles * i // count)) for i in range(count + 1)]
    return map_chunks(work, list(map(slice, edges, edges[1:])), weight.device)


def _numpy(*tensors: Tensor) -> tuple[np.ndarray, ...]:
    return tuple(t.contiguous().numpy() for t in tensors)


def codebook_arrays(codebook: Codebook, like: Tensor) -> tuple[int, np.ndarray, np.ndarray]:
    """The largest code, and table and edges in the precision of ``like``; empty if uniform."""
    table = edges = like.new_empty(0)
    if codebook.table is not None:
        table, edges = codebook.values(like), codebook.edges(like)
    return codebook.top, table.numpy(), edges.numpy()


def gptq_block(
    weight: Tensor,
    factor: Tensor,
    scale: Tensor,
    zero: Tensor,
    group: Tensor,
    codebook: Codebook,
    carry: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Rounds one column block; returns ``codes [columns, rows]`` and errors ``(w_j − v_j) / U_jj``.

    Frantar et al. 2022, algorithm 1, inner loop: after column j is rounded, the columns to the
    right get −(w_j − v_j)/U_jj · U_j,: . With ``carry`` P they get + w_j · P_j,: as well (Li et al.
    2025, GPTAQ), and ``weight`` holds the updated w_j afterwards.

    Args:
        weight: Wᵀ of the block, ``[columns, rows]``, contiguous.
        factor: the block's diagonal part of U, ``[columns, columns]``, upper triangular.
        scale: ``[groups, rows]``, with ``zero``; ``group [columns]`` picks the row of both.
        zero: ``[groups, rows]``.
        group: ``[columns]``, int64.
        codebook: what the codes stand for.
        carry: the block's diagonal part of P, strictly upper triangular, or None.
    """
    if weight.device.type != "cpu":
        return loops(weight.device).gptq_block(weight, factor, scale, zero, group, codebook, carry)
    codes, error = torch.empty(weight.shape, dtype=torch.uint8), torch.empty_like(weight)
    back = weight.new_empty(0, 0) if carry is None else -carry.T
    arrays = _numpy(weight, factor.T, back, scale, zero, group)
    arguments: list[Any] = [*arrays, *codebook_arrays(codebook, weight), *_numpy(codes, error)]
    _gptq_rows(*arguments)
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
    """One coordinate-descent pass over a block; returns ``codes`` and steps, each ``[columns, rows]``.

    Behdin et al. 2023, algorithm 1, written with the gradient ``G = (W* − V) H``: for column j
    u = V_j + (G_j − Σ_{k<j in block} H_kj step_k) / H_jj, then V_j = Q(u), or u itself when
    ``relax``. ``current`` Vᵀ ``[columns, rows]`` is updated in place; ``codes`` is Q(u) either way.

    Args:
        current: Vᵀ of the block, ``[columns, rows]``, contiguous.
        gradient: Gᵀ of the block as of its start, ``[columns, rows]``, contiguous.
        hessian: the block's diagonal part of H, ``[columns, columns]``, positive diagonal.
        scale: ``[groups, rows]``, with ``zero``; ``group [columns]`` picks the row of both.
        zero: ``[groups, rows]``.
        group: ``[columns]``, int64.
        codebook: what the codes stand for.
        relax: keep u unrounded in ``current``.
    """
    given = (current, gradient, hessian, scale, zero, group)
    if current.device.type != "cpu":
        return loops(current.device).quantease_block(*given, codebook, relax)
    codes, step = torch.empty(current.shape, dtype=torch.uint8), torch.empty_like(current)
    arguments: list[Any] = [*_numpy(*given), *codebook_arrays(codebook, current), relax]
    _quantease_rows(*arguments, *_numpy(codes, step))
    return codes, step


def squared_norms(reference: Tensor, quantized: Tensor, bias: Tensor | None) -> Tensor:
    """‖y − ŷ‖², ‖y − b‖² and Σ_t ‖y_t − ŷ_t‖² / ‖y_t − b‖² of outputs ``[..., out]``, float64 ``[3]``.

    ``bias`` is b ``[out]``. Tokens t whose output is zero and stays so count as 0.
    """
    y, other = reference.flatten(0, -2), quantized.flatten(0, -2)
    if y.device.type != "cpu" or y.dtype not in (torch.float32, torch.float64):
        return squared_norms_torch(y, other, bias)
    shift = y.new_empty(0) if bias is None else bias.detach()
    found = _squared_norms(*_numpy(y.detach(), other.detach(), shift))
    return torch.tensor(found, dtype=torch.float64)


def squared_norms_torch(reference: Tensor, quantized: Tensor, bias: Tensor | None) -> Tensor:
    """The plain twin of :func:`squared_norms`: only sums over tokens are float64, which cards are slow at."""
    y = precise(reference)
    error = (y - quantized).square().sum(dim=-1)
    signal = (y if bias is None else y - bias).square().sum(dim=-1)
    quotients = error.double() / signal.double()
    quotients = torch.where((error == 0) & (signal == 0), 0.0, quotients)
    sums = [one.sum(dtype=torch.float64) for one in (error, signal, quotients)]
    return torch.stack(sums)
