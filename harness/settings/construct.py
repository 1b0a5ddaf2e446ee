"""Plain data becomes typed objects; everything that is wrong with it is collected, not just the first.

A node with ``_target_`` becomes an object of that class, a mapping where a field wants a dataclass one
of that, and every other value is coerced to the type of its field. The command line, the launchers'
workers and :func:`harness.layer.quantize_layer` all come through here.
"""

from __future__ import annotations

import importlib
import types
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from difflib import get_close_matches
from functools import cache
from typing import Any, Union, get_args, get_origin, get_type_hints

from pydantic import PydanticSchemaGenerationError, TypeAdapter, ValidationError


def construct(node: Any, where: str, problems: list[str]) -> Any:
    """Plain data with every ``_target_`` node turned into an object; problems are collected."""
    if isinstance(node, Mapping):
        if "_target_" not in node:
            return {key: construct(one, f"{where}.{key}", problems) for key, one in node.items()}
        rest = {key: value for key, value in node.items() if key != "_target_"}
        kind = target_class(node["_target_"], where, problems)
        return None if kind is None else make(kind, rest, where, problems)
    if isinstance(node, list):
        return [construct(one, f"{where}[{i}]", problems) for i, one in enumerate(node)]
    return node


def plugin(node: Any, where: str, problems: list[str], does: str) -> Any:
    """The object of the ``_target_`` of ``node``, which has a method ``does``; else a problem."""
    before = len(problems)
    made = construct(node, where, problems)
    if len(problems) > before:
        return None
    if not _built(made):
        _wants_target(node, where, problems)
    elif not callable(getattr(made, does, None)):
        problems.append(f"{where}: {type(made).__name__} has no {does}(), so it can't be one")
    return made


def _wants_target(value: Any, where: str, problems: list[str]) -> None:
    said = f"{where}._target_ is needed" if isinstance(value, Mapping) else f"{where}={value!r}"
    problems.append(f"{said}: want options with the _target_ of a class")


def target_class(target: Any, where: str, problems: list[str]) -> type | None:
    """The dataclass of that name."""
    module, _, name = str(target).rpartition(".")
    try:
        kind = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        problems.append(f"{where}._target_={target!r}: can't be imported ({error})")
        return None
    if not (isinstance(kind, type) and is_dataclass(kind)):
        problems.append(f"{where}._target_={target!r}: not a dataclass")
        return None
    return kind


def make(
    kind: type,
    values: Any,
    where: str,
    problems: list[str],
    beside: Collection[str] = (),
) -> Any:
    """An object of the dataclass ``kind``; unknown, missing and ill-typed fields are problems.

    Args:
        kind: the dataclass.
        values: its fields by name.
        where: what they are called by whoever set them; "" at the top.
        problems: takes what is wrong.
        beside: more names that exist in the same place, for the answer to an unknown one.
    """
    known = {f.name: f for f in fields(kind) if f.init}
    if not isinstance(values, Mapping):
        problems.append(f"{where}={values!r}: want options, {', '.join(known)}")
        return None
    prefix, before = f"{where}." if where else "", len(problems)
    for name in values:
        if name not in known:
            problems.append(unknown(str(name), [*known, *beside], prefix))
    hints, arguments = hints_of(kind), {}
    for name, one in known.items():
        required = one.default is MISSING and one.default_factory is MISSING
        if required and values.get(name) is None and not _takes_none(hints[name]):
            problems.append(f"{prefix}{name} is needed: set {prefix}{name}=...")
        elif name in values:
            count = len(problems)
            made = construct(values[name], f"{prefix}{name}", problems)
            if len(problems) == count:
                arguments[name] = coerce(hints[name], made, f"{prefix}{name}", problems)
    if len(problems) > before:
        return None
    try:
        return kind(**arguments)
    except ValueError as error:
        problems.append("; ".join(f"{prefix}{part}" for part in str(error).split("; ")))
        return None


