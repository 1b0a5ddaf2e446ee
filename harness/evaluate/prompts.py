"""Prompts and continuations as token ids: start tokens, and where one ends and the other begins.

As lm-eval's ``HFLM`` does it, with three faults less: a prompt starts with the start token exactly once
(also a rolling text, also one that was cut on the left); a token that a tokenizer puts *behind* every
text never comes between prompt and continuation; no continuation is empty.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass

from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from transformers import PreTrainedTokenizerBase

from harness.evaluate.likelihood import Ids
from harness.inputs.tokenizing import encode


@dataclass(frozen=True)
class Pair:
    """A prompt and its continuation.

    Args:
        context: the prompt, at least one token.
        continuation: what is predicted; empty only if its text has no token.
        spanned: whether they share a token of the joined text.
    """

    context: Ids
    continuation: Ids
    spanned: bool


@dataclass(frozen=True)
class Prompts:
    """How a tokenizer makes prompts.

    Args:
        tokenizer: of the model.
        start: what every prompt starts with; may be empty.
    """

    tokenizer: PreTrainedTokenizerBase
    start: Ids

    @property
    def lone(self) -> Ids:
        """What stands before a text that has no prompt: the start, else the end token, as in HFLM.

        Raises:
            ValueError: the tokenizer has neither.
        """
        if self.start:
            return self.start
        names = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id
        for one in names:
            if one is not None:
                return (int(one),)
        raise ValueError("an empty prompt: the tokenizer has neither a start nor an end token")

    def encoded(self, texts: Sequence[str]) -> list[Ids]:
        """The ids of prompts, each with the start exactly once, also where its text brings it."""
        return [self._started(tuple(ids)) for ids in encode(list(texts), self.tokenizer)]

    def pairs(self, texts: Sequence[tuple[str, str]], questions: Sequence[Hashable]) -> list[Pair]:
        """Token ids of (prompt, continuation) pairs.

        White space at the end of a prompt belongs to the continuation. The joined text is encoded, and
        what follows the prompt's own number of tokens is the continuation (lm-eval's
        ``TemplateLM._encode_pair``). Where nothing follows, because the last token belongs to both, all
        continuations of that question are encoded alone: were it one, it would be the only one that is
        scored with all of its tokens.

        Args:
            texts: prompts and continuations.
            questions: which question each pair belongs to.
        """
        moved = [_moved(*one) for one in texts]
        ids = self._ids(part for one in moved for part in (one[0], "".join(one)))
        asked = list(zip(questions, moved, strict=True))
        apart = {
            question
            for question, (context, continuation) in asked
            if context and len(ids[context + continuation]) <= len(ids[context])
        }
        alone = self._ids(tail for question, (_, tail) in asked if question in apart)
        return [
            self._pair(
                ids[context],
                ids[context + continuation],
                alone[continuation] if question in apart else None,
            )
            for question, (context, continuation) in asked
        ]

    def windows(self, text: str, longest: int) -> list[Pair]:
        """All of a text as continuations, as lm-eval's ``HFLM.loglikelihood_rolling`` cuts it.

        The first token is predicted from :attr:`lone`. In later windows the oldest tokens give way to
        the start, if there is one.
        """
        lone, (ids,) = self.lone, encode([text], self.tokenizer)
        if tuple(ids[: len(lone)]) == lone:
            ids = ids[len(lone) :]
        found: list[Pair] = []
        for window in get_rolling_token_windows(ids, lone[-1], longest, 1):
            context, continuation = map(tuple, make_disjoint_window(window))
            before = self.start if found else lone
            found.append(Pair(before + context[len(before) :], continuation, False))
        return found

    def cut(self, context: Ids, room: int) -> Ids:
        """A prompt of at most ``room`` tokens: the start and the last ones."""
        if len(context) <= room:
            return context
        kept = len(self.start)
        if room > kept and context[:kept] == self.start:
            return self.start + context[len(context) - room + kept :]
        return context[len(context) - room :]

    def _pair(self, context: Ids, whole: Ids, alone: Ids | None) -> Pair:
        if not context:
            lone = self.lone
            return Pair(lone, whole[len(lone) :] if whole[: len(lone)] == lone else whole, False)
        tail = whole[len(context) :] if alone is None else alone
        return Pair(self._started(context), tail, whole[: len(context)] != context)

    def _ids(self, texts: Iterable[str]) -> dict[str, Ids]:
        """The ids of each text by itself, without a start."""
        wanted = list(dict.fromkeys(texts))
        return dict(zip(wanted, map(tuple, encode(wanted, self.tokenizer)), strict=True))

    def _started(self, ids: Ids) -> Ids:
        return ids if ids[: len(self.start)] == self.start else self.start + ids


def _moved(context: str, continuation: str) -> tuple[str, str]:
    """White space at the end of the prompt at the start of the continuation instead."""
    stripped = context.rstrip()
    return stripped, context[len(stripped) :] + continuation
