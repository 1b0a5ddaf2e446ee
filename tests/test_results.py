"""Every task, metric and filter has a name of its own, with lm-eval's value and standard error."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from lm_eval.evaluator import evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from merges import CHAT, merging
from runs import configured

from harness.command.checks import checks
from harness.evaluate import catalogue
from harness.evaluate.base import Context
from harness.evaluate.results import families
from harness.evaluate.zeroshot import ZeroShot
from harness.records.cache import Cache

MEAN = {"aggregation": "mean", "higher_is_better": True}


@pytest.fixture
def context(tmp_path: Path) -> Context:
    return Context("some-model", True, Cache(tmp_path / "states"))


def rows(count: int, first: int = 0) -> list[dict]:
    return [
        {"query": f"Q{n}: what is {n}?", "choices": [f"{n}", f"a {n + 1}", "b"], "gold": n % 3}
        for n in range(first, first + count)
    ]


def jsonl(path: Path, content: list[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in content))
    return path


def choosing(folder: Path, name: str, content: list[dict], **config) -> dict:
    """A multiple-choice task's YAML, written into ``folder``."""
    data = jsonl(folder / "data" / f"{name}.jsonl", content)
    task = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{query}}",
        "doc_to_choice": "choices",
        "doc_to_target": "gold",
        "metric_list": [{"metric": "acc", **MEAN}],
    }
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(task | config))
    return task


def lm_eval(folder: Path, names: list[str], model, tokenizer, **options) -> dict:
    """lm-eval's own results with its own model class."""
    loaded = TaskManager(include_path=folder, include_defaults=False).load(names)
    lm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=4)
    return evaluate(lm=lm, task_dict=loaded, **{"bootstrap_iters": 0, **options})


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
    assert found == ["eval.chat_template=true: the tokenizer has no chat template"]


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
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump({"group": name, "task": members}))
    assert "tasks both and one: one name 'one'" in refused(["both", "one"], tmp_path)
    assert "tasks self and both: one name 'one'" in refused(["self", "both"], tmp_path)
    assert "tasks tagged and two: one name 'two'" in refused(["tagged", "two"], tmp_path)
    file = jsonl(tmp_path / "files" / "two.jsonl", rows(3))
    assert "one name 'two'" in refused(["both", str(file)], tmp_path)
    assert "group 'outer': its task 'one' would count twice" in refused(["outer"], tmp_path)
    ZeroShot(["tagged"], include=str(tmp_path)).check()


def without_index(monkeypatch) -> None:
    """lm-eval's own index takes many seconds."""
    manager = catalogue.manager
    monkeypatch.setattr(catalogue, "manager", lambda include, defaults: manager(include, False))


@pytest.mark.parametrize("weighted", [True, False])
def test_groups_have_lm_eval_s_value_and_standard_error(
    tmp_path, tiny_model, tiny_tokenizer, context, monkeypatch, weighted
):
    without_index(monkeypatch)
    metrics = [{"metric": name, **MEAN} for name in ("acc", "acc_norm")]
    for name, content in (("small", rows(6)), ("large", rows(17, 50)), ("third", rows(9, 90))):
        choosing(tmp_path, name, content, metric_list=metrics)
    mean = [
        {"metric": name, "aggregation": "mean", "weight_by_size": weighted}
        for name in ("acc", "acc_norm")
    ]
    for name, members in (("inner", ["small", "large"]), ("outer", ["inner", "third"])):
        group = {"group": name, "task": members, "aggregate_metric_list": mean}
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(group))
    model = tiny_model()
    found = ZeroShot(["outer"], include=str(tmp_path)).evaluate(model, tiny_tokenizer, context)
    expected = lm_eval(tmp_path, ["outer"], model, tiny_tokenizer, bootstrap_iters=1)["results"]
    names = ("small", "large", "third", "inner", "outer")
    families = {"acc": "accuracy", "acc_norm": "accuracy_norm"}
    assert len(found.metrics) == 4 * len(names)
    for name in names:
        for theirs, ours in families.items():
            value, error = (expected[name][f"{theirs}{part},none"] for part in ("", "_stderr"))
            assert 0 < error < 0.5
            assert found.metrics[f"{ours}/{name}"] == pytest.approx(value, rel=1e-12)
            assert found.metrics[f"{ours}_stderr/{name}"] == pytest.approx(error, rel=1e-12)
    assert {key.split("/")[1] for key in found.samples} == {"small", "large", "third"}
    assert set(found.hashes) == set(names)
    jsonl(tmp_path / "data" / "third.jsonl", rows(9, 91))
    again = ZeroShot(["outer"], include=str(tmp_path)).evaluate(model, tiny_tokenizer, context)
    changed = {name for name in names if again.hashes[name] != found.hashes[name]}
    assert changed == {"third", "outer"}


