"""Perplexity, and the divergence from the full-precision model, in one forward pass."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from harness.corpora import Corpus, Tokens
from harness.evaluate.base import Context, Evaluation
from harness.evaluate.divergence import (
    HeadTap,
    Scores,
    States,
    has_reference,
    reference_states,
    save_reference,
    score,
    tapped,
)

SEED = 0  # where a corpus samples: runs with different seeds are evaluated on the same tokens


@dataclass(frozen=True)
class Perplexity:
    """exp of the mean loss per predicted token, over windows that do not overlap.

    The first token of a window is not predicted. Metrics ``perplexity/<corpus>`` and, with
    ``divergence``, ``kl/<corpus>`` and ``top1_agreement/<corpus>`` (see
    :mod:`harness.evaluate.divergence`); samples ``loss/<corpus>`` and ``kl/<corpus>`` per window.

    Args:
        corpora: by the name in the metric's key.
        batch_tokens: tokens in one forward, at least one window. Logits exist for one batch at a
            time, with ``divergence`` those of two models.
        divergence: compare with the full-precision model, whose evaluation has to run before.
    """

    corpora: Mapping[str, Corpus]
    batch_tokens: int = 512
    divergence: bool = True

    def __post_init__(self) -> None:
        if self.batch_tokens < 1:
            raise ValueError(f"batch_tokens={self.batch_tokens} (at least 1)")

    def check(self) -> None:
        """Raises ValueError for a corpus that is missing."""
        for corpus in self.corpora.values():
            corpus.check()

    def missing(self, tokenizer: PreTrainedTokenizerBase, context: Context) -> list[str]:
        """The corpora on which the full-precision model has to be evaluated (again) before."""
        if not self.divergence or context.full_precision:
            return []
        tokens = {name: one.tokens(tokenizer, SEED) for name, one in self.corpora.items()}
        return [name for name, one in tokens.items() if not has_reference(context, one.hash)]

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
        used: dict[str, Tokens] = {}
        flops = 0.0
        for name, corpus in self.corpora.items():
            tokens = corpus.tokens(tokenizer, SEED)
            with torch.inference_mode(), tapped(model) as tap:
                scores, cost = self._scores(model, name, tokens, tap, context)
            loss = scores.loss.mean().item()
            if not math.isfinite(loss):
                raise ArithmeticError(f"perplexity/{name}: the model's logits are not finite")
            # A loss above 709 is beyond float64's exp: infinity is the honest figure.
            metrics[f"perplexity/{name}"] = math.exp(loss) if loss < 709 else math.inf
            samples[f"loss/{name}"] = scores.loss.tolist()
            used[name] = tokens
            flops += cost
            if scores.divergence is not None and scores.agreement is not None:
                metrics[f"kl/{name}"] = scores.divergence.mean().item()
                metrics[f"top1_agreement/{name}"] = scores.agreement.mean().item()
                samples[f"kl/{name}"] = scores.divergence.tolist()
        hashes = {name: tokens.hash for name, tokens in used.items()}
        return Evaluation(metrics, samples, hashes, flops, used)

    def _scores(
        self, model: PreTrainedModel, name: str, tokens: Tokens, tap: HeadTap, context: Context
    ) -> tuple[Scores, float]:
        """Scores of all windows, and floating-point operations; sees to the reference states."""
        if not self.divergence:
            return self._pass(model, name, tokens, tap, context)
        if not context.full_precision:
            with reference_states(context, name, tokens.hash) as states:
                return self._pass(model, name, tokens, tap, context, states)
        kept: list[Tensor] = []
        scores, flops = self._pass(model, name, tokens, tap, context, keep=kept)
        save_reference(context, tokens.hash, kept)
        zeros = torch.zeros_like(scores.loss)
        return Scores(scores.loss, zeros, zeros + 1), flops

    def _pass(
        self,
        model: PreTrainedModel,
        name: str,
        tokens: Tokens,
        tap: HeadTap,
        context: Context,
        states: States | None = None,
        keep: list[Tensor] | None = None,
    ) -> tuple[Scores, float]:
        """One forward over all windows."""
        windows, length = tokens.ids.shape
        step = max(1, self.batch_tokens // length)
        found, flops = [], 0.0
        for at in context.track(range(0, windows, step), f"perplexity {name}"):
            ids = tokens.ids[at : at + step]
            tap.extra = None if states is None else states[at : at + step]
            logits, cost = _forward(model, ids, counted=at == 0)
            flops += cost * windows / len(ids)
            reference = None if states is None else logits[len(ids) :]
            found.append(score(logits[: len(ids)], ids, reference))
            if keep is not None and tap.seen is not None:
                keep.append(tap.seen.cpu().clone())
        return _joined(found), flops


def _joined(found: Sequence[Scores]) -> Scores:
    """The scores of all windows from those of batches of windows."""
    loss = torch.cat([one.loss for one in found])
    divergence = [one.divergence for one in found if one.divergence is not None]
    agreement = [one.agreement for one in found if one.agreement is not None]
    if not divergence:
        return Scores(loss)
    return Scores(loss, torch.cat(divergence), torch.cat(agreement))


def _forward(model: PreTrainedModel, ids: Tensor, counted: bool) -> tuple[Tensor, float]:
    """Logits of ``ids``, and the floating-point operations of the forward if ``counted``."""
    ids = ids.to(model.device)
    if not counted:
        return model(ids, use_cache=False).logits, 0.0
    # torch counts attention, but not under the name that the operator has on a CPU.
    attention = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops}
    counter = FlopCounterMode(display=False, custom_mapping=attention)
    with counter:
        logits = model(ids, use_cache=False).logits
    return logits, float(counter.get_total_flops())


def _attention_flops(query: Sequence[int], key: Sequence[int], *_: Any, **__: Any) -> int:
    """Two products of ``[queries, width]`` with ``[width, keys]`` per head; shapes come in."""
    batch, heads, queries, width = query
    return 4 * batch * heads * queries * key[-2] * width
