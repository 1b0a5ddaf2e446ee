"""The reference stream's outputs on disk: computed by the first run of a sweep, read by the others.

What the original linears put out depends on the model and the calibration tokens alone, and is
nearly all the work of a reference forward. They are a file a batch, the outputs one after the other
as the model's forward makes them, in its dtype, each with a checksum; the values that come back are
the same bits. Where they are not, or where the disk does not take them, the original linear computes
them: outputs can be lost, they can't be wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO

import torch
import transformers
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from harness.numerics.device import model_of
from harness.records.pieces import SUM, DamagedError, read_piece, write_piece
from harness.walk.architecture import Linear, Plan

FORMAT = 2  # of the files; part of what outputs depend on


def outputs_bytes(linears: Sequence[Linear], batches: Sequence[Tensor]) -> int:
    """Size of the outputs of ``linears`` on ``batches`` of token ids; experts share those of a layer."""
    tokens = sum(map(torch.numel, batches))
    size = sum(one.shape[0] * one.parameter.dtype.itemsize * one.share for one in linears) * tokens
    return int(size) + len(linears) * len(batches) * SUM


def sized(plan: Plan) -> bool:
    """Whether outputs have a known size: every mixture is quantised as a whole, or not at all."""
    return all(
        sum(one.mixture == mixture for one in plan.linears)
        == sum(isinstance(one, nn.Linear | Conv1D) for one in mixture.module.modules())
        for mixture in plan.mixtures
    )


def outputs_content(
    model_hash: str, linears: Sequence[Linear], batches: Sequence[Tensor]
) -> dict[str, object]:
    """All that outputs depend on, to the last bit: products round by card, processor and threads too."""
    stored = linears[0].parameter
    return {
        "format": FORMAT,
        "model": model_hash,
        "linears": [one.name for one in linears],
        "batches": [tokens.tolist() for tokens in batches],
        "dtype": str(stored.dtype),
        "device": model_of(stored.device),
        "processor": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


class KeptOutputs:
    """Computes the outputs and keeps them in ``folder``, as long as the disk takes them.

    Args:
        folder: where.
        failed: told of the first error of the disk; nothing is written after it.
    """

    def __init__(self, folder: Path, failed: Callable[[OSError], None]) -> None:
        self.folder = folder
        self._failed = failed
        self._given_up = False

    def output(
        self, batch: int, linear: Linear, inputs: Tensor, compute: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """``compute(inputs)``, added to the batch's file."""
        output = compute(inputs)
        if not self._given_up:
            try:
                with _file(self.folder, batch).open("ab") as file:
                    write_piece(file, _piece(batch, linear), output)
            except OSError as error:
                self._given_up = True
                self._failed(error)
        return output

    def complete(self, size: int) -> bool:
        """Whether ``size`` bytes of outputs are there; a run that is given up has not seen them all."""
        if self._given_up:
            return False
        return sum(path.stat().st_size for path in self.folder.glob("*.bin")) == size


class KnownOutputs:
    """Reads what :class:`KeptOutputs` has left in ``folder``; from the first fault on it computes.

    Args:
        folder: where.
        damaged: told of the first fault.
    """

    def __init__(self, folder: Path, damaged: Callable[[Exception], None]) -> None:
        self.folder = folder
        self._damaged = damaged
        self._given_up = False
        self._files: dict[int, BinaryIO] = {}
        self._flops: dict[int, float] = {}  # by batch: batches may run in threads of their own

    def output(
        self, batch: int, linear: Linear, inputs: Tensor, compute: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """The next output of the batch, which is that of ``linear``."""
        if self._given_up:
            return compute(inputs)
        rows, columns = linear.shape
        shape = (*inputs.shape[:-1], rows)
        try:
            if batch not in self._files:
                self._files[batch] = _file(self.folder, batch).open("rb")
            name, dtype = _piece(batch, linear), linear.parameter.dtype
            values = read_piece(self._files[batch], name, shape, dtype)
        except (OSError, DamagedError) as error:
            if not self._given_up:
                self._given_up = True
                self._damaged(error)
            return compute(inputs)
        work = 2.0 * values.numel() * columns
        self._flops[batch] = self._flops.get(batch, 0.0) + work
        return values.to(inputs.device)

    def flops(self) -> float:
        """Floating-point operations that reading has saved so far."""
        return sum(self._flops.values())

    def close(self) -> None:
        """Closes the files."""
        for file in self._files.values():
            file.close()
        self._files.clear()


def _file(folder: Path, batch: int) -> Path:
    return folder / f"{batch:05d}.bin"


def _piece(batch: int, linear: Linear) -> str:
    return f"{linear.name}, batch {batch}"
