from __future__ import annotations

import json
import math
import os
from pathlib import Path

import lm_eval
import pytest
import torch
import yaml
from test_precision import Rounded

from harness.evaluate import catalogue, questions
from harness.evaluate.base import Context
from harness.evaluate.zeroshot import ZeroShot
from harness.inputs import texts
from harness.inputs.models import AssetModel
from harness.numerics.precision import arithmetic, forwards
from harness.records.cache import Cache

ROOT = Path(__file__).parents[1]
DATA = Path(os.environ.get("QEP_BENCH_DATA", ROOT.parent / "shared" / "data"))
OURS = ("wiki_continue", "wiki_describe", "wiki_term", "wiki_title")
ROWS = [
    {
        "query": f"Question: what is {n}?\n",
        "choices": [f"{n}", f"a {n + 1}", "many"],
        "gold": n % 3,
    }
    for n in range(20)
]


@pytest.fixture
def context(tmp_path) -> Context:
    return Context("some-model", full_precision=True, cache=Cache(tmp_path / "states"))


@pytest.fixture
def file(tmp_path) -> Path:
    path = tmp_path / "numbers.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


def likelihoods(model, tokenizer, pairs):
    """lm-eval called by hand: (log-likelihood, greedy) of each (prompt, continuation)."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    lm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=8)
    requests = [Instance("loglikelihood", {}, pair, index) for index, pair in enumerate(pairs)]
    return lm.loglikelihood(requests, disable_tqdm=True)


def by_hand(model, tokenizer, rows):
    """Per question: is the right choice the likeliest, in all and per character."""
    pairs = [
        (row["query"].strip() + "\nAnswer:", " " + choice)
        for row in rows
        for choice in row["choices"]
    ]
    found = iter(likelihoods(model, tokenizer, pairs))
    plain, normalised = [], []
    for row in rows:
        scores = [next(found)[0] for _ in row["choices"]]
        lengths = [len(choice) for choice in row["choices"]]
        plain.append(float(max(range(len(scores)), key=scores.__getitem__) == row["gold"]))
        scores = [score / length for score, length in zip(scores, lengths, strict=True)]
        normalised.append(float(max(range(len(scores)), key=scores.__getitem__) == row["gold"]))
    return plain, normalised


def test_local_choices_equal_lm_eval_by_hand(tiny_model, tiny_tokenizer, context, file):
    model = tiny_model()
    task = ZeroShot([str(file)])
    task.check()
    found = task.evaluate(model, tiny_tokenizer, context)
    plain, normalised = by_hand(model, tiny_tokenizer, ROWS)
    assert found.samples["accuracy/numbers"] == plain
    assert found.samples["accuracy_norm/numbers"] == normalised
    share = sum(plain) / 20
    assert found.metrics["accuracy/numbers"] == pytest.approx(share)
    error = math.sqrt(share * (1 - share) / 19)
    assert found.metrics["accuracy_stderr/numbers"] == pytest.approx(error)
    assert found.hashes["numbers"].startswith("version 1.0: ")


def test_local_words_equal_lm_eval_by_hand(tiny_model, tiny_tokenizer, context, tmp_path):
    model = tiny_model()
    contexts = [f"The number after {n} is" for n in range(12)]
    with torch.no_grad():  # every other continuation is the model's own choice
        own = [
            tiny_tokenizer.decode(
                model(tiny_tokenizer(c, return_tensors="pt").input_ids).logits[0, -1].argmax()
            )
            for c in contexts
        ]
    rows = [
        {"context": c, "continuation": own[i].strip() or "x" if i % 2 else "river"}
        for i, c in enumerate(contexts)
    ]
    path = tmp_path / "words.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = ZeroShot([str(path)]).evaluate(model, tiny_tokenizer, context)
    pairs = [(row["context"], " " + row["continuation"]) for row in rows]
    greedy = [float(one[1]) for one in likelihoods(model, tiny_tokenizer, pairs)]
    assert found.samples["accuracy/words"] == greedy


@pytest.mark.parametrize("name", OURS)
def test_our_questions(wiki, name):
    asked = list(getattr(questions, name)()["test"])
    titles = {one["title"] for one in texts.wiki_articles("tasks")}
    assert len(asked) == len(titles)
    assert asked == list(getattr(questions, name)()["test"])
    for question in asked:
        assert len(set(question["choices"])) == 4
        assert 0 <= question["gold"] < 4
    assert len({question["gold"] for question in asked}) == 4
    if name in ("wiki_term", "wiki_title"):
        assert {question["choices"][question["gold"]] for question in asked} == titles
        assert not any("Subject" in question["query"] for question in asked)


def test_choices_are_of_the_same_topic(wiki):
    topics = {one["title"]: one["topic"] for one in wiki}
    for question in questions.wiki_term()["test"]:
        assert len({topics[choice] for choice in question["choices"]}) == 1


def test_our_tasks_run_without_the_index_of_lm_eval(
    wiki, tiny_model, tiny_tokenizer, context, capsys, monkeypatch
):
    asked = []
    manager = catalogue.manager
    monkeypatch.setattr(
        catalogue,
        "manager",
        lambda include, defaults: asked.append(defaults) or manager(include, defaults),
    )
    task = ZeroShot(OURS, limit=4)
    task.check()
    assert asked == []
    found = task.evaluate(tiny_model(), tiny_tokenizer, context)
    assert asked == [False]
    assert {f"accuracy/{name}" for name in OURS} <= set(found.metrics)
    assert all(len(scores) == 4 for scores in found.samples.values())
    assert capsys.readouterr().err == ""


def test_more_task_files_from_a_directory(wiki, tiny_model, tiny_tokenizer, context, tmp_path):
    tasks = Path(questions.__file__).parent / "tasks"
    mine = (tasks / "wiki_term.yaml").read_text().replace("task: wiki_term", "task: mine")
    (tmp_path / "mine.yaml").write_text(mine)
    task = ZeroShot(["mine"], limit=3, include=str(tmp_path))
    task.check()
    assert "accuracy/mine" in task.evaluate(tiny_model(), tiny_tokenizer, context).metrics


def test_a_task_that_measures_nothing_is_refused(tmp_path):
    (tmp_path / "rows.jsonl").write_text(json.dumps(ROWS[0]) + "\n")
    task = {
        "task": "scored",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(tmp_path / "rows.jsonl")}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{query}}",
        "doc_to_choice": "choices",
        "doc_to_target": "gold",
        "metric_list": [{"metric": "bypass"}],
    }
    (tmp_path / "scored.yaml").write_text(yaml.safe_dump(task))
    with pytest.raises(ValueError, match=r"'scored': measures nothing \(bypass\)"):
        ZeroShot(["scored"], include=str(tmp_path)).check()


def test_data_out_of_reach_is_found_by_check(monkeypatch, tmp_path):
    monkeypatch.setattr(texts, "hub_reachable", lambda: False)
    (tmp_path / "far.yaml").write_text(
        "task: far\ndataset_path: no-such-owner/no-such-data\noutput_type: multiple_choice\n"
        "test_split: test\ndoc_to_text: q\ndoc_to_choice: c\ndoc_to_target: g\n"
    )
    with pytest.raises(ValueError, match="tasks far: data can't be reached") as caught:
        ZeroShot(["far"], include=str(tmp_path)).check()
    assert "\n" not in str(caught.value)
    assert "wiki_term" in str(caught.value)


def test_an_unknown_task(monkeypatch):
    monkeypatch.setattr(texts, "hub_reachable", lambda: False)
    manager = catalogue.manager  # the whole index takes many seconds
    monkeypatch.setattr(catalogue, "manager", lambda include, defaults: manager(include, False))
    with pytest.raises(ValueError, match="task 'wiki_tern': unknown.*did you mean 'wiki_term'"):
        ZeroShot(["wiki_tern"]).check()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file"),
        ("", "the file is empty"),
        ("\n\n", "has no rows"),
        ('{"question": "a", "answer": 1}', "query, choices, gold.*it has answer, question"),
    ],
)
def test_bad_question_files(tmp_path, content, message):
    path = tmp_path / "questions.jsonl"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ValueError, match=message):
        ZeroShot([str(path)]).check()


def test_bad_arguments():
    with pytest.raises(ValueError, match=r"fewshot=-1 .*limit=1 .*batch_size=0 "):
        ZeroShot(["wiki_term"], fewshot=-1, limit=1, batch_size=0)


def test_no_tasks(tiny_model, tiny_tokenizer, context):
    ZeroShot([]).check()
    assert ZeroShot([]).evaluate(tiny_model(), tiny_tokenizer, context).metrics == {}


def test_every_task_named_in_conf_is_lm_eval_s_or_ours():
    """By the files of lm-eval's task folders: its own index takes many seconds."""
    tasks = Path(lm_eval.__file__).parent / "tasks"
    named = set()
    for file in (ROOT / "conf").rglob("*.yaml"):
        content = yaml.safe_load(file.read_text()) or {}
        for part in (content, content.get("eval") or {}):
            named |= {one for one in part.get("tasks") or [] if not one.startswith("${")}
    assert {"arc_easy", "piqa", "storycloze_2018", "lambada_openai"} <= named
    for name in named - set(OURS):
        files = (tasks / name.split("_")[0]).rglob("*.yaml")
        assert any(f"task: {name}" in file.read_text().splitlines() for file in files), name


