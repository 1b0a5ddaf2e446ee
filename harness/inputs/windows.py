"""Cutting token windows ``[windows, length]`` out of text, tokenising only what is needed.

How many characters make a token differs by a factor of a hundred between scripts and tokenizers
(three tokens for a Chinese character in bytes, one for a run of sixty blanks). Only tokens tell
whether a text is long enough; the sizes below are first guesses, and more text is taken where one
is too small.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from harness.inputs.tokenizing import NO_START, Start, encode

CHARACTERS = 6  # a first guess of characters per token
SPARE = 256  # tokens before a cut that may come out differently in the whole text
PIECE = 16  # a first guess of characters per token of a window, in the pieces of a long text
BATCH = 64  # documents tokenised at once


def first_windows(
    text: str,
    tokenizer: PreTrainedTokenizerBase,
    count: int | None,
    length: int,
    name: str,
    start: Start = NO_START,
    fewer: bool = False,
) -> Tensor:
    """The first ``count`` non-overlapping windows of ``text`` in order; None is all there are.

    ``fewer`` takes as many as there are where ``text`` has not so many.
    """
    room = start.room(length, name)
    needed = len(text) if count is None else count * room
    characters = needed * CHARACTERS
    while True:
        (ids,) = encode([text[:characters]], tokenizer, special=start.place == "first")
        if characters >= len(text) or len(ids) >= needed + SPARE:
            break
        characters *= 2
    available = len(ids) // room
    least = 1 if fewer else count or 1
    if available < least:
        raise too_few(name, len(ids), least * room)
    found = available if count is None else min(count, available)
    return start.lead([ids[at * room : (at + 1) * room] for at in range(found)])


def random_windows(
    text: str,
    tokenizer: PreTrainedTokenizerBase,
    count: int,
    length: int,
    name: str,
    seed: int,
    start: Start = NO_START,
) -> Tensor:
    """``count`` non-overlapping windows of ``text`` at random, as GPTQ takes from WikiText-2.

    A long text is cut into pieces, so that only as many as needed are tokenised.
    """
    generator = random.Random(seed)
    room = start.room(length, name)
    size = length * PIECE
    while True:
        pieces = [text[at : at + size] for at in range(0, len(text), size)]
        if len(pieces) < 2 * count:
            pieces = [text]
        windows, seen = _windows_of_pieces(pieces, tokenizer, count, room, start, generator)
        if len(windows) >= count:
            break
        if len(pieces) == 1:
            raise too_few(name, seen, count * room)
        size *= PIECE  # tokens are long: so much that few windows touch a cut
    generator.shuffle(windows)
    return start.lead(windows[:count])


def _windows_of_pieces(
    pieces: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    count: int,
    room: int,
    start: Start,
    generator: random.Random,
) -> tuple[list[list[int]], int]:
    """At least ``count`` windows from pieces in random order if they have them; tokens seen."""
    order = list(range(len(pieces)))
    generator.shuffle(order)
    windows: list[list[int]] = []
    seen = 0
    for at in range(0, len(order), BATCH):
        some = order[at : at + BATCH]
        for index, found in zip(some, encode([pieces[i] for i in some], tokenizer), strict=True):
            ids = found if index else [*start.of_text, *found]
            seen += len(ids)
            windows += [ids[i : i + room] for i in range(0, len(ids) - room + 1, room)]
        if len(windows) >= count:
            break
    return windows, seen


def document_windows(
    documents: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    count: int,
    length: int,
    name: str,
    seed: int,
    start: Start = NO_START,
) -> Tensor:
    """One random window from each of ``count`` random documents that are long enough.

    The way of GPTQ's ``get_c4`` (Frantar et al. 2022), but no document is used twice.
    """
    generator = random.Random(seed)
    room = start.room(length, name)
    order = list(range(len(documents)))
    generator.shuffle(order)
    windows: list[list[int]] = []
    for at in range(0, len(order), BATCH):
        batch = [documents[index] for index in order[at : at + BATCH]]
        # Nothing but tokens tells whether a document is long enough, in any script.
        for found in encode([one for one in batch if one and not one.isspace()], tokenizer):
            ids = [*start.of_text, *found]
            if len(ids) >= room and len(windows) < count:
                first = generator.randint(0, len(ids) - room)
                windows.append(ids[first : first + room])
        if len(windows) == count:
            return start.lead(windows)
    raise ValueError(
        f"corpus {name}: {len(windows)} of {len(documents)} documents have {room} tokens or "
        f"more; {count} are needed"
    )


def too_few(name: str, found: int, needed: int) -> ValueError:
    """The error for a text that is too short."""
    return ValueError(f"corpus {name}: the text has {found:,} tokens; {needed:,} are needed")
