"""Log-likelihoods of continuations, from few tokens.

A context with several continuations is read once: a first forward puts the contexts' common length
into the key-value cache, a second one reads, for each continuation, the rest of its context and the
continuation itself. Rows are sorted by length, so that little is padding, and the output head works
only where a continuation is predicted. The numbers are those of one plain forward for each request.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from harness.evaluate.head import HeadTap
from harness.numerics.device import read, there
from harness.numerics.precision import precise
from harness.walk import cost

Ids = tuple[int, ...]
Answer = tuple[float, bool]  # log-likelihood, and whether every token is the likeliest
PADDING = 32  # tokens in one forward at most: about what one more forward costs
EXPANDED = 4  # cached positions, copied for each row, per token of a forward


@dataclass(frozen=True)
class Request:
    """How likely is ``continuation`` after ``context``? Both hold at least one token."""

    context: Ids
    continuation: Ids


@dataclass(frozen=True)
class Budget:
    """What one forward may hold: so many tokens and rows, at least one row."""

    tokens: int
    rows: int


@dataclass
class Row:
    """A sequence that enters the model; one-token continuations of a context share one."""

    ids: Ids
    first: int  # the position whose logits predict the first token of the continuation
    requests: list[int] = field(default_factory=list)


@dataclass
class Batch:
    """The rows of each context; the first ``shared`` tokens are read once per context."""

    shared: int
    contexts: list[list[Row]]

    def tokens(self) -> int:
        """Tokens to be read, padding aside."""
        return self.shared * len(self.contexts) + sum(
            len(row.ids) - self.shared for rows in self.contexts for row in rows
        )

    def prefix(self) -> Tensor:
        """What the contexts share, ``[contexts, shared]``."""
        return torch.tensor([rows[0].ids[: self.shared] for rows in self.contexts])

    def pieces(self, budget: Budget) -> Iterator[list[tuple[int, Row]]]:
        """Rows with the number of their context, in groups of nearly one length, longest first."""
        rows = [(number, row) for number, rows in enumerate(self.contexts) for row in rows]
        rows.sort(key=lambda one: -len(one[1].ids))
        while rows:
            longest, padding, count = len(rows[0][1].ids), 0, 0
            most = min(
                budget.tokens // (longest - self.shared),
                EXPANDED * budget.tokens // longest,
                budget.rows,
            )
            for _, row in rows[: max(1, most)]:
                padding += longest - len(row.ids)
                if padding > PADDING:
                    break
                count += 1
            yield rows[:count]
            rows = rows[count:]


def plan(requests: Sequence[Request], budget: Budget, share: bool) -> list[Batch]:
    """All requests in batches, those with the longest contexts first.

    Args:
        requests: in any order; equal ones cost nothing more.
        budget: of one forward.
        share: read the context of several continuations once (see :func:`can_share`).
    """
    contexts: dict[Ids, dict[Ids, Row]] = {}
    for index, request in enumerate(requests):
        ids = request.context + request.continuation[:-1]
        row = Row(ids, len(request.context) - 1)
        contexts.setdefault(request.context, {}).setdefault(ids, row).requests.append(index)
    several = [list(rows.values()) for rows in contexts.values() if share and len(rows) > 1]
    single = [[row] for rows in contexts.values() if not share or len(rows) == 1
              for row in rows.values()]  # fmt: skip
    several.sort(key=lambda rows: rows[0].first)
    single.sort(key=lambda rows: len(rows[0].ids))
    batches = [*_filled(single, budget, False), *_filled(several, budget, True)]
    return sorted(batches, key=lambda batch: -len(batch.contexts[-1][0].ids))


def _filled(contexts: list[list[Row]], budget: Budget, share: bool) -> list[Batch]:
    """Batches of neighbours of sorted ``contexts``, as many as the budget allows in each."""
    batches: list[Batch] = []
    for rows in contexts:
        if batches and len(batches[-1].contexts) < budget.rows:
            grown = Batch(batches[-1].shared, [*batches[-1].contexts, rows])
            if grown.tokens() <= budget.tokens:
                batches[-1] = grown
                continue
        batches.append(Batch(rows[0].first if share else 0, [rows]))
    return batches


def can_share(model: PreTrainedModel) -> bool:
    """Whether the model's cache is one of keys and values, whose rows can be copied."""
    if "past_key_values" not in inspect.signature(model.forward).parameters:
        return False
    if not hasattr(model.config.get_text_config(decoder=True), "num_hidden_layers"):
        return False  # a cache is made for so many
    layers = DynamicCache(config=model.config).layers
    return all(type(one) in (DynamicLayer, DynamicSlidingWindowLayer) for one in layers)


def batch_flops(model: PreTrainedModel, batch: Batch, budget: Budget) -> float:
    """The floating-point operations of :func:`answer`, padding too."""
    total = cost.forward_flops(model, batch.shared * len(batch.contexts), batch.shared)
    for piece in batch.pieces(budget):
        longest = len(piece[0][1].ids)
        total += cost.forward_flops(model, len(piece) * (longest - batch.shared), longest)
        total += cost.head_flops(model, sum(len(row.ids) - row.first for _, row in piece))
    return total


def answer(
    model: PreTrainedModel,
    tap: HeadTap,
    requests: Sequence[Request],
    batch: Batch,
    budget: Budget,
) -> dict[int, Answer]:
    """The answers of a batch by the number of the request."""
    cache = None
    if batch.shared:
        cache = DynamicCache(config=model.config)
        tap.rows = torch.empty(0, dtype=torch.int64)
        ids = there(batch.prefix(), model.device)
        model(ids, past_key_values=cache, use_cache=True)
    answers: dict[int, Answer] = {}
    for piece in batch.pieces(budget):
        width = len(piece[0][1].ids) - batch.shared
        ids = torch.zeros(len(piece), width, dtype=torch.int64)
        for at, (_, row) in enumerate(piece):
            own = row.ids[batch.shared :]
            ids[at, : len(own)] = torch.tensor(own)
        tap.rows = torch.cat([
            torch.arange(row.first, len(row.ids)) - batch.shared + at * width
            for at, (_, row) in enumerate(piece)
        ])  # fmt: skip
        past: dict[str, DynamicCache] = {}  # which not every model takes
        if cache is not None:
            past["past_key_values"] = copied = copy.deepcopy(cache)
            chosen = torch.tensor([number for number, _ in piece])
            copied.batch_select_indices(there(chosen, model.device))
        logits = model(there(ids, model.device), use_cache=bool(past), **past).logits[0]
        counts = [len(row.ids) - row.first for _, row in piece]
        asked = [
            (index, found)
            for (_, row), found in zip(piece, logits.split(counts), strict=True)
            for index in row.requests
        ]
        targets = [requests[index].continuation for index, _ in asked]
        every = there(torch.tensor([one for some in targets for one in some]), logits.device)
        parts = torch.split(every, list(map(len, targets)))
        scores = read([_score(found, own) for (_, found), own in zip(asked, parts, strict=True)])
        answers |= {
            index: (value, bool(likeliest))
            for (index, _), (value, likeliest) in zip(asked, scores, strict=True)
        }
    return answers


def _score(logits: Tensor, continuation: Tensor) -> Tensor:
    """The answer ``[2]`` from the logits ``[tokens, vocabulary]`` that predict the continuation."""
    logits = precise(logits)
    chosen = logits.gather(1, continuation[:, None])[:, 0] - logits.logsumexp(1)
    likeliest = (logits.argmax(1) == continuation).all()
    return torch.stack([chosen.sum().double(), likeliest.double()])
