"""What a range is: the rule by which a group of weights gets its scale and zero.

A range is a frozen dataclass in a file of its own, with a YAML of the same name in ``conf/range`` that
carries its ``_target_``.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from harness.formats.base import Format
from harness.numerics.grid import Grid, neighbours, packed
from harness.numerics.storage import Storage

Refit = Literal["none", "scales", "round"]


class Fit(NamedTuple):
    """Scale and zero ``[rows]`` of one group of columns, and lo and hi where weights are cut to them."""

    scale: Tensor
    zero: Tensor
    ends: tuple[Tensor, Tensor] | None = None


class Range(Protocol):
    """A rule for scales and zeros; ``whole`` says that it looks at a whole weight at once."""

    whole: ClassVar[bool]

    def fit(self, weight: Tensor, form: Format, hessian: Tensor | None) -> Fit:
        """Scale and zero of one group of columns.

        Args:
            weight: the group's columns of every row, ``[rows, size]``.
            form: the number format.
            hessian: H's block of these columns ``[size, size]``, None where nothing is known of it.
        """
        ...

    def flops(self, rows: int, columns: int, size: int) -> float:
        """Floating-point operations for a weight ``[rows, columns]`` in groups of ``size``."""
        ...


def extremes(weight: Tensor) -> tuple[Tensor, Tensor]:
    """min(w, 0) and max(w, 0) of every row ``[rows]`` of ``weight [rows, size]``."""
    return weight.amin(dim=1).clamp(max=0), weight.amax(dim=1).clamp(min=0)


@dataclass(frozen=True)
class GridSpec:
    """What grid to fit: a number format, a range, and what shares a scale.

    Args:
        form: the number format.
        range: the rule for scales and zeros.
        group_size: input columns that share a scale; None is one grid per output channel.
        refit: what is done once the codes are known: nothing, least squares on H for scales and
            zeros, or that and a second rounding on the new grid.
        given: a grid that is fitted already, for all that ask for one.
    """

    form: Format
    range: Range
    group_size: int | None = None
    refit: Refit = "none"
    given: Grid | None = field(default=None, metadata={"identity": False})

    def __post_init__(self) -> None:
        if self.group_size is not None and self.group_size < 1:
            raise ValueError(
                f"group_size={self.group_size}: must be positive, or null for one grid a row"
            )
        if self.form.group not in (None, self.group_size):
            kind = type(self.form).__name__.lower()
            raise ValueError(
                f"group_size={self.group_size}: format={kind} has groups of {self.form.group}"
            )
        if self.range.whole and self.refit != "none":
            kind = type(self.range).__name__.lower()
            raise ValueError(
                f"refit={self.refit}: range={kind} has one scale for all rows; refit=none"
            )

    @property
    def whole(self) -> bool:
        """Whether scales depend on more than the group's weights, so that no rows can be added."""
        return self.form.whole or self.range.whole

    @property
    def static(self) -> bool:
        """Whether a grid once fitted stays, whatever becomes of the weights in its later groups."""
        return self.group_size is None or self.range.whole or self.given is not None

    def of_weight(self, weight: Tensor) -> GridSpec:
        """The spec for one linear, with what the format takes from ``weight [out, in]``, once."""
        return replace(self, form=self.form.of_weight(weight)) if self.form.whole else self

    def size(self, columns: int) -> int:
        """Columns of a group; raises ValueError if groups do not divide."""
        size = self.group_size or columns
        if columns % size:
            raise ValueError(f"group_size={size} does not divide the {columns} input columns")
        return size

    def fit(self, weight: Tensor, hessian: Tensor | None = None) -> Grid:
        """The grid of ``weight [out, in]``, every group fitted to its own columns of W and H."""
        if self.given is not None:
            return self.given
        form, size = self.form.of_weight(weight), self.size(weight.shape[1])
        fits = []
        for start in range(0, weight.shape[1], size):
            own = slice(start, start + size)
            block = None if hessian is None else hessian[own, own]
            fits.append(self.range.fit(weight[:, own], form, block))
        scale = torch.stack([fit.scale for fit in fits], dim=1)
        zero = torch.stack([fit.zero for fit in fits], dim=1)
        grid = replace(self.blank(weight), scale=scale, zero=zero)
        if ends := [fit.ends for fit in fits if fit.ends is not None]:
            lo, hi = (torch.stack(one, dim=1) for one in zip(*ends, strict=True))
            grid = replace(grid, ends=(lo, hi))
        return grid

    def blank(self, weight: Tensor) -> Grid:
        """The grid of ``weight [out, in]`` with no scales yet, for those that fit group after group."""
        rows, columns = weight.shape
        size = self.size(columns)
        scale, zero = weight.new_zeros(2, rows, columns // size)
        group = neighbours(columns, size, weight.device)
        return Grid(scale, zero, group, self.form.codebook, self.range.whole, runs=True)

    def storage(self, rows: int, columns: int, indexed: bool = False) -> Storage:
        """What a packed ``[rows, columns]`` linear will consist of.

        Args:
            rows: output channels.
            columns: input columns.
            indexed: whether groups, where there are several, are no runs of neighbouring columns.
        """
        groups = columns // self.size(columns)
        indexed, shared = indexed and groups > 1, self.range.whole
        return packed(self.form.codebook, rows, columns, groups, indexed, shared=shared)
