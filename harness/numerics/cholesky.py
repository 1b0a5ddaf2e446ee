"""Cholesky factors of damped moments, with the ridge that they took."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from harness.numerics.device import read


@dataclass(frozen=True)
class Factor:
    """A Cholesky factor of a damped matrix and the ridge that it took."""

    lower: Tensor
    ridge: float


class IndefiniteError(ValueError):
    """A damped Hessian that stays indefinite."""


def damped_cholesky(matrix: Tensor, damping: float, retries: int = 4) -> Factor:
    """L Lᵀ = M + λI with λ = damping · mean(diag M), ``matrix [in, in]``.

    A column that was never active (M_jj = 0) gets M_jj = 1, which nothing else depends on; it does
    not enter the mean as 1, as it does in the authors' code, where λ then depends on H's scale.
    A failing factorisation is tried again with ten times the damping (at least 1e-6) up to
    ``retries`` times; the ridge that succeeded is returned, so that it can be recorded.

    Raises:
        IndefiniteError: M is not finite, or stays indefinite.
    """
    diagonal = matrix.diagonal()
    mean = diagonal.mean().double()
    for _ in range(retries + 1):
        ridge = damping * mean
        damped = matrix.clone()
        damped.diagonal().copy_(torch.where(diagonal == 0, 1.0, diagonal) + ridge)
        lower, info = torch.linalg.cholesky_ex(damped)
        fine = [diagonal.isfinite().all(), (info == 0) & lower.diagonal().isfinite().all()]
        (known,), (worked,), (size,) = read([*fine, ridge])
        if not known:
            raise IndefiniteError("the Hessian holds values that are not finite")
        if worked:
            return Factor(lower, size)
        damping = max(10 * damping, 1e-6)
    raise IndefiniteError(
        f"the Hessian stays indefinite at damping {damping / 10:g} · mean(diag H)"
    )
