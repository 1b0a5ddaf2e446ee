"""What lm-eval prints and logs: its bars are ours, its warnings are said once, known ones dropped."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from lm_eval.api import task

from harness.evaluate.base import Say, unsaid

# Warnings that are dropped, by what they hold, and why.
KNOWN = {
    "`pretrained` model kwarg is not of type": "the model is handed over loaded, on purpose",
    "Passed an already-initialized model": "the same",
    "num_fewshot > 0 but fewshot_split is None": "see harness/evaluate/fewshot.py",
    "using test_docs as fewshot_docs": "the same",
    "Custom kwargs can be passed to": "how to use its command line",
    "No `generation_kwargs` specified": "its defaults are the task's protocol",
    "No `until` specified": "the same",
    "is defined, but aggregation is not": "the same",
    "is defined, but higher_is_better is not": "the same",
}


class Heard(logging.Handler):
    """Counts the messages that are not :data:`KNOWN`."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: Counter[str] = Counter()

    def emit(self, record: logging.LogRecord) -> None:
        """Keeps the first line of a message."""
        lines = record.getMessage().strip().splitlines()
        if lines and not any(known in lines[0] for known in KNOWN):
            self.messages[lines[0]] += 1


@contextmanager
def quiet(say: Say = unsaid) -> Iterator[None]:
    """Keeps lm-eval's notices and bars from the console; what it warns of is said at the end, once."""
    logger, heard = logging.getLogger("lm_eval"), Heard()
    before = logger.level, logger.handlers, logger.propagate
    logger.setLevel(logging.WARNING)
    logger.handlers, logger.propagate = [heard], False
    try:
        with drawing(task, lambda items, **_: items):
            yield
    finally:
        logger.setLevel(before[0])
        _, logger.handlers, logger.propagate = before
        for message, times in heard.messages.items():
            say(f"  lm-eval: {message}" + (f" ({times} times)" if times > 1 else ""))


@contextmanager
def drawing(module: Any, bar: Callable[..., Any]) -> Iterator[None]:
    """Has a module of lm-eval draw its progress with ``bar``."""
    before, module.tqdm = module.tqdm, bar
    try:
        yield
    finally:
        module.tqdm = before
