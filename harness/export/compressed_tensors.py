"""Checkpoints of compressed-tensors, as vLLM and transformers load them.

Layouts: ``pack-quantized``, ``mxfp4-pack-quantized`` and ``nvfp4-pack-quantized`` of the library
compressed-tensors, version 0.20. Integers are signed there, v = scale · (q − zero) with both of them
less 2^(bits − 1) than here, and packed with that offset back, which leaves the codes of here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from harness.export.base import SafetensorsKind, Source, exact, grid_problem, indexed
from harness.formats.base import Format
from harness.formats.fp4 import E2M1
from harness.formats.int import Int
from harness.formats.mxfp4 import MXFP4
from harness.formats.nvfp4 import NVFP4
from harness.methods.base import Quantized
from harness.numerics.packing import pack_nibbles, pack_words
from harness.recipe import Recipe
from harness.walk.architecture import Linear

INTEGERS, MX, NV = "pack-quantized", "mxfp4-pack-quantized", "nvfp4-pack-quantized"
BIAS = 127  # of E8M0


@dataclass(frozen=True)
class CompressedTensors(SafetensorsKind):
    """2 to 8 bits, per channel or in groups, symmetric or not; MXFP4 and NVFP4."""

    def problem(self, linear: Linear, recipe: Recipe) -> str | None:
        """See :meth:`Kind.problem`."""
        if found := grid_problem(linear, recipe):
            return found
        if not isinstance(recipe.spec.form, Int | MXFP4 | NVFP4):
            return f"format={type(recipe.spec.form).__name__.lower()}"
        if indexed(linear, recipe):
            return "groups of columns that are no neighbours (act_order without static_groups)"
        return None

    def tensors(self, linear: Linear, quantized: Quantized, form: Format) -> dict[str, Tensor]:
        """See :meth:`Kind.tensors`."""
        name, grid, codes = linear.name, quantized.grid, quantized.codes
        if isinstance(form, Int):
            found = {
                "weight_packed": pack_words(codes, form.bits),
                "weight_scale": exact(name, grid.scale, scale_type(form, linear.parameter.dtype)),
                "weight_shape": torch.tensor(codes.shape),
            }
            if not form.symmetric:
                zeros = exact(name, grid.zero, torch.uint8)
                found["weight_zero_point"] = pack_words(zeros.T, form.bits).T.contiguous()
        else:
            found = {"weight_packed": pack_nibbles(nibbles(codes))}
            if isinstance(form, MXFP4):
                exponents = torch.log2(grid.scale).round()
                found["weight_scale"] = (exponents + BIAS).to(torch.uint8)
            else:
                assert isinstance(form, NVFP4) and form.tensor is not None
                eighth = exact(name, form.stored(grid.scale), grid.scale.dtype) / form.tensor
                found["weight_scale"] = eighth.to(torch.float8_e4m3fn)
                found["weight_global_scale"] = torch.tensor([1 / form.tensor], dtype=torch.float32)
        return {f"{name}.{key}": one for key, one in found.items()}

    def quantization(self, source: Source) -> dict[str, Any]:
        """See :meth:`SafetensorsKind.quantization`; one group for each way of quantising."""
        alike: dict[str, tuple[Mapping[str, Any], list[str]]] = {}
        for name, recipe in source.recipes.items():
            weights = arguments(recipe)
            alike.setdefault(repr(weights), (weights, []))[1].append(name)
        layouts = {name: layout(recipe.spec.form) for name, recipe in source.recipes.items()}
        groups = {
            f"group_{index}": {
                "targets": ["Linear"] if len(alike) == 1 else names,
                "weights": weights,
                "input_activations": None,
                "output_activations": None,
                "format": layouts[names[0]],
            }
            for index, (weights, names) in enumerate(alike.values())
        }
        kinds = set(layouts.values())
        return {
            "quant_method": "compressed-tensors",
            "format": kinds.pop() if len(kinds) == 1 else "mixed-precision",
            "quantization_status": "compressed",
            "ignore": source.dense,
            "config_groups": groups,
        }

    def notes(self, source: Source) -> list[str]:
        """See :meth:`Kind.notes`."""
        forms = [one.spec.form for one in source.recipes.values()]
        said = ["vLLM: `vllm serve PATH` (its kernels have 4 and 8 bits)."]
        plain = {repr(arguments(one)) for one in source.recipes.values()}
        dtype = str(source.model.dtype).removeprefix("torch.")
        if len(plain) > 1:
            said.append(
                "Linears are quantised in several ways, which transformers 5.23 reads with "
                "`from_pretrained(PATH)` only, and not where zeros are stored: `dequantize=True` takes "
                "the first way for all."
            )
        else:
            said.append(
                "transformers: `AutoModelForCausalLM.from_pretrained(PATH, "
                f"dtype=torch.{dtype}, quantization_config=CompressedTensorsConfig(dequantize=True))`."
            )
        if not all(isinstance(one, Int) for one in forms):
            said.append(
                "transformers 5.23 reads MXFP4 and NVFP4 with `dequantize=True` only. It multiplies the "
                "scales of NVFP4 in bfloat16, so these weights come back with errors of up to 2⁻⁸, which "
                "the file has not; MXFP4's are exact."
            )
        if any(isinstance(one, Int) and not one.symmetric for one in forms):
            said.append(
                "Without `dequantize=True` transformers 5.23 refuses weights with zeros (a mismatch in "
                "the shape of `weight_zero_point`). Their scales are stored as float32, since it "
                "multiplies in the scales' type: the same numbers, 16 bits a group more than counted."
            )
        elif any(isinstance(one, Int) for one in forms) and source.model.dtype == torch.float32:
            said.append(
                "For the measured weights to the last bit leave `quantization_config` out: with it "
                "transformers multiplies in float16, the type of the scales."
            )
        return said


def layout(form: Format) -> str:
    """The name of the layout that a format is stored in."""
    return MX if isinstance(form, MXFP4) else NV if isinstance(form, NVFP4) else INTEGERS


def scale_type(form: Int, dtype: torch.dtype) -> torch.dtype:
    """The type of scales on disk, for a model of ``dtype``.

    As they were stored when they took part in rounding, unless that would change the weights: readers
    multiply in the type of the scales, either the file's (``dequantize=True`` of transformers, the only
    way for weights with zeros) or the model's (all others). A float16 product is right in a float16
    model, and a float32 model turns symmetric weights' scales to float32 first; else they are float32.
    """
    turned = dtype == torch.float32 and form.symmetric
    narrow = form.scales == "float16" and (turned or dtype == torch.float16)
    return torch.float16 if narrow else torch.float32


def arguments(recipe: Recipe) -> Mapping[str, Any]:
    """What compressed-tensors has to know of a recipe's weights."""
    form, size = recipe.spec.form, recipe.spec.group_size
    symmetric = form.symmetric if isinstance(form, Int) else True
    strategy = "group" if size else "channel"
    said: dict[str, Any] = {"num_bits": form.bits, "symmetric": symmetric, "dynamic": False}
    if isinstance(form, NVFP4):
        said |= {"scale_dtype": "torch.float8_e4m3fn", "zp_dtype": "torch.float8_e4m3fn"}
        strategy = "tensor_group"
    elif isinstance(form, MXFP4):
        said |= {"scale_dtype": "torch.uint8", "zp_dtype": "torch.uint8"}
    said |= {"type": "int" if isinstance(form, Int) else "float", "strategy": strategy}
    return said | ({"group_size": size} if size else {})


def nibbles(codes: Tensor) -> Tensor:
    """Places in the table E2M1 as the four bits of the number: sign, two of the exponent, mantissa."""
    zero = len(E2M1) // 2
    steps = codes.to(torch.int16) - zero
    return (steps.abs() + 8 * (steps < 0)).to(torch.uint8)
