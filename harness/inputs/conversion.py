"""A pinned GGUF file becomes a plain float32 checkpoint in the cache, once."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
from pathlib import Path
from typing import Any

import torch
import transformers

from harness.inputs import assets
from harness.inputs.checkpoint import quiet, refuse_misfits

CONVERSION = "1"  # part of the cache key: raise it when the conversion changes


def converted(asset: assets.Asset) -> Path:
    """The directory with ``asset`` as float32 safetensors, made on the first call."""
    key = f"{asset.name}-{asset.sha256[:12]}-v{CONVERSION}"
    target = assets.cache_directory() / "models" / key
    if target.is_dir():
        return target
    source = assets.fetch(asset)
    with assets.exclusive(target):
        if target.is_dir():  # another process was quicker
            return target
        assets.say(f"converting {asset.file} to safetensors, once (may take a minute or two)")
        partial = target.with_name(key + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        _convert(source, partial)
        os.replace(partial, target)
    return target


def _convert(source: Path, target: Path) -> None:
    """Writes the GGUF file ``source`` as a plain float32 checkpoint."""
    origin: dict[str, Any] = {"gguf_file": source.name}
    # The bar of the conversion can't be switched off; what is logged does not go by this stream.
    # Each of these reads all metadata again, unless it gets the configuration.
    with quiet(), contextlib.redirect_stderr(io.StringIO()):
        origin["config"] = transformers.AutoConfig.from_pretrained(source.parent, **origin)
        loaded: Any = transformers.AutoModelForCausalLM.from_pretrained(
            source.parent,
            dtype=torch.float32,
            quantization_config=transformers.GgufConfig(dequantize=True),
            output_loading_info=True,
            **origin,
        )
        tokenizer = transformers.AutoTokenizer.from_pretrained(source.parent, **origin)
        model, report = loaded
        refuse_misfits(model, report)
        model.save_pretrained(target)
        tokenizer.save_pretrained(target)
