"""Reads a checkpoint of GPTQ as its layout says, bit by bit; a stand-in for gptqmodel.

v2: ``qweight`` int32 ``[in · bits / 32, out]``, ``qzeros`` int32 ``[groups, out · bits / 32]``, ``scales``
float16 ``[groups, out]``, ``g_idx`` int32 ``[in]``; w = scale · (code − zero), codes lowest bit first.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor


def unpacked(words: Tensor, bits: int) -> np.ndarray:
    """The numbers in int32 ``words [rows, n]``, each row one stream of bits."""
    raw = words.contiguous().numpy().astype("<i4").view(np.uint8)
    stream = np.unpackbits(raw, axis=1, bitorder="little")
    codes = stream[:, : stream.shape[1] // bits * bits].reshape(len(raw), -1, bits)
    return codes @ (1 << np.arange(bits))


def weight(tensors: Mapping[str, Tensor], name: str, bits: int) -> Tensor:
    """The dense weight ``[out, in]`` of a linear, float32."""
    codes = unpacked(tensors[f"{name}.qweight"].T, bits)
    zeros = unpacked(tensors[f"{name}.qzeros"], bits)
    scales = tensors[f"{name}.scales"]
    assert scales.dtype == torch.float16
    group = tensors[f"{name}.g_idx"].numpy()
    numbers = scales.float().numpy()[group] * (codes.T - zeros[group])
    return torch.from_numpy(numbers.T.astype(np.float32))
