"""Tensors on disk, one after the other, each verified as it is read.

    <the bytes of the tensor> <8 bytes: xxh3-64 of these bytes, the name, the dtype and the shape>

The checksum is of what has arrived in memory, so a page that the disk gives back wrongly is found as
well as a file that was cut, overwritten or mixed up. It guards against accidents, not against people.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import BinaryIO

import torch
import xxhash
from torch import Tensor

SUM = 8  # bytes of a checksum


class DamagedError(ValueError):
    """What was read is not what was written; the message names the file."""


def checksum(name: str, tensor: Tensor) -> bytes:
    """The checksum of a tensor, in whatever order its strides have it, under its name."""
    found = xxhash.xxh3_64(f"{name} {tensor.dtype} {list(tensor.shape)} ".encode())
    found.update(_bytes(tensor))
    return found.digest()


def write_piece(file: BinaryIO, name: str, tensor: Tensor) -> None:
    """Adds a tensor to ``file``."""
    stored = tensor.detach().cpu().contiguous()
    file.write(_bytes(stored))
    file.write(checksum(name, stored))


def read_piece(file: BinaryIO, name: str, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """The tensor at the place where ``file`` stands, in memory of its own.

    Raises:
        DamagedError: another one is there, or none.
        OSError: the disk says so itself.
    """
    tensor = torch.empty(tuple(shape), dtype=dtype)
    into = _bytes(tensor)
    if file.readinto(into) != into.nbytes or file.read(SUM) != checksum(name, tensor):  # type: ignore[attr-defined]
        raise DamagedError(f"{file.name}: damaged at {name}")
    return tensor


def piece_bytes(shape: Sequence[int], dtype: torch.dtype) -> int:
    """What a tensor takes on disk."""
    return torch.Size(shape).numel() * dtype.itemsize + SUM


def _bytes(tensor: Tensor) -> memoryview:
    """The memory of a tensor that is contiguous, else a copy of it."""
    plain = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
    return plain.numpy().data
