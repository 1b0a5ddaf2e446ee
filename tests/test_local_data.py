"""Local files in place of the hub: every form, every layout of rows, and the real files if there."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import datasets
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from harness.evaluate.base import Context
from harness.evaluate.questions import LAYOUTS, local_questions
from harness.evaluate.zeroshot import ZeroShot
from harness.inputs import texts
from harness.inputs.corpora import HubText, LocalText
from harness.records.cache import Cache

ROOT = Path(__file__).parents[1]
DATA = Path(os.environ.get("QEP_BENCH_DATA", ROOT.parent / "shared" / "data"))
real = pytest.mark.skipif(not DATA.is_dir(), reason="the public files are not here")

OURS = [
    {"query": f"Question: how many are {n} and one?\n", "choices": ["2", str(n + 1)], "gold": 1}
    for n in range(2, 8)
]
ARC = [
    {
        "id": f"q{n}",
        "question": f"how many are {n} and one?",
        "choices": {"text": ["2", str(n + 1)], "label": ["A", "B"] if n % 2 else ["1", "2"]},
        "answerKey": "B" if n % 2 else "2",
    }
    for n in range(2, 8)
]
PIQA = [
    {"goal": f"how many are {n} and one?", "sol1": "2", "sol2": str(n + 1), "label": 1}
    for n in range(2, 8)
]
WORDS = [{"context": f"After {n} comes", "continuation": str(n + 1)} for n in range(6)]


def jsonl(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return path


def saved(rows: list[dict], form: str, folder: Path) -> Path:
    """The rows in one of the forms that are read, in a file or directory called numbers."""
    folder.mkdir(exist_ok=True)
    if form == "jsonl":
        return jsonl(folder / "numbers.jsonl", rows)
    data = datasets.Dataset.from_list(rows)
    if form == "parquet":
        data.to_parquet(folder / "numbers.parquet")
        return folder / "numbers.parquet"
    data.save_to_disk(str(folder / "numbers"))
    return folder / "numbers"


@pytest.mark.parametrize("form", ["jsonl", "parquet", "directory"])
@pytest.mark.parametrize("rows", [OURS, ARC, PIQA], ids=["ours", "arc", "piqa"])
def test_choices_in_every_form_and_layout(
    form, rows, tmp_path, tiny_model, tiny_tokenizer
) -> None:
    path = saved(rows, form, tmp_path)
    task = ZeroShot([str(path)])
    task.check()
    context = Context("some-model", True, Cache(tmp_path / "states"))
    found = task.evaluate(tiny_model(), tiny_tokenizer, context)
    expected = ZeroShot([str(saved(OURS, "jsonl", tmp_path / "expected"))]).evaluate(
        tiny_model(), tiny_tokenizer, context
    )
    assert found.metrics == expected.metrics
    assert found.hashes == expected.hashes  # of prompts and answers
    assert found.flops == expected.flops > 0


@pytest.mark.parametrize("form", ["jsonl", "parquet", "directory"])
def test_words_in_every_form(form, tmp_path) -> None:
    path = saved(WORDS, form, tmp_path)
    ZeroShot([str(path)]).check()
    assert list(local_questions(str(path))["test"]) == WORDS


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([*OURS, {**OURS[0], "gold": 2}], "row 7: the answer is none of its choices"),
        ([*ARC, {**ARC[0], "answerKey": "E"}], "row 7: the answer is none of its choices"),
        ([{**PIQA[0], "label": -1}], "row 1: the answer is none of its choices"),
        ([*OURS, {"query": "and?"}], r"row 7: rows need the keys \(query, choices, gold\) or"),
        ([*OURS, PIQA[0]], "row 7: rows need the keys .*; it has goal, label, sol1, sol2$"),
        ([*OURS, {**OURS[0], "gold": -1}], "row 7: the answer .*: -1, allowed are 0 to 1"),
        ([{**OURS[0], "gold": "1"}], "row 1: the answer is none of its choices: '1'"),
        ([{**OURS[0], "gold": True}], "row 1: the answer is none of its choices: True"),
        ([{**OURS[0], "gold": 1.0}], "row 1: the answer is none of its choices: 1.0"),
        ([{**OURS[0], "gold": None}], "row 1: the answer is none of its choices: None"),
        ([{**OURS[0], "gold": [1]}], r"row 1: the answer is none of its choices: \[1\]"),
        ([OURS[0], {**OURS[0], "choices": []}], r"row 2: choices=\[\]: a list of two or more"),
        ([OURS[0], {**OURS[0], "choices": ["2"], "gold": 0}], "row 2: .*: a list of two or more"),
        ([{**OURS[0], "choices": "ABCD"}], "row 1: choices='ABCD': a list of two or more"),
        ([{**OURS[0], "choices": {"text": ["a", "b"], "label": ["A", "B"]}}], "row 1: choices="),
        ([OURS[0], {**OURS[0], "choices": [2, "3"]}], "row 2: the choice 2 is no text"),
        ([OURS[0], {**OURS[0], "choices": ["2", " "]}], "row 2: the choice ' ' is no text"),
        ([OURS[0], {**OURS[0], "query": None}], "row 2: query=None: a text is needed"),
        ([*ARC, {**ARC[0], "choices": ["2", "3"]}], "row 7: choices=.*text and label are needed"),
        ([*ARC, {**ARC[0], "choices": {"text": ["2"], "label": ["1", "2"]}}], "row 7: .* 1 texts"),
        (
            [*ARC, {**ARC[0], "choices": {"text": ["2", "3"], "label": ["1", "1"]}}],
            "row 7: choices has a label twice: 1, 1",
        ),
        ([*ARC, {**ARC[0], "answerKey": 1}], "row 7: the answer .*: 1, allowed are 1, 2"),
        ([*ARC, {**ARC[0], "question": 5}], "row 7: question=5: a text is needed"),
        ([{**PIQA[0], "sol2": ""}], "row 1: the choice '' is no text"),
        ([*WORDS, {"context": "After", "continuation": " "}], "row 7: continuation is empty"),
        ([*WORDS, {"context": None, "continuation": "x"}], "row 7: context=None"),
    ],
)
def test_rows_that_are_no_questions(rows, message, tmp_path) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        ZeroShot([str(jsonl(tmp_path / "q.jsonl", rows))]).check()
    assert "\n" not in str(caught.value)


def test_every_layout_is_documented() -> None:
    page = (ROOT / "docs" / "local_data.md").read_text()
    for layout in LAYOUTS:
        assert "| " + ", ".join(f"`{key}`" for key in layout) in page


PARAGRAPHS = ["= Title =", "", "A line separator\u2028inside.", "The last of the three."] * 40


@pytest.mark.parametrize("form", ["jsonl", "parquet", "directory"])
def test_a_local_copy_of_a_hub_dataset_is_prepared_alike(
    form, tmp_path, tiny_tokenizer, monkeypatch
) -> None:
    rows = [{"text": one, "number": at} for at, one in enumerate(PARAGRAPHS)]
    monkeypatch.setattr(
        datasets, "load_dataset", lambda *_, **__: datasets.Dataset.from_list(rows)
    )
    path = str(saved(rows, form, tmp_path))
    for options in (
        {"windows": 8, "length": 16},
        {"windows": 8, "length": 16, "preparation": "spaces"},
        {"windows": 8, "length": 16, "sample": True},
        {"windows": 3, "length": 8, "preparation": "documents"},
    ):
        hub, local = (HubText(one, "name", **options) for one in ("owner/name", path))
        local.check()
        assert torch.equal(local.tokens(tiny_tokenizer, 0).ids, hub.tokens(tiny_tokenizer, 0).ids)
    joined = HubText(path, "name", windows=8, length=16).tokens(tiny_tokenizer, 0).ids
    plain = "\n\n".join(PARAGRAPHS)  # empty rows too, as GPTQ's evaluation joins them
    assert joined.flatten().tolist() == tiny_tokenizer(plain)["input_ids"][: 8 * 16]
    (tmp_path / "plain.txt").write_text(plain)
    for corpus in (HubText(str(tmp_path / "plain.txt"), "name", windows=8, length=16),
                   LocalText(path, key="text", windows=8, length=16)):  # fmt: skip
        assert torch.equal(corpus.tokens(tiny_tokenizer, 0).ids, joined)


def test_a_path_that_looks_local_but_is_not_there(tmp_path) -> None:
    with pytest.raises(ValueError, match="no such file"):
        HubText(str(tmp_path / "absent.jsonl"), "name").check()
    assert not texts.is_local("owner/name")


WIKITEXT = ("Salesforce/wikitext", "wikitext-2-raw-v1", "test", None, None)
PTB = (
    "ptb-text-only/ptb_text_only",
    None,
    "{0}",
    "refs/convert/parquet",
    "penn_treebank/{0}/*.parquet",
)
C4 = ("allenai/c4", None, "{0}", None, "en/c4-{0}.00000-of-0{1}.json.gz")


@pytest.mark.parametrize(
    ("group", "name", "asked_for"),
    [
        ("eval=qep_paper", "wikitext2", WIKITEXT),
        ("eval=qep_paper", "ptb", [part and part.format("test") for part in PTB]),
        ("eval=qep_paper", "c4", [part and part.format("validation", "0008") for part in C4]),
        ("eval=quantease_paper", "wikitext2", WIKITEXT),
        ("eval=quantease_paper", "ptb", [part and part.format("validation") for part in PTB]),
        ("calibration=c4", "", [part and part.format("train", "1024") for part in C4]),
        ("calibration=qep_paper", "", [part and part.format("train", "1024") for part in C4]),
        ("calibration=quantease_paper", "",
         [part and part.format("validation", "0008") for part in C4]),
        ("calibration=pileval", "", ("mit-han-lab/pile-val-backup", None, "validation", None, None)),
    ],
)  # fmt: skip
def test_what_the_hub_is_asked_for(group, name, asked_for, monkeypatch, tiny_tokenizer) -> None:
    """Names, splits and columns of the datasets as the authors' scripts read them."""
    asked = {}

    def load(path, config, **options):
        asked.update(path=path, config=config, **options)
        column = "sentence" if name == "ptb" else "text"
        return datasets.Dataset.from_list([{column: "a river " * 99}] * 30)

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.setattr(texts, "hub_commit", lambda path, revision: f"commit of {revision}")
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        found = compose(overrides=[f"+{group}"])
    corpus = instantiate(
        found.eval.evaluators.perplexity.corpora[name] if name else found.calibration
    )
    length = 512 if group == "calibration=pileval" else 2048
    assert corpus.length == length and corpus.holdout == 0
    sizes = {"length": 64 if length == 2048 else 512, "windows": 4}
    if corpus.preparation == "awq_documents":
        sizes["documents"] = 30
    assert replace(corpus, **sizes).tokens(tiny_tokenizer, 0).ids.shape == (4, sizes["length"])
    path, config, split, revision, files = asked_for
    assert asked == {
        "path": path,
        "config": config,
        "split": split,
        "revision": revision and f"commit of {revision}",
        "data_files": None if files is None else {split: files},
    }


