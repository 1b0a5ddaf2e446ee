"""Accuracy on zero-shot tasks: lm-eval's, our own, and files of questions."""

from __future__ import annotations

import hashlib
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from harness.evaluate.base import SEED, Context, Evaluation, silent
from harness.inputs import assets, texts
from harness.inputs.corpora import Tokens

if TYPE_CHECKING:
    from lm_eval.tasks import TaskManager

    from harness.evaluate.lm import TrackedLM

TASKS = Path(__file__).parent / "tasks"
METRICS = {"acc": "accuracy", "acc_norm": "accuracy_norm", "exact_match": "accuracy"}


@dataclass(frozen=True)
class ZeroShot:
    """Metrics ``accuracy/<task>``, ``accuracy_norm/<task>`` and their standard errors.

    Accuracy is lm-eval's ``acc`` (or ``exact_match``), the normalised one its ``acc_norm``:
    choices compared by likelihood per character. Standard errors are those of a mean over n
    questions, sqrt(p (1 − p) / (n − 1)). Samples ``accuracy/<task>`` per question; hashes name a
    task's version and the content of its questions.

    Args:
        tasks: names of lm-eval's tasks, groups or tags, of our own (``wiki_term``, ``wiki_title``,
            ``wiki_describe``, ``wiki_continue``), or paths to files of questions (see
            :func:`harness.evaluate.questions.local_task`).
        fewshot: examples before each question; None is the task's own number.
        limit: the first questions of each task; None is all.
        batch_size: choices in one forward; ``auto`` is what makes 768 tokens on a CPU, 2,048 elsewhere.
        include: a directory with more task files in lm-eval's format.
    """

    tasks: Sequence[str]
    fewshot: int | None = None
    limit: int | None = None
    batch_size: int | Literal["auto"] = "auto"
    include: str | None = None

    def __post_init__(self) -> None:
        bad = []
        if self.fewshot is not None and self.fewshot < 0:
            bad.append(f"fewshot={self.fewshot} (at least 0)")
        if self.limit is not None and self.limit < 2:
            bad.append(f"limit={self.limit} (at least 2)")
        if self.batch_size != "auto" and int(self.batch_size) < 1:
            bad.append(f"batch_size={self.batch_size} (auto, or at least 1)")
        if bad:
            raise ValueError("zero-shot tasks: " + ", ".join(bad))

    def check(self) -> None:
        """Raises ValueError for a task that is unknown or has no accuracy, and for data out of reach.

        lm-eval itself is loaded only if a task of its own is asked for.
        """
        own = [name for name in self.tasks if name in _own_tasks()]
        files = [name for name in self.tasks if _is_path(name)]
        if own:
            assets.fetch(assets.WIKI_SUMMARIES)
        if files:
            from harness.evaluate.questions import local_task

            for path in files:
                local_task(path)
        if len(own) + len(files) < len(self.tasks):
            for name, task in self._load()["tasks"].items():
                if not METRICS.keys() & (has := task.aggregation().keys()):
                    raise ValueError(
                        f"task {name!r}: measures {', '.join(has)}; what is recorded are accuracies "
                        f"({', '.join(METRICS)})"
                    )

    def tokens(self, tokenizer: PreTrainedTokenizerBase) -> Mapping[str, Tokens]:
        """None: questions are no windows."""
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

        counting = CountingLM(model, tokenizer, self.batch_size, silent)
        self._ask(counting)
        return counting.flops

    def evaluate(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, context: Context
    ) -> Evaluation:
        """Asks ``model`` all questions."""
        if not self.tasks:
            return Evaluation({})
        from harness.evaluate.lm import TrackedLM

        asked = TrackedLM(model, tokenizer, self.batch_size, context.track)
        return replace(_evaluation(self._ask(asked)), flops=asked.flops)

    def _ask(self, model: TrackedLM) -> Any:
        """lm-eval's results of all questions."""
        from lm_eval.evaluator import evaluate

        from harness.evaluate.lm import quiet

        loaded = self._load()
        for task in loaded["tasks"].values():
            if self.fewshot is not None:
                task.set_config(key="num_fewshot", value=self.fewshot)
            elif task.get_config("num_fewshot") is None:
                task.set_config(key="num_fewshot", value=0)
            task.set_fewshot_seed(seed=SEED)
        with quiet():
            return evaluate(
                lm=model,
                task_dict=loaded,
                limit=self.limit,
                bootstrap_iters=0,
                log_samples=True,
            )

    def _load(self) -> Any:
        """lm-eval's task objects; its own index, which takes long, only where it is needed."""
        from harness.evaluate.lm import quiet

        own = _own_tasks()
        foreign = [one for one in self.tasks if one not in own and not _is_path(one)]
        with quiet(), _hub_or_cache(bool(foreign)):
            manager = self._manager(defaults=False)
            if any(one not in manager.all_tasks for one in foreign):
                manager = self._manager(defaults=True)
            specs: list[str | dict[str, Any]] = []
            for name in self.tasks:
                if _is_path(name):
                    from harness.evaluate.questions import local_task

                    specs.append(local_task(name))
                elif name in manager.all_tasks:
                    specs.append(name)
                else:
                    hint = assets.near(name, manager.all_tasks)
                    raise ValueError(f"task {name!r}: unknown to lm-eval{hint}")
            try:
                return manager.load(specs)
            except OSError as error:
                reason = str(error).splitlines()[0]
                raise ValueError(
                    f"tasks {', '.join(foreign)}: data can't be reached ({reason}); give a file "
                    f"of questions (eval.tasks=[FILE.jsonl]) or use ours: {', '.join(own)}"
                ) from None

    def _manager(self, defaults: bool) -> TaskManager:
        from lm_eval.tasks import TaskManager

        folders = [TASKS, *([Path(self.include).expanduser()] if self.include else [])]
        return TaskManager(include_path=folders, include_defaults=defaults)


def _own_tasks() -> list[str]:
    return sorted(file.stem for file in TASKS.glob("*.yaml"))


def _is_path(name: str) -> bool:
    return "/" in name or Path(name).suffix in (".parquet", *texts.LINES)


@contextmanager
def _hub_or_cache(needed: bool) -> Iterator[None]:
    """Without a hub, reads from the local cache at once instead of after minutes of retries."""
    if not needed or texts.hub_reachable():
        yield
        return
    import datasets
    import huggingface_hub

    before = huggingface_hub.constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE
    huggingface_hub.constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        huggingface_hub.constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE = before


def _evaluation(found: Mapping[str, Any]) -> Evaluation:
    """Plain numbers from lm-eval's results, whose keys are ``metric,filter``."""
    metrics: dict[str, float] = {}
    samples: dict[str, list[float]] = {}
    hashes: dict[str, str] = {}
    for task, results in found["results"].items():
        asked = found["samples"].get(task, [])
        for key, value in results.items():
            metric, _, choice = key.partition(",")
            name = METRICS.get(metric)
            if name is None or f"{name}/{task}" in metrics:
                continue
            metrics[f"{name}/{task}"] = float(value)
            scores = [float(one[metric]) for one in asked if one["filter"] == choice]
            if len(scores) > 1:
                error = statistics.stdev(scores) / math.sqrt(len(scores))
                metrics[f"{name}_stderr/{task}"] = error
                samples[f"{name}/{task}"] = scores
        if asked:
            content = "".join(one["prompt_hash"] + one["target_hash"] for one in asked)
            digest = hashlib.sha256(content.encode()).hexdigest()
            hashes[task] = f"version {found['versions'].get(task)}: {digest}"
    return Evaluation(metrics, samples, hashes)
