"""Examples before a question: never the question itself, else those that lm-eval draws."""

from __future__ import annotations

from pathlib import Path

import pytest
from asking import choosing, jsonl, rows
from lm_eval.tasks import TaskManager

from harness.evaluate.base import SEED, Context
from harness.evaluate.zeroshot import ZeroShot
from harness.records.cache import Cache

COUNT = 12
ROWS = rows(COUNT)


def written(folder: Path, splits: dict[str, list[dict]], **config) -> ZeroShot:
    """A task ``mine`` of a folder, with four examples before each question."""
    choosing(folder, "mine", splits, **config)
    return ZeroShot(["mine"], fewshot=4, include=str(folder))


def contexts(task: ZeroShot, limit: int | None = None) -> list[str]:
    """The prompt of every question."""
    (loaded,) = task._load().tasks.values()
    loaded.build_all_requests(limit=limit)
    first = [one for one in loaded.instances if one.idx == 0]
    return [one.args[0] for one in first]


def examples(context: str) -> list[str]:
    return [part.split("?")[0] for part in context.split("\n\n")[:-1]]


def assert_others(found: list[str], shots: int) -> None:
    assert len(found) == COUNT
    for n, context in enumerate(found):
        shown = [one.split()[0] for one in examples(context)]
        assert len(shown) == len(set(shown)) == shots
        assert f"Q{n}" not in shown


SAMPLERS = [{}, {"fewshot_config": {"sampler": "first_n"}}]
SPLITS = [
    {"test_split": "test"},
    {"test_split": "test", "fewshot_split": "test"},
    {"validation_split": "test"},
    {"validation_split": "test", "fewshot_split": "test"},
    {"test_split": "test", "training_split": "test"},
]


@pytest.mark.parametrize("sampler", SAMPLERS, ids=["random", "first_n"])
@pytest.mark.parametrize("splits", SPLITS, ids=lambda one: "-".join(one))
def test_no_prompt_holds_its_own_question(tmp_path, splits, sampler):
    task = written(tmp_path, {"test": ROWS}, **splits, **sampler)
    task.check()
    found = contexts(task)
    assert_others(found, 4)
    if sampler:
        assert [one.split()[0] for one in examples(found[2])] == ["Q0", "Q1", "Q3", "Q4"]
    assert found == contexts(task)
    assert found[:5] == contexts(task, limit=5)


def test_files_of_questions_and_ours(tmp_path, wiki):
    task = ZeroShot([str(jsonl(tmp_path / "q.jsonl", ROWS))], fewshot=5)
    task.check()
    assert_others(contexts(task), 5)
    for name in ("wiki_term", "wiki_title"):
        for context in contexts(ZeroShot([name], fewshot=3)):
            *shown, asked = context.split("\n\n")
            assert len(shown) == 3
            assert not any(one.startswith(asked) for one in shown)


def lm_eval_contexts(folder: Path) -> list[str]:
    (task,) = (
        TaskManager(include_path=folder, include_defaults=False).load(["mine"])["tasks"].values()
    )
    task.set_config("num_fewshot", 4)
    task.set_fewshot_seed(SEED)
    task.build_all_requests()
    return [one.args[0] for one in task.instances if one.idx == 0]


@pytest.mark.parametrize("splits", SPLITS[:4], ids=lambda one: "-".join(one))
def test_all_other_examples_are_those_that_lm_eval_draws(tmp_path, splits):
    found = contexts(written(tmp_path, {"test": ROWS}, **splits))
    expected = lm_eval_contexts(tmp_path)
    held = [f"Q{n}" in [one.split()[0] for one in examples(c)] for n, c in enumerate(expected)]
    assert any(held) == (splits not in ({"test_split": "test", "fewshot_split": "test"},
                                        {"validation_split": "test"}))  # fmt: skip
    for own, ours, theirs in zip(held, found, expected, strict=True):
        assert (ours == theirs) != own
        if own:  # the others of its examples stay
            assert len(set(examples(ours)) & set(examples(theirs))) == 3


def test_a_training_split_gives_the_examples_of_lm_eval(tmp_path):
    training = [{**row, "query": f"T{row['query']}"} for row in ROWS]
    splits = {"training_split": "train", "test_split": "test"}
    task = written(tmp_path, {"train": training, "test": ROWS}, **splits)
    assert contexts(task) == lm_eval_contexts(tmp_path)
    training[3]["query"] = f"  {ROWS[5]['query']} "  # asked in the test split too
    task = written(tmp_path, {"train": training, "test": ROWS}, **splits)
    assert f"Q5 what is 5? {training[3]['choices'][0]}" not in contexts(task)[5]
    assert ROWS[5]["query"] in "".join(contexts(task)[:5] + contexts(task)[6:])


