"""lm-eval's view of our model, with our progress display instead of its own."""

from __future__ import annotations

import sys
from collections import Counter, deque
from types import SimpleNamespace
from typing import Any

import torch
from lm_eval.models import huggingface
from lm_eval.models.huggingface import HFLM
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from harness.evaluate.base import Track
from harness.evaluate.head import tapped
from harness.evaluate.likelihood import (
    Answer,
    Batch,
    Budget,
    Ids,
    Request,
    answer,
    batch_flops,
    can_share,
    plan,
)
from harness.evaluate.notices import drawing, quiet
from harness.evaluate.prompts import Pair, Prompts
from harness.evaluate.threads import spread
from harness.inputs.tokenizing import Bos, start_of
from harness.numerics.precision import forwards
from harness.walk.limits import vocabulary

CPU_BATCH = 8  # prompts at once where text is generated; probing for the largest takes too long
CPU_TOKENS = 768  # in a forward: more make it no faster
DEVICE_TOKENS = 2048  # what they leave in a key-value cache has to fit beside the model


class TrackedLM(HFLM):  # type: ignore[misc]
    """The model as it is, answering as ``HFLM`` does.

    How prompts become tokens: :mod:`harness.evaluate.prompts`; how likelihoods are computed from few
    tokens: :mod:`harness.evaluate.likelihood`.

    Args:
        model: on its device.
        tokenizer: of the model.
        batch_size: rows of a forward at most, or ``auto``.
        track: progress display.
        bos: what prompts start with, see :func:`harness.inputs.tokenizing.start_of`.

    Attributes:
        flops: floating-point operations of the likelihoods asked for so far.
        cut: task -> questions whose prompt was too long for the model and lost tokens on the left.
        spanned: task -> continuations that share a token with their prompt.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        batch_size: int | str,
        track: Track,
        bos: Bos = "auto",
    ) -> None:
        on_cpu = model.device.type in ("cpu", "meta")
        self._budget = Budget(
            tokens=CPU_TOKENS if on_cpu else DEVICE_TOKENS,
            rows=sys.maxsize if batch_size == "auto" else int(batch_size),
        )
        if batch_size == "auto" and on_cpu:
            batch_size = CPU_BATCH
        with quiet():  # with the backend named, nothing is looked up about a model of unknown code
            super().__init__(
                pretrained=model, tokenizer=tokenizer, batch_size=batch_size, backend="causal"
            )
        self._prompts = Prompts(tokenizer, start_of(bos, tokenizer).ids)
        self._track = track
        self.flops = 0.0
        self.cut: Counter[str] = Counter()
        self.spanned: Counter[str] = Counter()
        self._shortened: set[tuple[str, int]] = set()
        self._tasks: dict[str, str] = {}

    @property
    def start(self) -> Ids:
        """The tokens that every prompt starts with."""
        return self._prompts.start

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = True) -> list[Answer]:
        """How likely each continuation is, and whether the model would go on so by itself.

        Raises:
            ValueError: a continuation has no token, or more than the model takes.
        """
        questions = [(one.task_name, one.doc_id) for one in requests]
        pairs = self._prompts.pairs([one.args for one in requests], questions)
        self.spanned.update(
            str(one.task_name) for one, pair in zip(requests, pairs, strict=True) if pair.spanned
        )
        return self._answers(list(map(self._request, requests, pairs)))

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = True) -> list[float]:
        """How likely each text is as a whole, in windows of the model's length."""
        windows = [self._prompts.windows(one.args[0], self.max_length) for one in requests]
        pieces = zip(requests, windows, strict=True)
        found = self._answers([self._request(one, pair) for one, some in pieces for pair in some])
        values = iter(value for value, _ in found)
        return [sum(next(values) for _ in some) for some in windows]

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """As in ``HFLM``, under our bar."""
        shown = iter(self._track(range(len(requests)), "texts", len(requests)))
        bar = SimpleNamespace(update=lambda count: next(shown, None), close=lambda: None)
        self._tasks = {one.args[0]: str(one.task_name) for one in requests}
        with drawing(huggingface, lambda **_: bar):
            texts: list[str] = super().generate_until(requests)
        deque(shown, maxlen=0)
        return texts

    def tok_encode(
        self,
        string: str,
        add_special_tokens: bool | None = None,
        left_truncate_len: int | None = None,
        **_: Any,
    ) -> list[int]:
        """The tokens of a prompt; ``HFLM`` sorts the prompts of generated texts by their number."""
        (ids,) = self._prompts.encoded([string])
        return list(ids)

    def tok_batch_encode(
        self,
        strings: list[str],
        padding_side: str = "left",
        left_truncate_len: int | None = None,
        truncation: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Prompts of generated texts: ids and attention mask, ``[prompts, length]`` each."""
        rows = self._prompts.encoded(strings)
        room = left_truncate_len or max(map(len, rows))
        self.cut.update(
            self._tasks[one] for one, ids in zip(strings, rows, strict=True) if len(ids) > room
        )
        padded = self.tokenizer.pad(
            {"input_ids": [list(self._prompts.cut(ids, room)) for ids in rows]},
            padding_side=padding_side,
            return_tensors="pt",
        )
        return padded["input_ids"], padded["attention_mask"]

    def _model_generate(self, *args: Any, **options: Any) -> torch.Tensor:
        """As in ``HFLM``, in the model's arithmetic."""
        with forwards(self.model):
            generated: torch.Tensor = super()._model_generate(*args, **options)
            return generated

    def _answers(self, asked: list[Request]) -> list[Answer]:
        """The answers in the order of the requests; each thread works on batches of its own."""
        batches = self._planned(asked)
        answers: dict[int, Answer] = {}
        with tapped(self.model) as tap:
            found = spread(
                lambda batch: answer(self.model, tap, asked, batch, self._budget),
                batches,
                self.model,
            )
            for some in self._track(found, "questions", len(batches)):
                answers |= some
        return [answers[index] for index in range(len(asked))]

    def _planned(self, asked: list[Request]) -> list[Batch]:
        """The batches in which requests are answered; counts their operations.

        Raises:
            ValueError: a token is none of the model's.
        """
        known = vocabulary(self.model)
        largest = max((max(*one.context, *one.continuation) for one in asked), default=0)
        if largest >= known:
            raise ValueError(
                f"token id {largest}, but the model has embeddings for the ids 0 to {known - 1}; the "
                "tokenizer is another model's"
            )
        batches = plan(asked, self._budget, can_share(self.model))
        self.flops += sum(batch_flops(self.model, one, self._budget) for one in batches)
        return batches

    def _request(self, instance: Any, pair: Pair) -> Request:
        """What is too long for the model loses tokens of the prompt on the left, as in ``HFLM``."""
        room = self.max_length + 1 - len(pair.continuation)
        if not pair.continuation or room < 1:
            size = len(pair.continuation)
            raise ValueError(
                f"task {instance.task_name}, question {1 + instance.doc_id}: a continuation of {size} "
                f"tokens ({instance.args[-1][:40]!r}); 1 to {self.max_length} can be predicted"
            )
        if len(pair.context) > room:
            place = (str(instance.task_name), instance.doc_id)
            self.cut[place[0]] += place not in self._shortened  # once, however many choices it has
            self._shortened.add(place)
        return Request(self._prompts.cut(pair.context, room), pair.continuation)


class CountingLM(TrackedLM):
    """Counts the operations that :class:`TrackedLM` takes, and answers nothing.

    The model may be without weights, on the meta device: batches are then those of a CPU.
    """

    def _answers(self, asked: list[Request]) -> list[Answer]:
        self._planned(asked)
        return [(0.0, False)] * len(asked)

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """Nothing: generated text is not counted in a run either."""
        return [""] * len(requests)
