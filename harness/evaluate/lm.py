"""lm-eval's view of our model, with our progress display instead of its own."""

from __future__ import annotations

import logging
import sys
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
from lm_eval.api import task
from lm_eval.models import huggingface
from lm_eval.models.huggingface import HFLM
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from harness.evaluate.base import Track
from harness.evaluate.head import tapped
from harness.evaluate.likelihood import (
    Answer,
    Batch,
    Budget,
    Request,
    answer,
    batch_flops,
    can_share,
    plan,
)
from harness.evaluate.threads import spread
from harness.numerics.precision import forwards

CPU_BATCH = 8  # prompts at once where text is generated; probing for the largest takes too long
CPU_TOKENS = 768  # in a forward: more make it no faster
DEVICE_TOKENS = 2048  # what they leave in a key-value cache has to fit beside the model


class TrackedLM(HFLM):  # type: ignore[misc]
    """The model as it is; likelihoods as in ``HFLM``, but see :mod:`harness.evaluate.likelihood`.

    ``flops`` counts the floating-point operations of the likelihoods asked for so far.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        batch_size: int | str,
        track: Track,
    ) -> None:
        on_cpu = model.device.type in ("cpu", "meta")
        self._budget = Budget(
            tokens=CPU_TOKENS if on_cpu else DEVICE_TOKENS,
            rows=sys.maxsize if batch_size == "auto" else int(batch_size),
        )
        if batch_size == "auto" and on_cpu:
            batch_size = CPU_BATCH
        with quiet():
            super().__init__(pretrained=model, tokenizer=tokenizer, batch_size=batch_size)
        self._track = track
        self.flops = 0.0

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = True) -> list[Answer]:
        """As in ``HFLM``, without a bar for tokenising."""
        answers: list[Answer] = super().loglikelihood(requests, disable_tqdm=True)
        return answers

    def _loglikelihood_tokens(
        self, requests: list[Any], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[Answer]:
        """As in ``HFLM``; each thread works on batches of its own."""
        asked, batches = self._planned(requests)
        answers: dict[int, Answer] = {}
        with tapped(self.model) as tap:
            found = spread(
                lambda batch: answer(self.model, tap, asked, batch, self._budget),
                batches,
                self.model,
            )
            for some in self._track(found, "questions", len(batches)):
                answers |= some
        return [answers[index] for index in range(len(requests))]

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """As in ``HFLM``, under our bar."""
        shown = iter(self._track(range(len(requests)), "texts", len(requests)))
        bar = SimpleNamespace(update=lambda count: next(shown, None), close=lambda: None)
        with drawing(huggingface, lambda **_: bar):
            texts: list[str] = super().generate_until(requests)
        deque(shown, maxlen=0)
        return texts

    def _model_generate(self, *args: Any, **options: Any) -> torch.Tensor:
        """As in ``HFLM``, in the model's arithmetic."""
        with forwards(self.model):
            generated: torch.Tensor = super()._model_generate(*args, **options)
            return generated

    def _planned(self, requests: list[Any]) -> tuple[list[Request], list[Batch]]:
        """The requests, and the batches in which they are answered; counts their operations."""
        asked = [self._request(context, continuation) for _, context, continuation in requests]
        batches = plan(asked, self._budget, can_share(self.model))
        self.flops += sum(batch_flops(self.model, one, self._budget) for one in batches)
        return asked, batches

    def _request(self, context: list[int], continuation: list[int]) -> Request:
        """What is too long for the model loses tokens on the left, as in ``HFLM``."""
        ids = (context + continuation)[-(self.max_length + 1) :]
        at = len(ids) - len(continuation)
        if at < 1:
            raise ValueError(
                f"a continuation of {len(continuation)} tokens: the model takes {self.max_length}"
            )
        return Request(tuple(ids[:at]), tuple(ids[at:]))


class CountingLM(TrackedLM):
    """Counts the operations that :class:`TrackedLM` takes, and answers nothing.

    The model may be without weights, on the meta device: batches are then those of a CPU.
    """

    def _loglikelihood_tokens(
        self, requests: list[Any], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[Answer]:
        self._planned(requests)
        return [(0.0, False)] * len(requests)

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """Nothing: generated text is not counted in a run either."""
        return [""] * len(requests)


@contextmanager
def quiet() -> Iterator[None]:
    """Keeps lm-eval's notices and the bar that it can't switch off from the console."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with drawing(task, lambda items, **_: items):
            yield
    finally:
        logger.setLevel(level)


@contextmanager
def drawing(module: Any, bar: Callable[..., Any]) -> Iterator[None]:
    """Has a module of lm-eval draw its progress with ``bar``."""
    before, module.tqdm = module.tqdm, bar
    try:
        yield
    finally:
        module.tqdm = before
