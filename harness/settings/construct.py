"""Plain data becomes typed objects; everything that is wrong with it is collected, not just the first.

A node with ``_target_`` becomes an object of that class; values are coerced to the types of fields.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from difflib import get_close_matches
from functools import cache
from typing import Any, get_type_hints

from pydantic import PydanticSchemaGenerationError, TypeAdapter, ValidationError


def construct(node: Any, where: str, problems: list[str]) -> Any:
    """Plain data with every ``_target_`` node turned into an object; problems are collected."""
    if isinstance(node, Mapping):
        if "_target_" not in node:
            return {key: construct(one, f"{where}.{key}", problems) for key, one in node.items()}
        target = node["_target_"]
        try:
            module, _, name = target.rpartition(".")
            kind = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError, ValueError) as error:
            problems.append(f"{where}._target_={target!r}: can't be imported ({error})")
            return None
        rest = {key: value for key, value in node.items() if key != "_target_"}
        return make(kind, rest, where, problems)
    if isinstance(node, list):
        return [construct(one, f"{where}[{i}]", problems) for i, one in enumerate(node)]
    return node


def make(kind: type, values: Mapping[str, Any], where: str, problems: list[str]) -> Any:
    """An object of the dataclass ``kind``; unknown, missing and ill-typed fields are problems."""
    known = {f.name: f for f in fields(kind)}
    prefix = f"{where}." if where else ""
    before = len(problems)
    for name in values.keys() - known.keys():
        near = get_close_matches(name, known, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else f"; known are {', '.join(known)}"
        problems.append(f"{prefix}{name}: no such option{hint}")
    for name, one in known.items():
        required = one.default is MISSING and one.default_factory is MISSING
        if required and values.get(name) is None and not _takes_none(kind, name):
            problems.append(f"{prefix}{name} is needed: set {prefix}{name}=...")
    hints = hints_of(kind)
    arguments = {}
    for name, value in values.items():
        if name in known:
            made = construct(value, f"{prefix}{name}", problems)
            arguments[name] = coerce(hints[name], made, f"{prefix}{name}", problems)
    if len(problems) > before:
        return None
    try:
        return kind(**arguments)
    except ValueError as error:
        problems.append("; ".join(f"{prefix}{part}" for part in str(error).split("; ")))
        return None


def _takes_none(kind: type, name: str) -> bool:
    return type(None) in getattr(hints_of(kind)[name], "__args__", ())


@cache
def hints_of(kind: type) -> dict[str, Any]:
    """The types of a dataclass's fields."""
    return get_type_hints(kind)


@cache
def _adapter(hint: Any) -> TypeAdapter[Any]:
    return TypeAdapter(hint)


def coerce(hint: Any, value: Any, where: str, problems: list[str]) -> Any:
    """``value`` as its field's type; objects that are built already pass unchanged."""
    if _built(value):
        return value
    try:
        return _adapter(hint).validate_python(value)
    except PydanticSchemaGenerationError:
        return value
    except ValidationError as error:
        first = error.errors()[0]
        reason = first["msg"].removeprefix("Value error, ")
        problems.append(f"{where}={value!r}: {reason[0].lower()}{reason[1:]}")
        return None


def _built(value: Any) -> bool:
    if is_dataclass(value):
        return True
    return isinstance(value, Mapping) and any(_built(one) for one in value.values())
