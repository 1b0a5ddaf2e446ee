"""The axes of a run as they are said, and the recipe of every linear that they make.

    transform × range × format × bits, of all linears, and ``overrides`` of them by pattern

A part that is not said, ``own``, is what the method's authors use with it: a method's ``composition``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from fnmatch import fnmatch
from typing import Any

from harness.formats.base import Format, ScaleType
from harness.methods.base import Method
from harness.ranges.base import GridSpec, Range, Refit
from harness.recipe import Recipe
from harness.settings.identity import described
from harness.settings.plugins import field_names, load_plugin, plugin_name
from harness.transforms.base import Transform

AUTO = "auto"  # bits that are chosen under a budget, among EVERY
EVERY = (2, 3, 4, 5, 6)
OWN = {"own": "method"}  # the node of transform=own
SHARED = ("bits", "symmetric", "scales")  # said once, for every part that has a field of that name


@dataclass(frozen=True)
class FormatChoice:
    """A number format before its bits, symmetry and type of scales are known."""

    kind: type
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Said:
    """What is said of the linears of a pattern, or of all; None for what is left to the method.

    Args:
        bits: of a code; several leave the choice to a budget.
        group_size: input columns that share a scale; None is one scale per output channel.
        symmetric: ranges around 0.
        scales: the type that scales are stored and take part in rounding in.
        refit: whether scales and zeros are refitted to the codes, and weights rounded once more.
        format: the number format.
        range: the rule for scales and zeros.
        transform: makes the basis, the first one first.
    """

    bits: int | tuple[int, ...] = 3
    group_size: int | None = None
    symmetric: bool = False
    scales: ScaleType = "float16"
    refit: Refit = "none"
    format: FormatChoice | None = None
    range: Range | None = None
    transform: Mapping[str, Transform] | None = None


AXES = tuple(one.name for one in fields(Said))


@dataclass(frozen=True)
class Axes:
    """What is said of all linears, and what patterns change of it.

    Args:
        said: of all linears.
        overrides: by glob pattern on a linear's name some of the fields of :class:`Said`; where several
            patterns match, the last one that has a field wins.
        budget: effective bits a weight that may be spent where several bits are said.
        chosen: the bits that have been chosen, by linear.
    """

    said: Said = Said()
    overrides: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    budget: float | None = None
    chosen: Mapping[str, int] = field(default_factory=dict)

    def of(self, name: str) -> Said:
        """What is said of the linear ``name``."""
        found = self.said
        for pattern, some in self.overrides.items():
            if fnmatch(name, pattern):
                found = replace(found, **some)
        return found

    def recipe(self, method: Method, name: str, bits: int | None = None) -> Recipe:
        """What is done to the linear ``name``; ``bits`` are those of a trial, where they are not said.

        Raises:
            ValueError: the parts do not fit.
        """
        said = self.of(name)
        if isinstance(said.bits, tuple):
            said = replace(said, bits=self.chosen[name] if bits is None else bits)
        return recipe(method, said, name)

    def unmatched(self, names: Iterable[str]) -> list[str]:
        """The patterns that no linear of these ``names`` has."""
        known = list(names)
        return [one for one in self.overrides if not any(fnmatch(name, one) for name in known)]

    def problems(self, method: Method) -> list[str]:
        """What can be said against it before a model is there, a line each."""
        found = []
        tried = self.budgeted()
        if tried and self.budget is None:
            found.append("bits=auto, or several: set budget=3.25, say, in effective bits a weight")
        if self.budget is not None and not tried:
            found.append(
                f"budget={self.budget:g}: belongs to bits=auto, or several as in bits=[3,4]"
            )
        for pattern, some in {"": {}, **self.overrides}.items():
            said = replace(self.said, **some)
            for bits in said.bits if isinstance(said.bits, tuple) else (said.bits,):
                try:
                    recipe(method, replace(said, bits=bits), pattern)
                except ValueError as error:
                    found.append(f"overrides[{pattern}]: {error}" if pattern else str(error))
        return list(dict.fromkeys(found))

    def budgeted(self) -> bool:
        """Whether the bits of any linear are chosen under a budget."""
        said = [self.said.bits, *(one.get("bits") for one in self.overrides.values())]
        return any(isinstance(bits, tuple) for bits in said)

    def described(self, method: Method) -> dict[str, Any]:
        """Its part of the identity: what the axes come to, whichever way it was said."""
        plain = _described(self.said, method, "")
        own = method.composition.ranges if self.said.range is None else {}
        changed = {pattern: {"range": described(one)} for pattern, one in own.items()}
        for pattern, some in self.overrides.items():
            whole = _described(replace(self.said, **some), method, pattern)
            flat = whole["grid"] | {"transform": whole["transform"]}
            kept = {*some, *(["format"] if {"symmetric", "scales"} & some.keys() else [])}
            changed[pattern] = {key: one for key, one in flat.items() if key in kept}
        if self.budget is not None:
            plain["grid"]["budget"] = self.budget
        return plain | {"overrides": changed}

    def own(self, method: Method) -> list[str]:
        """The axes that are as the method's authors have them."""
        said, own = self.said, method.composition
        kind = own.form if said.format is None else plugin_name(said.format.kind)
        alike = {
            "format": kind == own.form,
            "range": said.range is None or (said.range == own.range and not own.ranges),
            "transform": said.transform is None or said.transform == dict(own.transforms),
            "overrides": not self.overrides,
        }
        return [name for name, same in alike.items() if same]

    def words(self, method: Method) -> list[str]:
        """What differs from the method's own parts, as names: ``nf4``, ``mse``, ``hadamard``."""
        said, own = self.said, self.own(method)
        found = [plugin_name(said.format.kind)] if said.format and "format" not in own else []
        found += ["symmetric"] if said.symmetric else []
        found += [plugin_name(said.range)] if said.range and "range" not in own else []
        found += [f"refit-{said.refit}"] if said.refit != "none" else []
        if said.transform is not None and "transform" not in own:
            found.append("+".join(said.transform) or "plain")
        found += ["float32"] if said.scales == "float32" else []
        return found


