"""What a run reads: its tokenizer and token windows, made once and kept for the next job of a sweep."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from transformers import PreTrainedTokenizerBase

from harness.inputs.contents import Key, contents_of
from harness.inputs.corpora import Corpus, Tokens
from harness.inputs.models import Model
from harness.settings.config import Config

Held = tuple[tuple[Key, str], ...]  # contents that something in memory is made of


def tokenizer_of(config: Config) -> PreTrainedTokenizerBase:
    """The tokenizer of a run's model, kept for the next job of a sweep."""
    return _tokenizer(config.model, config.held("model"))


@lru_cache(maxsize=4)
def _tokenizer(model: Model, held: Held) -> PreTrainedTokenizerBase:
    """The tokenizer of a model whose contents are ``held``."""
    found = model.tokenizer()
    check_held({"model": model}, held)
    return found


def calibration_tokens(config: Config, name: str = "calibration") -> Tokens:
    """The token windows of one of a run's calibration sets, kept for the next job of a sweep.

    Raises:
        ValueError: the corpus holds too few tokens.
    """
    held = config.held("model"), config.held(name)
    return _calibration_tokens(config.model, name, config.calibrations[name], config.seed, *held)


@lru_cache(maxsize=4)
def _calibration_tokens(
    model: Model, name: str, calibration: Corpus, seed: int, of_model: Held, of_calibration: Held
) -> Tokens:
    """The windows of the calibration set ``name``, for a model, both of the contents given."""
    tokens = calibration.tokens(_tokenizer(model, of_model), seed)
    check_held({name: calibration}, of_calibration)
    return tokens


def check_held(parts: Mapping[str, Any], held: Held) -> None:
    """Raises ValueError where what was read from ``parts`` may not be their contents of before."""
    if contents_of(parts) != dict(held):
        raise ValueError(f"{', '.join(parts)}: changed while it was read; start again")


def token_windows(config: Config) -> dict[str, Tokens]:
    """All windows that a run reads: those of ``calibration``, and the evaluators' by corpus.

    Raises:
        ValueError: a corpus holds too few tokens, or can't have the start tokens asked for.
    """
    found: dict[str, Tokens] = {}
    part = ""
    try:
        for part in config.calibrations:
            found[part] = calibration_tokens(config, part)
        part = "evaluation"
        for evaluator in config.evaluators.values():
            found |= evaluator.tokens(tokenizer_of(config))
    except ValueError as error:
        raise ValueError(f"{part}: {error}") from error
    return found
