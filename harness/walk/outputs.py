"""The reference stream's outputs on disk: computed by the first run of a sweep, read by the others.

What the original linears put out depends on the model and the calibration tokens alone, and is
nearly all the work of a reference forward. They are a file a batch, the outputs one after the
other as the model's forward makes them, in its dtype; the values that come back are the same bits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import transformers
from torch import Tensor

from harness.walk.architecture import Linear


def outputs_bytes(linears: Sequence[Linear], tokens: int) -> int:
    """Size of the outputs of ``linears`` on so many tokens."""
    return sum(one.shape[0] * one.parameter.dtype.itemsize for one in linears) * tokens


class IncompleteOutputs(ValueError):
    """Outputs that end before the model does."""


def check_complete(folder: Path, size: int) -> None:
    """Raises :class:`IncompleteOutputs` unless ``folder`` holds ``size`` bytes of outputs."""
    found = sum(path.stat().st_size for path in folder.glob("*.bin"))
    if found != size:
        raise IncompleteOutputs(f"{folder}: {found} of {size} bytes")


def outputs_content(
    model_hash: str, linears: Sequence[Linear], batches: Sequence[Tensor]
) -> dict[str, object]:
    """All that outputs depend on, to the last bit: products round by machine and threads too."""
    stored = linears[0].parameter
    return {
        "model": model_hash,
        "linears": [one.name for one in linears],
        "batches": [tokens.tolist() for tokens in batches],
        "dtype": str(stored.dtype),
        "device": stored.device.type,
        "processor": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


class KeptOutputs:
    """Computes the outputs and keeps them in ``folder``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def output(
        self, batch: int, linear: Linear, inputs: Tensor, compute: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """``compute(inputs)``, added to the batch's file."""
        output = compute(inputs)
        with _file(self.folder, batch).open("ab") as file:
            output.cpu().contiguous().flatten().view(torch.uint8).numpy().tofile(file)
        return output


class KnownOutputs:
    """Reads what :class:`KeptOutputs` has left in ``folder``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._values: dict[int, Tensor] = {}
        self._position: dict[int, int] = {}

    def output(
        self, batch: int, linear: Linear, inputs: Tensor, compute: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """The next output of the batch, which is that of ``linear``.

        Raises:
            IncompleteOutputs: the outputs end before the model does.
        """
        path = _file(self.folder, batch)
        if batch not in self._values:
            dtype = linear.parameter.dtype
            size = path.stat().st_size // dtype.itemsize
            # A private mapping: pages come when they are read, and a model that overwrites an
            # output in place leaves the file alone.
            self._values[batch] = torch.from_file(str(path), False, size, dtype=dtype)
        shape = (*inputs.shape[:-1], linear.shape[0])
        start = self._position.get(batch, 0)
        self._position[batch] = end = start + math.prod(shape)
        values = self._values[batch][start:end]
        if values.numel() != end - start:
            raise IncompleteOutputs(f"{path}: ends before {linear.name}; remove its folder")
        return values.view(shape).to(inputs.device)


def _file(folder: Path, batch: int) -> Path:
    return folder / f"{batch:05d}.bin"