@real
@pytest.mark.parametrize("name", ["arc_easy", "piqa", "lambada_openai"])
def test_the_real_questions(name, tmp_path, tiny_model, tiny_tokenizer) -> None:
    task = ZeroShot([str(DATA / f"{name}.jsonl")], limit=4)
    task.check()
    found = task.evaluate(tiny_model(), tiny_tokenizer, Context("m", True, Cache(tmp_path)))
    keys = {"accuracy"} if name == "lambada_openai" else {"accuracy", "accuracy_norm"}
    assert {key.split("/")[0] for key in found.samples} == keys
    assert all(key.endswith(f"/{name}") for key in found.metrics)


@real
def test_the_real_wikitext(tiny_tokenizer) -> None:
    corpus = LocalText(str(DATA / "wikitext2_test.txt"), windows=3, length=64)
    corpus.check()
    found = corpus.tokens(tiny_tokenizer, 0)
    assert tiny_tokenizer.decode(found.ids[0]).lstrip().startswith("= Robert <unk> =")


@real
def test_eval_local_reads_the_folder_data(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").symlink_to(DATA)
    monkeypatch.setattr("harness.evaluate.zeroshot.assets.fetch", lambda asset: None)
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        plain = compose(overrides=["+eval=local"]).eval.evaluators
    evaluators = instantiate(plain, _convert_="all")
    assert list(evaluators["perplexity"].corpora) == ["wiki", "wikitext2_local"]
    for evaluator in evaluators.values():
        evaluator.check()
