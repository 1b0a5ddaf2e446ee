"""What a finished run has done to a model, from its folder: recipes, errors by role, the worst linears.

The codes themselves are in a saved checkpoint only; that of ``save=compressed_tensors`` is read here, by
numpy alone, so that looking at a run takes no torch.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from harness.records.record import LAYERS, Record, RecordError, read_record, read_rows
from harness.records.whole import intact

CODES = "compressed_tensors"  # the kind of checkpoint whose codes are read
SIGNED = [*range(15, 8, -1), *range(8)]  # four-bit floats by value: the sign is their highest bit

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Role:
    """The linears of one name in all blocks.

    Args:
        name: the last part of theirs.
        linears: how many.
        ways: bits of a code and effective bits, with the number of linears.
        error: Σ total error / Σ signal, the part of the outputs' energy that is lost.
        worst: the largest relative error among them.
    """

    name: str
    linears: int
    ways: Mapping[tuple[int, float], int]
    error: float
    worst: float


@dataclass(frozen=True)
class Inspection:
    """A run and its rows."""

    directory: Path
    record: Record
    layers: Sequence[Row]

    @staticmethod
    def of(directory: Path) -> Inspection:
        """What lies in a run's directory.

        Raises:
            RecordError: it is damaged.
            FileNotFoundError: there is no record.
        """
        record = read_record(directory)
        if (problem := intact(directory, record)) is not None:
            raise RecordError(f"{directory}: {problem}")
        return Inspection(directory, record, read_rows(directory / LAYERS))

    @property
    def roles(self) -> list[Role]:
        """In the order of the model."""
        found: dict[str, list[Row]] = {}
        for row in self.layers:
            found.setdefault(row["role"], []).append(row)
        return [_role(name, rows) for name, rows in found.items()]

    def worst(self, count: int = 5) -> list[tuple[str, float]]:
        """The linears with the largest relative errors; what is no number comes first."""
        errors = [(str(row["name"]), relative(row)) for row in self.layers]
        return sorted(errors, key=lambda one: (not math.isnan(one[1]), -one[1]))[:count]

    @cached_property
    def histograms(self) -> dict[str, list[int]] | None:
        """How many weights have each code, in the order of their values, by role; None without codes."""
        folder = self.directory / CODES
        if not folder.is_dir():
            return None
        rows = {str(row["name"]): row for row in self.layers}
        found: dict[str, np.ndarray[Any, Any]] = {}
        for name, packed in _packed(folder):
            row = rows[name]
            counts = code_counts(packed, row["bits"], row["columns"])
            known = found.get(row["role"], np.zeros(0, int))
            size = max(len(counts), len(known))
            found[row["role"]] = _padded(known, size) + _padded(counts, size)
        order = dict.fromkeys(str(row["role"]) for row in self.layers)
        return {role: found[role].tolist() for role in order if role in found}


def relative(row: Row) -> float:
    """The part of a linear's output that is lost, ‖W X − V X̂‖² / ‖W X‖²."""
    signal = row.get("signal", math.nan)
    return row.get("total_error", math.nan) / signal if signal else math.nan


def code_counts(packed: np.ndarray[Any, Any], bits: int, columns: int) -> np.ndarray[Any, Any]:
    """How many codes of each value ``packed [rows, n]`` has: int32 words, or bytes of two floats."""
    stream = np.unpackbits(np.ascontiguousarray(packed).view(np.uint8), axis=1, bitorder="little")
    codes = stream[:, : columns * bits].reshape(-1, bits) @ (1 << np.arange(bits))
    counts = np.bincount(codes, minlength=1 << bits)
    return counts[SIGNED] if packed.dtype == np.uint8 else counts


def _role(name: str, rows: Sequence[Row]) -> Role:
    ways = Counter((int(row.get("bits", 0)), float(row["bits_per_weight"])) for row in rows)
    signal = sum(row.get("signal", math.nan) for row in rows)
    lost = sum(row.get("total_error", math.nan) for row in rows)
    errors = [relative(row) for row in rows]
    worst = math.nan if any(map(math.isnan, errors)) else max(errors)
    return Role(name, len(rows), ways, lost / signal if signal else math.nan, worst)


def _packed(folder: Path) -> Iterator[tuple[str, np.ndarray[Any, Any]]]:
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, "np") as file:
                for key in file.keys():  # noqa: SIM118  (it is no mapping)
                    if key.endswith(".weight_packed"):
                        yield key.removesuffix(".weight_packed"), file.get_tensor(key)
        except (OSError, SafetensorError) as error:
            raise RecordError(f"{path}: {str(error).splitlines()[0]}") from None


def _padded(counts: np.ndarray[Any, Any], size: int) -> np.ndarray[Any, Any]:
    return np.pad(counts, (0, size - len(counts)))


def ended(record: Record) -> str:
    """How a run ended that is not done: ``failed: ValueError: …``."""
    if record.error is None:
        return record.status
    first, *_ = record.error["message"].splitlines() or [""]
    return f"{record.status}: {record.error['type']}: {first}"


def settings(record: Record) -> dict[str, str]:
    """What a reader wants to know first of a run."""
    known = record.summary
    names = ("model", "method", "bits", "group_size", "format", "range", "transform", "alpha")
    found = {} if record.status == "done" else {"status": ended(record)}
    found |= {name: str(known[name]) for name in names if known.get(name) is not None}
    if math.isfinite(record.bits_per_weight):
        found["effective bits"] = f"{record.bits_per_weight:.3f}"
    for kind, said in record.saved.items():
        size = f"{said['bytes'] / 1e6:.1f} MB, {said['bits_per_weight']:.3f} bits a weight"
        found[f"saved as {kind}"] = size
    return found | {key: json.dumps(round(value, 6)) for key, value in record.metrics.items()}
