"""Which safetensors files a checkpoint has, and what their headers say."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import huggingface_hub
import torch
from safetensors import SafetensorError, safe_open

WEIGHTS = "model.safetensors"
FLOATS = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}


class CheckpointError(ValueError):
    """Files that are not a whole model in full precision; the message is one line."""


def weight_files(location: str, revision: str | None, name: str = WEIGHTS) -> list[Path] | None:
    """The safetensors files that transformers reads; None where the hub's are not here yet.

    Args:
        location: a directory, or a name on the hub.
        revision: on the hub.
        name: of the file if it is one; of its index, with an ending, if it is several.

    Raises:
        CheckpointError: a directory that lacks some, or has those of two models.
    """
    index_name = f"{name}.index.json"
    single, index = (_file(location, one, revision) for one in (name, index_name))
    here = Path(location).is_dir()
    if here and single and index:
        raise CheckpointError(
            f"both {name} and {index_name} in it: one of them is of another model"
        )
    if here and not single and not index:
        raise CheckpointError(
            f"neither {name} nor {index_name} in it (other formats are not read; save_pretrained of "
            "transformers writes them)"
        )
    if single or not index:
        return [single] if single else None
    try:
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    except (ValueError, KeyError, AttributeError) as error:
        raise CheckpointError(f"{index.name}: no index of a checkpoint ({error!r})") from None
    files = {one: _file(location, one, revision) for one in names}
    absent = [one for one, file in files.items() if file is None]
    if absent and here:
        raise CheckpointError(f"{index.name} names {first_of(absent)}: no such file")
    return None if absent else [file for file in files.values() if file is not None]


def gguf_file(location: str) -> Path | None:
    """The GGUF file of a directory without safetensors; None where it has these, or is no directory.

    Raises:
        CheckpointError: there are several.
    """
    directory = Path(location)
    if not directory.is_dir() or any(directory.glob("*.safetensors*")):
        return None
    found = sorted(directory.glob("*.gguf"))
    if len(found) > 1:
        raise CheckpointError(f"{first_of([one.name for one in found])}: one GGUF file is needed")
    return found[0] if found else None


def headers(files: Iterable[Path]) -> dict[str, tuple[str, list[int]]]:
    """Type and shape of every tensor by name, from the headers of the files.

    Raises:
        CheckpointError: a file is not whole, or a tensor is in two.
    """
    stored: dict[str, tuple[str, list[int]]] = {}
    for file in files:
        try:
            with safe_open(file, framework="pt") as tensors:
                for name in tensors.keys():  # noqa: SIM118 (it is no mapping)
                    if name in stored:
                        raise CheckpointError(f"{file.name}: {name} is in another file too")
                    one = tensors.get_slice(name)
                    stored[name] = one.get_dtype(), one.get_shape()
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{file.name}: no whole safetensors file ({error})") from None
    return stored


def tensor_bytes(file: Path) -> dict[str, int]:
    """The bytes of every tensor in a safetensors file, from its header."""
    with file.open("rb") as opened:
        header = json.loads(opened.read(int.from_bytes(opened.read(8), "little")))
    spans = {key: one["data_offsets"] for key, one in header.items() if key != "__metadata__"}
    return {key: end - start for key, (start, end) in spans.items()}


def _file(location: str, name: str, revision: str | None) -> Path | None:
    """A file of a checkpoint in its directory, or in the hub's local cache."""
    if Path(location).is_dir():
        file = Path(location) / name
        return file if file.is_file() else None
    cached = huggingface_hub.try_to_load_from_cache(location, name, revision=revision)
    return Path(cached) if isinstance(cached, str) else None


def first_of(names: Sequence[str]) -> str:
    """The first name, and how many more there are."""
    return names[0] + (f" (and {len(names) - 1} more)" if len(names) > 1 else "")
