"""Checkpoints of GPTQ, second version, as gptqmodel, vLLM and transformers (with optimum) load them.

Layout, of a linear with codes c ``[out, in]``, each of ``bits`` bits, lowest first in int32 words:

    qweight  [in · bits / 32, out]       the codes of an output channel, one after the other, downwards
    qzeros   [groups, out · bits / 32]   the zeros; the first version stored one less, and lost zeros of 0
    scales   [groups, out] float16       v = scale · (c − zero)
    g_idx    [in] int32                  the group of every column
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from harness.export.base import SafetensorsKind, Source, exact, grid_problem
from harness.formats.base import Format
from harness.formats.int import Int
from harness.methods.base import Quantized
from harness.numerics.packing import WORD, pack_words
from harness.recipe import Recipe
from harness.walk.architecture import Linear

BITS = (2, 3, 4, 8)


@dataclass(frozen=True)
class GPTQ(SafetensorsKind):
    """2, 3, 4 and 8 bits, per channel or in groups of any columns, symmetric or not; one kind for all."""

    def problem(self, linear: Linear, recipe: Recipe) -> str | None:
        """See :meth:`Kind.problem`."""
        if found := grid_problem(linear, recipe):
            return found
        form = recipe.spec.form
        if not isinstance(form, Int):
            return f"format={type(form).__name__.lower()}"
        if form.bits not in BITS:
            return f"bits={form.bits}: has 2, 3, 4 and 8"
        if form.scales != "float16":
            return f"scales={form.scales}: has float16"
        if odd := [size for size in linear.shape if size * form.bits % WORD]:
            return f"{odd[0]} codes of {form.bits} bits are no whole number of 32-bit words"
        return None

    def conflict(self, source: Source) -> str | None:
        """See :meth:`Kind.conflict`."""
        ways = list(dict.fromkeys(way(one) for one in source.recipes.values()))
        if len(ways) > 1:
            return f"{ways[0]} and {ways[1]}: has one way of quantising for all linears"
        return None

    def tensors(self, linear: Linear, quantized: Quantized, form: Format) -> dict[str, Tensor]:
        """See :meth:`Kind.tensors`."""
        name, grid = linear.name, quantized.grid
        zeros = exact(name, grid.zero, torch.uint8)
        found = {
            "qweight": pack_words(quantized.codes, form.bits).T.contiguous(),
            "qzeros": pack_words(zeros.T, form.bits),
            "scales": exact(name, grid.scale, torch.float16).T.contiguous(),
            "g_idx": grid.group.to(torch.int32),
        }
        return {f"{name}.{key}": one for key, one in found.items()}

    def quantization(self, source: Source) -> dict[str, Any]:
        """See :meth:`SafetensorsKind.quantization`."""
        recipe = next(iter(source.recipes.values()))
        form = recipe.spec.form
        assert isinstance(form, Int)
        every = dict(source.model.named_modules())
        ordered = any(
            recipe.storage(*every[name].weight.shape).indices
            for name, recipe in source.recipes.items()
        )
        # What is dense inside of the blocks has to be named; the head is by lm_head.
        dense = [name for name in source.dense if name != "lm_head"]
        return {
            "quant_method": "gptq",
            "checkpoint_format": "gptq_v2",
            "bits": form.bits,
            "group_size": recipe.spec.group_size or -1,
            "sym": form.symmetric,
            "desc_act": ordered,
            "pack_dtype": "int32",
            "lm_head": False,
            "dynamic": {f"-:^{re.escape(name)}$": {} for name in dense},
        }

    def notes(self, source: Source) -> list[str]:
        """See :meth:`Kind.notes`."""
        said = [
            "gptqmodel: `GPTQModel.load(PATH)`; vLLM: `vllm serve PATH`; transformers with optimum and "
            "gptqmodel: `AutoModelForCausalLM.from_pretrained(PATH)`. Most kernels compute in float16, so "
            "the last digits differ from the measured ones.",
            "The layout is the second version (`checkpoint_format: gptq_v2`), in which a zero of 0 is "
            "stored; a reader that only knows the first one computes with zeros that are one too large.",
        ]
        forms = {(one.spec.form, one.spec.group_size) for one in source.recipes.values()}
        if any(size is None and form == Int(4) for form, size in forms):
            said.append(
                "4 bits per channel with zeros: one of gptqmodel's CPU kernels has been seen to compute "
                "this case wrongly; compare a perplexity before serving on a CPU, or take the plain kernel: "
                '`quantization_config=GPTQConfig(bits=4, backend="torch")`.'
            )
        return said


def way(recipe: Recipe) -> str:
    """What has to be equal for all linears."""
    form = recipe.spec.form
    sides = "symmetric" if isinstance(form, Int) and form.symmetric else "asymmetric"
    return f"{form.bits} bits {sides} in groups of {recipe.spec.group_size or 'a row'}"
