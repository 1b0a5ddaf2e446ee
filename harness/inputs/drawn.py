"""Calibration windows as the scripts of the papers draw them, to the last token.

They need the same rows in the same order, the same tokenizer, and ``bos=first``.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from harness.inputs.tokenizing import Start, encode
from harness.inputs.windows import too_few

AWQ_SEED = 42  # of the order of documents in AWQ's code, whatever the seed of a run


def gptq_windows(
    documents: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    count: int,
    length: int,
    name: str,
    seed: int,
    start: Start,
) -> Tensor:
    """``count`` windows ``[count, length]`` as ``get_c4`` of GPTQ, QEP and QuantEase draws them.

    Python's generator draws a document until one is longer than a window, then where the window
    begins; a document can come twice.

    Raises:
        ValueError: no document is longer than a window.
    """
    generator = random.Random(seed)
    room = start.room(length, name)
    short: set[int] = set()
    windows: list[list[int]] = []
    while len(windows) < count:
        if len(short) == len(documents):
            raise ValueError(
                f"corpus {name}: none of {len(documents)} documents has more than {room} tokens"
            )
        index = generator.randint(0, len(documents) - 1)
        if index in short:
            continue
        ids = [*start.of_text, *encode([documents[index]], tokenizer)[0]]
        if len(ids) <= room:
            short.add(index)
            continue
        first = generator.randint(0, len(ids) - room - 1)
        windows.append(ids[first : first + room])
    return start.lead(windows)


def awq_windows(
    documents: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    wanted: int,
    count: int | None,
    length: int,
    name: str,
    start: Start,
) -> Tensor:
    """Windows ``[windows, length]`` as ``get_calib_dataset`` of AWQ makes them.

    The documents of at most ``length`` tokens, in the order of a fixed permutation, the first
    ``wanted`` of them one after the other; the first ``count`` windows of that, None for all.

    Raises:
        ValueError: too few documents are that short, or they do not fill the windows.
    """
    room = start.room(length, name)
    ids: list[int] = []
    found = 0
    for index in np.random.default_rng(AWQ_SEED).permutation(len(documents)):
        one = [*start.of_text, *encode([documents[int(index)].strip()], tokenizer)[0]]
        if one and len(one) <= room:
            ids += one
            found += 1
        if found == wanted:
            break
    if found < wanted:
        raise ValueError(
            f"corpus {name}: {found} of {len(documents)} documents have at most {room} tokens; "
            f"{wanted} are needed"
        )
    available = len(ids) // room
    if available < (count or 1):
        raise too_few(name, len(ids), (count or 1) * room)
    chosen = available if count is None else count
    return start.lead([ids[at * room : (at + 1) * room] for at in range(chosen)])
