"""Cutting token windows ``[windows, length]`` out of text, tokenising only what is needed."""

from __future__ import annotations

import os
import random
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

CHARACTERS = 6  # a first guess of characters per token
SPARE = 32  # tokens at a cut that may come out differently in the whole text
PIECE = 16  # characters per token of a window, in the pieces of a long text
BATCH = 64  # documents tokenised at once


def first_windows(
    text: str, tokenizer: PreTrainedTokenizerBase, count: int | None, length: int, name: str
) -> Tensor:
    """The first ``count`` non-overlapping windows of ``text`` in order; None is all there are."""
    needed = len(text) if count is None else count * length
    characters = needed * CHARACTERS
    while True:
        (ids,) = encode([text[:characters]], tokenizer, special=True)
        if characters >= len(text) or len(ids) >= needed + SPARE:
            break
        characters *= 2
    available = len(ids) // length
    if available < (count or 1):
        raise too_few(name, len(ids), (count or 1) * length)
    return torch.tensor(ids[: (count or available) * length]).view(-1, length)


def random_windows(
    text: str, tokenizer: PreTrainedTokenizerBase, count: int, length: int, name: str, seed: int
) -> Tensor:
    """``count`` non-overlapping windows of ``text`` at random, as GPTQ takes from WikiText-2.

    A long text is cut into pieces, so that only as many as needed are tokenised.
    """
    generator = random.Random(seed)
    size = length * PIECE
    pieces = [text[at : at + size] for at in range(0, len(text), size)]
    if len(pieces) < 2 * count:
        pieces = [text]
    generator.shuffle(pieces)
    windows: list[list[int]] = []
    seen = 0
    for at in range(0, len(pieces), BATCH):
        for ids in encode(pieces[at : at + BATCH], tokenizer):
            seen += len(ids)
            windows += [ids[i : i + length] for i in range(0, len(ids) - length + 1, length)]
        if len(windows) >= count:
            break
    if len(windows) < count:
        raise too_few(name, seen, count * length)
    generator.shuffle(windows)
    return torch.tensor(windows[:count])


def document_windows(
    documents: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    count: int,
    length: int,
    name: str,
    seed: int,
) -> Tensor:
    """One random window from each of ``count`` random documents that are long enough.

    The way of GPTQ's ``get_c4`` (Frantar et al. 2022), but no document is used twice.
    """
    generator = random.Random(seed)
    order = list(range(len(documents)))
    generator.shuffle(order)
    windows: list[list[int]] = []
    for at in range(0, len(order), BATCH):
        batch = [documents[index] for index in order[at : at + BATCH]]
        for ids in encode([one for one in batch if len(one) >= length], tokenizer):
            if len(ids) >= length and len(windows) < count:
                start = generator.randint(0, len(ids) - length)
                windows.append(ids[start : start + length])
        if len(windows) == count:
            return torch.tensor(windows)
    raise ValueError(
        f"corpus {name}: {len(windows)} of {len(documents)} documents have {length} tokens or "
        f"more; {count} are needed"
    )


def encode(
    texts: list[str], tokenizer: PreTrainedTokenizerBase, special: bool = False
) -> list[list[int]]:
    """Token ids of each text; ``special`` puts the tokenizer's start token before it, if any."""
    if not texts:
        return []
    # Without a choice made here, tokenizers warns whenever the process forks later on.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    encoded = tokenizer(
        texts, add_special_tokens=special, return_attention_mask=False, verbose=False
    )
    return list(encoded["input_ids"])


def too_few(name: str, found: int, needed: int) -> ValueError:
    """The error for a text that is too short."""
    return ValueError(f"corpus {name}: the text has {found:,} tokens; {needed:,} are needed")
