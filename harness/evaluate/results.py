"""lm-eval's results as plain numbers, each with a name of its own.

A metric is called ``<family>/<task>``; a task that several filters make several answers of has a dataset
for each, ``<family>/<task>:<filter>``.
"""

from __future__ import annotations

import hashlib
import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from lm_eval.api.group import Group
from lm_eval.api.metrics import mean
from lm_eval.api.task import ConfigurableTask

from harness.evaluate.base import Evaluation

Key = tuple[str, str]  # lm-eval's metric and filter
# lm-eval's name -> ours; others keep theirs. Its perplexity is one of answers, ours one of texts.
FAMILIES = {"acc": "accuracy", "acc_norm": "accuracy_norm", "perplexity": "answer_perplexity"}
NO_NUMBER = {"bypass"}  # a placeholder of 999


def families(metrics: Iterable[str], task: str) -> dict[str, str]:
    """lm-eval's metrics of a task, and what they are called in a record.

    ``exact_match`` is the accuracy of a task that has no other.

    Raises:
        ValueError: there is none, or two would have one name.
    """
    known = dict.fromkeys(one for one in metrics if one not in NO_NUMBER)
    ours = FAMILIES if "acc" in known else {**FAMILIES, "exact_match": "accuracy"}
    named = {one: ours.get(one, one).replace("/", "_") for one in known}
    if not named:
        raise ValueError(f"task {task!r}: measures nothing ({', '.join(metrics) or 'no metric'})")
    if len(set(named.values())) < len(named):
        raise ValueError(f"task {task!r}: metrics of one name among {', '.join(known)}")
    return named


def check_measures(task: ConfigurableTask, name: str) -> None:
    """Raises ValueError for a task whose metrics lm-eval can't compute, or that has none."""
    families(task.aggregation(), name)
    unknown = [metric for metric, average in task.aggregation().items() if average is None]
    if task.config.process_results is None:
        unknown += [metric for metric, score in task._metric_fn_list.items() if score is None]
    if unknown:
        raise ValueError(f"task {name!r}: lm-eval can't compute its metric {unknown[0]!r}")


def evaluation(
    found: Mapping[str, Any],
    tasks: Mapping[str, ConfigurableTask],
    groups: Mapping[str, Group],
    start: Sequence[int],
) -> Evaluation:
    """Metrics, standard errors, scores of every question, and hashes of what was asked.

    Args:
        found: what lm-eval's ``evaluate`` returns.
        tasks: by name, as they were asked.
        groups: by name; their metrics are lm-eval's means over tasks, their standard errors follow
            from those of the tasks.
        start: the tokens that every prompt starts with.
    """
    results = {name: dict(values) for name, values in found["results"].items()}
    scores = {name: _scores(task, found["samples"][name]) for name, task in tasks.items()}
    for name, of_task in scores.items():
        for (metric, chosen), values in of_task.items():
            if len(values) > 1:
                error = statistics.stdev(values) / math.sqrt(len(values))
                results[name][f"{metric}_stderr,{chosen}"] = error
    contents = {
        name: f"version {found['versions'].get(name)}: {_content(found['samples'][name], start)}"
        for name in tasks
    }
    for name, group in groups.items():
        results[name] = group.aggregate(results)
        members = sorted(contents[task.task_name] for task in group.get_all_tasks())
        contents[name] = f"version {group.version}: {_digest(members)}"
    parts = [_recorded(name, results[name], scores.get(name), contents[name]) for name in results]
    return Evaluation(
        {key: value for one in parts for key, value in one.metrics.items()},
        {key: values for one in parts for key, values in one.samples.items()},
        {key: value for one in parts for key, value in one.hashes.items()},
    )


def _recorded(
    task: str, results: Mapping[str, Any], scores: Mapping[Key, list[float]] | None, content: str
) -> Evaluation:
    """What is recorded of a task, or of a group, which has no scores of questions.

    Raises:
        ValueError: a task without a number.
    """
    metrics, samples, hashes = {}, {}, {}
    names = _names(task, results)
    if scores is not None and not names:
        raise ValueError(f"task {task!r}: lm-eval has found no number")
    for key, (family, dataset) in names.items():
        metric, chosen = key
        metrics[f"{family}/{dataset}"] = float(results[f"{metric},{chosen}"])
        hashes[dataset] = content
        error = results.get(f"{metric}_stderr,{chosen}", "N/A")
        if _is_number(error):
            metrics[f"{family}_stderr/{dataset}"] = float(error)
        if scores is not None and key in scores:
            samples[f"{family}/{dataset}"] = scores[key]
    return Evaluation(metrics, samples, hashes)


def _names(task: str, results: Mapping[str, Any]) -> dict[Key, tuple[str, str]]:
    """(metric, filter) of lm-eval -> (family, dataset) of ours, for what is a number."""
    keys = [tuple(key.rsplit(",", 1)) for key, value in results.items() if _is_number(value)]
    found = [(one[0], one[1]) for one in keys if len(one) == 2 and not one[0].endswith("_stderr")]
    if not found:
        return {}
    filters: dict[str, set[str]] = {}
    for metric, chosen in found:
        filters.setdefault(metric, set()).add(chosen)
    named = families(filters, task)
    return {
        (metric, chosen): (
            named[metric],
            task if len(filters[metric]) == 1 else f"{task}:{chosen}",
        )
        for metric, chosen in found
        if metric in named
    }


def _scores(task: ConfigurableTask, asked: Sequence[Mapping[str, Any]]) -> dict[Key, list[float]]:
    """By metric and filter the score of every question, where the metric is their mean."""
    found: dict[Key, list[float]] = {}
    for one in asked:
        for metric in one["metrics"]:
            averaged = task.aggregation().get(metric, mean) in (mean, np.mean)
            if averaged and _is_number(one[metric]):
                found.setdefault((metric, one["filter"]), []).append(float(one[metric]))
    return found


def _content(asked: Sequence[Mapping[str, Any]], start: Sequence[int]) -> str:
    """A hash of all that a model is shown and of the right answers."""
    shown = {one["doc_id"]: [one["arguments"], one["target"]] for one in asked}
    return _digest([list(start), shown])


def _digest(content: Any) -> str:
    text = json.dumps(content, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.number | np.bool_)
