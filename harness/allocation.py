"""Bits under a budget: which linear deserves how many, measured on held-out tokens.

Of every linear l and every number of bits b the relative loss on held-out calibration tokens is measured,
each linear quantised alone in the full-precision model:

    loss_lb = share_l · ‖(W − V_b) X‖² / ‖W X‖²

(share_l is 1, but for an expert: the part of all tokens that one reads on an average)
and the bits are those of

    min Σ_l loss_{l, b_l}        Σ_l storage_{l, b_l} ≤ budget · Σ_l weights_l

with storage in effective bits, scales and bases included. That is a multiple-choice knapsack, solved exactly,
but for choices that would fill the budget to about a millionth of a bit a weight: where the solver has taken
one that exceeds it by less than that, such choices may be passed over.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp

WIDEST = 1e9  # the largest loss that the solver is given, in units of the least
INFEASIBLE = 2  # of the solver's statuses: proved, and no failure of its own
TRIES = 40  # kept_free doubles: past all that the solver lets through


class BudgetError(ValueError):
    """A budget that no choice of bits can keep."""


@dataclass(frozen=True)
class Candidate:
    """One linear at one number of bits: its relative loss, and all bits that it would take."""

    bits: int
    loss: float
    storage: int


def allocate(
    candidates: Mapping[str, Sequence[Candidate]], weights: int, budget: float
) -> dict[str, int]:
    """Bits by linear of the least summed loss within ``budget`` effective bits a weight.

    Args:
        candidates: of every linear.
        weights: of all linears together.
        budget: effective bits a weight.

    Raises:
        BudgetError: even the smallest candidates take more.
    """
    check_budget({name: [one.storage for one in some] for name, some in candidates.items()},
                 weights, budget)  # fmt: skip
    flat = [(name, one) for name, some in candidates.items() for one in some]
    owner = np.array([list(candidates).index(name) for name, _ in flat])
    one_each = (owner[None] == np.arange(len(candidates))[:, None]).astype(float)
    storage = np.array([one.storage for _, one in flat], float)
    limit = np.floor(budget * weights)
    losses = np.array([one.loss for _, one in flat])
    sizes = losses[(losses > 0) & np.isfinite(losses)]
    if len(sizes):  # the solver's tolerances are absolute, about 1e-6, and lost on small losses
        losses = losses / max(sizes.min(), sizes.max() / WIDEST)
    # Bits: the solver lets a constraint be broken by about 1e-6, here bits a weight.
    kept_free = 0.0
    for _ in range(TRIES):
        found = milp(
            losses,
            integrality=np.ones(len(flat)),
            bounds=Bounds(0, 1),
            constraints=[
                LinearConstraint(one_each, 1, 1),
                LinearConstraint(storage[None] / weights, -np.inf, (limit - kept_free) / weights),
            ],
            options={"mip_rel_gap": 0.0},
        )
        if found.x is None:
            break
        chosen = {
            name: one for (name, one), taken in zip(flat, found.x, strict=True) if taken > 0.5
        }
        over = sum(one.storage for one in chosen.values()) - limit
        if over <= 0:
            return {name: one.bits for name, one in chosen.items()}
        kept_free = max(over, 2 * kept_free)
    if not kept_free or found.status != INFEASIBLE:
        raise BudgetError(f"budget={budget:g}: no choice of bits was found ({found.message})")
    # Nothing fits that is clear of the limit, but for what has been checked to fit.
    return {name: min(some, key=lambda one: one.storage).bits for name, some in candidates.items()}


def check_budget(storage: Mapping[str, Sequence[int]], weights: int, budget: float) -> None:
    """Raises BudgetError where the smallest of each linear's ``storage`` together exceed the budget."""
    least = sum(min(some) for some in storage.values())
    if least > budget * weights:
        raise BudgetError(
            f"budget={budget:g}: the fewest bits that these linears can have are {least / weights:.3f}"
        )
