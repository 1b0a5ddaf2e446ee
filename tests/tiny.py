"""A tiny random Llama with a tokenizer of its own, saved like any local checkpoint."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from families import build
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

WORDS = "the a of in on river mountain city king song war tree stone light old new red far is was"


def sentences(count: int, seed: int = 0) -> list[str]:
    """Random sentences from a small vocabulary."""
    draw, words = random.Random(seed), WORDS.split()
    return [" ".join(draw.choices(words, k=draw.randint(5, 14))) + " ." for _ in range(count)]


def tokenizer() -> PreTrainedTokenizerFast:
    """A byte-pair tokenizer of 64 entries."""
    core = Tokenizer(models.BPE(unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = ["<pad>", "<s>", "</s>", "<unk>"]
    trainer = trainers.BpeTrainer(vocab_size=64, special_tokens=special, show_progress=False)
    core.train_from_iterator(sentences(200), trainer)
    names = dict(zip(("pad_token", "bos_token", "eos_token", "unk_token"), special, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=core, **names)


def save(directory: Path, **changes: Any) -> Path:
    """A checkpoint directory ``directory/tiny`` and a text beside it, ``directory/text.txt``.

    ``changes`` are of the model's configuration, ``num_hidden_layers=60`` for instance.
    """
    target = directory / "tiny"
    build("llama", **changes).save_pretrained(target)
    tokenizer().save_pretrained(target)
    (directory / "text.txt").write_text("\n\n".join(sentences(400, seed=1)), encoding="utf-8")
    return target
