"""Tiny random models and a tiny tokenizer: built in memory, the same every time."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    LlamaConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from harness import assets, texts

SENTENCES = (
    "A river is a natural stream of water that flows towards an ocean, a lake or another river.",
    "The violin is a wooden instrument with four strings, played with a bow.",
    "In mathematics, a prime number has exactly two divisors: one and the number itself.",
    "Bread is baked from dough; the dough is made of flour, water and usually yeast.",
)
CONFIGS = {
    "llama": lambda: LlamaConfig(
        vocab_size=320,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=True,
    ),
    "gemma2": lambda: Gemma2Config(
        vocab_size=320,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=256,
        final_logit_softcapping=5.0,
    ),
}


@pytest.fixture
def tiny_model() -> Callable[..., PreTrainedModel]:
    """``tiny_model(family, seed)``: a random decoder of two blocks."""

    def build(family: str = "llama", seed: int = 0) -> PreTrainedModel:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = AutoModelForCausalLM.from_config(CONFIGS[family]())
        for parameter in model.parameters():  # far enough from uniform predictions
            parameter.data.mul_(4.0 if parameter.ndim > 1 else 1.0)
        return model.eval().requires_grad_(False)

    return build


@pytest.fixture(scope="session")
def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE with 300 tokens; it encodes any text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="</s>"
    )


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache directory of this test's own."""
    directory = tmp_path / "cache"
    monkeypatch.setenv("QEP_BENCH_CACHE", str(directory))
    return directory


@pytest.fixture
def wiki(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[texts.Article]]:
    """160 made-up articles in place of the wiki asset."""
    articles: list[texts.Article] = [
        {
            "title": f"Subject {number}",
            "extract": f"Subject {number} is one of many. {SENTENCES[number % 4]} See n{number}.",
            "description": f"Description number {number}",
            "topic": ("Arts", "Geography")[number % 2],
        }
        for number in range(160)
    ]
    path = cache / "articles.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({one["title"]: one for one in articles}))
    monkeypatch.setattr(assets, "fetch", lambda asset: path)
    texts.wiki_articles.cache_clear()
    yield articles
    texts.wiki_articles.cache_clear()