def recipe(method: Method, said: Said, name: str) -> Recipe:
    """The recipe of the linear ``name``, for which all bits are said.

    Raises:
        ValueError: the parts do not fit.
    """
    own = method.composition
    choice = said.format or FormatChoice(load_plugin("formats", own.form))
    form: Format = choice.kind(**_shared(choice.kind, said), **choice.options)
    if form.bits != said.bits:
        raise ValueError(f"bits={said.bits}: format={plugin_name(form)} has {form.bits} bits")
    if said.symmetric and "symmetric" not in field_names(choice.kind):
        raise ValueError(f"symmetric=true: format={plugin_name(form)} has no such choice")
    chosen = said.range
    if chosen is None:
        matches = [one for pattern, one in own.ranges.items() if fnmatch(name, pattern)]
        chosen = [own.range, *matches][-1]
    transforms = own.transforms if said.transform is None else said.transform
    bases = {
        key: replace(one, **_shared(type(one), said))  # type: ignore[type-var]
        for key, one in transforms.items()
    }
    return Recipe(method, GridSpec(form, chosen, said.group_size, said.refit), bases)


def _shared(kind: type, said: Said) -> dict[str, Any]:
    return {key: getattr(said, key) for key in SHARED if key in field_names(kind)}


def _described(said: Said, method: Method, name: str) -> dict[str, Any]:
    """The described parts of a recipe, by axis."""
    trial = said.bits[0] if isinstance(said.bits, tuple) else said.bits
    made = recipe(method, replace(said, bits=trial), name)
    form = described(made.spec.form)
    form.pop("bits", None)
    grid = {
        "bits": AUTO if said.bits == EVERY else described(said.bits),
        "group_size": said.group_size,
        "format": form,
        "range": described(made.spec.range),
        "refit": said.refit,
    }
    return {"grid": grid, "transform": described(made.transforms)}