@pytest.mark.parametrize("sampler", SAMPLERS, ids=["random", "first_n"])
def test_copies_of_a_question_are_the_question(tmp_path, sampler):
    """Also with other choices, another answer, another blank."""
    copies = [
        {**row, "query": f"{row['query']} ", "choices": row["choices"][::-1], "gold": 0}
        for row in ROWS[:3]
    ]
    task = written(tmp_path, {"test": [*ROWS, *copies]}, test_split="test", **sampler)
    for n, context in enumerate(contexts(task)):
        assert f"Q{n % COUNT} what" not in " ".join(examples(context))
        assert len(examples(context)) == 4


def test_rows_that_share_their_prompt_are_told_apart_by_choices_and_answer(tmp_path):
    alike = [{"choices": [f"good {n}", f"bad {n}"], "gold": 0} for n in range(6)]
    task = written(tmp_path, {"test": alike}, test_split="test", doc_to_text="Which?")
    task.check()
    for n, context in enumerate(contexts(task)):
        assert context.count("Which? good") == 4
        assert f"good {n}\n" not in context


def test_prompts_that_are_the_choices(tmp_path):
    """As winogrande has it: the text is the index of the right prompt, all have one continuation."""
    starts = [
        {"start": [f"cat{n}", f"dog{n}"], "gold": n % 2, "end": f"ran {n}."} for n in range(8)
    ]
    task = written(
        tmp_path, {"test": starts}, test_split="test", doc_to_text="gold", doc_to_choice="start",
        doc_to_target="end",
    )  # fmt: skip
    task.check()
    found = contexts(task)
    for n, context in enumerate(found):
        assert context.count("ran ") == 4
        assert context.endswith(f"cat{n}")
        assert f"cat{n} ran" not in context and f"dog{n} ran" not in context


def test_written_examples_may_be_of_another_kind(tmp_path):
    shown = [{"say": f"Say {n}", "answer": f"{n}"} for n in range(5)]
    shown[2]["say"] = ROWS[4]["query"]
    task = written(
        tmp_path, {"test": ROWS}, test_split="test", output_type="loglikelihood",
        doc_to_choice=None, doc_to_target="{{choices[gold]}}", fewshot_config={
            "samples": shown, "doc_to_text": "{{say}}", "doc_to_target": "{{answer}}",
        },
    )  # fmt: skip
    task.check()
    for n, context in enumerate(contexts(task)):
        assert len(context.split("\n\n")) == 5
        assert (ROWS[4]["query"] in context.rpartition("\n\n")[0]) <= (n != 4)


@pytest.mark.parametrize(
    ("content", "shots", "most"),
    [(ROWS, COUNT - 1, None), (ROWS, COUNT, COUNT - 1), (ROWS * 2, COUNT, None),
     ([ROWS[0]] * 9 + ROWS[1:3], 3, 2), (ROWS, 500, COUNT - 1)],
)  # fmt: skip
def test_more_examples_than_rows_is_one_line_before_the_start(tmp_path, content, shots, most):
    task = ZeroShot([str(jsonl(tmp_path / "q.jsonl", content))], fewshot=shots)
    if most is None:
        task.check()
        return
    with pytest.raises(ValueError, match=f"task 'q': {shots} examples .* there are {most} that"):
        task.check()


def test_a_limit_shortens_what_is_asked_and_not_what_is_shown(tmp_path):
    task = ZeroShot([str(jsonl(tmp_path / "q.jsonl", ROWS))], fewshot=COUNT - 1, limit=2)
    task.check()
    assert all(len(examples(one)) == COUNT - 1 for one in contexts(task, limit=2))


def test_every_run_sees_the_same_examples(tmp_path, tiny_model, tiny_tokenizer):
    task = ZeroShot([str(jsonl(tmp_path / "q.jsonl", ROWS))], fewshot=2, limit=5)
    context = Context("some-model", True, Cache(tmp_path / "states"))
    first, second = (
        task.evaluate(tiny_model(seed=seed), tiny_tokenizer, context) for seed in (0, 1)
    )
    assert first.hashes == second.hashes
    assert first.flops == second.flops == task.flops(tiny_model(), tiny_tokenizer, True)
    without = ZeroShot(task.tasks, limit=5).evaluate(tiny_model(), tiny_tokenizer, context)
    assert without.hashes != first.hashes
