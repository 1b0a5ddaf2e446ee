"""Accuracy on zero-shot tasks: lm-eval's, our own, and files of questions."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from harness.evaluate import catalogue
from harness.evaluate.base import SEED, Context, Evaluation, Say, check_all, silent, unsaid
from harness.evaluate.included import tasks_hash
from harness.inputs import assets
from harness.inputs.contents import Contents, digest
from harness.inputs.corpora import Tokens
from harness.inputs.tokenizing import Bos, start_of

if TYPE_CHECKING:
    from lm_eval.api.task import ConfigurableTask
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from harness.evaluate.lm import TrackedLM


@dataclass(frozen=True)
class ZeroShot:
    """Metrics ``accuracy/<task>``, ``accuracy_norm/<task>`` and their standard errors.

    Accuracy is lm-eval's ``acc`` (or the ``exact_match`` of a task without it), the normalised one its
    ``acc_norm``: choices compared by likelihood per character. What else lm-eval measures keeps its
    name (:mod:`harness.evaluate.results`). Standard errors are those of a mean over n questions,
    sqrt(p (1 − p) / (n − 1)); of a group, lm-eval's pooled ones. Samples ``accuracy/<task>`` per
    question; hashes name a task's version and the content of all prompts, choices and answers.

    Args:
        tasks: names of lm-eval's tasks, groups or tags, of our own (``wiki_term``, ``wiki_title``,
            ``wiki_describe``, ``wiki_continue``), or paths to files of questions (see
            :func:`harness.evaluate.questions.local_task`). No two of one name.
        fewshot: examples before each question, never the asked one; None is the task's own number.
        limit: the first questions of each task; None is all.
        batch_size: choices in one forward; ``auto`` is what makes 768 tokens on a CPU, 2,048 elsewhere.
        include: a directory with more task files in lm-eval's format.
        bos: what prompts start with, see :func:`harness.inputs.tokenizing.start_of`; a prompt is one text,
            so that ``first`` is ``auto``.
        chat_template: put prompts into the tokenizer's chat template, as lm-eval does: the question and
            each example before it are the user's turns, answers the assistant's.
    """

    tasks: Sequence[str]
    fewshot: int | None = None
    limit: int | None = None
    batch_size: int | Literal["auto"] = "auto"
    include: str | None = None
    bos: Bos = "auto"
    chat_template: bool = False

    def __post_init__(self) -> None:
        bad = []
        if self.fewshot is not None and self.fewshot < 0:
            bad.append(f"fewshot={self.fewshot} (at least 0)")
        if self.limit is not None and self.limit < 2:
            bad.append(f"limit={self.limit} (at least 2)")
        if self.batch_size != "auto" and int(self.batch_size) < 1:
            bad.append(f"batch_size={self.batch_size} (auto, or at least 1)")
        if bad:
            raise ValueError("; ".join(bad))

    def check(self) -> None:
        """Raises ValueError for tasks that can't be asked, or not with so many examples.

        lm-eval itself is loaded only if a task of its own, or an example, is asked for.
        """
        if self.include and not Path(self.include).expanduser().is_dir():
            raise ValueError(f"eval.include={self.include!r}: no such directory")
        catalogue.check_names(self.tasks)
        own = [name for name in self.tasks if name in catalogue.own_tasks()]
        files = [name for name in self.tasks if catalogue.is_file(name)]
        if own:
            assets.fetch(assets.WIKI_SUMMARIES)
        if files:
            from harness.evaluate.questions import local_task

            check_all(partial(local_task, path) for path in files)
        if self.fewshot or (self.include and own) or len(own) + len(files) < len(self.tasks):
            from harness.evaluate.notices import quiet

            with quiet():
                self._load()

    def datasets(self) -> Sequence[str]:
        """The tasks and groups that are asked for; what is in a group or has several filters is more."""
        return list(map(catalogue.named, self.tasks))

    def contents(self) -> Contents:
        """Hashes of the tasks, as far as they are files of questions, and of the files of ``include``."""
        found: dict[str, Callable[[], str]] = {}
        if any(map(catalogue.is_file, self.tasks)):
            found["tasks"] = lambda: digest(*map(catalogue.content, self.tasks))
        if self.include:
            found["include"] = partial(tasks_hash, Path(self.include).expanduser())
        return found

    def tokens(self, tokenizer: PreTrainedTokenizerBase) -> Mapping[str, Tokens]:
        """None: questions are no windows.

        Raises:
            ValueError: the tokenizer lacks the start token or the chat template that is asked for.
        """
        if self.chat_template:
            try:
                tokenizer.get_chat_template()
            except ValueError:  # it has none, or several and no default
                raise ValueError(
                    "eval.chat_template=true: the tokenizer has no chat template"
                ) from None
        start_of(self.bos, tokenizer)
        return {}

    def missing(self, tokenizer: PreTrainedTokenizerBase, context: Context) -> list[str]:
        """Nothing: accuracies need no other model."""
        return []

    def flops(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, full_precision: bool
    ) -> float:
        """Of all questions that are answered by likelihoods, read as for an evaluation."""
        if not self.tasks:
            return 0.0
        from harness.evaluate.lm import CountingLM

        counting = CountingLM(model, tokenizer, self.batch_size, silent, self.bos)
        self._ask(counting, unsaid)
        return counting.flops

    def evaluate(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, context: Context
    ) -> Evaluation:
        """Asks ``model`` all questions; says which prompts were not as the task wrote them."""
        if not self.tasks:
            return Evaluation({})
        from harness.evaluate.lm import TrackedLM

        asked = TrackedLM(model, tokenizer, self.batch_size, context.track, self.bos)
        found = self._ask(asked, context.say)
        cut = f"prompts cut on the left, to {asked.max_length} tokens"
        shared = (
            "choices share a token with the prompt: scored without it, as in lm-eval, or alone"
        )
        for what, counts in ((cut, asked.cut), (shared, asked.spanned)):
            for task, count in counts.items():
                context.say(f"  {task}: {count} {what}")
        lost = {f"prompts_cut/{task}": float(count) for task, count in asked.cut.items()}
        return replace(found, metrics={**found.metrics, **lost}, flops=asked.flops)

    def _ask(self, model: TrackedLM, say: Say) -> Evaluation:
        """What lm-eval finds on all questions."""
        from lm_eval.evaluator import evaluate

        from harness.evaluate.notices import quiet
        from harness.evaluate.results import evaluation

        with quiet(say):
            loaded = self._load()
            found = evaluate(
                lm=model,
                task_dict={"tasks": loaded.tasks, "groups": loaded.groups},
                limit=self.limit,
                bootstrap_iters=0,
                log_samples=True,
                apply_chat_template=self.chat_template,
                fewshot_as_multiturn=self.chat_template,
            )
        return evaluation(found, loaded.tasks, loaded.groups, model.start)

    def _load(self) -> catalogue.Loaded:
        """The tasks, ready to be asked."""
        loaded = catalogue.load(self.tasks, self.include)
        for name, task in loaded.tasks.items():
            self._prepare(name, task)
        return loaded

    def _prepare(self, name: str, task: ConfigurableTask) -> None:
        """Sets the examples of a task.

        Raises:
            ValueError: it measures nothing, asks for more than text, or has too few examples.
        """
        from harness.evaluate.fewshot import leave_out_asked
        from harness.evaluate.results import check_measures

        check_measures(task, name)
        if getattr(task, "UNSAFE_CODE", False) or getattr(task, "MULTIMODAL", False):
            raise ValueError(f"task {name!r}: runs generated code, or asks for more than text")
        shots = task.get_config("num_fewshot") if self.fewshot is None else self.fewshot
        if task.OUTPUT_TYPE == "loglikelihood_rolling":  # whole texts, without a prompt
            shots = 0
        task.set_config(key="num_fewshot", value=shots or 0)
        task.set_fewshot_seed(seed=SEED)
        if shots:
            asked = itertools.islice(task.eval_docs, self.limit)
            fewest = leave_out_asked(task).fewest(asked, shots)
            if fewest < shots:
                raise ValueError(
                    f"task {name!r}: {shots} examples before each question (eval.fewshot); there are "
                    f"{fewest} that ask something else"
                )
