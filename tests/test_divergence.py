from __future__ import annotations

import weakref
from dataclasses import replace

import pytest
import torch
from test_perplexity import Made
from torch.utils._python_dispatch import TorchDispatchMode

from harness.evaluate.base import Context
from harness.evaluate.divergence import (
    ReferenceMissing,
    has_reference,
    score,
)
from harness.evaluate.head import tapped
from harness.evaluate.perplexity import Perplexity
from harness.records.cache import Cache


@pytest.fixture
def context(tmp_path) -> Context:
    return Context("some-model", full_precision=True, cache=Cache(tmp_path / "states"))


def disturbed(model):
    generator = torch.Generator().manual_seed(0)
    for parameter in model.model.layers.parameters():
        parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model


def direct(model, other, ids):
    """KL and top-1 agreement from the logits of both models, in float64."""
    theirs = model(ids).logits[:, :-1].double().log_softmax(-1)
    ours = other(ids).logits[:, :-1].double().log_softmax(-1)
    divergence = (theirs.exp() * (theirs - ours)).sum(-1)
    agreement = (theirs.argmax(-1) == ours.argmax(-1)).double()
    return divergence.mean(1), agreement.mean().item()


@pytest.mark.parametrize("family", ["llama", "gemma2"])
@pytest.mark.parametrize("batch_tokens", [24, 50])
def test_as_from_two_models_side_by_side(
    tiny_model, tiny_tokenizer, context, family, batch_tokens
):
    corpus = Made()
    evaluator = Perplexity({"made": corpus}, batch_tokens)
    model, other = tiny_model(family), disturbed(tiny_model(family))
    divergence, agreement = direct(model, other, corpus.tokens(tiny_tokenizer, 0).ids)
    assert divergence.mean() > 0.01
    assert 0 < agreement < 1

    evaluator.evaluate(model, tiny_tokenizer, context)
    quantized = replace(context, full_precision=False)
    assert evaluator.missing(tiny_tokenizer, quantized) == []
    found = evaluator.evaluate(other, tiny_tokenizer, quantized)
    alone = Perplexity({"made": corpus}, divergence=False)
    loss = alone.evaluate(other, tiny_tokenizer, quantized).metrics["perplexity/made"]
    assert found.metrics["kl/made"] == pytest.approx(divergence.mean().item(), rel=1e-4)
    assert found.samples["kl/made"] == pytest.approx(divergence.tolist(), rel=1e-4)
    assert found.metrics["top1_agreement/made"] == pytest.approx(agreement)
    assert found.metrics["perplexity/made"] == pytest.approx(loss, rel=1e-6)


def test_full_precision_does_not_differ_from_itself(tiny_model, tiny_tokenizer, context):
    evaluator = Perplexity({"made": Made()})
    found = evaluator.evaluate(tiny_model(), tiny_tokenizer, context)
    assert found.metrics["kl/made"] == 0
    assert found.metrics["top1_agreement/made"] == 1
    again = evaluator.evaluate(
        tiny_model(), tiny_tokenizer, replace(context, full_precision=False)
    )
    assert again.metrics["kl/made"] == pytest.approx(0, abs=1e-6)
    assert again.metrics["top1_agreement/made"] == 1


def test_states_that_are_not_there(tiny_model, tiny_tokenizer, context):
    evaluator = Perplexity({"made": Made(), "other": Made(seed=1)})
    quantized = replace(context, full_precision=False)
    assert evaluator.missing(tiny_tokenizer, quantized) == ["made", "other"]
    with pytest.raises(ReferenceMissing, match="made: .* evaluate the full-precision model again"):
        evaluator.evaluate(tiny_model(), tiny_tokenizer, quantized)
    evaluator.evaluate(tiny_model(), tiny_tokenizer, context)
    assert evaluator.missing(tiny_tokenizer, quantized) == []
    assert evaluator.missing(tiny_tokenizer, replace(quantized, model_hash="another")) != []
    assert Perplexity({"made": Made()}, divergence=False).missing(tiny_tokenizer, quantized) == []


def test_states_appear_whole_or_not_at_all(tiny_model, tiny_tokenizer, context, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    token_hash = Made().tokens(tiny_tokenizer, 0).hash
    with monkeypatch.context() as patch:
        patch.setattr("harness.records.cache.os.replace", interrupted)
        with pytest.raises(KeyboardInterrupt):
            Perplexity({"made": Made()}).evaluate(tiny_model(), tiny_tokenizer, context)
    assert not has_reference(context, token_hash)
    Perplexity({"made": Made()}).evaluate(tiny_model(), tiny_tokenizer, context)
    assert has_reference(context, token_hash)
    assert context.cache.size() < 4 * 5 * 24 * 32 + 1000


def test_the_tap_is_removed_after_an_error(tiny_model):
    model = tiny_model()
    with pytest.raises(KeyError), tapped(model):
        raise KeyError
    assert not model.get_output_embeddings()._forward_pre_hooks


@pytest.mark.parametrize("compared", [False, True])
def test_logits_of_one_batch_are_alive_at_a_time(tiny_model, tiny_tokenizer, context, compared):
    """And log-probabilities of a few rows only; counted in tensors as wide as the vocabulary."""
    model, corpus, vocabulary = tiny_model(), Made(windows=6, length=24), 320
    batch_tokens = 48  # two windows
    evaluator = Perplexity({"made": corpus}, batch_tokens)
    evaluator.evaluate(model, tiny_tokenizer, context)
    with Widest(vocabulary) as widest, pytest.MonkeyPatch.context() as patch:
        patch.setattr("harness.evaluate.divergence.CHUNK", 2 * vocabulary)  # two rows
        patch.setattr("harness.evaluate.perplexity.workers", lambda device: 1)
        evaluator.evaluate(model, tiny_tokenizer, replace(context, full_precision=not compared))
    models = 2 if compared else 1
    batch = models * batch_tokens * vocabulary
    assert batch <= widest.peak <= batch + 8 * 2 * vocabulary


class Widest(TorchDispatchMode):
    """The largest number of elements alive in tensors of own memory whose last axis is ``width``."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width, self.peak, self.now = width, 0, 0
        self.alive: dict[int, int] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for one in out if isinstance(out, tuple | list) else (out,):
            if isinstance(one, torch.Tensor) and one.ndim and one.shape[-1] == self.width:
                storage = one.untyped_storage()
                if storage._cdata not in self.alive:
                    size = storage.nbytes() // one.itemsize
                    self.alive[storage._cdata] = size
                    self.now += size
                    self.peak = max(self.peak, self.now)
                    weakref.finalize(storage, self.freed, storage._cdata)
        return out

    def freed(self, key: int) -> None:
        self.now -= self.alive.pop(key, 0)


def test_divergence_is_never_negative_and_zero_only_for_equals():
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 50, (3, 9), generator=generator)
    logits = torch.randn(3, 9, 50, generator=generator)
    same = score(logits, ids, logits + 7.0)  # a constant does not change a distribution
    assert same.divergence.abs().max() < 1e-6
    assert same.agreement.tolist() == [1.0, 1.0, 1.0]
    assert (score(logits, ids, logits.flip(-1)).divergence > 0.1).all()
