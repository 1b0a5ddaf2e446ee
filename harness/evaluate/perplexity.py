"""Perplexity, and the divergence from the full-precision model, in one forward pass."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from harness.evaluate.base import SEED, Context, Evaluation, check_all
from harness.evaluate.divergence import (
    Scores,
    States,
    has_reference,
    reference_states,
    save_reference,
    score,
)
from harness.evaluate.head import tapped
from harness.evaluate.threads import spread, workers
from harness.inputs.corpora import Corpus, Tokens
from harness.numerics.device import there
from harness.walk import cost

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Perplexity:
    """exp of the mean loss per predicted token, over windows that do not overlap.

    The first token of a window is not predicted, so that a window of L tokens counts L − 1 predictions:
    of all its text where it begins with a start token (``bos=every``), of all but the first token of
    text elsewhere. Metrics ``perplexity/<corpus>`` and, with
    ``divergence``, ``kl/<corpus>`` and ``top1_agreement/<corpus>`` (see
    :mod:`harness.evaluate.divergence`); samples ``loss/<corpus>`` and ``kl/<corpus>`` per window.

    Args:
        corpora: by the name in the metric's key.
        batch_tokens: tokens in a batch. Logits exist for one batch at a time, with ``divergence``
            those of two models. On a CPU the threads share a batch, at least one window each.
        divergence: compare with the full-precision model, whose evaluation has to run before.
    """

    corpora: Mapping[str, Corpus]
    batch_tokens: int = 512
    divergence: bool = True

    def __post_init__(self) -> None:
        if self.batch_tokens < 1:
            raise ValueError(f"batch_tokens={self.batch_tokens} (at least 1)")

    def check(self) -> None:
        """Raises ValueError for corpora that are missing."""
        check_all(corpus.check for corpus in self.corpora.values())

    def datasets(self) -> Sequence[str]:
        """The corpora."""
        return list(self.corpora)

    def tokens(self, tokenizer: PreTrainedTokenizerBase) -> Mapping[str, Tokens]:
        """The windows of every corpus."""
        return {name: corpus.tokens(tokenizer, SEED) for name, corpus in self.corpora.items()}

    def missing(self, tokenizer: PreTrainedTokenizerBase, context: Context) -> list[str]:
        """The corpora on which the full-precision model has to be evaluated (again) before."""
        if not self.divergence or context.full_precision:
            return []
        found = self.tokens(tokenizer)
        return [name for name, one in found.items() if not has_reference(context, one.hash)]

    def flops(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, full_precision: bool
    ) -> float:
        """Forwards on every corpus, the output head twice where distributions are compared."""
        found = self.tokens(tokenizer).values()
        return sum((self._work(model, one.ids, full_precision) for one in found), 0.0)

    def evaluate(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, context: Context
    ) -> Evaluation:
        """Measures ``model`` on every corpus.

        Raises:
            ReferenceMissing: :meth:`missing` names a corpus.
            ArithmeticError: the losses are not finite.
        """
        metrics: dict[str, float] = {}
        samples: dict[str, list[float]] = {}
        used = self.tokens(tokenizer)
        flops = 0.0
        for name, tokens in used.items():
            scores = self._scores(model, name, tokens, context)
            loss = scores.loss.mean().item()
            if not math.isfinite(loss):
                raise ArithmeticError(f"perplexity/{name}: the model's logits are not finite")
            # A loss above 709 is beyond float64's exp: infinity is the honest figure.
            metrics[f"perplexity/{name}"] = math.exp(loss) if loss < 709 else math.inf
            samples[f"loss/{name}"] = scores.loss.tolist()
            flops += self._work(model, tokens.ids, context.full_precision)
            if scores.divergence is not None and scores.agreement is not None:
                metrics[f"kl/{name}"] = scores.divergence.mean().item()
                metrics[f"top1_agreement/{name}"] = scores.agreement.mean().item()
                samples[f"kl/{name}"] = scores.divergence.tolist()
        hashes = {name: tokens.hash for name, tokens in used.items()}
        return Evaluation(metrics, samples, hashes, flops, used)

    def _work(self, model: PreTrainedModel, ids: Tensor, full_precision: bool) -> float:
        """Floating-point operations of a corpus."""
        # The head works on the full-precision model's states as well.
        heads = 1 + (self.divergence and not full_precision)
        forward = cost.forward_flops(model, ids.numel(), ids.shape[1])
        return forward + cost.head_flops(model, ids.numel() * heads)

    def _scores(
        self, model: PreTrainedModel, name: str, tokens: Tokens, context: Context
    ) -> Scores:
        """Scores of all windows; sees to the full-precision model's states."""
        if not self.divergence:
            return _joined([scores for scores, _ in self._pass(model, name, tokens, context)])
        if not context.full_precision:
            states = reference_states(context, name, tokens.hash)
            found = self._pass(model, name, tokens, context, states)
            return _joined([scores for scores, _ in found])
        pairs = list(self._pass(model, name, tokens, context))
        save_reference(context, tokens.hash, [seen for _, seen in pairs])
        scores = _joined([scores for scores, _ in pairs])
        zeros = torch.zeros_like(scores.loss)
        return Scores(scores.loss, zeros, zeros + 1)

    def _pass(
        self,
        model: PreTrainedModel,
        name: str,
        tokens: Tokens,
        context: Context,
        states: States | Tensor | None = None,
    ) -> Iterator[tuple[Scores, Tensor]]:
        """One forward over all windows: per batch the scores, and what entered the head."""
        windows, length = tokens.ids.shape
        keep = self.divergence and context.full_precision

        def forward(at: int) -> tuple[Scores, Tensor]:
            ids = tokens.ids[at : at + step]
            tap.extra = None if states is None else states[at : at + step]
            logits = model(there(ids, model.device), use_cache=False).logits
            reference = None if states is None else logits[len(ids) :]
            seen = tap.seen if tap.seen is not None and keep else ids.new_empty(0)
            return score(logits[: len(ids)], ids, reference), seen.cpu().clone()

        step = max(1, self.batch_tokens // (length * workers(model.device)))
        batches = range(0, windows, step)
        with tapped(model) as tap:
            found = spread(forward, batches, model)
            yield from context.track(found, f"perplexity {name}", len(batches))


def _joined(found: Sequence[Scores]) -> Scores:
    """The scores of all windows from those of batches of windows, on the host."""
    loss = torch.cat([one.loss for one in found]).cpu()
    divergence = [one.divergence for one in found if one.divergence is not None]
    agreement = [one.agreement for one in found if one.agreement is not None]
    if not divergence:
        return Scores(loss)
    return Scores(loss, torch.cat(divergence).cpu(), torch.cat(agreement).cpu())
