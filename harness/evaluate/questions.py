"""Questions for zero-shot tasks: from the wiki asset (our own tasks) and from local files.

Our own tasks have four choices each, the wrong ones from articles of the same topic, and
use articles that neither calibration nor perplexity uses. Choices and their order depend on
the article alone. The tasks are ours: comparable with themselves, with no published figure.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets

from harness.inputs import texts
from harness.inputs.names import name_of

CHOICES = 4
UNSORTED = "Uncategorized"  # the topic of articles without one
CHOICE_KEYS = ("query", "choices", "gold")
WORD_KEYS = ("context", "continuation")
Question = dict[str, Any]


def wiki_term(**_: Any) -> datasets.DatasetDict:
    """Which title has this description."""
    return _wiki(lambda one: one["description"], lambda one: one["title"])


def wiki_title(**_: Any) -> datasets.DatasetDict:
    """Which title has this opening paragraph, the words of the title blacked out."""
    return _wiki(_redacted, lambda one: one["title"])


def wiki_describe(**_: Any) -> datasets.DatasetDict:
    """Which description has this title."""
    return _wiki(lambda one: one["title"], lambda one: one["description"])


def wiki_continue(**_: Any) -> datasets.DatasetDict:
    """How an opening paragraph goes on after its first sentence."""
    return _wiki(lambda one: _sentences(one)[0], lambda one: _sentences(one)[1])


def local_task(path: str) -> dict[str, Any]:
    """The lm-eval configuration of a task in a local file, named after the file.

    The keys of the rows (the same in all of them) say what they are; other keys are ignored:

    - ``query``, ``choices`` (a list), ``gold`` (an index): multiple choice, with the prompt of
      lm-eval's ``arc_easy`` and ``piqa``: the query, then "Answer:" on a line of its own, a blank
      and a choice. A query brings its own "Question: ". Accuracy and normalised accuracy.
    - ``question``, ``choices`` (``text`` and ``label``), ``answerKey``: the same, as ARC is published.
    - ``goal``, ``sol1``, ``sol2``, ``label``: the same, as PIQA is published.
    - ``context``, ``continuation``: the continuation must be the model's greedy choice after the
      context and a blank, as in lm-eval's ``lambada_openai``. Accuracy.

    Args:
        path: .jsonl, .parquet, or a directory saved by ``datasets``.

    Raises:
        ValueError: for a file that is missing, empty or has other keys, and, with its number, for a row
            that is no question: texts that are none, fewer than two choices, an answer that is none of
            them.
    """
    file = Path(path).expanduser()
    rows = _questions(file)
    common: dict[str, Any] = {
        "task": name_of(path),
        "custom_dataset": local_questions,
        "dataset_kwargs": {"path": str(file)},
        "test_split": "test",
        "num_fewshot": 0,
        "metadata": {"version": 1.0},
    }
    if "choices" in rows[0]:
        return common | {
            "output_type": "multiple_choice",
            "doc_to_text": "{{query.strip()}}\nAnswer:",
            "doc_to_choice": "choices",
            "doc_to_target": "gold",
            "metric_list": [_mean("acc"), _mean("acc_norm")],
        }
    return common | {
        "output_type": "loglikelihood",
        "doc_to_text": "{{context}}",
        "doc_to_target": "{{' ' + continuation}}",
        "metric_list": [_mean("acc")],
    }


def local_questions(path: str, **_: Any) -> datasets.DatasetDict:
    """The rows of a local file as the test split."""
    return _test_split(_questions(Path(path)))


def _arc(row: Question) -> Question:
    choices, key = row["choices"], row["answerKey"]
    parts = choices if isinstance(choices, Mapping) else {}
    written, labels = parts.get("text"), parts.get("label")
    if not (isinstance(written, list) and isinstance(labels, list)):
        raise ValueError(f"choices={choices!r}: the lists text and label are needed")
    if len(labels) != len(written):
        raise ValueError(f"choices has {len(written)} texts and {len(labels)} labels")
    if len({*map(str, labels)}) < len(labels):
        raise ValueError(f"choices has a label twice: {', '.join(map(str, labels))}")
    if key not in labels:
        allowed = ", ".join(map(str, labels))
        raise ValueError(f"the answer is none of its choices: {key!r}, allowed are {allowed}")
    query = f"Question: {_text(row, 'question')}"
    return {"query": query, "choices": written, "gold": labels.index(key)}


def _piqa(row: Question) -> Question:
    choices = [row["sol1"], row["sol2"]]
    query = f"Question: {_text(row, 'goal')}"
    return {"query": query, "choices": choices, "gold": row["label"]}


# The keys of a row, and how to make it a question of one of the first two kinds.
LAYOUTS: Mapping[tuple[str, ...], Callable[[Question], Question]] = {
    CHOICE_KEYS: lambda row: {key: row[key] for key in CHOICE_KEYS},
    WORD_KEYS: lambda row: {key: row[key] for key in WORD_KEYS},
    ("question", "choices", "answerKey"): _arc,
    ("goal", "sol1", "sol2", "label"): _piqa,
}


def _questions(file: Path) -> list[Question]:
    """The rows of a file, all of one of :data:`LAYOUTS`, as questions of our kinds."""
    rows = texts.local_rows(file)
    keys = set(rows[0]).intersection(*rows) if rows else set()
    layout = next((one for one in LAYOUTS if keys.issuperset(one)), None)
    if layout is None:
        raise ValueError(f"{file}: {_no_layout(rows)}")
    questions = []
    for number, row in enumerate(rows, 1):
        try:
            question = LAYOUTS[layout](row)
            _check(question)
        except ValueError as error:
            raise ValueError(f"{file}: row {number}: {error}") from None
        questions.append(question)
    return questions


def _no_layout(rows: Sequence[Question]) -> str:
    """What is wrong with rows of no layout, and which is the first that is not like the first."""
    wanted = " or ".join(f"({', '.join(one)})" for one in LAYOUTS)
    first = next((one for one in LAYOUTS if rows and rows[0].keys() >= set(one)), ())
    for number, row in enumerate(rows, 1):
        if not row.keys() >= set(first):
            return f"row {number}: rows need the keys {wanted}; it has {', '.join(sorted(row))}"
    known = ", ".join(sorted({key for row in rows for key in row})) or "no rows"
    return f"rows need the keys {wanted}; it has {known}"


def _check(question: Question) -> None:
    """Raises ValueError for a question that lm-eval would answer wrongly or not at all."""
    if "choices" not in question:
        _text(question, "context")
        if not _text(question, "continuation").strip():
            raise ValueError("continuation is empty")
        return
    _text(question, "query")
    choices, gold = question["choices"], question["gold"]
    if not isinstance(choices, list) or len(choices) < 2:
        raise ValueError(f"choices={choices!r}: a list of two or more texts is needed")
    for one in choices:
        if not isinstance(one, str) or not one.strip():
            raise ValueError(f"the choice {one!r} is no text")
    if isinstance(gold, bool) or not isinstance(gold, int) or gold not in range(len(choices)):
        raise ValueError(
            f"the answer is none of its choices: {gold!r}, allowed are 0 to {len(choices) - 1}"
        )


def _text(row: Question, key: str) -> str:
    if not isinstance(row[key], str):
        raise ValueError(f"{key}={row[key]!r}: a text is needed")
    return str(row[key])


def _mean(metric: str) -> dict[str, Any]:
    return {"metric": metric, "aggregation": "mean", "higher_is_better": True}


def _wiki(
    ask: Callable[[texts.Article], str], answer: Callable[[texts.Article], str]
) -> datasets.DatasetDict:
    """Questions ``{query, choices, gold}``, one per article that has both sides."""
    topics: dict[str, list[texts.Article]] = defaultdict(list)
    articles = [
        one
        for one in texts.wiki_articles("tasks")
        if one["topic"] != UNSORTED and one["description"] and ask(one) and answer(one)
    ]
    for one in articles:
        topics[one["topic"]].append(one)
    answers = {topic: sorted({answer(one) for one in some}) for topic, some in topics.items()}
    questions = []
    for one in articles:
        generator = random.Random(hashlib.sha256(one["title"].encode()).digest())
        others = [other for other in answers[one["topic"]] if other != answer(one)]
        choices = [answer(one), *generator.sample(others, CHOICES - 1)]
        generator.shuffle(choices)
        gold = choices.index(answer(one))
        questions.append({"query": ask(one), "choices": choices, "gold": gold})
    return _test_split(questions)


def _test_split(rows: list[Question]) -> datasets.DatasetDict:
    return datasets.DatasetDict({"test": datasets.Dataset.from_list(rows)})


def _redacted(article: texts.Article) -> str:
    words = [re.escape(word) for word in re.findall(r"\w{3,}", article["title"])]
    if not words:
        return ""
    return re.sub(rf"\b({'|'.join(words)})\w*", "___", article["extract"], flags=re.IGNORECASE)


def _sentences(article: texts.Article) -> tuple[str, str]:
    """The first sentence and the rest, which is empty for a single sentence."""
    first, *rest = re.split(r"(?<=\w\w[.!?])\s+(?=[A-Z])", article["extract"], maxsplit=1)
    return first, "".join(rest)
