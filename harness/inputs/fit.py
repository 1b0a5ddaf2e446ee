"""Do token windows fit a model? Seen without its weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from transformers import PreTrainedModel

from harness.inputs.corpora import Tokens
from harness.walk.limits import longest, positions, vocabulary


def check_fit(windows: Mapping[str, Tokens], model: PreTrainedModel) -> None:
    """Raises ValueError, in one line, for windows that ``model`` can't read.

    Args:
        windows: by the name that messages give them.
        model: with or without weights.
    """
    known, most = vocabulary(model), longest(model)
    for name, tokens in windows.items():
        ids = torch.cat([tokens.ids, tokens.heldout])
        largest, length = int(ids.max()), ids.shape[1]
        if largest >= known or int(ids.min()) < 0:
            bad = largest if largest >= known else int(ids.min())
            raise ValueError(
                f"{name}: token id {bad}, but the model has embeddings for the ids 0 to {known - 1}; "
                "the tokenizer or the token file is another model's"
            )
        if most is not None and length > most:
            raise ValueError(
                f"{name}: length={length}: the model has no more than {most} positions; allowed are "
                f"2 to {most}"
            )


def notes(windows: Mapping[str, Tokens], model: PreTrainedModel) -> Iterator[str]:
    """What a person should know about windows that fit, in one line each."""
    trained = positions(model)
    for name, tokens in windows.items():
        length = tokens.ids.shape[1]
        if trained is not None and length > trained:
            yield f"{name}: windows of {length} tokens, longer than the {trained} of the checkpoint"
        if tokens.note:
            yield f"{name}: {tokens.note}"
