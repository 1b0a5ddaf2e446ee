"""What the weights of a checkpoint of codes take in its files."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.inputs.weight_files import gguf_file, tensor_bytes, weight_files

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedModel

NUMBERS = ("F64", "F32", "F16", "BF16")  # GGUF's types that are no codes
BLOCK = "blk."  # what the names of tensors of decoder blocks begin with in GGUF


@dataclass(frozen=True)
class Codes:
    """The weights that a checkpoint stores as codes; bits are NaN where its files do not tell.

    Args:
        by: the format.
        bits_per_weight: bits on disk of a weight that is stored so, with all that goes with the codes.
        bits_per_parameter: those of any parameter.
    """

    by: str
    bits_per_weight: float
    bits_per_parameter: float


def stored_codes(by: str, location: str, revision: str | None, model: PreTrainedModel) -> Codes:
    """What the files take of which ``model`` was made."""
    if (file := gguf_file(location)) is not None:
        return _of_gguf(by, file)
    sizes: dict[str, int] = {}
    for one in weight_files(location, revision) or ():
        sizes |= tensor_bytes(one)
    return _of_tensors(by, sizes, model)


def _of_tensors(by: str, sizes: dict[str, int], model: PreTrainedModel) -> Codes:
    """A linear is stored as codes where its ``weight`` is not, and other tensors of its name are."""
    known = dict(model.named_parameters(remove_duplicate=False))
    coded: dict[str, int] = {}
    for name, size in sizes.items():
        weight = f"{name.rpartition('.')[0]}.weight"
        if name not in known and weight not in sizes:
            coded[weight] = coded.get(weight, 0) + size
    parameters = sum(one.numel() for one in model.parameters())
    whole = 8 * sum(sizes.values()) / parameters if sizes else math.nan
    if not coded or not coded.keys() <= known.keys():  # stored under other names than the model's
        return Codes(by, math.nan, whole)
    return Codes(by, 8 * sum(coded.values()) / sum(known[one].numel() for one in coded), whole)


def _of_gguf(by: str, file: Path) -> Codes:
    import gguf

    tensors = gguf.GGUFReader(file).tensors
    coded = [
        one
        for one in tensors
        if one.name.startswith(BLOCK) and one.tensor_type.name not in NUMBERS
    ]

    def bits(some: list[gguf.ReaderTensor]) -> float:
        count = sum(int(one.n_elements) for one in some)
        return 8 * sum(int(one.n_bytes) for one in some) / count if count else math.nan

    return Codes(by, bits(coded), bits(tensors))
