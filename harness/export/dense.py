"""The fake-quantised model in its own precision: plain weights, whatever they were rounded to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from harness.export.base import SafetensorsKind, Source
from harness.formats.base import Format
from harness.methods.base import Quantized
from harness.recipe import Recipe
from harness.walk.architecture import Linear


@dataclass(frozen=True)
class Dense(SafetensorsKind):
    """Every weight as the model computes with it; as large as the model was."""

    codes: ClassVar[bool] = False

    def problem(self, linear: Linear, recipe: Recipe) -> str | None:
        """See :meth:`Kind.problem`: none."""
        return None

    def tensors(self, linear: Linear, quantized: Quantized, form: Format) -> dict[str, Tensor]:
        """See :meth:`Kind.tensors`."""
        return {f"{linear.name}.weight": linear.parameter}

    def notes(self, source: Source) -> list[str]:
        """See :meth:`Kind.notes`."""
        return [
            "The weights are dense: they are the numbers that the quantised model computed with, in "
            "the precision of the original, so the files are as large as the original's. Anything that "
            "loads the original loads this."
        ]
