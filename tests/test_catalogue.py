"""Tasks that can't be asked, or not under a name of their own: one line before anything starts."""

from __future__ import annotations

from pathlib import Path

import pytest
from asking import MEAN, choosing, grouping, jsonl, rows, without_index
from runs import configured

from harness.command.checks import checks
from harness.evaluate.zeroshot import ZeroShot


def refused(names: list[str], folder: Path | None = None) -> str:
    with pytest.raises(ValueError) as caught:
        ZeroShot(names, include=str(folder) if folder else None).check()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_two_files_of_one_name_are_refused(tmp_path):
    one, other = (jsonl(tmp_path / part / "q.jsonl", rows(3)) for part in ("a", "b"))
    assert f"tasks {one} and {other}: one name 'q'" in refused([str(one), str(other)])
    assert f"tasks {one} twice: one name 'q'" in refused([str(one), str(one)])
    line = jsonl(tmp_path / "q.ndjson", rows(3))
    assert "one name 'q'" in refused([str(one), str(line)])


def problems(folder: Path, place: Path, *words: str) -> list[str]:
    return list(checks([configured(folder, place / "results", *words)]))


@pytest.mark.parametrize(
    ("name", "other"), [("model", "the run itself"), ("text", "perplexity"), ("mine", "")]
)
def test_a_task_has_no_name_that_something_else_in_a_record_has(
    tiny_folder, tmp_path, name, other
):
    file = jsonl(tmp_path / f"{name}.jsonl", rows(3))
    found = problems(tiny_folder, tmp_path, f"eval.tasks=[{file}]")
    said = f"eval: {name!r} of zeroshot is a name that {other} has as well; rename one"
    assert found == ([said] if other else [])


def test_what_the_tokenizer_lacks_is_said_before_the_start(tiny_folder, tmp_path):
    found = problems(tiny_folder, tmp_path, "eval.chat_template=true")
    assert found == ["evaluation: eval.chat_template=true: the tokenizer has no chat template"]


def test_a_file_and_a_task_of_one_name_are_refused(tmp_path, wiki):
    choosing(tmp_path, "mine", rows(3))
    file = jsonl(tmp_path / "files" / "mine.jsonl", rows(3))
    assert "one name 'mine'" in refused([str(file), "mine"], tmp_path)
    assert "one name 'mine'" in refused(["mine", "mine"], tmp_path)
    ours = jsonl(tmp_path / "files" / "wiki_term.jsonl", rows(3))
    assert "one name 'wiki_term'" in refused(["wiki_term", str(ours)])
    choosing(tmp_path, "wiki_term", rows(3))
    assert "has the name of one of ours" in refused(["wiki_term"], tmp_path)


def test_a_task_alone_and_in_a_group_is_refused(tmp_path, monkeypatch):
    without_index(monkeypatch)
    for name in ("one", "two"):
        choosing(tmp_path, name, rows(3), tag="tagged")
    for name, members in (("both", ["one", "two"]), ("outer", ["both", "one"]), ("self", ["one"])):
        grouping(tmp_path, name, members)
    assert "tasks both and one: one name 'one'" in refused(["both", "one"], tmp_path)
    assert "tasks self and both: one name 'one'" in refused(["self", "both"], tmp_path)
    assert "tasks tagged and two: one name 'two'" in refused(["tagged", "two"], tmp_path)
    file = jsonl(tmp_path / "files" / "two.jsonl", rows(3))
    assert "one name 'two'" in refused(["both", str(file)], tmp_path)
    assert "group 'outer': its task 'one' would count twice" in refused(["outer"], tmp_path)
    ZeroShot(["tagged"], include=str(tmp_path)).check()


def test_a_task_that_runs_code_is_refused(tmp_path):
    choosing(tmp_path, "code", rows(3), unsafe_code=True)
    assert "task 'code': runs generated code" in refused(["code"], tmp_path)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"test_split": "tset"}, "task 'broken': lm-eval can't make it (KeyError: 'tset')"),
        ({"doc_to_text": "{{query"}, "task 'broken': lm-eval can't make it (TemplateSyntaxError"),
        ({"doc_to_text": "{{nothing}}"}, "task 'broken': lm-eval can't make it (UndefinedError"),
        ({"metric_list": [{"metric": "acc", "aggregation": "meen"}]}, "compute its metric 'acc'"),
        ({"metric_list": [{"metric": "accc", **MEAN}]}, "compute its metric 'accc'"),
        ({"dataset_kwargs": {"data_files": {"test": "absent.jsonl"}}}, "data can't be reached"),
    ],
)
def test_a_broken_task_is_one_line(tmp_path, changes, said):
    choosing(tmp_path, "broken", rows(3), **changes)
    assert said in refused(["broken"], tmp_path)


def test_no_such_folder(tmp_path):
    assert refused([], tmp_path / "absent").endswith("absent': no such directory")
