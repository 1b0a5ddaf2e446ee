"""A quantised linear as bytes, and back: what a packed checkpoint stores, written out."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace

import numpy as np
import torch
from torch import Tensor

from harness.formats.base import Format
from harness.formats.mxfp4 import MXFP4
from harness.formats.nvfp4 import NVFP4
from harness.methods.base import Quantized
from harness.numerics.basis import Basis, Chain, Diagonal
from harness.ranges.base import GridSpec


@dataclass
class Packed:
    """The arrays of a packed linear by name, each as bytes; everything else is known without them."""

    shape: tuple[int, int]
    groups: int
    spec: GridSpec
    outlier_columns: bool
    arrays: dict[str, bytes] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Bytes of all arrays."""
        return sum(map(len, self.arrays.values()))


def pack(quantized: Quantized, spec: GridSpec) -> Packed:
    """Codes and zeros bit by bit, scales as their format has them, outliers and indices in two bytes.

    ``spec`` is that of the linear, see GridSpec.of_weight. A random matrix is a seed, here of eight zeros.
    """
    grid, book = quantized.grid, quantized.grid.codebook
    (rows, columns), groups = quantized.codes.shape, grid.scale.shape[1]
    done = Packed((rows, columns), groups, spec, quantized.outlier_columns)
    done.arrays["codes"] = bits_of(quantized.codes, book.bits)
    kept = slice(0, 1) if grid.shared else slice(None)
    done.arrays["scales"] = numbers(grid.scale[kept], spec.form)
    if book.tensor_bits:
        done.arrays["tensor"] = np.float32(spec.form.tensor).tobytes()
    if book.zero_bits:
        done.arrays["zeros"] = bits_of(grid.zero[kept].to(torch.uint8), book.bits)
    if grid.group.tolist() != [j * groups // columns for j in range(columns)]:
        done.arrays["groups"] = shorts(grid.group)
    for side, chain in (("inputs", quantized.basis.inputs), ("outputs", quantized.basis.outputs)):
        for i, part in enumerate(chain.parts):
            stored = bytes(8)
            if isinstance(part, Diagonal):
                stored = (halves if part.number_bits == 16 else floats)(part.scale)
            done.arrays[f"{side}{i}"] = stored
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


def unpack(packed: Packed, basis: Basis) -> Tensor:
    """The dense weight ``[out, in]``, float64, from the bytes; random matrices are those of ``basis``."""
    (rows, columns), groups, arrays, form = (
        packed.shape,
        packed.groups,
        packed.arrays,
        packed.spec.form,
    )
    book = form.codebook
    codes = from_bits(arrays["codes"], book.bits, rows * columns).reshape(rows, columns)
    scale = from_numbers(arrays["scales"], form, arrays.get("tensor")).reshape(-1, groups)
    group = np.arange(columns) // (columns // groups)
    if "groups" in arrays:
        group = np.frombuffer(arrays["groups"], np.uint16)
    values, zero = codes.astype(float), np.zeros((1, groups))
    if book.table is not None:
        values = book.table.numpy()[codes]
    elif "zeros" in arrays:
        zero = from_bits(arrays["zeros"], book.bits, scale.size).reshape(-1, groups).astype(float)
    else:
        zero = np.full((1, groups), 2.0 ** (book.bits - 1))
    dense = scale[:, group] * (values - zero[:, group])
    if "values" in arrays:
        places, values = np.frombuffer(arrays["places"], np.uint16), from_halves(arrays["values"])
        if packed.outlier_columns:
            dense[:, places] += values.reshape(rows, -1)
        else:
            dense.reshape(-1)[np.cumsum(places.astype(int))] += values
    return restored(basis, arrays).back(torch.from_numpy(dense))


def restored(basis: Basis, arrays: dict[str, bytes]) -> Basis:
    """``basis`` with the diagonals that ``arrays`` hold, in float64."""

    def chain(side: str, parts: Chain) -> Chain:
        made = []
        for i, part in enumerate(parts.parts):
            if isinstance(part, Diagonal):
                stored = arrays[f"{side}{i}"]
                read = from_halves(stored) if part.number_bits == 16 else from_floats(stored)
                made.append(replace(part, scale=torch.from_numpy(read)))
            else:
                tensors = {one.name: getattr(part, one.name) for one in fields(part)}
                wide = {k: v.double() for k, v in tensors.items() if v.is_floating_point()}
                made.append(replace(part, **wide))
        return Chain(tuple(made))

    return Basis(chain("inputs", basis.inputs), chain("outputs", basis.outputs))


def numbers(scale: Tensor, form: Format) -> bytes:
    """Scales as the format stores them: a byte of a block format, else two or four."""
    if isinstance(form, MXFP4):  # E8M0: the exponent and 127
        return (torch.log2(scale).round() + 127).to(torch.uint8).numpy().tobytes()
    if isinstance(form, NVFP4):
        return (scale / form.tensor).to(torch.float8_e4m3fn).view(torch.uint8).numpy().tobytes()
    return (halves if form.scales == "float16" else floats)(scale)


def from_numbers(packed: bytes, form: Format, tensor: bytes | None) -> np.ndarray:
    if isinstance(form, MXFP4):
        return 2.0 ** (np.frombuffer(packed, np.uint8).astype(float) - 127)
    if isinstance(form, NVFP4):
        assert tensor is not None
        eighth = torch.frombuffer(bytearray(packed), dtype=torch.uint8).view(torch.float8_e4m3fn)
        return eighth.double().numpy() * np.frombuffer(tensor, np.float32).astype(float)
    return from_halves(packed) if form.scales == "float16" else from_floats(packed)


def bits_of(codes: Tensor, bits: int) -> bytes:
    """The lower ``bits`` bits of every code, one after the other."""
    wide = np.unpackbits(codes.numpy().reshape(-1, 1), axis=1)
    return np.packbits(wide[:, 8 - bits :]).tobytes()


def from_bits(packed: bytes, bits: int, count: int) -> np.ndarray:
    single = np.unpackbits(np.frombuffer(packed, np.uint8))[: count * bits].reshape(count, bits)
    return np.packbits(np.pad(single, ((0, 0), (8 - bits, 0))), axis=1).ravel()


def halves(values: Tensor) -> bytes:
    return values.to(torch.float16).numpy().tobytes()


def from_halves(packed: bytes) -> np.ndarray:
    return np.frombuffer(packed, np.float16).astype(float)


def floats(values: Tensor) -> bytes:
    return values.to(torch.float32).numpy().tobytes()


def from_floats(packed: bytes) -> np.ndarray:
    return np.frombuffer(packed, np.float32).astype(float)


def shorts(values: Tensor) -> bytes:
    assert values.max() < 2**16
    return values.numpy().astype(np.uint16).tobytes()
