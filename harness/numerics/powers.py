"""Polynomials that make a power out of operations that every vector unit has: |e|^p = 2^(p · log₂ |e|)."""

from __future__ import annotations

import numpy as np
from numpy.polynomial import Chebyshev, Polynomial


def _polynomial(function: np.ufunc, lo: float, hi: float, degree: int) -> tuple[np.float32, ...]:
    """The coefficients of ``function`` on [lo, hi], lowest first."""
    found = Chebyshev.interpolate(function, degree, domain=[lo, hi]).convert(kind=Polynomial)
    return tuple(map(np.float32, found.coef))


LOG2 = _polynomial(np.log2, 1, 2, 7)  # to 4e-7, of a mantissa
EXP2 = _polynomial(np.exp2, 0, 1, 5)  # to 2e-7, of a fraction
