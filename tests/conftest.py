"""Offline, one thread, a cache of each test's own; tiny random models and a tiny tokenizer."""

# ruff: noqa: E402
from __future__ import annotations

import json
import logging
import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", TOKENIZERS_PARALLELISM="false")

import pytest
import tiny
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    LlamaConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from harness.inputs import assets, texts

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


@pytest.fixture(autouse=True)
def logging_as_it_was() -> Iterator[None]:
    """A sweep in the test process, and Hydra in it, sets up logging; the next test knows nothing of it."""
    made = logging.root.manager.loggerDict.values()
    known = [logging.root, *(one for one in made if isinstance(one, logging.Logger))]
    before = [(one, one.handlers[:], one.propagate, one.level, one.disabled) for one in known]
    with warnings.catch_warnings():
        yield
    for one, handlers, propagate, level, disabled in before:
        one.handlers[:], one.propagate, one.disabled = handlers, propagate, disabled
        one.setLevel(level)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def own_cache(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A cache that starts empty; tests of the real model keep the user's."""
    if "slow" not in request.keywords:
        monkeypatch.setenv("QEP_BENCH_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny checkpoint ``tiny`` and a text ``text.txt``."""
    folder = tmp_path_factory.mktemp("tiny")
    tiny.save(folder)
    return folder


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
