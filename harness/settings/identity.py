"""What makes a run this run, as plain data and as a short hash."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from harness.settings.flat import file_and_class


def described(value: Any) -> Any:
    """``value`` as plain data; a plugin object carries its class, so that it can be built again.

    Fields with the metadata ``identity: False`` change no figure and are left out.
    """
    if is_dataclass(value) and not isinstance(value, type):
        counted = [f.name for f in fields(value) if f.metadata.get("identity", True)]
        parts = {name: described(getattr(value, name)) for name in counted}
        kind = type(value)
        return {"_target_": f"{kind.__module__}.{kind.__qualname__}", **parts}
    if isinstance(value, Mapping):
        return {str(key): described(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [described(one) for one in value]
    return value


def fingerprint(plain: Any) -> str:
    """Eight hexadecimal digits of plain data's hash, whatever folders the files of classes lie in."""
    written = json.dumps(_unplaced(plain), sort_keys=True, default=str)
    return hashlib.sha256(written.encode()).hexdigest()[:8]


def _unplaced(plain: Any) -> Any:
    """Plain data with every class named by its file and itself: ``gptq.GPTQ``."""
    if isinstance(plain, Mapping):
        return {
            key: file_and_class(one) if key == "_target_" else _unplaced(one)
            for key, one in plain.items()
        }
    return [_unplaced(one) for one in plain] if isinstance(plain, list) else plain
