"""What of a model stays in full precision, with its share of all parameters."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from torch import nn
from transformers.pytorch_utils import Conv1D

from harness.walk.architecture import Plan

UNSELECTED = "not selected"


def unquantized(model: nn.Module, chosen: Plan) -> dict[str, dict[str, Any]]:
    """By pattern of parameters how many weights stay as they are, their share, and why.

    Numbers in a name are ``*``. Embeddings, the head, norms and biases need no reason and have none.
    """
    quantized = {id(one.parameter) for one in chosen.linears}
    reasons = {one.name: one.why for one in chosen.kept}
    total = parameters(model)
    found: dict[str, dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if id(parameter) in quantized:
            continue
        module = name.rpartition(".")[0]
        why = reasons.get(module, "") if parameter.ndim >= 2 else ""
        if not why and isinstance(model.get_submodule(module), nn.Linear | Conv1D):
            inside = any(name.startswith(f"{block}.") for block in chosen.block_names)
            why = UNSELECTED if inside and parameter.ndim >= 2 else ""
        row = found.setdefault(pattern(name), {"weights": 0, "share": 0.0, "why": why})
        row["weights"] += parameter.numel()
        row["share"] = row["weights"] / total
    return found


def parameters(model: nn.Module) -> int:
    """How many there are, each once."""
    return sum(one.numel() for one in model.parameters())


def words(chosen: Plan) -> Iterator[str]:
    """What of the selection stays in full precision, one line for each reason."""
    reasons: dict[str, dict[str, None]] = {}
    for one in chosen.kept:
        reasons.setdefault(one.why, {})[pattern(one.name)] = None
    for why, names in reasons.items():
        yield f"in full precision, {why}: {', '.join(names)}"


def pattern(name: str) -> str:
    """``name`` with ``*`` for numbers: what it is in every block and of every expert."""
    return re.sub(r"(?<=\.)\d+(?=\.|$)", "*", name)
