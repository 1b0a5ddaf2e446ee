"""The levels of least mean square error for normally distributed weights."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from scipy.optimize import root
from scipy.stats import norm
from torch import Tensor

from harness.formats.midrise import MidRise


@dataclass(frozen=True)
class Gauss(MidRise):
    """The optimal quantiser of a normal distribution (Max 1960, "Quantizing for minimum distortion").

    Every level is the mean of what is rounded to it,

        t_c = E[w | e_c < w < e_{c+1}]        e_c = (t_{c−1} + t_c) / 2        w ~ N(0, 1)

    here in units of the outermost level. At 3 bits its mean square error is 0.0345 σ², that of evenly
    spaced levels at their best 0.0374 σ². Weights in a random orthogonal basis are close to normal.

    Args:
        bits: of a code.
        scales: the type that scales are stored and take part in rounding in.
    """

    def values(self) -> Tensor:
        """See :meth:`MidRise.values`."""
        levels = torch.from_numpy(normal_levels(self.bits))
        return levels / levels[-1]


@cache
def normal_levels(bits: int) -> np.ndarray:
    """The 2^bits levels of least mean square error for N(0, 1), in rising order, float64."""

    def apart(upper: np.ndarray) -> np.ndarray:
        """Positive levels less the means of what is rounded to them."""
        edges = np.concatenate([[0.0], (upper[1:] + upper[:-1]) / 2, [np.inf]])
        mass = norm.cdf(edges[1:]) - norm.cdf(edges[:-1])
        return np.asarray(upper + (norm.pdf(edges[1:]) - norm.pdf(edges[:-1])) / mass)

    count = 2 ** (bits - 1)
    # At high resolution the density of levels goes with the cube root of that of weights.
    start = np.sqrt(3) * norm.ppf(0.5 + (np.arange(count) + 0.5) / (2 * count))
    found = root(apart, start, tol=1e-13)
    upper = np.asarray(found.x)
    return np.concatenate([-upper[::-1], upper])
