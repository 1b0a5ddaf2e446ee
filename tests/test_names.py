"""Names are one component of a path, everywhere the same; what comes from a file is made so."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from runs import CONF, configured, do, words

from harness.command import cli
from harness.command.runs import runs
from harness.evaluate.zeroshot import ZeroShot
from harness.inputs.corpora import LocalText
from harness.inputs.models import HubModel
from harness.inputs.names import LONGEST, cleaned, name_problem
from harness.settings.config import ConfigError


@given(st.text())
def test_a_cleaned_name_is_one_component_and_stays_as_it_is(text: str) -> None:
    name = cleaned(text)
    assert cleaned(name) == name
    assert len(os.fsencode(name)) <= LONGEST
    assert not name or Path("x", name).parts == ("x", name)
    assert name not in (".", "..") and not name.startswith(".")
    assert (name_problem("what", text) is None) == (name == text != "")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("model.name=org/llama", "model.name='org/llama': allowed are .*; did you mean 'llama'"),
        ("model.name=../../x", r"model.name='../../x': .*; did you mean 'x'"),
        ("model.name=.hidden", "model.name='.hidden': .*; did you mean 'hidden'"),
        ("model.name='a b'", "model.name='a b': .*; did you mean 'a_b'"),
        (f"model.name={'a' * 300}", "model.name='a+…': allowed are up to 96 bytes"),
        (f"set='{'é' * 49}'", "set='é+': allowed are up to 96 bytes"),
        ("set=../../x", "set='../../x': .*; did you mean 'x'"),
        ("set=a/b", "set='a/b': .*; did you mean 'b'"),
        ("set=..", r"set='\.\.': allowed are"),
        ("set=''", "set='': allowed are"),
        ("set=wandb", "set='wandb': this folder in results has another use"),
        ("results=''", "results='': a folder is needed"),
    ],
)
def test_a_name_that_leaves_its_place_is_refused(
    words: str, said: str, tiny_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        configured(tiny_folder, tmp_path, words)
    assert "\n" not in str(caught.value)


def test_names_of_corpora_and_tasks_are_parts_of_keys(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wiki = "{_target_:harness.inputs.corpora.WikiSummaries}"
    for more, said in (
        (
            f"+eval.evaluators.perplexity.corpora={{a b:{wiki}}}",
            "in perplexity='a b': allowed are",
        ),
        ("eval.tasks=['a b']", "in zeroshot='a b': allowed are"),
    ):
        assert cli.main(print, CONF, words(tiny_folder, tmp_path, more)) == 2
        shown = capsys.readouterr().err
        assert shown.count("\n") == 1 and said in shown and "did you mean 'a_b'" in shown


def test_a_folder_of_results_that_can_t_be_is_one_line(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(print, CONF, words(tiny_folder, tmp_path / ("x" * 300))) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: results='") and said.count("\n") == 1 and "too long" in said


def test_names_of_every_script_work(tiny_folder: Path, tmp_path: Path) -> None:
    for name in ("模型-1", "модель_2.5", "modèle+"):
        assert name_problem("what", name) is None
    record = do(
        configured(tiny_folder, tmp_path, "model.name='模型'", "set='набор'", "method=none")
    )
    (run,) = runs(tmp_path / "набор")
    assert run.directory.name == record.run and run.record == record
    assert record.run.startswith("模型-none-")


def test_a_name_that_follows_from_a_path_is_made_a_component(
    tiny_folder: Path, tmp_path: Path
) -> None:
    assert HubModel("/models/my model (1)").name == "my_model_1_"
    assert HubModel("meta-llama/Llama-2-7b-hf").name == "Llama-2-7b-hf"
    assert LocalText("/texts/a b:c.txt").name == "a_b_c"
    long = "é" * 100
    assert HubModel(f"/models/{long}").name == "é" * 48
    shutil.copytree(tiny_folder / "tiny", tmp_path / "my model")
    rows = [{"query": f"{n} a", "choices": ["river", "city"], "gold": 0} for n in range(4)]
    (tmp_path / "my quiz.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = configured(
        tiny_folder, tmp_path, "method=none", f"model.path={tmp_path}/my model",
        f"eval.tasks=['{tmp_path}/my quiz.jsonl']",
    )  # fmt: skip
    assert isinstance(config.evaluators["zeroshot"], ZeroShot)
    record = do(config)
    assert record.run.startswith("my_model-none-")
    assert {"perplexity/text", "accuracy/my_quiz"} <= record.metrics.keys()
    assert {"text", "my_quiz"} <= record.hashes.keys()
