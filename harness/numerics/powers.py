"""Polynomials that make a power out of operations that every vector unit has: |e|^p = 2^(p · log₂ |e|)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.polynomial import Chebyshev, Polynomial


def polynomial(
    function: Callable[[np.ndarray], np.ndarray], lo: float, hi: float, degree: int
) -> tuple[np.float32, ...]:
    """The coefficients of ``function`` on [lo, hi], lowest first."""
    found = Chebyshev.interpolate(function, degree, domain=[lo, hi]).convert(kind=Polynomial)
    return tuple(map(np.float32, found.coef))
