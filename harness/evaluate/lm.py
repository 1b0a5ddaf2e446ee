"""lm-eval's view of our model, with our progress display instead of its own."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lm_eval.api import task
from lm_eval.models.huggingface import HFLM
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from harness.evaluate.base import Track
from harness.evaluate.threads import spread, workers

CPU_BATCH = 8  # probing for the largest batch takes longer than the questions


class TrackedLM(HFLM):  # type: ignore[misc]
    """The model as it is; likelihoods exactly as in ``HFLM``."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        batch_size: int | str,
        track: Track,
    ) -> None:
        if batch_size == "auto" and model.device.type == "cpu":
            batch_size = CPU_BATCH
        with quiet():
            super().__init__(pretrained=model, tokenizer=tokenizer, batch_size=batch_size)
        self._track = track
        self._steps: Iterator[int] = iter(())
        self._turn = threading.Lock()

    def _model_call(self, inps: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        with self._turn:
            next(self._steps, None)
        with torch.inference_mode():
            logits: Tensor = self.model(inps, use_cache=False).logits
        return logits

    def loglikelihood(
        self, requests: list[Any], disable_tqdm: bool = True
    ) -> list[tuple[float, bool]]:
        """As in ``HFLM``, without a bar for tokenising."""
        answers: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm=True)
        return answers

    def _loglikelihood_tokens(
        self, requests: list[Any], disable_tqdm: bool = False, **kwargs: Any
    ) -> list[tuple[float, bool]]:
        """As in ``HFLM``, the requests dealt out to threads by their contexts."""
        count = workers(self.device)
        contexts: dict[tuple[int, ...], int] = {}
        parts: list[list[int]] = [[] for _ in range(count)]
        for index, (_, prompt, _) in enumerate(requests):
            # One-token choices after the same context share a forward.
            parts[contexts.setdefault(tuple(prompt), len(contexts)) % count].append(index)
        batches = self._announced(len(requests))
        self._steps = iter(self._track(range(batches), "questions", batches))

        def ask(part: list[int]) -> list[tuple[float, bool]]:
            chosen = [requests[index] for index in part]
            found: list[tuple[float, bool]] = HFLM._loglikelihood_tokens(
                self, chosen, disable_tqdm=True, **kwargs
            )
            return found

        answers: dict[int, tuple[float, bool]] = {}
        for part, found in zip(parts, spread(ask, parts, self.device), strict=True):
            answers.update(zip(part, found, strict=True))
        for _ in self._steps:  # fewer batches than announced, where forwards were shared
            pass
        return [answers[index] for index in range(len(requests))]

    def _announced(self, requests: int) -> int:
        """The number of batches, if none is shared."""
        return -(-requests // (self.batch_size if isinstance(self.batch_size, int) else 1))


@contextmanager
def quiet() -> Iterator[None]:
    """Keeps lm-eval's notices and the bar that it can't switch off from the console."""
    logger = logging.getLogger("lm_eval")
    level, bar = logger.level, task.tqdm
    logger.setLevel(logging.ERROR)
    task.tqdm = lambda items, **_: items
    try:
        yield
    finally:
        logger.setLevel(level)
        task.tqdm = bar
