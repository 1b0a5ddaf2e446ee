"""The axes of a run as they are said, and the recipe of every linear that they make.

    transform × range × format × bits, of all linears, and ``overrides`` of them by pattern

A part that is not said, ``own``, is what the method's authors use with it: a method's ``composition``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from fnmatch import fnmatch
from typing import Any

from harness.formats.base import Format, ScaleType
from harness.methods.base import Method
from harness.ranges.base import GridSpec, Range, Refit
from harness.recipe import Recipe
from harness.settings.construct import coerce, make, target_class, unknown
from harness.settings.identity import described
from harness.settings.plugins import load_plugin, plugin_name
from harness.transforms.base import Transform

AUTO = "auto"  # bits that are chosen under a budget
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
        bits: of a code; "auto" leaves the choice to a budget.
        group_size: input columns that share a scale; None is one scale per output channel.
        symmetric: ranges around 0.
        scales: the type that scales are stored and take part in rounding in.
        refit: whether scales and zeros are refitted to the codes, and weights rounded once more.
        format: the number format.
        range: the rule for scales and zeros.
        transform: makes the basis, the first one first.
    """

    bits: int | str = 3
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
        budget: effective bits a weight that ``bits=auto`` may spend.
        chosen: the bits that it has chosen, by linear.
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
        if said.bits == AUTO:
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
            found.append("bits=auto: set budget=3.25, say, in effective bits a weight")
        if self.budget is not None and not tried:
            found.append(f"budget={self.budget:g}: belongs to bits=auto")
        for pattern, some in {"": {}, **self.overrides}.items():
            said = replace(self.said, **some)
            trial = replace(said, bits=3) if said.bits == AUTO else said
            try:
                made = recipe(method, trial, pattern)
            except ValueError as error:
                where = f"overrides[{pattern}]: " if pattern else ""
                found.append(f"{where}{error}")
                continue
            if said.bits == AUTO and "bits" not in _names(type(made.spec.form)):
                kind = plugin_name(made.spec.form)
                found.append(f"bits=auto: format={kind} has {made.spec.form.bits} bits")
        return list(dict.fromkeys(found))

    def budgeted(self) -> bool:
        """Whether the bits of any linear are chosen under a budget."""
        return AUTO in (self.said.bits, *(one.get("bits") for one in self.overrides.values()))

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

    def words(self, method: Method) -> list[str]:
        """What differs from the method's own parts, as names: ``nf4``, ``mse``, ``hadamard``."""
        said = self.said
        found = [plugin_name(said.format.kind)] if said.format is not None else []
        found = [one for one in found if one != method.composition.form]
        found += ["symmetric"] if said.symmetric else []
        if said.range is not None and said.range != method.composition.range:
            found.append(plugin_name(said.range))
        found += [f"refit-{said.refit}"] if said.refit != "none" else []
        if said.transform is not None and said.transform != dict(method.composition.transforms):
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
    if said.symmetric and "symmetric" not in _names(choice.kind):
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


def _names(kind: type) -> set[str]:
    return {one.name for one in fields(kind)}


def _shared(kind: type, said: Said) -> dict[str, Any]:
    return {key: getattr(said, key) for key in SHARED if key in _names(kind)}


def _described(said: Said, method: Method, name: str) -> dict[str, Any]:
    """The described parts of a recipe, by axis."""
    made = recipe(method, replace(said, bits=3) if said.bits == AUTO else said, name)
    form = described(made.spec.form)
    form.pop("bits", None)
    grid = {
        "bits": said.bits,
        "group_size": said.group_size,
        "format": form,
        "range": described(made.spec.range),
        "refit": said.refit,
    }
    return {"grid": grid, "transform": described(made.transforms)}


