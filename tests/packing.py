"""A quantised linear as bytes, and back: what a packed checkpoint stores, written out."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from harness.methods.base import Quantized


@dataclass
class Packed:
    """The arrays of a packed linear by name, each as bytes; everything else is known without them."""

    shape: tuple[int, int]
    groups: int
    bits: int
    symmetric: bool
    outlier_columns: bool
    arrays: dict[str, bytes] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Bytes of all arrays."""
        return sum(map(len, self.arrays.values()))


def pack(quantized: Quantized) -> Packed:
    """Codes and zeros bit by bit; scales, outliers and indices in two bytes each."""
    grid = quantized.grid
    (rows, columns), groups = quantized.codes.shape, grid.scale.shape[1]
    done = Packed((rows, columns), groups, grid.bits, grid.symmetric, quantized.outlier_columns)
    done.arrays["codes"] = bits_of(quantized.codes, grid.bits)
    done.arrays["scales"] = halves(grid.scale)
    if not grid.symmetric:
        done.arrays["zeros"] = bits_of(grid.zero.to(torch.uint8), grid.bits)
    if grid.group.tolist() != [j * groups // columns for j in range(columns)]:
        done.arrays["groups"] = shorts(grid.group)
    if quantized.column_scale is not None:
        done.arrays["column_scales"] = halves(quantized.column_scale)
    if quantized.outliers is not None:
        sparse = quantized.outliers
        if quantized.outlier_columns:
            kept = sparse.any(dim=0).nonzero().flatten()
            done.arrays["values"], done.arrays["places"] = halves(sparse[:, kept]), shorts(kept)
        else:  # a place is the distance from the outlier before it, row by row
            at = sparse.flatten().nonzero().flatten()
            done.arrays["values"] = halves(sparse.flatten()[at])
            done.arrays["places"] = shorts(at.diff(prepend=at.new_zeros(1)))
    return done


def unpack(packed: Packed) -> Tensor:
    """The dense weight ``[out, in]``, from the bytes alone."""
    (rows, columns), groups, arrays = packed.shape, packed.groups, packed.arrays
    codes = from_bits(arrays["codes"], packed.bits, rows * columns).reshape(rows, columns)
    scale = from_halves(arrays["scales"]).reshape(rows, groups)
    if packed.symmetric:
        zero = np.full((rows, groups), 2.0 ** (packed.bits - 1))
    else:
        zero = from_bits(arrays["zeros"], packed.bits, rows * groups).reshape(rows, groups)
    group = np.arange(columns) // (columns // groups)
    if "groups" in arrays:
        group = np.frombuffer(arrays["groups"], np.uint16)
    dense = scale[:, group] * (codes - zero[:, group].astype(float))
    if "column_scales" in arrays:
        dense = dense / from_halves(arrays["column_scales"])
    if "values" in arrays:
        places, values = np.frombuffer(arrays["places"], np.uint16), from_halves(arrays["values"])
        if packed.outlier_columns:
            dense[:, places] += values.reshape(rows, -1)
        else:
            dense.reshape(-1)[np.cumsum(places.astype(int))] += values
    return torch.from_numpy(dense)


def bits_of(codes: Tensor, bits: int) -> bytes:
    """The lower ``bits`` bits of every code, one after the other."""
    wide = np.unpackbits(codes.numpy().reshape(-1, 1), axis=1)
    return np.packbits(wide[:, 8 - bits :]).tobytes()


def from_bits(packed: bytes, bits: int, count: int) -> np.ndarray:
    single = np.unpackbits(np.frombuffer(packed, np.uint8))[: count * bits].reshape(count, bits)
    return np.packbits(np.pad(single, ((0, 0), (8 - bits, 0))), axis=1).ravel().astype(float)


def halves(values: Tensor) -> bytes:
    return values.to(torch.float16).numpy().tobytes()


def from_halves(packed: bytes) -> np.ndarray:
    return np.frombuffer(packed, np.float16).astype(float)


def shorts(values: Tensor) -> bytes:
    assert values.max() < 2**16
    return values.numpy().astype(np.uint16).tobytes()
