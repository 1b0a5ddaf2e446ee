"""Checkpoints whose weights are codes become the dense model that their format's library makes of them.

    compressed-tensors   integers and MXFP4, weights alone, by transformers and compressed-tensors
    gguf                 a directory with a .gguf file and no safetensors, by transformers and gguf
    gptq                 by transformers, optimum and gptqmodel, where these are installed

Such a model is measured as it is; it is no reference, and nothing is quantised from it. What a library
would read as other weights than the file holds is refused.
"""

from __future__ import annotations

import contextlib
import copy
import io
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
import transformers
from transformers.utils.import_utils import is_gptqmodel_available, is_optimum_available

from harness.inputs.weight_files import CheckpointError, gguf_file

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

COMPRESSED, GGUF, GPTQ = "compressed-tensors", "gguf", "gptq"
INTEGERS, MX = "pack-quantized", "mxfp4-pack-quantized"
BEYOND = ("kv_cache_scheme", "sparsity_config", "transform_config")  # more than weights as codes
KEYS = ("quantization_config", "compression_config")


@dataclass(frozen=True)
class Reading:
    """How transformers is to load a checkpoint.

    Args:
        by: the format of its codes; None where its weights are numbers.
        options: of ``from_pretrained``.
    """

    by: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def gguf(self) -> bool:
        """Whether the weights are in a GGUF file."""
        return self.by == GGUF


def reading(location: str, config: PreTrainedConfig, dtype: torch.dtype | str) -> Reading:
    """How the weights are read as the numbers that the file holds.

    Raises:
        CheckpointError: transformers does not read them, or not as these.
    """
    chosen = _own_dtype(config) if dtype == "auto" else dtype
    if (file := gguf_file(location)) is not None:
        whole = transformers.GgufConfig(dequantize=True)
        options = {"gguf_file": file.name, "quantization_config": whole, "dtype": chosen}
        return Reading(GGUF, options)
    settings = _settings(config)
    if settings is None:
        return Reading()
    by = settings.get("quant_method", "quantization_config")
    if by == GPTQ:
        return Reading(GPTQ, _gptq(settings))
    if by != COMPRESSED:
        raise CheckpointError(
            f"quantised already ({by} in its config.json), in a format that is not read here; the "
            "checkpoint that it was made from is needed"
        )
    return Reading(COMPRESSED, _compressed(settings, chosen))


def _compressed(settings: Mapping[str, Any], dtype: torch.dtype | str) -> dict[str, Any]:
    """Options for compressed-tensors; see ``scale_type`` in :mod:`harness.export.compressed_tensors`.

    By default transformers multiplies in the model's type, with ``dequantize=True`` in that of the
    file's scales, and there it takes the first group's way for all linears.
    """
    groups = list(settings.get("config_groups", {}).values())
    layouts = {one.get("format") or settings.get("format") for one in groups}
    said = f"quantised already ({COMPRESSED} in its config.json)"
    if not groups or any(settings.get(key) for key in BEYOND) or not all(map(_weights, groups)):
        raise CheckpointError(f"{said}, and not in its weights alone: only such are read here")
    if odd := sorted(map(str, layouts - {INTEGERS, MX})):
        raise CheckpointError(
            f"{said} as {odd[0]}: {INTEGERS} and {MX} are read here (of nvfp4 the library makes other "
            "weights); save=dense holds any"
        )
    symmetric = layouts == {INTEGERS} and all(one["weights"]["symmetric"] for one in groups)
    if symmetric and dtype in (torch.float32, torch.float64):
        return {}
    if any(one["weights"] != groups[0]["weights"] for one in groups):
        raise CheckpointError(
            f"{said} in several ways, which transformers reads as symmetric integers of a float32 model "
            "only; save=dense holds any"
        )
    return {"quantization_config": transformers.CompressedTensorsConfig(dequantize=True)}


def _gptq(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Options for GPTQ: of gptqmodel's kernels the one without compiled code, which is right for all bits."""
    if not (is_optimum_available() and is_gptqmodel_available()):
        raise CheckpointError(
            "quantised already (gptq in its config.json), which transformers reads by optimum and gptqmodel: "
            "pip install optimum gptqmodel; or save=dense, which holds the same weights"
        )
    return {"quantization_config": transformers.GPTQConfig(bits=settings["bits"], backend="torch")}


def _weights(group: Mapping[str, Any]) -> bool:
    """Whether a group is of weights alone, with scales that are stored."""
    given = group.get("weights") or {"dynamic": True}
    return not (
        group.get("input_activations") or group.get("output_activations") or given.get("dynamic")
    )


def plain(config: PreTrainedConfig) -> PreTrainedConfig:
    """The configuration of the dense model."""
    found = copy.deepcopy(config)
    for one in (found, found.get_text_config(decoder=True)):
        for key in KEYS:
            if hasattr(one, key):
                delattr(one, key)
    return found


def dense(
    model: PreTrainedModel, read: Reading, config: PreTrainedConfig
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """The dense model in which nothing is left of the codes, and the loader's report on it."""
    if not read.options:  # loaded as they are packed
        quantizer: Any = model.hf_quantizer
        quantizer.compressor.decompress_model(model)
    known = plain(config)
    with torch.device("meta"):
        names = type(model)(known).state_dict().keys()
    state = {name: one for name, one in model.state_dict().items() if name in names}
    for name, one in model.named_modules() if read.by == GPTQ else ():
        if hasattr(one, "dequantize_weight"):  # gptqmodel's, [in, out]
            state[f"{name}.weight"] = one.dequantize_weight().T
    made: Any = type(model).from_pretrained(
        None, config=known, state_dict=state, dtype=model.dtype, output_loading_info=True
    )
    return made[0], made[1]


@contextlib.contextmanager
def unheard() -> Iterator[None]:
    """Keeps the bars and warnings of the libraries to themselves; errors still come."""
    with (
        warnings.catch_warnings(action="ignore"),
        contextlib.redirect_stderr(io.StringIO()),
        contextlib.redirect_stdout(io.StringIO()),
    ):
        yield


def _own_dtype(config: PreTrainedConfig) -> torch.dtype:
    """That of a checkpoint's model, as its configuration says."""
    found = config.get_text_config(decoder=True).dtype or torch.float32
    return found if isinstance(found, torch.dtype) else getattr(torch, found)


def _settings(config: PreTrainedConfig) -> Mapping[str, Any] | None:
    for one in (config, config.get_text_config(decoder=True)):
        for key in KEYS:
            if found := getattr(one, key, None):
                return found if isinstance(found, dict) else {"quant_method": type(found).__name__}
    return None
