from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from torch.nn import functional

from harness.evaluate.base import Context
from harness.evaluate.perplexity import Perplexity
from harness.evaluate.threads import spread
from harness.inputs.corpora import Tokens
from harness.inputs.models import AssetModel
from harness.inputs.token_files import TokenFile
from harness.records.cache import Cache

ROOT = Path(__file__).parents[1]
REFERENCE = ROOT.parent / "shared" / "reference_tokens.npz"


@dataclass(frozen=True)
class Made:
    """A corpus of random ids."""

    windows: int = 5
    length: int = 24
    seed: int = 0

    def check(self) -> None:
        pass

    def tokens(self, tokenizer, seed) -> Tokens:
        generator = torch.Generator().manual_seed(self.seed)
        ids = torch.randint(0, 300, (self.windows, self.length), generator=generator)
        return Tokens(ids, ids[:0], "made")


@pytest.fixture
def context(tmp_path) -> Context:
    return Context("some-model", full_precision=True, cache=Cache(tmp_path / "states"))


def naive_losses(model, ids):
    logits = model(ids).logits.double()
    return functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), reduction="none"
    ).view(len(ids), -1)


@pytest.mark.parametrize("batch_tokens", [1, 24, 50, 1000])
def test_perplexity_is_exp_of_the_mean_token_loss(
    tiny_model, tiny_tokenizer, context, batch_tokens
):
    model, corpus = tiny_model(), Made()
    losses = naive_losses(model, corpus.tokens(tiny_tokenizer, 0).ids)
    found = Perplexity({"made": corpus}, batch_tokens).evaluate(model, tiny_tokenizer, context)
    assert found.metrics["perplexity/made"] == pytest.approx(losses.mean().exp().item(), rel=1e-5)
    assert found.samples["loss/made"] == pytest.approx(losses.mean(1).tolist(), rel=1e-5)
    assert found.hashes == {"made": corpus.tokens(tiny_tokenizer, 0).hash}


def test_long_vocabularies_are_worked_on_in_chunks(
    tiny_model, tiny_tokenizer, context, monkeypatch
):
    whole = Perplexity({"made": Made()}).evaluate(tiny_model(), tiny_tokenizer, context)
    monkeypatch.setattr("harness.evaluate.divergence.CHUNK", 320 * 5)
    parts = Perplexity({"made": Made()}).evaluate(tiny_model(), tiny_tokenizer, context)
    assert parts.samples["loss/made"] == pytest.approx(whole.samples["loss/made"], rel=1e-6)


def test_floating_point_operations(tiny_model, tiny_tokenizer, context):
    model = tiny_model()
    linears = [m.weight.numel() for m in model.modules() if isinstance(m, torch.nn.Linear)]
    tokens, length, width = 5 * 24, 24, 32
    attention = 2 * 4 * tokens * length * width  # two blocks; scores and values
    found = Perplexity({"made": Made()}).evaluate(model, tiny_tokenizer, context)
    assert found.flops == 2 * tokens * sum(linears) + attention


def test_the_model_is_left_as_it_was(tiny_model, tiny_tokenizer, context):
    model = tiny_model()
    Perplexity({"made": Made()}).evaluate(model, tiny_tokenizer, context)
    assert not model.get_output_embeddings()._forward_pre_hooks
    assert not model.training


def test_progress_is_shown_per_batch(tiny_model, tiny_tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr("harness.evaluate.perplexity.workers", lambda device: 1)
    shown = []

    def track(items, label, total=None):
        for item in items:
            yield item
            shown.append(label)

    context = Context("m", True, Cache(tmp_path), track=track)
    Perplexity({"made": Made()}, batch_tokens=48).evaluate(tiny_model(), tiny_tokenizer, context)
    assert shown == ["perplexity made"] * 3


def test_threads_change_nothing(tiny_model, tiny_tokenizer, context):
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            evaluator = Perplexity({"made": Made()}, batch_tokens=24)
            found.append(evaluator.evaluate(tiny_model(), tiny_tokenizer, context))
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert found[0].samples["loss/made"] == pytest.approx(found[1].samples["loss/made"], rel=1e-6)


def test_an_error_in_a_thread_comes_through(tiny_model):
    def fail(item):
        raise KeyError(item)

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        with pytest.raises(KeyError):
            list(spread(fail, range(5), tiny_model()))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_logits_that_are_not_finite(tiny_model, tiny_tokenizer, context):
    model = tiny_model()
    model.model.norm.weight.fill_(math.nan)
    with pytest.raises(ArithmeticError, match="perplexity/made: .* not finite"):
        Perplexity({"made": Made()}).evaluate(model, tiny_tokenizer, context)


def test_a_missing_corpus_is_found_by_check(tmp_path):
    absent = TokenFile(str(tmp_path / "absent.npz"), "evaluation")
    with pytest.raises(ValueError, match="no such file"):
        Perplexity({"tokens": absent}).check()
    with pytest.raises(ValueError, match="batch_tokens=0"):
        Perplexity({}, batch_tokens=0)


@pytest.mark.parametrize("name", sorted(p.stem for p in (ROOT / "conf" / "eval").glob("*.yaml")))
def test_every_eval_file_builds(name):
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        more = {
            "tokens": ["eval.path=F"],
            "text": ["eval.path=F"],
            "heldout": ["+calibration=wiki", "+seed=0"],
        }
        overrides = [f"+eval={name}", *more.get(name, [])]
        evaluators = instantiate(compose(overrides=overrides).eval.evaluators, _convert_="all")
    assert set(evaluators) == (set() if name == "none" else {"perplexity", "zeroshot"})


@pytest.mark.slow
@pytest.mark.skipif(not REFERENCE.exists(), reason="the reference tokens are not here")
def test_the_default_model(tmp_path):
    loaded = AssetModel("smollm2_135m", "smollm2_135m").load()
    corpus = TokenFile(os.fspath(REFERENCE), "evaluation")
    context = Context(loaded.content_hash, True, Cache(tmp_path))
    found = Perplexity({"tokens": corpus}).evaluate(loaded.model, loaded.tokenizer, context)
    assert found.metrics["perplexity/tokens"] == pytest.approx(13.1245, rel=1e-4)
    assert np.load(REFERENCE)["evaluation"].shape[0] == len(found.samples["loss/tokens"])