def unknown(name: str, known: Sequence[str], prefix: str = "") -> str:
    """What is said of an option ``name`` that is none of ``known``, all below ``prefix``."""
    near = get_close_matches(name, known, n=1)
    if near:
        return f"{prefix}{name}: no such option; did you mean '{prefix}{near[0]}'?"
    return f"{prefix}{name}: no such option; " + (
        f"known are {', '.join(known)}" if known else f"{prefix.rstrip('.')} has none"
    )


@cache
def hints_of(kind: type) -> dict[str, Any]:
    """The types of a dataclass's fields."""
    return get_type_hints(kind)


def _members(hint: Any) -> tuple[Any, ...]:
    """The types that a value may have."""
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def _takes_none(hint: Any) -> bool:
    return type(None) in _members(hint)


def coerce(hint: Any, value: Any, where: str, problems: list[str]) -> Any:
    """``value`` as the type of its field, part by part, so that a problem names the very part."""
    if value is None and _takes_none(hint):
        return None
    members = [one for one in _members(hint) if one is not type(None)]
    if len(members) > 1:
        return _scalar(hint, value, where, problems)
    (only,), origin = members, get_origin(members[0])
    if is_dataclass(only):
        return value if isinstance(value, only) else make(only, value, where, problems)  # type: ignore[arg-type]
    if getattr(only, "_is_protocol", False):
        if not _built(value):
            _wants_target(value, where, problems)
        return value
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return _mapping(only, value, where, problems)
    if isinstance(origin, type) and issubclass(origin, Sequence):
        return _sequence(only, value, where, problems)
    return _scalar(hint, value, where, problems)


def _mapping(hint: Any, value: Any, where: str, problems: list[str]) -> Any:
    if not isinstance(value, Mapping):
        problems.append(f"{where}={value!r}: want a mapping, {{name: value}}")
        return None
    inside = get_args(hint)[1]
    return {str(k): coerce(inside, one, f"{where}.{k}", problems) for k, one in value.items()}


def _sequence(hint: Any, value: Any, where: str, problems: list[str]) -> Any:
    if isinstance(value, str | bytes) or not isinstance(value, Sequence):
        listed = value if isinstance(value, str) else "value"
        problems.append(f"{where}={value!r}: want a list, {where}=[{listed}]")
        return None
    inside = get_args(hint)[0]
    parts = [coerce(inside, one, f"{where}[{i}]", problems) for i, one in enumerate(value)]
    return tuple(parts) if get_origin(hint) is tuple else parts


def _scalar(hint: Any, value: Any, where: str, problems: list[str]) -> Any:
    """A number, a text, true or false, or one of a few words.

    True is no number, and a number no text, but for a whole one: of others the text is lost.
    """
    members = _members(hint)
    if getattr(value, "ndim", None) == 0:
        value = value.item()  # a number of numpy's or torch's
    if isinstance(value, bool) and bool not in members and {int, float} & set(members):
        problems.append(f"{where}={value!r}: want a number")
        return None
    if str in members and not isinstance(value, str | None) and not {int, float} & set(members):
        if isinstance(value, bool) or not isinstance(value, int):
            problems.append(f"{where}={value!r}: want text; quotes make it one: \"{where}='...'\"")
            return None
        value = str(value)
    try:
        return _adapter(hint).validate_python(value)
    except PydanticSchemaGenerationError:
        return value
    except ValidationError as error:
        words = [one for member in members for one in get_args(member) if isinstance(one, str)]
        near = get_close_matches(str(value), words, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        problems.append(f"{where}={value!r}: {_reasons(error.errors())}{hint}")
        return None


@cache
def _adapter(hint: Any) -> TypeAdapter[Any]:
    return TypeAdapter(hint)


def _reasons(errors: Iterable[Any]) -> str:
    """Why none of the types that a field may have fits."""
    said = [one["msg"].removeprefix("Value error, ") for one in errors]
    return " or ".join(dict.fromkeys(f"{one[0].lower()}{one[1:]}" for one in said))


def _built(value: Any) -> bool:
    return is_dataclass(value) and not isinstance(value, type)
