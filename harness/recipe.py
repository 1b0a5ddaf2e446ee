"""How the linears of a stage are quantised: transform, range, format and method, put together."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from torch import Tensor

from harness.formats.base import check_scale
from harness.methods.base import Method, Quantized
from harness.numerics import refit
from harness.numerics.basis import Basis
from harness.numerics.statistics import Statistics
from harness.numerics.storage import Storage
from harness.ranges.base import GridSpec
from harness.transforms.base import Transform, find_bases

T = TypeVar("T")


@dataclass(frozen=True)
class Recipe:
    """What is done to one linear once its weight is corrected.

    Args:
        method: rounds.
        spec: the grid that is rounded to: format, range, group size.
        transforms: make the basis in which all of that happens, the first one first.
    """

    method: Method
    spec: GridSpec
    transforms: Mapping[str, Transform] = field(default_factory=dict)

    @property
    def needs(self) -> frozenset[str]:
        """The statistics beyond H that it reads."""
        return self.method.needs.union(*(one.needs for one in self.transforms.values()))

    def flops(self, rows: int, columns: int) -> float:
        """Floating-point operations of linears of ``rows`` output channels that share their inputs."""
        size = self.spec.group_size or columns
        turning = sum(one.flops(rows, columns) for one in self.transforms.values())
        fitting = self.spec.range.flops(rows, columns, size)
        refits = ("none", "scales", "round").index(self.spec.refit)  # each round has one
        rounding = max(1, refits) * self.method.flops(rows, columns)
        return turning + fitting + rounding + refits * refit.flops(rows, columns)

    def storage(self, rows: int, columns: int) -> Storage:
        """What a packed ``[rows, columns]`` linear will consist of."""
        plain = self.method.storage(rows, columns, self.spec)
        bits = sum(one.bits(rows, columns) for one in self.transforms.values())
        return replace(plain, other=plain.other + bits)


def quantize_stage(
    recipes: Mapping[str, Recipe], weights: Mapping[str, Tensor], statistics: Statistics
) -> dict[str, Quantized]:
    """The quantised form of every linear of a stage, each by its own recipe.

    Linears of one recipe are rounded together; those whose transforms and grids agree share a basis.

    Args:
        recipes: by linear.
        weights: W* by linear, each ``[out, in]``.
        statistics: of the inputs that they share.
    """
    result: dict[str, Quantized] = {}
    # what is not needed need not be turned
    statistics = statistics.only(set().union(*(recipe.needs for recipe in recipes.values())))
    for basis_of, names in _alike(recipes, _basis_of):
        spec = GridSpec(basis_of["form"], recipes[names[0]].spec.range, basis_of["group_size"])
        own = {name: weights[name] for name in names}
        bases, turned, moved = find_bases(
            list(recipes[names[0]].transforms.values()), own, statistics, spec
        )
        for _, alike in _alike({name: recipes[name] for name in names}, lambda one: one):
            recipe = recipes[alike[0]]
            found = recipe.method.quantize(
                {name: turned[name] for name in alike}, moved, recipe.spec
            )
            for name, one in found.items():
                check_scale(one.grid.scale, one.grid.codebook.scale_bits, turned[name])
                result[name] = _restored(one, bases[name])
    return {name: result[name] for name in weights}


def stage_flops(recipes: Mapping[str, Recipe], shapes: Mapping[str, tuple[int, int]]) -> float:
    """Floating-point operations of :func:`quantize_stage` for linears of these shapes (out, in)."""
    return sum(
        recipe.flops(sum(shapes[name][0] for name in names), shapes[names[0]][1])
        for recipe, names in _alike(recipes, lambda one: one)
    )


def _basis_of(recipe: Recipe) -> dict[str, Any]:
    """What decides the basis of a linear among those that read the same inputs."""
    return {
        "transforms": recipe.transforms,
        "form": recipe.spec.form,
        "group_size": recipe.spec.group_size,
    }


def _restored(quantized: Quantized, basis: Basis) -> Quantized:
    """The same with its dense weight in the model's own basis."""
    if not basis.inputs.parts and not basis.outputs.parts:
        return quantized
    return replace(quantized, weight=basis.back(quantized.weight), basis=basis)


def _alike(recipes: Mapping[str, Recipe], key: Callable[[Recipe], T]) -> list[tuple[T, list[str]]]:
    """The linears by what ``key`` makes of their recipe, in their order; nothing has to be hashable."""
    found: list[tuple[T, list[str]]] = []
    for name, recipe in recipes.items():
        kind = key(recipe)
        same = next((names for other, names in found if other == kind), None)
        if same is None:
            found.append((kind, [name]))
        else:
            same.append(name)
    return found
