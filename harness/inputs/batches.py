"""Token windows as batches: what goes through the model at once."""

from __future__ import annotations

import random

import torch
from torch import Tensor


def split_windows(ids: Tensor, batch_tokens: int, noise: int = 0) -> list[Tensor]:
    """``ids [windows, length]`` as batches of about ``batch_tokens`` tokens, at least a window each.

    Args:
        ids: the windows.
        batch_tokens: of a batch.
        noise: 0 keeps the order; another number is the seed of a permutation of the windows and of
            the windows in a batch, at most as many as without.
    """
    if not ids.numel():
        return []
    size = max(1, batch_tokens // ids.shape[1])
    if noise:
        draw = random.Random(noise)
        order = list(range(len(ids)))
        draw.shuffle(order)
        ids, size = ids[torch.tensor(order)], draw.randint(1, size)
    return list(torch.split(ids, size))