def read_axes(plain: Mapping[str, Any], problems: list[str]) -> Axes | None:
    """The axes of a plain configuration; what is wrong with it is collected."""
    before = len(problems)
    if plain.get("bits") is None:
        problems.append("bits is needed: set bits=...")
        plain = {key: one for key, one in plain.items() if key != "bits"}
    said = _read(plain, "", problems)
    overrides = plain.get("overrides") or {}
    changes = {}
    if not isinstance(overrides, Mapping):
        problems.append(f"overrides={overrides!r}: want a mapping, {{pattern: {{bits: 4}}}}")
        overrides = {}
    for pattern, some in overrides.items():
        where = f"overrides[{pattern}]"
        if not isinstance(some, Mapping):
            problems.append(f"{where}={some!r}: want a mapping of {', '.join(AXES)}")
            continue
        problems += [unknown(str(key), AXES, f"{where}.") for key in some if key not in AXES]
        changes[str(pattern)] = _read(some, f"{where}.", problems)
    budget = coerce(float | None, plain.get("budget"), "budget", problems)
    if budget is not None and not budget > 0:
        problems.append(f"budget={budget:g}: must be positive")
    return None if len(problems) > before else Axes(Said(**said), changes, budget)


def _read(plain: Mapping[str, Any], where: str, problems: list[str]) -> dict[str, Any]:
    """Those fields of :class:`Said` that ``plain`` has."""
    simple = {"group_size": int | None, "symmetric": bool, "scales": ScaleType, "refit": Refit}
    found: dict[str, Any] = {
        key: coerce(hint, plain[key], f"{where}{key}", problems)
        for key, hint in simple.items()
        if key in plain
    }
    if "bits" in plain:
        auto = plain["bits"] == AUTO
        found["bits"] = AUTO if auto else coerce(int, plain["bits"], f"{where}bits", problems)
    if "format" in plain:
        found["format"] = _format(plain["format"], f"{where}format", problems)
    if "range" in plain:
        found["range"] = _part("ranges", plain["range"], f"{where}range", problems)
    if "transform" in plain:
        found["transform"] = _chain(plain["transform"], f"{where}transform", problems)
    return found


def _format(node: Any, where: str, problems: list[str]) -> FormatChoice | None:
    """The format that a name, or a node with ``_target_``, stands for; None is the method's own."""
    kind, options = _kind("formats", node, where, problems)
    if kind is None:
        if options is not None:
            problems.append(f"{where}={node!r}: want a name, or options with _target_")
        return None
    bits = {"bits": 3} if "bits" in _names(kind) else {}
    made = make(kind, {**bits, **options}, where, problems)
    return made and FormatChoice(kind, {key: getattr(made, key) for key in options})


def _part(room: str, node: Any, where: str, problems: list[str]) -> Any:
    """The range or transform of a name, of a node with ``_target_``, or built already."""
    kind, options = _kind(room, node, where, problems)
    return options if kind is None else make(kind, options, where, problems)


def _chain(node: Any, where: str, problems: list[str]) -> Mapping[str, Transform] | None:
    """Transforms by name: of one name, a list of names, or nodes by name; None is the method's own."""
    if node is None or node in ("own", OWN):
        return None
    if node == "none":
        return {}
    if isinstance(node, str):
        node = [node]
    if isinstance(node, Mapping):
        node = {key: one for key, one in node.items() if key != "own"}
        return {key: _part("transforms", one or key, where, problems) for key, one in node.items()}
    if isinstance(node, Sequence):
        return {str(one): _part("transforms", one, where, problems) for one in node}
    problems.append(f"{where}={node!r}: want a name, a list of names, or options by name")
    return None


def _kind(room: str, node: Any, where: str, problems: list[str]) -> tuple[type | None, Any]:
    """The class that a node names, and its options; the node itself for an object that is built."""
    if node is None or node == "own":
        return None, None
    if isinstance(node, str):
        try:
            return load_plugin(room, node), {}
        except ValueError as error:
            problems.append(f"{where.rpartition('.')[0]}{'.' if '.' in where else ''}{error}")
            return None, None
    if not isinstance(node, Mapping):
        return None, node
    options = {key: one for key, one in node.items() if key != "_target_"}
    problems += [
        f"{where}.{key}: set {key}=..., for all parts" for key in options if key in SHARED
    ]
    if "_target_" not in node:
        problems.append(f"{where}._target_ is needed: want options with the _target_ of a class")
        return None, None
    return target_class(node["_target_"], where, problems), options
