"""Safetensors files that appear atomically, with checksums of their header and of every tensor."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import xxhash
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from harness.records.pieces import DamagedError, checksum


def write_sealed(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> None:
    """Writes contiguous ``tensors``, and ``header`` beside them: the file is there whole or not at all."""
    sums = {name: checksum(name, one).hex() for name, one in tensors.items()}
    text = json.dumps({**header, "sums": sums})
    partial = path.with_suffix(".partial")
    save_file(dict(tensors), partial, {"format": "pt", "header": text, "sum": _sum(text)})
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    os.replace(partial, path)


def verified(path: Path) -> dict[str, Any]:
    """The header of a file all of whose tensors, the names in ``sums``, are as they were written.

    Raises:
        DamagedError: something is not.
        OSError: the disk says so itself.
        SafetensorError: it is no such file.
    """
    with safe_open(path, "pt") as file:
        known = file.metadata() or {}
        text = known.get("header", "")
        if known.get("sum") != _sum(text):
            raise DamagedError("its header")
        header: dict[str, Any] = json.loads(text)
        names = list(file.keys())
        if header["sums"].keys() != set(names):
            raise DamagedError("its tensors are others")
        for name in names:
            if checksum(name, file.get_tensor(name)).hex() != header["sums"][name]:
                raise DamagedError(name)
    return header


def _sum(text: str) -> str:
    return xxhash.xxh3_64_hexdigest(text.encode())