@pytest.mark.slow
@pytest.mark.skipif(not DATA.exists(), reason="the real questions are not here")
@pytest.mark.parametrize("name", ["arc_easy", "piqa"])
def test_real_questions_on_the_default_model(name, tmp_path):
    loaded = AssetModel("smollm2_135m", "smollm2_135m").load()
    path = DATA / f"{name}.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()[:50]]
    context = Context(loaded.content_hash, True, Cache(tmp_path))
    task = ZeroShot([os.fspath(path)], limit=50)
    found = task.evaluate(loaded.model, loaded.tokenizer, context)
    plain, normalised = by_hand(loaded.model, loaded.tokenizer, rows)
    assert found.samples[f"accuracy/{name}"] == plain
    assert found.samples[f"accuracy_norm/{name}"] == normalised


def test_a_task_that_generates_text_is_scored_as_its_own_answer(
    tiny_model, tiny_tokenizer, context, tmp_path, capsys
):
    """exact_match, against the model's own greedy continuation; in float64 with its arithmetic."""
    with arithmetic(torch.float64):
        model = tiny_model().double()
    prompts = [f"A river is {n}" for n in range(6)]
    rows = []
    for prompt in prompts:
        ids = tiny_tokenizer(prompt, return_tensors="pt").input_ids
        with forwards(model):
            whole = model.generate(ids, max_new_tokens=4, do_sample=False, pad_token_id=1)
        text = tiny_tokenizer.decode(whole[0, ids.shape[1] :], skip_special_tokens=True)
        rows.append({"prompt": prompt, "answer": text})
    rows[0]["answer"] = "something else"
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = {
        "task": "goes_on",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_text": "{{prompt}}",
        "doc_to_target": "{{answer}}",
        "generation_kwargs": {"max_gen_toks": 4, "until": [], "do_sample": False},
        "metric_list": [
            {"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}
        ],
    }
    (tmp_path / "goes_on.yaml").write_text(yaml.safe_dump(task))
    asked = ZeroShot(["goes_on"], include=str(tmp_path))
    with Rounded() as rounded:
        found = asked.evaluate(model, tiny_tokenizer, context)
    assert not rounded.operations
    assert "generate_until" not in capsys.readouterr().err
    assert found.samples["accuracy/goes_on"] == [0.0] + [1.0] * 5
    assert found.metrics["accuracy/goes_on"] == pytest.approx(5 / 6)
