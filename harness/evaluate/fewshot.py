"""Examples before a question: lm-eval's own draw, without the question that is asked.

lm-eval 0.4.13 leaves the asked row out only where a task names its test split as the split of examples,
and only rows equal in every field. Everywhere else a prompt can hold its own question with the answer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lm_eval.api.task import ConfigurableTask

Row = Mapping[str, Any]
Templates = tuple[Any, Any, Any]  # of a row's text, choices and target, as lm-eval takes them


class OtherRows:
    """A task's own sampler, any of lm-eval's, without rows that ask what is asked.

    Two rows ask the same if they are equal, or if their prompts are, blanks aside; where all prompts of
    a task are equal, choices and answer count as well. Without such a row the examples are those that
    lm-eval draws; otherwise the draw is repeated from the same state of the generator with as many
    more, so that the examples of all other questions stay as they are.

    Args:
        task: whose ``sampler`` this one replaces.
    """

    def __init__(self, task: ConfigurableTask) -> None:
        self._task, self._own = task, task.sampler
        config = task.fewshot_cfg
        # lm-eval draws one more where it leaves the asked row out itself.
        self._spare = int(config.split == task.config.test_split)
        self._theirs = (config.doc_to_text, config.doc_to_choice, config.doc_to_target)
        written = config.split is None and config.samples is not None  # rows of another kind
        self._asked: Templates = (None, None, None) if written else self._theirs
        self._pool: list[Row] = list(self._own.fewshot_docs())
        texts = (self._text(one, self._theirs) for one in self._pool)
        first = next(texts, "")
        self._alike = all(text == first for text in texts)

    def set_rnd(self, seed: int | None) -> OtherRows:
        """Starts the generator again, as lm-eval asks of a sampler."""
        self._own.set_rnd(seed)
        return self

    def sample(self, n: int, eval_doc: Row) -> Sequence[Row]:
        """``n`` examples for the prompt of ``eval_doc``.

        Raises:
            ValueError: there are fewer; :meth:`fewest` knows before.
        """
        random = self._own.rnd
        before = random.getstate()
        count = min(n + self._spare, len(self._pool))
        found = self._drawn(count, eval_doc)
        after = random.getstate()
        while len(found) < n:
            count += n - len(found)
            if count > len(self._pool):
                raise ValueError(f"{n} examples: only {len(found)} rows ask something else")
            random.setstate(before)
            found = self._drawn(count, eval_doc)
        random.setstate(after)
        return found[:n]

    def fewest(self, asked: Iterable[Row], enough: int) -> int:
        """How many examples every question of ``asked`` can have, counted up to ``enough``."""
        counts: Counter[str] = Counter()
        for seen, row in enumerate(self._pool, 1):
            counts[self._question(row, self._theirs)] += 1
            if seen - max(counts.values()) >= enough:
                return enough
        same = (counts[self._question(one, self._asked)] for one in asked)
        return len(self._pool) - max(same, default=0)

    def _drawn(self, count: int, asked: Row) -> list[Row]:
        question = self._question(asked, self._asked)
        return [
            one
            for one in self._own.sample(n=count)
            if one != asked and self._question(one, self._theirs) != question
        ]

    def _question(self, row: Row, templates: Templates) -> str:
        """What two rows that ask the same have in common."""
        text = self._text(row, templates)
        if not self._alike:
            return text
        choices: Any = ""
        if self._task.config.doc_to_choice:
            choices = self._task.doc_to_choice(row, templates[1])
        return f"{text} {choices} {self._task.doc_to_target(row, templates[2])}"

    def _text(self, row: Row, templates: Templates) -> str:
        text = self._task.doc_to_text(row, templates[0])
        if isinstance(text, int):  # the prompts are the choices, this is the right one's index
            text = self._task.doc_to_choice(row, templates[1])
        return " ".join(str(text).split())


def leave_out_asked(task: ConfigurableTask) -> OtherRows:
    """Has ``task`` take its examples from other rows than the asked one."""
    sampler = OtherRows(task)
    task.sampler = sampler
    # lm-eval tells a sampler which row is asked only where these two are equal.
    task.fewshot_cfg.split = task.config.test_split
    return sampler