def test_every_metric_has_lm_eval_s_value_under_its_own_name(
    tmp_path, tiny_model, tiny_tokenizer, context
):
    kept = (
        "acc",
        "acc_norm",
        "acc_bytes",
        "acc_mutual_info",
        "exact_match",
        "f1",
        "mcc",
        "brier_score",
    )
    two = [{**row, "choices": row["choices"][:2], "gold": row["gold"] // 2} for row in rows(12)]
    choosing(tmp_path, "all", two, metric_list=[{"metric": one} for one in kept])
    words = [{"context": f"After {n} comes", "end": f" {n + 1}"} for n in range(9)]
    choosing(
        tmp_path, "words", words, output_type="loglikelihood", doc_to_text="{{context}}",
        doc_to_target="{{end}}", doc_to_choice=None,
        metric_list=[{"metric": "acc"}, {"metric": "perplexity"}],
    )  # fmt: skip
    choosing(
        tmp_path, "texts", words, output_type="loglikelihood_rolling", doc_to_text="",
        doc_to_target="{{context}}{{end}}", doc_to_choice=None, metric_list=None,
    )  # fmt: skip
    model, names = tiny_model(), ["all", "words", "texts"]
    task = ZeroShot(names, include=str(tmp_path))
    task.check()
    found = task.evaluate(model, tiny_tokenizer, context).metrics
    expected = lm_eval(tmp_path, names, model, tiny_tokenizer)["results"]
    ours = {"acc": "accuracy", "acc_norm": "accuracy_norm", "perplexity": "answer_perplexity"}
    seen = set()
    for name in names:
        for key, value in expected[name].items():
            metric, _, chosen = key.partition(",")
            if not chosen or metric.endswith("_stderr"):
                continue
            seen.add(f"{ours.get(metric, metric)}/{name}")
            assert found[f"{ours.get(metric, metric)}/{name}"] == pytest.approx(value, rel=1e-5)
    assert len(seen) == len(kept) + 2 + 3
    errors = {key for key in found if "_stderr/" in key}
    assert errors == {
        f"{one}_stderr/all"
        for one in ("accuracy", "accuracy_norm", "acc_bytes", "acc_mutual_info", "exact_match")
    } | {"accuracy_stderr/words"}
    assert set(found) == seen | errors


def test_the_only_exact_match_is_the_accuracy():
    assert families(["exact_match"], "t") == {"exact_match": "accuracy"}
    assert families(["acc", "exact_match"], "t")["exact_match"] == "exact_match"
    assert families(["rouge/L", "bypass"], "t") == {"rouge/L": "rouge_L"}
    with pytest.raises(ValueError, match="task 't': metrics of one name among acc, accuracy"):
        families(["acc", "accuracy"], "t")
    with pytest.raises(ValueError, match="task 't': measures nothing"):
        families(["bypass"], "t")


def test_every_filter_has_a_name(tmp_path, tiny_model, tiny_tokenizer, context):
    """As gsm8k has it: a strict and a flexible reading of one generated text."""
    taken = {"function": "take_first"}
    filters = [
        {"name": "strict", "filter": [{"function": "regex", "regex_pattern": "(zzz)"}, taken]},
        {"name": "flexible", "filter": [{"function": "regex", "regex_pattern": "(.)"}, taken]},
    ]
    content = [{"prompt": f"A river is {n}", "answer": "[invalid]"} for n in range(4)]
    choosing(
        tmp_path, "read", content, output_type="generate_until", doc_to_text="{{prompt}}",
        doc_to_target="{{answer}}", doc_to_choice=None, filter_list=filters,
        generation_kwargs={"max_gen_toks": 3, "until": [], "do_sample": False},
        metric_list=[{"metric": "exact_match", **MEAN}],
    )  # fmt: skip
    task = ZeroShot(["read"], include=str(tmp_path))
    task.check()
    found = task.evaluate(tiny_model(), tiny_tokenizer, context)
    assert found.metrics["accuracy/read:strict"] == 1.0
    assert found.metrics["accuracy/read:flexible"] < 1.0
    assert set(found.samples) == {"accuracy/read:strict", "accuracy/read:flexible"}
    assert found.samples["accuracy/read:strict"] == [1.0] * 4
    assert set(found.hashes) == {"read:strict", "read:flexible"}
    assert found.metrics["accuracy_stderr/read:strict"] == 0


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


def test_hashes_are_of_prompts_choices_answers_and_start_tokens(tmp_path, tiny_model, context):
    content = rows(4)

    def hashed(content: list[dict], **options) -> str:
        file = jsonl(tmp_path / "q.jsonl", content)
        task = ZeroShot([str(file)], **options)
        return task.evaluate(tiny_model(), merging(before=["<s>"]), context).hashes["q"]

    first = hashed(content)
    assert hashed(content, bos="every") == first == hashed(content, batch_size=2)
    assert hashed(content, bos="none") != first
    assert hashed(content[:3]) != first
    content[2]["choices"][1] = "another wrong one"
    second = hashed(content)
    assert second != first
    content[2]["gold"] = 0
    assert hashed(content) not in (first, second)


def test_cut_prompts_are_counted_and_said(tmp_path, tiny_model):
    content = rows(4)
    content[1]["query"] = "long " * 60
    file, said = jsonl(tmp_path / "q.jsonl", content), []
    context = Context("some-model", True, Cache(tmp_path / "states"), say=said.append)
    found = ZeroShot([str(file)]).evaluate(tiny_model(), merging(), context)
    assert found.metrics["prompts_cut/q"] == 3
    assert said == ["  q: 3 prompts cut on the left, to 256 tokens"]


@pytest.mark.parametrize("shots", [0, 2])
def test_chat_templates_are_lm_eval_s(tmp_path, tiny_model, context, shots):
    content = rows(8)
    splits = {"fewshot_split": "test", "num_fewshot": shots}
    choosing(tmp_path, "chat", content, description="Answer.", **splits)
    model, tokenizer = tiny_model(), merging(before=["<s>"], chat=CHAT)
    expected = lm_eval(
        tmp_path, ["chat"], model, tokenizer, apply_chat_template=True, fewshot_as_multiturn=True
    )
    task = ZeroShot(["chat"], include=str(tmp_path), chat_template=True)
    found = task.evaluate(model, tokenizer, context)
    samples = expected["samples"]["chat"]
    assert samples[0]["arguments"][0][0].startswith("<s>[system] Answer.\n[user] Q")
    assert samples[0]["arguments"][0][0].count("[assistant]") == shots + 1
    assert found.samples["accuracy/chat"] == [one["acc"] for one in samples]
    plain = ZeroShot(["chat"], include=str(tmp_path)).evaluate(model, tokenizer, context)
    assert plain.hashes != found.hashes
    task.check_tokenizer(lambda: tokenizer)
    with pytest.raises(ValueError, match=r"eval.chat_template=true: .* has no chat template"):
        task.check_tokenizer(merging)
    with pytest.raises(ValueError, match="bos=every: the tokenizer has no start token"):
        ZeroShot([], bos="every").check_tokenizer(lambda: merging(named=False))
