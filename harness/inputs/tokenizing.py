"""What a tokenizer makes of texts: token ids, and the start token that windows have before them.

Many models have seen a start token before every text and predict badly without it; docs/windows.md
has figures.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from harness.inputs import assets

Bos = Literal["auto", "every", "first", "none"]
SAMPLE = "a 1 я 的 ก"  # of several scripts: a tokenizer may drop what it has no token for


@dataclass(frozen=True)
class Start:
    """Where windows have a start token, as a corpus' ``bos`` comes to with a tokenizer.

    Args:
        place: ``every``: at the beginning of each window; ``first``: at that of each text that is
            tokenised, and so in the windows that a text begins with; ``none``: nowhere.
        ids: the token; several where the tokenizer puts several, none where it has none.
        text: how the vocabulary writes them.
    """

    place: Literal["every", "first", "none"]
    ids: tuple[int, ...] = ()
    text: str = ""

    @property
    def found(self) -> str:
        """``every``, ``first`` or ``none``: where start tokens really are."""
        return self.place if self.ids else "none"

    @property
    def of_text(self) -> tuple[int, ...]:
        """What stands before a text before windows are cut out of it."""
        return self.ids if self.place == "first" else ()

    def room(self, length: int, name: str) -> int:
        """How many tokens of text a window of ``length`` tokens has."""
        left = length - len(self.ids) if self.place == "every" else length
        if left < 1:
            raise ValueError(f"corpus {name}: length={length} leaves no room after {self.text}")
        return left

    def lead(self, windows: Sequence[Sequence[int]] | Tensor) -> Tensor:
        """``windows [windows, room]`` as ``[windows, length]``, each after its start token."""
        ids = torch.as_tensor(windows, dtype=torch.int64)
        if self.place != "every":
            return ids
        return torch.cat([torch.tensor(self.ids).expand(len(ids), -1), ids], dim=1)

    def begins(self, ids: Tensor) -> Tensor:
        """Which of the windows ``ids [windows, length]`` begin with the start token."""
        return (ids[:, : len(self.ids)] == torch.tensor(self.ids)).all(dim=1)

    def __str__(self) -> str:
        """In words, for instance ``<bos> before every window``."""
        where = {"every": "before every window", "first": "where a text begins", "none": ""}
        return f"{self.text} {where[self.place]}" if self.found != "none" else "no start token"


NO_START = Start("none")


def start_of(bos: Bos, tokenizer: PreTrainedTokenizerBase) -> Start:
    """What ``bos`` comes to with this tokenizer.

    - ``every``: the tokens that the tokenizer puts before a text, or else its start token.
    - ``first``: the former, where a text begins, as in GPTQ's scripts; none if it puts none.
    - ``auto``: ``every`` where the tokenizer itself puts something before a text, else ``first``.
    - ``none``: text alone.

    Raises:
        ValueError: ``every`` with a tokenizer that has no start token.
    """
    if bos == "none":
        return NO_START
    ids = put_before(tokenizer)
    if bos == "every" and not ids:
        if tokenizer.bos_token_id is None:
            raise ValueError(
                f"bos={bos!r}: the tokenizer has no start token; allowed are auto, first, none"
            )
        ids = (tokenizer.bos_token_id,)
    text = "".join(map(str, tokenizer.convert_ids_to_tokens(list(ids)))) if ids else ""
    return Start("first" if bos == "first" or not ids else "every", ids, text)


def put_before(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """The tokens that the tokenizer itself puts before a text: mostly one or none."""
    (plain,) = encode([SAMPLE], tokenizer)
    (whole,) = encode([SAMPLE], tokenizer, special=True)
    for at in range(len(whole) - len(plain) + 1):
        if whole[at : at + len(plain)] == plain:
            return tuple(whole[:at])
    raise ValueError(
        f"the tokenizer gives {plain} for {SAMPLE!r}, and {whole} with its special tokens: what it "
        "puts before a text can't be told"
    )


def encode(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, special: bool = False
) -> list[list[int]]:
    """Token ids of each text; ``special`` adds what the tokenizer itself puts around a text."""
    if not texts:
        return []
    # Without a choice made here, tokenizers warns whenever the process forks later on.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    encoded = tokenizer(
        list(texts), add_special_tokens=special, return_attention_mask=False, verbose=False
    )
    return list(encoded["input_ids"])


def check_bos(bos: str) -> None:
    """Raises ValueError for a value that ``bos`` can't have."""
    known = list(get_args(Bos))
    if bos not in known:
        raise ValueError(f"bos={bos!r}: allowed are {', '.join(known)}{assets.near(bos, known)}")
