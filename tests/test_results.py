"""Every task, metric and filter has a name of its own, with lm-eval's value and standard error."""

from __future__ import annotations

from pathlib import Path

import pytest
from asking import MEAN, choosing, grouping, jsonl, rows, without_index
from lm_eval.evaluator import evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from merges import CHAT, merging

from harness.evaluate.base import Context
from harness.evaluate.results import families
from harness.evaluate.zeroshot import ZeroShot
from harness.records.cache import Cache


@pytest.fixture
def context(tmp_path: Path) -> Context:
    return Context("some-model", True, Cache(tmp_path / "states"))


def lm_eval(folder: Path, names: list[str], model, tokenizer, **options) -> dict:
    """lm-eval's own results with its own model class."""
    loaded = TaskManager(include_path=folder, include_defaults=False).load(names)
    lm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=4)
    return evaluate(lm=lm, task_dict=loaded, **{"bootstrap_iters": 0, **options})


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
        grouping(tmp_path, name, members, aggregate_metric_list=mean)
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
    jsonl(tmp_path / "data" / "third-test.jsonl", rows(9, 91))
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
    prompts = [{"start": [f"cat {n}", f"a dog {n}"], "right": n % 2} for n in range(9)]
    choosing(
        tmp_path, "starts", prompts, doc_to_text="right", doc_to_choice="start",
        doc_to_target="ran away.",
    )  # fmt: skip
    choosing(tmp_path, "joined", rows(9), target_delimiter="", doc_to_text="{{query}}\n")
    choosing(tmp_path, "begun", rows(9), gen_prefix="It is")
    choosing(tmp_path, "bare", rows(9), doc_to_text="")
    model, names = tiny_model(), ["all", "words", "texts", "starts", "joined", "begun", "bare"]
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
    assert len(seen) == len(kept) + 2 + 3 + 4
    errors = {key for key in found if "_stderr/" in key}
    assert errors == {
        f"{one}_stderr/all"
        for one in ("accuracy", "accuracy_norm", "acc_bytes", "acc_mutual_info", "exact_match")
    } | {f"accuracy_stderr/{one}" for one in ("words", "starts", "joined", "begun", "bare")}
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
    assert found.metrics["prompts_cut/q"] == 1
    assert said == ["  q: 1 prompts cut on the left, to 256 tokens"]


@pytest.mark.parametrize("shots", [0, 2])
def test_chat_templates_are_lm_eval_s(tmp_path, tiny_model, context, shots):
    content = rows(8)
    splits = {"test_split": "test", "fewshot_split": "test", "num_fewshot": shots}
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
    assert task.tokens(tokenizer) == {}
    with pytest.raises(ValueError, match=r"eval.chat_template=true: .* has no chat template"):
        task.tokens(merging())
    with pytest.raises(ValueError, match="bos='every': the tokenizer has no start token"):
        ZeroShot([], bos="every").tokens(merging(named=False))
