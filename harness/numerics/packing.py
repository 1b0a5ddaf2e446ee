"""Codes of a few bits as the words that checkpoints store them in."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

WORD = 32


def pack_words(codes: Tensor, bits: int) -> Tensor:
    """The lower ``bits`` bits of ``codes [..., n]`` one after the other, lowest first, as int32 words.

    Code i of a row begins at bit ``i · bits`` of the row, whether or not that leaves it in two words; the
    last word is filled with zeros: ``[..., ceil(n · bits / 32)]``.
    """
    *shape, count = codes.shape
    plain = codes.to(torch.uint8).cpu().contiguous().numpy().reshape(-1, count, 1)
    stream = np.unpackbits(plain, axis=2, bitorder="little")[:, :, :bits].reshape(len(plain), -1)
    packed = np.packbits(stream, axis=1, bitorder="little")
    size = -(-count * bits // WORD) * WORD // 8
    filled = np.pad(packed, ((0, 0), (0, size - packed.shape[1])))
    return torch.from_numpy(filled).view(torch.int32).reshape(*shape, -1)


def pack_nibbles(codes: Tensor) -> Tensor:
    """Two codes of four bits in a byte, the first one in its lower half: uint8 ``[..., n / 2]``."""
    low, high = codes[..., ::2].to(torch.uint8), codes[..., 1::2].to(torch.uint8)
    return (low | (high << 4)).contiguous()
