"""Slow literal versions of the harness's numerics, in float64 and straight from the formulas."""

import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

GOLDEN = Path(__file__).parent / "golden"


def golden(name: str) -> dict[str, Tensor]:
    """The arrays of the authors' implementations, as tensors."""
    with np.load(GOLDEN / f"{name}.npz") as arrays:
        numbers = {key: value for key, value in arrays.items() if value.dtype.kind != "U"}
        return {key: torch.from_numpy(value) for key, value in numbers.items()}


def instance(
    rows: int = 24, columns: int = 40, tokens: int = 300, seed: int = 0, mismatch: float = 0.15
) -> tuple[Tensor, Tensor, Tensor]:
    """A weight ``[rows, columns]``, X̂ ``[tokens, columns]`` and the X that it comes from."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(columns, columns, generator=generator) / math.sqrt(columns)
    size = 0.2 + torch.rand(columns, generator=generator)
    reference = torch.randn(tokens, columns, generator=generator) @ mix * size
    noise = torch.randn(tokens, columns, generator=generator) @ mix * size
    weight = torch.randn(rows, columns, generator=generator)
    return weight, reference + mismatch * noise, reference


def fit_range(values: list[float], bits: int, symmetric: bool = False) -> tuple[float, float]:
    """Scale and zero of one group of weights."""
    lo, hi = min(*values, 0.0), max(*values, 0.0)
    if symmetric:
        hi = max(-lo, hi)
        lo = -hi
    if lo == hi == 0:
        lo, hi = -1.0, 1.0
    scale = (hi - lo) / (2**bits - 1)
    return scale, 2.0 ** (bits - 1) if symmetric else round(-lo / scale)


def to_code(value: float, scale: float, zero: float, bits: int) -> int:
    """The code of the grid point nearest to ``value``."""
    return int(min(max(round(value / scale) + zero, 0), 2**bits - 1))


def moments(inputs: Tensor, reference: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """H, C and D as means over tokens of outer products."""
    x, e = inputs.double(), (reference - inputs).double()
    tokens = x.shape[0]
    hessian = sum(torch.outer(a, a) for a in x) / tokens
    cross = sum(torch.outer(d, a) for d, a in zip(e, x, strict=True)) / tokens
    gap = sum(torch.outer(d, d) for d in e) / tokens
    return hessian, cross, gap


def damped(hessian: Tensor, damping: float) -> Tensor:
    """H + λI in float64, dead columns with H_jj = 1."""
    result = hessian.double().clone()
    ridge = damping * result.diagonal().mean()
    for j in range(len(result)):
        result[j, j] = (result[j, j] if result[j, j] != 0 else 1.0) + ridge
    return result


def gptq(
    weight: Tensor,
    hessian: Tensor,
    bits: int,
    *,
    group_size: int | None = None,
    damping: float = 0.01,
    act_order: bool = False,
    block: int = 128,
    cross: Tensor | None = None,
    strength: float = 0.0,
    rescomp: bool = False,
) -> Tensor:
    """V ``[out, in]`` of GPTQ, or of GPTAQ when ``strength`` and C are given, by least squares.

    When column j is rounded to v_j, the columns F after it move by the Δ that minimises
    ‖(v_j − w_j) X̂_j + Δ X̂_F − a w_j E_j‖², that is

        Δ = −((v_j − w_j) H_jF − a w_j C_jF) (H_FF)⁻¹

    With ``rescomp`` the output of column j is also to be that of the weight w°_j it had at first:
    ‖(v_j − w_j) X̂_j + Δ X̂_F − a w_j E_j − a (w°_j − w_j) X_j‖², where X_j X̂_Fᵀ / T = (H + C)_jF.
    """
    columns = weight.shape[1]
    size = group_size or columns
    order = list(range(columns))
    if act_order:
        order = sorted(order, key=lambda j: -hessian[j, j].item())
    work = weight.double()[:, order].clone()
    ranges = [fit_range(row.tolist(), bits) for row in work] if group_size is None else []
    work[:, hessian.diagonal()[order] == 0] = 0
    h = damped(hessian, damping)[order][:, order]
    c = torch.zeros_like(h) if cross is None else cross.double()[order][:, order]
    result = torch.zeros_like(work)
    plain = hessian.double()[order][:, order]
    frozen, original = work.clone(), work.clone()
    for j in range(columns):
        if j % block == 0:
            frozen = work.clone()
        if group_size is not None and j % size == 0:
            ranges = [fit_range(row.tolist(), bits) for row in frozen[:, j : j + size]]
        column = work[:, j].clone()
        for i, (scale, zero) in enumerate(ranges):
            result[i, j] = scale * (to_code(column[i].item(), scale, zero, bits) - zero)
        if j + 1 < columns:
            push = torch.outer(result[:, j] - column, h[j, j + 1 :])
            push -= strength * torch.outer(column, c[j, j + 1 :])
            if rescomp:
                changed = original[:, j] - column
                push -= strength * torch.outer(changed, (plain + c)[j, j + 1 :])
            work[:, j + 1 :] -= push @ torch.linalg.inv(h[j + 1 :, j + 1 :])
    restored = torch.zeros_like(result)
    restored[:, order] = result
    return restored


def qronos(
    weight: Tensor, inputs: Tensor, reference: Tensor, bits: int, act_order: bool = True
) -> Tensor:
    """V ``[out, in]`` of Qronos, by least squares on raw activations, row after row, column after column.

    Column t goes to where it alone would do best, all others staying as they are; then the columns
    after it are set to what does best:

        q_t = Q(X̂_tᵀ (X w − Σ_{j<t} q_j X̂_j − Σ_{j>t} w_j X̂_j) / ‖X̂_t‖²)
        w_{>t} = argmin ‖X w − Σ_{j≤t} q_j X̂_j − X̂_{>t} w_{>t}‖²

    The grid is that of the least-squares weight for all columns.
    """
    x, y, w0 = inputs.double(), reference.double(), weight.double()
    columns = weight.shape[1]
    order = list(range(columns))
    if act_order:
        order = sorted(order, key=lambda j: -x[:, j].square().sum().item())
    fitted = torch.linalg.lstsq(x, y @ w0.T).solution.T
    result = torch.zeros_like(w0)
    for i in range(len(weight)):
        scale, zero = fit_range(fitted[i].tolist(), bits)
        wanted, row = y @ w0[i], w0[i].clone()
        for t, j in enumerate(order):
            others = [k for k in order if k != j]
            rest = wanted - x[:, others] @ row[others]
            u = (x[:, j] @ rest / x[:, j].square().sum()).item()
            row[j] = scale * (to_code(u, scale, zero, bits) - zero)
            done, left = order[: t + 1], order[t + 1 :]
            if left:
                row[left] = torch.linalg.lstsq(
                    x[:, left], wanted - x[:, done] @ row[done]
                ).solution
        result[i] = row
    return result


def quantease(
    weight: Tensor, hessian: Tensor, bits: int, iterations: int = 20, relax_every: int = 3
) -> Tensor:
    """V ``[out, in]`` of QuantEase: every column in turn to the rounded parabola minimum."""
    target, h = weight.double(), hessian.double()
    ranges = [fit_range(row.tolist(), bits) for row in target]
    current = target.clone()
    for index in range(iterations):
        relax = relax_every and index % relax_every == 1 and index < iterations - 1
        for j in range(h.shape[0]):
            for i, (scale, zero) in enumerate(ranges):
                u = current[i, j].item()
                if h[j, j] != 0:
                    u += ((target[i] - current[i]) @ h[:, j] / h[j, j]).item()
                if not relax or index > 25:
                    u = scale * (to_code(u, scale, zero, bits) - zero)
                current[i, j] = u
    return current


def best_neighbours(
    weight: Tensor, hessian: Tensor, scale: Tensor, zero: Tensor, levels: int
) -> float:
    """The least loss of one row ``[in]`` over all choices of the grid point below or above."""
    columns = weight.shape[0]
    floor = torch.floor(weight.double() / scale.double())
    choices = (torch.arange(2**columns)[:, None] >> torch.arange(columns)) & 1
    codes = (floor + choices + zero).clamp(0, levels)
    delta = weight.double() - scale.double() * (codes - zero)
    return ((delta @ hessian.double()) * delta).sum(dim=1).min().item()


def nearest(value: float, points: list[float]) -> float:
    """The point with the least distance from ``value``."""
    return min(points, key=lambda point: abs(point - value))
