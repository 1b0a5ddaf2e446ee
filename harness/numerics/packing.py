"""Codes of a few bits as the words that checkpoints store them in."""

from __future__ import annotations

import torch
from torch import Tensor

WORD = 32


def pack_words(codes: Tensor, bits: int) -> Tensor:
    """The lower ``bits`` bits of ``codes [..., n]`` one after the other, lowest first, as int32 words.

    Code i of a row begins at bit ``i · bits`` of the row, whether or not that leaves it in two words; the
    last word is filled with zeros: ``[..., ceil(n · bits / 32)]``.
    """
    *shape, count = codes.shape
    groups = -(-count // WORD)  # 32 codes are a whole number of words
    padded = torch.nn.functional.pad(codes.to(torch.int64), (0, groups * WORD - count))
    padded = padded.reshape(-1, groups, WORD)
    words = torch.zeros(*padded.shape[:2], bits + 1, dtype=torch.int64, device=codes.device)
    for i in range(WORD):
        word, shift = divmod(i * bits, WORD)
        wide = padded[:, :, i] << shift
        words[:, :, word] |= wide & 0xFFFFFFFF
        words[:, :, word + 1] |= wide >> WORD
    flat = words[:, :, :bits].reshape(*shape, groups * bits)[..., : -(-count * bits // WORD)]
    return flat.to(torch.int32).contiguous()  # the upper half wraps to negative numbers


def pack_nibbles(codes: Tensor) -> Tensor:
    """Two codes of four bits in a byte, the first one in its lower half: uint8 ``[..., n / 2]``."""
    low, high = codes[..., ::2].to(torch.uint8), codes[..., 1::2].to(torch.uint8)
    return (low | (high << 4)).contiguous()
