"""What ids and lengths a model can read, seen without its weights."""

from __future__ import annotations

from itertools import cycle, islice
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PROBE_TOKENS = 8
UNUSED = 2  # rows more than positions in the tables of OPT, BART and their kin


def vocabulary(model: PreTrainedModel) -> int:
    """How many token ids the model knows: rows of its embedding, and of its head where that has fewer."""
    tables = [model.get_input_embeddings(), model.get_output_embeddings()]  # type: ignore[no-untyped-call]
    return min(len(cast(Tensor, one.weight)) for one in tables if one is not None)


def hidden_size(model: PreTrainedModel) -> int:
    """How wide the residual stream is: as configured, else as wide as the token embeddings."""
    configured = getattr(model.config.get_text_config(decoder=True), "hidden_size", None)
    table = model.get_input_embeddings()
    return configured or cast(Tensor, table.weight).shape[1]


def positions(model: PreTrainedModel) -> int | None:
    """How many tokens in a row the checkpoint says that it reads; None where it doesn't say."""
    found = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
    return found if isinstance(found, int) and found > 0 else None


def longest(model: PreTrainedModel) -> int | None:
    """How many tokens in a row the model can read; None where nothing but training limits it.

    A table that has a row for each position ends the model: an embedding besides the tokens' (GPT-2,
    OPT) or a buffer (GPT-J). Rotary positions and slopes (Llama, BLOOM) are computed and go on.
    """
    count = positions(model)
    if count is None:
        return None
    tokens = model.get_input_embeddings()
    embeddings = [
        module.num_embeddings
        for module in model.modules()
        if isinstance(module, nn.Embedding) and module is not tokens
    ]
    buffers = [len(one) for one in model.buffers() if one.ndim == 2]
    ends = any(count <= rows <= count + UNUSED for rows in embeddings) or count in buffers
    return count if ends else None


def probe_ids(model: PreTrainedModel) -> Tensor:
    """A few token ids ``[1, tokens]`` that the model can read, in a row.

    Not the first ones where there are others, and not the padding, which some models mask out. A
    start token would change nothing: what is looked at is which module reads which tensor.
    """
    padding = getattr(model.config.get_text_config(decoder=True), "pad_token_id", None)
    first = [one for one in range(min(vocabulary(model), 3 + PROBE_TOKENS)) if one != padding]
    known = first[-PROBE_TOKENS:] or [0]
    length = min(PROBE_TOKENS, longest(model) or PROBE_TOKENS)
    return torch.tensor([list(islice(cycle(known), length))], device=model.device)
