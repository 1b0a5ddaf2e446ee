"""What a kind of checkpoint is: which linears it can hold, and the tensors and files that they become.

A kind is a frozen dataclass without options in a file of its own; ``save=NAME`` finds it. It is asked
before anything starts, from the recipes alone, and it never rounds: codes, scales and zeros go where the
kind has them, as they are.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import torch
from safetensors import safe_open
from torch import Tensor, nn

from harness.formats.base import Format
from harness.methods.base import Quantized
from harness.recipe import Recipe
from harness.walk.architecture import Linear

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

CONFIG = "config.json"
INDEX = "model.safetensors.index.json"


@dataclass(frozen=True)
class Source:
    """What a checkpoint is made of besides its linears' tensors.

    Args:
        model: the quantised model.
        tokenizer: of the model.
        recipes: of the linears that the kind holds as codes; all others are dense.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    recipes: Mapping[str, Recipe] = field(default_factory=dict)

    @property
    def dense(self) -> list[str]:
        """The names of the linears that are not held as codes."""
        every = self.model.named_modules()
        return [
            name for name, one in every if isinstance(one, nn.Linear) and name not in self.recipes
        ]


class Kind(Protocol):
    """A kind of checkpoint; ``codes`` is False where all weights are dense, so that any grid will do."""

    codes: ClassVar[bool]

    def problem(self, linear: Linear, recipe: Recipe) -> str | None:
        """Why the kind can't hold a linear that is quantised so, in a few words; None if it can."""
        ...

    def conflict(self, source: Source) -> str | None:
        """Why it can't hold these linears together, or not of this model; None if it can.

        The model may be without weights, and several recipes of a linear may be tried one by one.
        """
        ...

    def tensors(self, linear: Linear, quantized: Quantized, form: Format) -> dict[str, Tensor]:
        """What is stored of a linear that it can hold, by the name that the tensor has there.

        Args:
            linear: its parameter is the dense weight already.
            quantized: its codes on their grid.
            form: the number format, with what it took from the whole weight.
        """
        ...

    def write(self, folder: Path, parts: Sequence[Path], source: Source) -> None:
        """Puts weights and configuration into ``folder``.

        Args:
            folder: empty.
            parts: safetensors files that have all tensors between them, by :meth:`tensors` or dense.
            source: what the checkpoint is of.
        """
        ...

    def notes(self, source: Source) -> list[str]:
        """What its user has to know: how to load it, and where that is not exact; Markdown paragraphs."""
        ...


class SafetensorsKind:
    """A kind whose weights are safetensors files that transformers loads; a base for such kinds."""

    codes: ClassVar[bool] = True

    def conflict(self, source: Source) -> str | None:
        """See :meth:`Kind.conflict`."""
        return None

    def write(self, folder: Path, parts: Sequence[Path], source: Source) -> None:
        """See :meth:`Kind.write`."""
        place_shards(folder, parts)
        described = configuration(source.model)
        if (quantization := self.quantization(source)) is not None:
            described["quantization_config"] = quantization
        write_json(folder / CONFIG, described)

    def quantization(self, source: Source) -> dict[str, Any] | None:
        """The ``quantization_config`` of ``config.json``; None where there is none."""
        return None


def grid_problem(linear: Linear, recipe: Recipe) -> str | None:
    """Why codes and a grid alone do not make up a linear of this recipe; None if they do."""
    if linear.transposed:
        return "its module is a Conv1D, which stores the weight transposed"
    if recipe.transforms:
        return f"transform={'+'.join(recipe.transforms)}: codes in another basis"
    if recipe.storage(*linear.shape).values:
        return "outliers beside the codes"
    return None


def indexed(linear: Linear, recipe: Recipe) -> bool:
    """Whether the groups of a linear without outliers are no runs of neighbours."""
    return recipe.storage(*linear.shape).indices > 0


def exact(name: str, numbers: Tensor, dtype: torch.dtype) -> Tensor:
    """``numbers`` as ``dtype``, in which all of them have to be the same numbers.

    Raises:
        ValueError: they are not: what would be stored is not what was measured.
    """
    stored = numbers.to(dtype)
    if not torch.equal(stored.to(numbers.dtype), numbers):
        kind = str(dtype).removeprefix("torch.")
        raise ValueError(f"{name}: numbers of its grid are not what {kind} holds")
    return stored


def configuration(model: PreTrainedModel) -> dict[str, Any]:
    """The ``config.json`` of the dense model."""
    described: dict[str, Any] = json.loads(model.config.to_json_string())
    described["architectures"] = [type(model).__name__]
    described["dtype"] = str(model.dtype).removeprefix("torch.")
    return described


def place_shards(folder: Path, parts: Sequence[Path]) -> None:
    """Links ``parts`` into ``folder`` under the names that transformers looks for, with their index."""
    if len(parts) == 1:
        (folder / "model.safetensors").hardlink_to(parts[0])
        return
    places: dict[str, str] = {}
    total = 0
    for number, part in enumerate(parts, 1):
        name = f"model-{number:05d}-of-{len(parts):05d}.safetensors"
        (folder / name).hardlink_to(part)
        with safe_open(part, "pt") as file:
            for key in file.keys():  # noqa: SIM118  (it is no mapping)
                places[key] = name
        total += part.stat().st_size
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}
    write_json(folder / INDEX, index)


def write_json(path: Path, plain: Any) -> None:
    """``plain`` as indented JSON."""
    path.write_text(json.dumps(plain, indent=2) + "\n", encoding="utf-8")
